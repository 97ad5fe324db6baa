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

/// The coordinator of a deployment, started by hand; no variable of ours or glibc's in its environment but these.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn started(d: &Processes, mut command: Command, variables: &[(&str, &str)]) -> Process {
    for name in HEAPS {
        command.env_remove(name);
    }
    command.env_remove("UNDERTONE_HEAPS").envs(variables.iter().copied());
    let log = d.path().join("by-hand.log");
    let _ = std::fs::remove_file(&log);
    let process = Process::start(command, log);
    process.wait_for("listening on");
    process
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
const HEAPS: [&str; 4] =
    ["MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_"];

/// Those variables of a process that say how the C library keeps memory.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn heaps(process: &Process) -> Vec<String> {
    let environ = std::fs::read_to_string(format!("/proc/{}/environ", process.id())).unwrap();
    let about = |name: &str| HEAPS.iter().any(|heap| heap == &name.split('=').next().unwrap());
    environ.split('\0').filter(|variable| about(variable)).map(Into::into).collect()
}

/// Started again in place: the same process under the same name, whose children it has not become.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn the_server_keeps_few_heaps() {
    let mut d = Processes::start();
    d.server().kill();
    let run = |d: &Processes| {
        let mut command = Command::new(binary("undertone-server"));
        command.arg("run").arg("--dir").arg(d.path().join("deployment"));
        command
    };
    {
        let server = started(&d, run(&d), &[]);
        let set = heaps(&server);
        assert!(HEAPS.iter().all(|name| set.iter().any(|s| s.starts_with(&format!("{name}=")))), "{set:?}");
        let proc = std::path::PathBuf::from(format!("/proc/{}", server.id()));
        assert_eq!(std::fs::read_to_string(proc.join("comm")).unwrap(), "undertone-serve\n");
        let line = std::fs::read_to_string(proc.join("cmdline")).unwrap();
        assert!(line.contains("\0run\0--dir\0"), "{line:?}");
    }
    // What an operator set stands, and one may say no to all of it.
    let set = heaps(&started(&d, run(&d), &[("MALLOC_ARENA_MAX", "5")]));
    assert!(set.len() == 4 && set.contains(&"MALLOC_ARENA_MAX=5".into()), "{set:?}");
    assert_eq!(heaps(&started(&d, run(&d), &[("UNDERTONE_HEAPS", "off")])), [""; 0]);
}

/// It goes on as it is, says so, and does not die of the first peer that hangs up.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn a_server_that_cannot_start_itself_again_serves() {
    let mut d = Processes::start();
    d.server().kill();
    let mut command = Command::new("sh");
    // Its own file is gone before it looks for it.
    command.args([
        "-c",
        "cp \"$1\" \"$2\"; exec 3<\"$2\"; rm \"$2\"; exec /proc/self/fd/3 run --dir \"$3\"",
        "sh",
    ]);
    command.arg(binary("undertone-server")).args([d.path().join("a copy"), d.path().join("deployment")]);
    let mut server = started(&d, command, &[]);
    assert!(server.log().contains("cannot start again with fewer heaps"), "{}", server.log());
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let signals = |kind: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(kind)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    let broken_pipe = 1 << (13 - 1);
    assert_ne!((signals("SigCgt:") | signals("SigIgn:")) & broken_pipe, 0, "{status}");
    assert!(server.terminate().success());
}
