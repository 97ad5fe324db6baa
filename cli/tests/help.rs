//! The help texts are part of the product: a change shows up in review as a change of these files.
//! `UNDERTONE_WRITE_HELP=1 cargo test -p undertone-cli --test help` writes them anew.

use std::path::Path;
use std::process::Command;

const COMMANDS: [&str; 30] = [
    "",
    "job",
    "job submit",
    "job list",
    "job show",
    "job watch",
    "job cancel",
    "model",
    "model download",
    "client",
    "client list",
    "token",
    "token create",
    "token list",
    "token revoke",
    "privacy",
    "privacy epsilon",
    "privacy calibrate",
    "privacy plan",
    "ledger",
    "ledger show",
    "ledger verify",
    "ledger export",
    "privacy audit",
    "bench",
    "bench round",
    "bench curve",
    "bench idle",
    "demo",
    "nonsense",
];

#[test]
fn help_is_as_reviewed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/help");
    let write = std::env::var_os("UNDERTONE_WRITE_HELP").is_some();
    for command in COMMANDS {
        let output = Command::new(env!("CARGO_BIN_EXE_undertone"))
            .args(command.split_whitespace())
            .arg("--help")
            .env_remove("UNDERTONE_OPERATOR")
            .env("COLUMNS", "100")
            .output()
            .unwrap();
        let bytes = if output.status.success() { output.stdout } else { output.stderr };
        let text = String::from_utf8(bytes).unwrap();
        let name = if command.is_empty() { "undertone".to_owned() } else { command.replace(' ', "-") };
        let file = folder.join(format!("{name}.txt"));
        if write {
            std::fs::write(&file, &text).unwrap();
        }
        let reviewed = std::fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(text, reviewed, "{}: if this is meant, run with UNDERTONE_WRITE_HELP=1", file.display());
    }
}
