//! `undertone-sim`: runs worlds and says what came of them.

use clap::Parser;
use std::process::ExitCode;
use std::time::Instant;
use undertone_sim::{Coverage, Run};

/// Runs a simulated deployment under faults, once for each seed, and checks every promise after every event.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Exit codes: 0 all promises held, 1 one did not: its seed and the end of its story are printed, 2 input that makes no sense."
)]
struct Arguments {
    /// How many seeds to run
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,

    /// The first seed
    #[arg(long, default_value_t = 0, value_name = "SEED")]
    from: u64,

    /// Tell all that happens in each world: for few seeds
    #[arg(long)]
    story: bool,

    /// Leave out the comparison with the same world without faults
    #[arg(long)]
    no_comparison: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let begun = Instant::now();
    let (mut events, mut virtual_ms, mut failing) = (0, 0, vec![]);
    let mut coverage = Coverage::default();
    for seed in (arguments.from..).take(usize::try_from(arguments.seeds).unwrap_or(usize::MAX)) {
        let run = Run { whole_story: arguments.story, ..Run::of(seed) };
        let story = if arguments.no_comparison { run.run() } else { run.run_compared() };
        events += story.events;
        virtual_ms += story.virtual_ms;
        coverage.absorb(&story.coverage);
        if story.violation.is_some() || arguments.story {
            println!("{story}\n");
        }
        if story.violation.is_some() {
            failing.push(seed);
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    print!("{coverage}");
    println!(
        "{} seeds and {events} events in {seconds:.1} s: {:.0} seeds and {:.0} events a second, {:.0} hours of virtual time",
        arguments.seeds,
        arguments.seeds as f64 / seconds,
        events as f64 / seconds,
        virtual_ms as f64 / 3_600_000.0
    );
    if failing.is_empty() {
        println!("all promises held");
        return ExitCode::SUCCESS;
    }
    println!("promises broke in {} seeds: {failing:?}", failing.len());
    ExitCode::FAILURE
}
