//! What the demo starts dies with it, even if the demo is killed and runs no code any more.

#![cfg(target_os = "linux")]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

#[test]
fn a_child_ends_when_its_parent_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    // `exec` in the inner shell: the id that it writes is that of the sleeping program.
    let script = format!(
        "{} run-below $$ -- sh -c 'echo $$ > {}; exec sleep 1000' & wait",
        env!("CARGO_BIN_EXE_undertone"),
        file.display()
    );
    let mut parent = Command::new("sh").args(["-c", &script]).stdout(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    let child = loop {
        assert!(start.elapsed() < Duration::from_secs(10), "the child did not start");
        match std::fs::read_to_string(&file).unwrap_or_default().trim().parse() {
            Ok(pid) => break pid,
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    assert!(alive(child));
    // SIGKILL.
    parent.kill().unwrap();
    parent.wait().unwrap();
    let start = Instant::now();
    while alive(child) {
        assert!(start.elapsed() < Duration::from_secs(10), "the child outlived its parent");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_stranger_is_no_parent() {
    let output = Command::new(env!("CARGO_BIN_EXE_undertone"))
        .args(["run-below", "1", "--", "sh", "-c", "echo started"])
        .output()
        .unwrap();
    assert_eq!((output.status.success(), output.stdout.is_empty()), (false, true));
}
