//! Deterministic simulation of a whole deployment under faults.
//!
//! A seed draws a world: one to three coordinators, three to twenty clients, one or two jobs, and what may go wrong. In it run the
//! product's own machines ([`undertone_round`]), its store with leases and fences ([`undertone_store::MemoryStore`]), its ledger, its
//! integer sums; around them is a shell that performs their effects as the daemon and the client do, on virtual time, with one
//! generator, without threads, clocks or files. Processes are killed at every effect, stand still for longer than a lease, lose
//! power with files half written; connections break; the store does not answer, or does not say what it did; clocks jump. After
//! every event an observer looks whether the promises of the design hold ([`Predicate`]); and when faults stop, every job must come
//! to its end.
//!
//! Read in this order: `scenario` and `faults` say what a seed stands for, `world` what happens next,
//! `replica`, `driver` and `uploads` what a coordinator does, `client` and `work` what a client does, `watch` what must hold.

mod chance;
mod client;
mod coverage;
mod disk;
mod driver;
mod effects;
mod faults;
mod jobs;
mod message;
mod mutant;
mod network;
mod outbox;
mod queue;
mod release;
mod replica;
mod scenario;
mod storage;
mod trace;
mod uploads;
mod watch;
mod work;
mod world;

pub use coverage::Coverage;
pub use mutant::Mutant;
pub use watch::{Predicate, RoundSum, Violation};

use chance::Chance;
use scenario::Scenario;
use std::fmt;
use trace::Trace;
use undertone_core::digest::Digest;
use world::World;

/// Which world to run.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// What draws it.
    pub seed: u64,
    /// Whether anything goes wrong in it.
    pub faults: bool,
    /// What is broken in it on purpose.
    pub mutant: Option<Mutant>,
    /// Whether all of its story is kept, and not its end alone.
    pub whole_story: bool,
}

impl Run {
    /// The world of a seed, with what goes wrong in it.
    pub fn of(seed: u64) -> Self {
        Self { seed, faults: true, mutant: None, whole_story: false }
    }

    /// Runs it to its end, or to the first promise that does not hold.
    pub fn run(self) -> Story {
        let mut chance = Chance::of(self.seed);
        let drawn = Scenario::draw(&mut chance);
        let scenario = if self.faults { drawn } else { drawn.without_faults() };
        let about = scenario.to_string();
        let reproducible: Vec<_> =
            scenario.jobs.iter().filter(|job| job.kind.is_reproducible()).map(|job| job.id.clone()).collect();
        let mut world = World::new(scenario, chance, self.mutant, Trace::new(self.whole_story));
        world.run();
        let rounds = world.watch.rounds().into_iter().filter(|sum| reproducible.contains(&sum.job)).collect();
        let (digest, lines) = world.trace.finish();
        Story {
            seed: self.seed,
            about,
            events: world.events,
            virtual_ms: world.queue.now_ms(),
            coverage: world.coverage,
            rounds,
            violation: world.watch.into_violation(),
            digest,
            lines,
        }
    }

    /// Runs it, and its world without faults besides: as far as the cohorts are the same, so must the sums be.
    pub fn run_compared(self) -> Story {
        let mut story = self.run();
        if story.violation.is_some() || story.rounds.is_empty() {
            return story;
        }
        let calm = Self { faults: false, mutant: None, whole_story: false, ..self }.run();
        if let Some(violation) = calm.violation {
            story.violation =
                Some(Violation { detail: format!("without faults: {}", violation.detail), ..violation });
            return story;
        }
        for sum in &story.rounds {
            let earlier = |other: &&RoundSum| other.job == sum.job && other.round <= sum.round;
            let cohorts = |rounds: &[RoundSum]| -> Vec<_> {
                rounds.iter().filter(earlier).map(|sum| sum.clients.clone()).collect()
            };
            if cohorts(&story.rounds) != cohorts(&calm.rounds) {
                continue;
            }
            story.coverage.note("rounds compared with a world without faults");
            let same = calm.rounds.iter().find(|other| (&other.job, other.round) == (&sum.job, sum.round));
            if same != Some(sum) {
                let detail =
                    format!("{} round {}: {:?}, without faults {same:?}", sum.job, sum.round, sum.units);
                story.violation = Some(Violation { predicate: Predicate::SameAsWithoutFaults, detail });
                break;
            }
        }
        story
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Story {
    /// What drew the world.
    pub seed: u64,
    /// The world in a line.
    pub about: String,
    /// Events that happened.
    pub events: u64,
    /// Virtual time that passed, in milliseconds.
    pub virtual_ms: u64,
    /// How often what happened.
    pub coverage: Coverage,
    /// What was released by jobs whose sums depend on their cohorts alone.
    pub rounds: Vec<RoundSum>,
    /// The first promise that did not hold.
    pub violation: Option<Violation>,
    /// Digest of all that happened.
    pub digest: Digest,
    /// The last lines of it, or all.
    pub lines: Vec<String>,
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "seed {}: {}", self.seed, self.about)?;
        match &self.violation {
            None => write!(f, "all promises held over {} events", self.events),
            Some(violation) => write!(
                f,
                "{violation}\nafter {} events; to see all of it: cargo run -p undertone-sim -- --from {} --seeds 1 --story",
                self.events, self.seed
            ),
        }
    }
}
