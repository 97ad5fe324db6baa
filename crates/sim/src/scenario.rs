//! What a seed stands for: who is there, which jobs there are, and what may go wrong.

use crate::chance::Chance;
use crate::faults::{Fault, Trouble};
use crate::jobs::Kind;
use std::fmt;
use std::sync::Arc;
use undertone_core::id::{ClientId, JobId};
use undertone_round::job::Job;

/// A job of the simulation.
#[derive(Clone)]
pub(crate) struct SimJob {
    pub(crate) id: JobId,
    pub(crate) kind: Kind,
    pub(crate) job: Arc<Job>,
}

/// The world of a seed.
pub(crate) struct Scenario {
    /// Coordinators that share a database; one alone has no lease, as with a file.
    pub(crate) replicas: usize,
    pub(crate) trainers: usize,
    pub(crate) evaluators: usize,
    pub(crate) jobs: Vec<SimJob>,
    /// Whether messages of a session may be lost, doubled and overtaken; else they come in order until the connection breaks.
    pub(crate) wild: bool,
    /// How far apart [`Trouble`] is, in milliseconds.
    pub(crate) trouble_ms: u64,
    /// From here on nothing goes wrong any more.
    pub(crate) calm_at_ms: u64,
    faults: Vec<Fault>,
    pub(crate) troubles: Vec<Trouble>,
}

impl Scenario {
    /// Draws a world. Not everything goes wrong in each: what is rare needs room.
    pub(crate) fn draw(chance: &mut Chance) -> Self {
        let replicas = chance.pick(&[1, 1, 2, 2, 3]);
        let trainers = if chance.hits(700) { chance.between(7, 20) } else { chance.between(3, 6) } as usize;
        let evaluators = chance.pick(&[0, 0, 1, 2]);
        let kinds = 1 + usize::from(chance.hits(2_000));
        let jobs = (1..=kinds).map(|n| {
            let kind = chance.pick(&Kind::ALL);
            let id = JobId::new(format!("sim-{n}")).expect("a good name");
            SimJob { id, kind, job: kind.job(trainers as u32) }
        });
        let jobs = jobs.collect();
        let some = |chance: &mut Chance| chance.pick(&[2_000, 5_000, 9_000]);
        let (of_faults, of_troubles) = (some(chance), some(chance));
        let faults = Fault::ALL.into_iter().filter(|_| chance.hits(of_faults)).collect();
        let troubles: Vec<_> = Trouble::ALL.into_iter().filter(|_| chance.hits(of_troubles)).collect();
        Self {
            replicas,
            trainers,
            evaluators,
            jobs,
            wild: chance.hits(3_000),
            trouble_ms: chance.pick(&[3_000, 10_000, 40_000]),
            calm_at_ms: chance.between(60_000, 600_000),
            faults,
            troubles,
        }
    }

    /// The same world where nothing goes wrong.
    pub(crate) fn without_faults(self) -> Self {
        Self { wild: false, calm_at_ms: 0, faults: vec![], troubles: vec![], ..self }
    }

    /// How often a fault strikes in ten thousand times that it could.
    pub(crate) fn rate(&self, fault: Fault) -> u32 {
        match fault {
            Fault::MessageDropped | Fault::MessageDoubled | Fault::MessageOvertaken if !self.wild => 0,
            // A file has no line to it that could break, and no second program that writes to it.
            Fault::WriteArrivesLate | Fault::LeaseUnheard | Fault::UnsureDone | Fault::UnsureNotDone
                if self.replicas == 1 =>
            {
                0
            }
            _ if self.faults.contains(&fault) => fault.rate(),
            _ => 0,
        }
    }

    /// The names of all participants, trainers first.
    pub(crate) fn names(&self) -> impl Iterator<Item = (ClientId, bool)> {
        let trainers = (1..=self.trainers).map(|n| (format!("trainer-{n:02}"), false));
        let evaluators = (1..=self.evaluators).map(|n| (format!("watcher-{n:02}"), true));
        trainers
            .chain(evaluators)
            .map(|(name, is_evaluator)| (ClientId::new(name).expect("a good name"), is_evaluator))
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<_> = self.jobs.iter().map(|job| format!("{:?}", job.kind)).collect();
        write!(
            f,
            "{} coordinators, {} trainers, {} evaluators, {}, {} kinds of faults, {} of trouble, calm from {} s on{}",
            self.replicas,
            self.trainers,
            self.evaluators,
            kinds.join(" and "),
            self.faults.len(),
            self.troubles.len(),
            self.calm_at_ms / 1000,
            if self.wild { ", wild messages" } else { "" },
        )
    }
}
