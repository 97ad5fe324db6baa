use super::*;
use rustix::process::test_kill_process;
use std::time::Instant;

/// Real children: the shell stands in for the daemons.
fn programs() -> (tempfile::TempDir, Programs) {
    let folder = tempfile::tempdir().unwrap();
    let programs = Programs { this: "/nonexistent".into(), folder: PathBuf::from("/bin"), lasting: true };
    (folder, programs)
}

fn alive(pid: u32) -> bool {
    // A zombie still has a process id; its state says so.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    test_kill_process(Pid::from_raw(pid as i32).unwrap()).is_ok() && !stat.contains(") Z ")
}

async fn wait_for(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(10), "waited in vain");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Starts a shell with a child of its own; gives both ids.
async fn family(fleet: &mut Fleet, folder: &Path, name: &str, trap: &str) -> (u32, u32) {
    let log = folder.join(name);
    fleet.start(name, "sh", &[&"-c", &format!("{trap} sleep 1000 & echo $!; wait")], &log).unwrap();
    let inner = || std::fs::read_to_string(&log).unwrap().trim().parse().ok();
    wait_for(|| inner().is_some()).await;
    (fleet.ids().last().unwrap().1, inner().unwrap())
}

#[tokio::test]
async fn stopping_leaves_nobody() {
    let (folder, programs) = programs();
    let mut fleet = Fleet::new(programs);
    let (server, below_server) = family(&mut fleet, folder.path(), "server", "").await;
    let (client, below_client) = family(&mut fleet, folder.path(), "client", "").await;
    fleet.check().unwrap();
    assert!([server, below_server, client, below_client].into_iter().all(alive));
    fleet.stop().await;
    wait_for(|| ![server, below_server, client, below_client].into_iter().any(alive)).await;
}

#[tokio::test]
async fn dropping_leaves_nobody_not_even_the_deaf() {
    let (folder, programs) = programs();
    let mut fleet = Fleet::new(programs);
    let (deaf, below) = family(&mut fleet, folder.path(), "deaf", "trap '' TERM;").await;
    drop(fleet);
    wait_for(|| !alive(deaf) && !alive(below)).await;
}

#[tokio::test]
async fn leaving_leaves_them_running() {
    let (folder, programs) = programs();
    let mut fleet = Fleet::new(programs);
    let (leader, below) = family(&mut fleet, folder.path(), "kept", "").await;
    fleet.leave();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(alive(leader) && alive(below));
    Group(Pid::from_raw(leader as i32)).signal(Signal::KILL);
    wait_for(|| !alive(below)).await;
}

#[tokio::test]
async fn a_dead_daemon_is_told_with_its_last_words() {
    let (folder, programs) = programs();
    let mut fleet = Fleet::new(programs);
    fleet
        .start("hungary", "sh", &[&"-c", &"echo disk full >&2; exit 3"], &folder.path().join("log"))
        .unwrap();
    let mut said = String::new();
    let start = Instant::now();
    while said.is_empty() && start.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        said = fleet.check().err().map(|e| e.to_string()).unwrap_or_default();
    }
    assert_eq!(said, "hungary stopped (exit status: 3): disk full");
}

#[tokio::test]
async fn a_failed_command_says_why() {
    let (_folder, programs) = programs();
    let e = programs.run("sh", &[&"-c", &"echo no such job >&2; exit 2"]).await.unwrap_err().to_string();
    assert_eq!(e, "`sh -c` failed (exit status: 2): no such job");
    let output = programs.run("sh", &[&"-c", &"echo fine"]).await.unwrap();
    assert_eq!(output.stdout, b"fine\n");
}

#[test]
fn a_tail_is_short() {
    assert_eq!(tail("\n\n"), "it said nothing");
    assert_eq!(tail("one\n"), "one");
    let long: String = (0..100).map(|i| format!("line {i}\n")).collect();
    assert_eq!(tail(&long).lines().count(), TAIL + 1);
    assert!(tail(&long).ends_with("line 99"));
}
