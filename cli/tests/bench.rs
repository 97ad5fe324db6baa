//! The benchmarks as people run them: a real coordinator and real protocol clients. The server must be built
//! (`cargo build --workspace --bins`; `cargo xtask test` does so): the benchmark itself says if it is not.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn undertone(folder: &TempDir, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_undertone"))
        .arg("bench")
        .args(arguments)
        // Temporary folders are looked for here afterwards.
        .env("TMPDIR", folder.path())
        .env("UNDERTONE_OPERATOR", "/nonexistent")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs a benchmark that works; gives its one line of JSON.
fn measured(arguments: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let output = undertone(&folder, arguments).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "its folder is removed");
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    serde_json::from_str(&stdout).unwrap()
}

fn refused(arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let output = undertone(&folder, arguments).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn rounds_are_measured_whole() {
    // And the bytes of a value up; top-k sends 3 or more for each tenth one.
    for (place, encoding, up) in
        [("--processes", "fixed32", 4.0), ("--in-process", "bf16", 2.0), ("--in-process", "top-k:0.1", 0.3)]
    {
        let report = measured(&[
            "round",
            "--clients",
            "2",
            "--params",
            "10000",
            "--rounds",
            "3",
            "--warmup",
            "1",
            "--json",
            "--tls",
            "--encoding",
            encoding,
            place,
        ]);
        let number = |key: &str| report[key].as_f64().unwrap_or_else(|| panic!("no {key} in {report}"));
        assert_eq!((number("rounds"), number("clients")), (3.0, 2.0));
        let params = number("params");
        assert!((9_900.0..=10_100.0).contains(&params), "{params}");
        let (least, middle, most) = (number("min_round_s"), number("median_round_s"), number("max_round_s"));
        assert!(0.0 < least && least <= middle && middle <= most && most < 60.0, "{report}");
        // Two clients fetch a model and send an update; what is around that is little.
        let payload = 2.0 * (4.0 + up) * params;
        let wire = number("wire_bytes_per_round");
        assert!(payload < wire && wire < 1.2 * payload, "{wire} for {payload}");
        for share in ["ceiling_share", "tls_ceiling_share"] {
            assert!(0.0 < number(share) && number(share) < 1.0, "{report}");
        }
        for memory in ["server_peak_rss_bytes", "client_peak_rss_bytes"] {
            assert!((1e6..1e9).contains(&number(memory)), "{report}");
        }
        // To a tick: a small round may be none.
        for time in ["server_cpu_s_per_round", "clients_cpu_s_per_round"] {
            assert!((0.0..2.0 * most + 1.0).contains(&number(time)), "{report}");
        }
    }
}

/// What goes down is what is encoded: bytes of a value, whole in the first round and as a difference in those that are
/// counted.
#[test]
fn ways_down_are_measured() {
    for (down, least, most) in [
        (&["--models", "bf16"][..], 2.0, 2.0),
        (&["--models", "block:4"], 0.53, 0.54),
        (&["--deltas", "exact"], 1.0, 3.9),
        (&["--models", "bf16", "--deltas", "exact"], 0.3, 1.95),
        (&["--deltas", "fixed:6"], 0.75, 0.76),
    ] {
        let rounds =
            ["--clients", "2", "--params", "100000", "--rounds", "2", "--warmup", "1", "--in-process"];
        let report = measured(&[&["round", "--json"], &rounds[..], down].concat());
        for pair in down.chunks(2) {
            assert!(report[&pair[0][2..]].is_string(), "{report}");
        }
        let (wire, params) =
            (report["wire_bytes_per_round"].as_f64().unwrap(), report["params"].as_f64().unwrap());
        let each = wire / 2.0 / params - 4.0;
        assert!(least < each && each < most + 0.1, "{down:?}: {each} bytes a value come down");
    }
}

#[test]
fn a_curve_is_measured_point_by_point() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    let which =
        ["curve", "--clients", "3,2", "--params", "1000,100000", "--rounds", "1", "--fetched", "memory"];
    let rest = ["--durability", "process", "--json", "--dir", kept.to_str().unwrap()];
    let output = undertone(&folder, &[&which[..], &rest].concat()).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let runs = report["runs"].as_array().unwrap();
    let order: Vec<_> = runs.iter().map(|r| r["clients"].as_u64().unwrap()).collect();
    assert_eq!(order, [2, 3, 2, 3], "{report}");
    for run in runs {
        assert!((1e6..1e9).contains(&run["server_peak_rss_bytes"].as_f64().unwrap()), "{report}");
    }
    assert_eq!((runs[0]["peak_ratio"].as_f64(), runs[2]["peak_ratio"].as_f64()), (Some(1.0), Some(1.0)));
    assert_eq!(report["lines"].as_array().unwrap().len(), 2, "{report}");
    assert!(kept.join("3x1000/deployment/server.log").exists());
}

#[test]
fn people_get_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    let arguments = ["round", "--params", "1000", "--rounds", "1", "--warmup", "0", "--fetched", "memory"];
    let place = ["--durability", "process", "--dir", kept.to_str().unwrap()];
    let output = undertone(&folder, &[&arguments[..], &place].concat()).wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for part in ["2 clients in 2 processes", "a round ", "wire ", "ceiling ", "server ", "clients "] {
        assert!(text.contains(part), "{text}");
    }
    let config = std::fs::read_to_string(kept.join("deployment/server.toml")).unwrap();
    assert!(config.contains("durability = \"process\""), "{config}");
    assert!(kept.join("deployment/server.log").exists());
    assert_eq!(std::fs::read_dir(kept.join("models")).unwrap().count(), 0);
}

#[test]
fn idle_sessions_are_measured() {
    let report = measured(&[
        "idle",
        "--clients",
        "20",
        "--seconds",
        "1",
        "--cohort",
        "5",
        "--params",
        "1000",
        "--rounds",
        "2",
        "--json",
    ]);
    let number = |key: &str| report[key].as_f64().unwrap_or_else(|| panic!("no {key} in {report}"));
    assert_eq!((number("clients"), number("cohort"), number("rounds")), (20.0, 5.0, 2.0));
    assert!(number("median_round_s") > 0.0 && number("median_round_s") <= number("max_round_s"));
    assert!(number("server_idle_rss_bytes") <= number("server_peak_rss_bytes"));
    assert!(number("client_idle_rss_bytes") > 1e6);
}

#[test]
fn what_cannot_be_is_said_before_anything_is_started() {
    let said = refused(&["round", "--clients", "20001"]);
    assert!(said.contains("--clients must be 1 to 20000"), "{said}");
    let said = refused(&["round", "--params", "99"]);
    assert!(said.contains("--params must be 100 to"), "{said}");
    let said = refused(&["round", "--clients", "1000", "--params", "2684354560"]);
    assert!(said.contains("of disk") && said.contains("--fetched memory"), "{said}");
    let said = refused(&["round", "--encoding", "fixed:1"]);
    assert!(said.contains("bits of a fixed encoding must be 2 to 24, not 1"), "{said}");
    let said = refused(&["curve", "--clients", "2", "--params", "99"]);
    assert!(said.contains("--params must be 100 to"), "{said}");
    let said = refused(&["idle", "--cohort", "0"]);
    assert!(said.contains("--cohort must be at least 1"), "{said}");
}

#[test]
fn a_missing_server_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("undertone");
    std::fs::copy(env!("CARGO_BIN_EXE_undertone"), &alone).unwrap();
    let output = Command::new(&alone).args(["bench", "round"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the benchmark needs undertone-server in"), "{said}");
}

#[test]
fn the_hidden_command_says_whose_it_is() {
    let output = undertone(&tempfile::tempdir().unwrap(), &["client"]).wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("run by `undertone bench round`"), "{output:?}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_benchmark_does_not_go_on_with_fewer_clients() {
    let (folder, output) = disturbed(|bench| {
        let client = children(bench).into_iter().find(|pid| command(*pid).contains("bench\0client"));
        kill_process(Pid::from_raw(client?).unwrap(), Signal::KILL).unwrap();
        Some(())
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("a client process ended") && said.contains("logs are in"), "{said}");
    nobody_is_left(folder.path());
}

#[test]
#[cfg(target_os = "linux")]
fn an_interrupted_benchmark_leaves_nothing() {
    let (folder, output) = disturbed(|bench| {
        kill_process(Pid::from_raw(bench).unwrap(), Signal::INT).unwrap();
        Some(())
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("interrupted; everything is stopped"), "{said}");
    nobody_is_left(folder.path());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Starts a long benchmark, waits for its rounds, and does something to its process.
fn disturbed(disturb: impl Fn(i32) -> Option<()>) -> (TempDir, Output) {
    let folder = tempfile::tempdir().unwrap();
    let bench = undertone(&folder, &["round", "--params", "1000", "--rounds", "100000"]);
    let id = i32::try_from(bench.id()).unwrap();
    wait("no round was offered", || logs(folder.path()).contains("\"offered\""));
    wait("nothing to disturb", || disturb(id).is_some());
    (folder, bench.wait_with_output().unwrap())
}

fn logs(folder: &Path) -> String {
    let benches = std::fs::read_dir(folder).unwrap();
    benches
        .filter_map(|bench| std::fs::read_to_string(bench.ok()?.path().join("deployment/server.log")).ok())
        .collect()
}

fn processes() -> impl Iterator<Item = i32> {
    std::fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
}

fn children(parent: i32) -> Vec<i32> {
    let is_child = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|l| l.strip_prefix("PPid:").is_some_and(|p| p.trim() == parent.to_string()))
    };
    processes().filter(is_child).collect()
}

fn command(pid: i32) -> String {
    String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).into_owned()
}

/// Nobody whose command line, or whose temporary folder, is this one.
fn nobody_is_left(folder: &Path) {
    let name = folder.to_str().unwrap();
    let of_this = |pid: i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        command(pid).contains(name) || String::from_utf8_lossy(&environment).contains(name)
    };
    wait("the benchmark left processes running", || !processes().any(of_this));
}

fn wait(failure: &str, mut until: impl FnMut() -> bool) {
    let start = Instant::now();
    while !until() {
        assert!(start.elapsed() < Duration::from_secs(60), "{failure}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The coordinator's peak for a round of one client with so many values, in bytes; the update is of 2 bits a value.
fn peak(params: &str) -> f64 {
    let arguments = ["round", "--clients", "1", "--params", params, "--rounds", "1", "--warmup", "0"];
    let quick = ["--durability", "process", "--fetched", "memory", "--encoding", "fixed:2", "--json"];
    let report = measured(&[&arguments[..], &quick[..]].concat());
    report["server_peak_rss_bytes"].as_f64().unwrap()
}

/// A model of 120 MB passes through a coordinator that never has as much.
#[test]
fn a_round_takes_no_memory_for_the_model() {
    let (small, large) = (peak("100000"), peak("30000000"));
    assert!(large < small + 40e6, "{large} bytes, {small} with a small model");
}

/// 10.4 GB: takes some minutes and 21 GB of disk.
#[test]
#[ignore = "minutes and 21 GB of disk: cargo test -p undertone-cli --test bench -- --ignored"]
fn the_largest_model_passes_through_200_mb() {
    let peak = peak("2600000000");
    assert!(peak < 200e6, "{peak} bytes");
}
