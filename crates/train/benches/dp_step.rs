//! Steps on request, for `benches/dp-sgd`: a process that another one times beside its own.
//!
//! One argument, JSON: `{"model": …, "input": {"features": 784} | {"image": [1, 28, 28]} | {"tokens": [64, 1000]},
//! "classes": 10, "batch": 256}`. It says `ready`, or `refused: …` if the model is none of this build. Then each line `plain 5` or
//! `private 5` on standard input takes five steps and is answered by nanoseconds computed by this thread, nanoseconds
//! passed, and the largest memory so far in KiB.

use serde_json::Value;
use std::fs;
use std::io::{self, BufRead as _};
use std::time::Instant;
use undertone_core::shape::{Input, Shape, Target};
use undertone_core::trainer::RecordMechanism;
use undertone_train::measure::Workload;

fn main() {
    // `cargo bench` adds an argument of its own, and without ours there is nothing to do.
    let Some(text) = std::env::args().skip(1).find(|a| a.starts_with('{')) else { return };
    undertone_train::measure::one_thread();
    let work = match workload(&serde_json::from_str(&text).expect("one JSON argument")) {
        Ok(work) => work,
        Err(why) => return println!("refused: {why}"),
    };
    println!("ready");
    for line in io::stdin().lock().lines() {
        let line = line.expect("lines of text");
        let (what, steps) = line.split_once(' ').expect("what to do, and how often");
        let steps = steps.parse().expect("a number of steps");
        let (computed, start) = (computed(), Instant::now());
        match what {
            "plain" => work.plain(steps),
            "private" => work.private(steps, RecordMechanism::FastGaussian),
            "exact" => work.private(steps, RecordMechanism::DiscreteGaussian),
            _ => panic!("plain, private or exact, not {what}"),
        }
        .expect("steps that can be taken");
        let passed = start.elapsed().as_nanos();
        println!("{} {passed} {}", self::computed() - computed, peak_kib());
    }
}

fn workload(args: &Value) -> Result<Workload, String> {
    let model = serde_json::from_value(args["model"].clone()).map_err(|e| e.to_string())?;
    let number = |v: &Value| v.as_u64().expect("a number") as usize;
    let input = &args["input"];
    let input = if let Some(image) = input.get("image") {
        Input::Image { channels: number(&image[0]), height: number(&image[1]), width: number(&image[2]) }
    } else if let Some(tokens) = input.get("tokens") {
        Input::Tokens { length: number(&tokens[0]), vocabulary: number(&tokens[1]) }
    } else {
        Input::features(number(&input["features"]))
    };
    let target = Target::Class { classes: number(&args["classes"]) };
    Workload::new(&model, &Shape { input, target }, number(&args["batch"])).map_err(|e| e.to_string())
}

/// What other programs on the machine take does not count.
fn computed() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("Linux counts");
    text.split(' ').next().and_then(|ns| ns.parse().ok()).expect("its first number")
}

fn peak_kib() -> u64 {
    let text = fs::read_to_string("/proc/self/status").expect("Linux counts");
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("a line of it");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
