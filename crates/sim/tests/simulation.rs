//! Worlds by the thousand, kept seeds, and the proof that broken worlds are found out.

use std::collections::BTreeSet;
use undertone_sim::{Coverage, Mutant, Predicate, Run, Story};

/// Seeds of an ordinary run of the tests. `UNDERTONE_SIM_SEEDS` sets another number, from `UNDERTONE_SIM_FROM` on.
const SEEDS: u64 = 2000;
/// Seeds within which every broken world is found out.
const MUTANT_SEEDS: u64 = 1500;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

fn must_hold(story: Story) -> Coverage {
    assert!(story.violation.is_none(), "{story}");
    story.coverage
}

/// What goes wrong and where it strikes must not be rare: each at least so often in a thousand seeds.
fn is_covered(coverage: &Coverage, what: &str, in_a_thousand: u64, seeds: u64) {
    let (found, least) = (coverage.of(what), (in_a_thousand * seeds / 1000).max(1));
    assert!(found >= least, "{what}: {found} times in {seeds} seeds, and not {least}\n{coverage}");
}

#[test]
fn every_promise_holds_in_every_world() {
    let seeds = setting("UNDERTONE_SIM_SEEDS").unwrap_or(SEEDS);
    let from = setting("UNDERTONE_SIM_FROM").unwrap_or(0);
    let mut coverage = Coverage::default();
    for seed in from..from + seeds {
        coverage.absorb(&must_hold(Run::of(seed).run_compared()));
    }
    println!("{coverage}");
    for (what, _) in coverage.beginning("fault: ").chain(coverage.beginning("trouble: ")) {
        is_covered(&coverage, what, 20, seeds);
    }
    assert_eq!(coverage.beginning("fault: ").count(), 23, "{coverage}");
    assert_eq!(coverage.beginning("trouble: ").count(), 10, "{coverage}");
    assert_eq!(coverage.beginning("job: ").count(), 7, "{coverage}");
    for phase in ["offering", "collecting", "buffering", "releasing", "publishing", "closing"] {
        is_covered(&coverage, &format!("taken up: {phase}"), 10, seeds);
    }
    for special in [
        "leases taken over",
        "leases given up",
        "connections with two coordinators that take calls",
        "coordinators that found their place taken",
        "coordinators that were not heard for too long",
        "writes stopped by the fence",
        "deletions stopped by the fence",
        "late writes that were refused",
        "late writes that were made",
        "saves that were found done",
        "drivers that began again",
        "torn spools",
        "uploads that were torn in the spool",
        "uploads that went on where they were",
        "uploads tried again",
        "receipts that were lost and given again",
        "questions whether an update counts",
        "updates given up by their client",
        "updates that break the bound",
        "sweeps that found something",
        "event: aborted",
        "end: budget spent",
        "end: failed",
    ] {
        is_covered(&coverage, special, 2, seeds);
    }
    // Faults are many, and still most jobs come to a good end.
    assert!(coverage.of("end: completed") > seeds / 2, "{coverage}");
    is_covered(&coverage, "rounds compared with a world without faults", 200, seeds);
}

#[test]
fn a_world_without_faults_completes_every_job() {
    let mut coverage = Coverage::default();
    for seed in 0..100 {
        coverage.absorb(&must_hold(Run { faults: false, ..Run::of(seed) }.run()));
    }
    let jobs: u64 = coverage.beginning("job: ").map(|(_, count)| count).sum();
    assert_eq!(coverage.of("end: completed"), jobs, "{coverage}");
    assert_eq!(coverage.of("rounds released"), 3 * jobs, "{coverage}");
    assert_eq!(
        coverage.beginning("fault: ").count() + coverage.beginning("trouble: ").count(),
        0,
        "{coverage}"
    );
}

/// Seeds that go where few go, or that broke a promise once. Each line of the list says what the seed is kept for: what is counted in
/// it; so a list that no longer goes there is noticed.
#[test]
fn kept_seeds_hold_and_go_where_they_are_kept_for() {
    let kept = include_str!("seeds.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut seen = BTreeSet::new();
    for line in kept {
        let (seed, what) = line.split_once(' ').expect("a seed and what it is kept for");
        let seed: u64 = seed.parse().unwrap_or_else(|_| panic!("{seed} is no seed"));
        let coverage = must_hold(Run::of(seed).run_compared());
        assert!(coverage.of(what.trim()) > 0, "seed {seed} has nothing any more of {what}:\n{coverage}");
        assert!(seen.insert(line), "{line} is there twice");
    }
    assert!(seen.len() >= 20, "{seen:?}");
}

#[test]
fn a_seed_is_one_story() {
    let mut digests = BTreeSet::new();
    for seed in 0..60 {
        let [one, other] = [Run::of(seed).run(), Run { whole_story: true, ..Run::of(seed) }.run()];
        assert_eq!(
            (one.digest, one.events, &one.coverage),
            (other.digest, other.events, &other.coverage),
            "{seed}"
        );
        assert!(other.lines.ends_with(&one.lines), "the end of the story");
        digests.insert(one.digest);
    }
    assert_eq!(digests.len(), 60, "each seed has a story of its own");
}

/// The promises that may be seen broken first in a broken world.
fn breaks(mutant: Mutant) -> &'static [Predicate] {
    use Predicate::{
        BudgetBeforeOffers, BytesBeforeCommit, CountsOnce, DecidedBeforeAccepting, FixedDenominator,
        IdenticalRetry, Liveness, NeededBlobsStay, OneDraw, OneHolder, OneUpdateEach, PersistThenSpeak,
        SumIsExact, UndeliveredNeverCounts,
    };
    match mutant {
        Mutant::AcknowledgesBeforeSaving => &[PersistThenSpeak],
        Mutant::ActsBeforeSaving => &[BudgetBeforeOffers],
        Mutant::NoFence => &[OneHolder, NeededBlobsStay],
        Mutant::DeletesUnguarded => &[NeededBlobsStay],
        Mutant::LosesLedger => &[BudgetBeforeOffers, BytesBeforeCommit],
        Mutant::TakesUnsureForSaved => {
            &[NeededBlobsStay, PersistThenSpeak, BudgetBeforeOffers, BytesBeforeCommit]
        }
        Mutant::CountsRetryTwice | Mutant::BelievesTornSpool => &[SumIsExact],
        Mutant::DrawsNoiseAgain => &[OneDraw],
        Mutant::DividesByReceived => &[FixedDenominator],
        Mutant::SendsBeforeStoring => &[PersistThenSpeak],
        Mutant::ForgetsAccounts => &[OneUpdateEach],
        Mutant::AcceptsBeforeDeciding => &[DecidedBeforeAccepting],
        Mutant::SaysUncounted => &[UndeliveredNeverCounts],
        Mutant::LeavesOneOut => &[CountsOnce],
        Mutant::StampsModels => &[IdenticalRetry],
        Mutant::NeverTicks => &[Liveness],
    }
}

#[test]
fn every_broken_world_is_found_out() {
    let mut unfound = vec![];
    for mutant in Mutant::ALL {
        let found = (0..MUTANT_SEEDS).find_map(|seed| {
            let story = Run { mutant: Some(mutant), ..Run::of(seed) }.run();
            story.violation.map(|violation| (seed, violation))
        });
        let Some((seed, violation)) = found else {
            unfound.push(mutant);
            continue;
        };
        println!("{mutant:?}: seed {seed}: {violation}");
        assert!(breaks(mutant).contains(&violation.predicate), "{mutant:?} at seed {seed}: {violation}");
        // It is the mistake that breaks the promise, and not the world.
        must_hold(Run::of(seed).run());
    }
    assert!(unfound.is_empty(), "not found in {MUTANT_SEEDS} seeds: {unfound:?}");
}
