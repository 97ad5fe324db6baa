//! Making and starting a deployment.

use std::process::{Command, Output};
use undertone_harness::{Process, Processes, binary};

fn server(args: &[&str]) -> Output {
    Command::new(binary("undertone-server")).args(args).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn init_makes_a_deployment_once_and_keeps_its_keys_to_itself() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("d");
    let dir_text = dir.to_str().unwrap();
    let first = server(&["init", "--dir", dir_text, "--listen", "127.0.0.1:0", "--host", "fl.example.org"]);
    assert!(first.status.success(), "{}", text(&first));
    assert!(text(&first).contains("https://fl.example.org:") && text(&first).contains("token create"));
    for key in ["pki/ca.key", "pki/server.key", "operator/operator.key"] {
        let mode = std::fs::metadata(dir.join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{key} is readable by others");
    }
    let ca = std::fs::read(dir.join("pki/ca.key")).unwrap();
    let again = server(&["init", "--dir", dir_text]);
    assert!(!again.status.success());
    assert!(text(&again).contains("already holds a deployment"), "{}", text(&again));
    assert_eq!(std::fs::read(dir.join("pki/ca.key")).unwrap(), ca);
}

#[test]
fn what_cannot_start_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("nowhere");
    let output = server(&["run", "--dir", nowhere.to_str().unwrap()]);
    assert!(!output.status.success() && text(&output).contains("undertone-server init"), "{}", text(&output));

    let d = Processes::start();
    let dir = d.path().join("deployment");
    let output = server(&["run", "--dir", dir.to_str().unwrap()]);
    assert!(!output.status.success() && text(&output).contains("cannot listen on"), "{}", text(&output));

    let config = std::fs::read_to_string(dir.join("server.toml")).unwrap();
    std::fs::write(dir.join("server.toml"), format!("litsen = 3\n{config}")).unwrap();
    let output = server(&["run", "--dir", dir.to_str().unwrap()]);
    assert!(text(&output).contains("did you mean \"listen\"?"), "{}", text(&output));
}

#[test]
fn it_stops_when_it_is_told_to() {
    let mut d = Processes::start();
    assert!(d.server().terminate().success());
    d.start_server();
    d.server().kill();
    d.start_server();
}

#[test]
fn help_and_version() {
    let help = text(&server(&["--help"]));
    assert!(help.contains("init") && help.contains("run") && help.contains("token create"), "{help}");
    assert!(text(&server(&["--version"])).contains(env!("CARGO_PKG_VERSION")));
    let mut command = Command::new(binary("undertone-server"));
    command.arg("runn");
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::start(command, folder.path().join("log"));
    assert_eq!(process.wait().code(), Some(2));
    assert!(process.log().contains("'run'"), "{}", process.log());
}

/// Started again in place: the same process under the same name, whose children it has not become.
#[test]
fn the_server_keeps_few_heaps() {
    let mut d = Processes::start();
    let proc = std::path::PathBuf::from(format!("/proc/{}", d.server().id()));
    let environ = std::fs::read(proc.join("environ")).unwrap();
    let heaps: Vec<_> = environ.split(|b| *b == 0).filter(|v| v.starts_with(b"MALLOC_ARENA_MAX=")).collect();
    assert_eq!(heaps.len(), 1, "{}", String::from_utf8_lossy(&environ));
    assert_eq!(std::fs::read_to_string(proc.join("comm")).unwrap(), "undertone-serve\n");
    let line = std::fs::read_to_string(proc.join("cmdline")).unwrap();
    assert!(line.contains("\0run\0--dir\0"), "{line:?}");
}
