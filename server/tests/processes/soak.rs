//! Rounds for as long as somebody likes: memory, file handles and what lies on the disk must not grow with them.
//!
//! `cargo xtask soak --minutes N`.

use crate::csv;
use std::path::Path;
use std::time::{Duration, Instant};
use undertone_harness::{Process, Processes, SAMPLE_JOB};
use undertone_round::event::Outcome;

/// Rounds of one job; then another one is submitted.
const ROUNDS: u32 = 200;

/// What a process has at one moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    memory_kib: u64,
    handles: u64,
}

impl Sample {
    fn of(process: &Process) -> Self {
        let proc = Path::new("/proc").join(process.id().to_string());
        let status = std::fs::read_to_string(proc.join("status")).expect("a process that runs");
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        let memory_kib = memory.split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("a number");
        Self { memory_kib, handles: std::fs::read_dir(proc.join("fd")).expect("its files").count() as u64 }
    }
}

/// Files under a folder, and their bytes.
fn disk(folder: &Path) -> (u64, u64) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.fold((0, 0), |(files, bytes), entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => {
            let (more, larger) = disk(&entry.path());
            (files + more, bytes + larger)
        }
        Ok(meta) => (files + 1, bytes + meta.len()),
        Err(_) => (files, bytes),
    })
}

fn median(mut of: Vec<u64>) -> u64 {
    of.sort_unstable();
    of[of.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes as long as somebody likes: `cargo xtask soak` runs it"]
async fn soak_memory_handles_and_disk_do_not_grow_with_rounds() {
    let minutes: f64 =
        std::env::var("UNDERTONE_SOAK_MINUTES").ok().and_then(|m| m.parse().ok()).unwrap_or(5.0);
    let mut d = Processes::start();
    let mut clients = vec![];
    for name in ["a", "b"] {
        assert!(d.enrol(name, "trainer", &csv(60, 0.0), 60).status.success());
        let file = d.client_folder(name).join("client.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("allow_no_privacy = false", "allow_no_privacy = true")).unwrap();
        clients.push(d.run_client(name));
    }
    let job = SAMPLE_JOB
        .replace("rounds = 2", &format!("rounds = {ROUNDS}"))
        .replace("min_clients = 1", "min_clients = 2");
    let (begun, mut rounds) = (Instant::now(), 0u64);
    // For each process its samples, one after each job.
    let mut samples: Vec<[Sample; 3]> = vec![];
    let mut disks = vec![];
    println!(
        "{:>8} {:>10} {:>26} {:>26} {:>26} {:>22}",
        "seconds", "rounds", "coordinator", "client a", "client b", "disk"
    );
    while begun.elapsed() < Duration::from_secs_f64(60.0 * minutes) || samples.len() < 8 {
        let mut operator = d.operator().await;
        let id = operator.submit(&job).await.unwrap();
        let events = operator.watch_to_end(&id).await;
        assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
        rounds += u64::from(ROUNDS);
        drop(operator);
        let now = [Sample::of(d.server()), Sample::of(&clients[0]), Sample::of(&clients[1])];
        let on_disk = disk(&d.path().join("deployment/state"));
        let shown = now.map(|s| format!("{} KiB, {} files", s.memory_kib, s.handles));
        println!(
            "{:>8.0} {rounds:>10} {:>26} {:>26} {:>26} {:>22}",
            begun.elapsed().as_secs_f64(),
            shown[0],
            shown[1],
            shown[2],
            format!("{} files, {} KiB", on_disk.0, on_disk.1 >> 10)
        );
        samples.push(now);
        disks.push(on_disk);
    }
    // The first half warms up: what is kept is kept by then.
    let half = samples.len() / 2;
    for (n, who) in ["the coordinator", "client a", "client b"].into_iter().enumerate() {
        let of = |part: &[[Sample; 3]], what: fn(&Sample) -> u64| {
            median(part.iter().map(|s| what(&s[n])).collect())
        };
        let (before, after) = samples.split_at(half);
        let (early, late) = (of(&before[half / 2..], |s| s.memory_kib), of(after, |s| s.memory_kib));
        assert!(
            late <= early + early / 20 + 2048,
            "{who}: {early} KiB became {late} KiB after {rounds} rounds"
        );
        let (early, late) = (of(before, |s| s.handles), of(after, |s| s.handles));
        assert!(late <= early + 2, "{who}: {early} open files became {late}");
    }
    // A released model stays, and so do the lines about its round: so much for each round, and nothing else.
    let (first, last) = (disks[half], *disks.last().unwrap());
    let more_rounds = u64::from(ROUNDS) * (disks.len() - 1 - half) as u64;
    let files = last.0 - first.0;
    assert!(files <= more_rounds, "{files} files were left by {more_rounds} rounds");
    println!("{} bytes a round stay on the disk", last.1.saturating_sub(first.1) / more_rounds.max(1));
}
