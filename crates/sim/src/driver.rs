//! The driver of a job: it feeds the coordinator's machine (the product's), saves each step and only then carries it out.
//!
//! As the daemon's: inputs that wait are taken together; a step that spends is decided on what all jobs have spent, alone; a save
//! whose answer was lost is looked for; and whoever finds the job changed begins again from what is stored.

mod record;

use crate::faults::Fault;
use crate::message::Refused;
use crate::mutant::Mutant;
use crate::replica::AtReplica;
use crate::storage::ready;
use crate::watch::Predicate;
use crate::world::World;
use record::{named, told, transition};
use std::collections::VecDeque;
use undertone_privacy::ledger::Ledger;
use undertone_privacy::ledger::chain::Line;
use undertone_round::coordinator::{Context, Effect, Input, JobState, Phase, Step, invariants, step};
use undertone_store::{CommitError, Store as _, StoreError};

/// As the daemon's, in milliseconds: the pause before something that failed is tried again, and the longest.
pub(crate) const FIRST_PAUSE_MS: u64 = 500;
pub(crate) const LAST_PAUSE_MS: u64 = 60_000;

/// Whom to tell what came of an input.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reply {
    pub(crate) conn: usize,
    pub(crate) call: u64,
}

/// What those who asked will be told once what it rests on is saved.
pub(crate) type Answers = Vec<(Reply, Result<(), Refused>)>;

struct Command {
    input: Input,
    reply: Option<Reply>,
}

/// A job's driver.
pub(crate) struct Driver {
    pub(crate) state: JobState,
    version: u64,
    pub(crate) ledger: Ledger,
    inputs: VecDeque<Command>,
    pub(crate) stage: Stage,
    ticks: u64,
}

/// What a driver is at.
pub(crate) enum Stage {
    /// It waits for inputs.
    Idle,
    /// It is about to take some.
    Due,
    /// A step is decided and not saved.
    Saving(Box<Saving>),
    /// A step is saved, and its effects are carried out one by one.
    Acting { effects: VecDeque<Effect>, answers: Answers },
    /// What is stored is not what it believes.
    Stale,
}

/// A step on its way into the store.
pub(crate) struct Saving {
    step: Step,
    lines: Vec<Line>,
    answers: Answers,
    pause_ms: u64,
}

impl Driver {
    pub(crate) fn new(state: JobState, version: u64, ledger: Ledger) -> Self {
        Self { state, version, ledger, inputs: VecDeque::new(), stage: Stage::Idle, ticks: 0 }
    }

    /// What is stored replaces what was believed; inputs that wait are kept.
    pub(crate) fn take_over(&mut self, state: JobState, version: u64, ledger: Ledger) {
        (self.state, self.version, self.ledger) = (state, version, ledger);
        self.stage = Stage::Idle;
    }

    /// In which phase a job is taken up, as it is counted.
    pub(crate) fn phase(&self) -> &'static str {
        match &self.state.phase {
            Phase::Offering(_) => "taken up: offering",
            Phase::Collecting(_) => "taken up: collecting",
            Phase::Buffering(_) => "taken up: buffering",
            Phase::Releasing(_) => "taken up: releasing",
            Phase::Publishing(_) => "taken up: publishing",
            Phase::Closing(_) => "taken up: closing",
            Phase::Ended { .. } => "taken up: ended",
        }
    }
}

impl World {
    /// Gives an input to a job's driver.
    pub(crate) fn feed_job(&mut self, r: usize, job: usize, input: Input, reply: Option<Reply>) {
        match self.driver(r, job) {
            Some(driver) => driver.inputs.push_back(Command { input, reply }),
            None => {
                if let Some(reply) = reply {
                    self.upload_judged(r, reply, Err(Refused::NotNow));
                }
                return;
            }
        }
        self.wake_driver(r, job);
    }

    /// What a driver is fed before all that waits, when it begins again.
    pub(crate) fn feed_recovered(&mut self, r: usize, job: usize) {
        if let Some(driver) = self.driver(r, job) {
            for input in [Input::Sessions, Input::Recovered] {
                driver.inputs.push_front(Command { input, reply: None });
            }
        }
        self.wake_driver(r, job);
    }

    fn wake_driver(&mut self, r: usize, job: usize) {
        if let Some(driver) = self.driver(r, job)
            && matches!(driver.stage, Stage::Idle)
        {
            driver.stage = Stage::Due;
            let after = self.chance.below(6);
            self.later_at_replica(after, r, AtReplica::Work { job });
        }
    }

    /// Takes inputs that wait: step and check each, to be saved together.
    pub(crate) fn work(&mut self, r: usize, job: usize) {
        let most = self.chance.between(1, 8);
        let Some(process) = &mut self.replicas[r].process else { return };
        let Some(mut driver) = process.drivers[job].take_if(|driver| matches!(driver.stage, Stage::Due))
        else {
            return;
        };
        let mut together: Option<Step> = None;
        let (mut lines, mut answers, mut pause_ms) = (vec![], vec![], 0);
        for _ in 0..most {
            let Some(Command { input, reply }) = driver.inputs.pop_front() else { break };
            let state = together.as_ref().map_or(&driver.state, |step| &step.next);
            let decided = match self.decide(r, job, state, &driver.ledger, input.clone()) {
                Some(decided) => decided,
                None => return,
            };
            let answer = match decided {
                Err(_) => Err(Refused::NotNow),
                Ok(None) => Ok(()),
                Ok(Some(step)) if step.ledger.is_empty() => {
                    match &mut together {
                        Some(before) => before.absorb(step),
                        None => together = Some(step),
                    }
                    Ok(())
                }
                Ok(Some(step)) => {
                    let wall_ms = self.wall_ms(r);
                    let Some(process) = &mut self.replicas[r].process else { return };
                    if together.is_some() || process.spending.is_some() {
                        // What was decided before is saved first; and nobody else spends meanwhile.
                        driver.inputs.push_front(Command { input, reply });
                        pause_ms = 50;
                        break;
                    }
                    match process.chain.lines_for(&step.ledger, wall_ms) {
                        Ok(of_step) => lines = of_step,
                        Err(e) => return self.watch.fail(Predicate::LedgerOnlyGrows, e.to_string()),
                    }
                    process.spending = Some(job);
                    answers.extend(reply.map(|reply| (reply, Ok(()))));
                    together = Some(step);
                    break;
                }
            };
            answers.extend(reply.map(|reply| (reply, answer)));
        }
        let Some(mut step) = together else {
            driver.stage = Stage::Idle;
            self.put_driver(r, job, driver);
            return self.rest(r, job, answers, pause_ms);
        };
        if self.mutant == Some(Mutant::AcknowledgesBeforeSaving) {
            for (reply, answer) in answers.extract_if(.., |(_, answer)| answer.is_ok()) {
                self.upload_judged(r, reply, answer);
            }
        }
        let early = match self.mutant {
            Some(Mutant::ActsBeforeSaving) => std::mem::take(&mut step.effects),
            _ => vec![],
        };
        driver.stage = Stage::Saving(Box::new(Saving { step, lines, answers, pause_ms: FIRST_PAUSE_MS }));
        self.put_driver(r, job, driver);
        early.into_iter().for_each(|effect| self.carry_out(r, job, effect));
        let after = self.chance.between(1, 25);
        self.later_at_replica(after, r, AtReplica::Save { job });
    }

    fn put_driver(&mut self, r: usize, job: usize, driver: Driver) {
        if let Some(process) = &mut self.replicas[r].process {
            process.drivers[job] = Some(driver);
        }
    }

    /// What the machine decides. `None`: it would break one of its invariants, which ends the run.
    fn decide(
        &mut self,
        r: usize,
        job: usize,
        state: &JobState,
        ledger: &Ledger,
        input: Input,
    ) -> Option<Result<Option<Step>, String>> {
        let [trainers, evaluators] = self.roster(r);
        let enrolled: Vec<_> = self.clients.iter().filter(|c| c.is_evaluator).map(|c| c.id.clone()).collect();
        let (now_ms, sim) = (self.wall_ms(r), &self.scenario.jobs[job]);
        let process = self.replicas[r].process.as_ref()?;
        let mut context = Context {
            id: &sim.id,
            job: &sim.job,
            ledger,
            population: process.chain.totals(),
            trainers: &trainers,
            evaluators: &evaluators,
            enrolled_evaluators: &enrolled,
            now_ms,
            rng: self.chance.generator(),
        };
        let name = named(&input);
        let decided = step(state, input, &mut context);
        if let Ok(Some(step)) = &decided
            && let Err(broken) = invariants::check(state, step, &context)
        {
            self.watch.fail(Predicate::MachineInvariant, format!("{broken} (at {name})"));
            return None;
        }
        let came = match &decided {
            Ok(None) => "nothing".to_owned(),
            Ok(Some(step)) => format!("{}, {} effects", step.next.status(), step.effects.len()),
            Err(refusal) => format!("refused: {refusal}"),
        };
        self.note(format!("replica {r} job {job}: {name} -> {came}"));
        Some(decided.map_err(|refusal| refusal.to_string()))
    }

    /// Tries to save the step.
    pub(crate) fn save(&mut self, r: usize, job: usize) {
        let now_ms = self.wall_ms(r);
        let id = self.scenario.jobs[job].id.clone();
        let Some(driver) = self.driver(r, job) else { return };
        let version = driver.version;
        let Stage::Saving(saving) = &driver.stage else { return };
        let mut wanted = transition(&id, version, &saving.step, &saving.lines, now_ms);
        if self.strikes(Fault::KilledBeforeSave) {
            return self.kill_replica(r, false);
        }
        if self.strikes(Fault::WriteArrivesLate) {
            self.send_late(r, wanted);
            return self.kill_replica(r, false);
        }
        if self.strikes(Fault::PausedInStep) {
            let ms = self.chance.pick(&[1_000, 11_000, 30_000]);
            self.pause_replica(r, ms);
            return self.later_at_replica(0, r, AtReplica::Save { job });
        }
        if self.mutant == Some(Mutant::LosesLedger) {
            wanted.ledger.clear();
        }
        let state = wanted.state.clone();
        match self.commit(r, wanted) {
            Ok(version) => self.saved(r, job, version),
            Err(CommitError::Store(StoreError::Unsure { .. }))
                if self.mutant == Some(Mutant::TakesUnsureForSaved) =>
            {
                self.saved(r, job, version + 1);
            }
            // A save whose answer was lost and that was tried again finds its own step.
            Err(CommitError::Conflict { found, .. }) if found == version + 1 => {
                if !self.store_answers(r) {
                    return self.save_later(r, job);
                }
                let Some(process) = &self.replicas[r].process else { return };
                let record = ready(process.store.job(&id)).ok().flatten();
                if record.is_some_and(|record| record.state == state) {
                    self.coverage.note("saves that were found done");
                    self.saved(r, job, found);
                } else {
                    self.begin_again(r, job);
                }
            }
            Err(CommitError::Conflict { .. } | CommitError::LedgerMoved { .. }) => self.begin_again(r, job),
            Err(CommitError::Store(
                e @ (StoreError::OutOfRange { .. } | StoreError::Damaged { .. } | StoreError::Closed { .. }),
            )) => self.watch.fail(Predicate::MachineInvariant, e.to_string()),
            Err(CommitError::Store(_)) => self.save_later(r, job),
            Err(e) => self.watch.fail(Predicate::CountsOnce, format!("the store refuses a step: {e}")),
        }
    }

    fn save_later(&mut self, r: usize, job: usize) {
        let Some(driver) = self.driver(r, job) else { return };
        let Stage::Saving(saving) = &mut driver.stage else { return };
        let pause = saving.pause_ms;
        saving.pause_ms = (pause * 2).min(LAST_PAUSE_MS);
        self.later_at_replica(pause, r, AtReplica::Save { job });
    }

    /// The step is durable. Now it may be known.
    fn saved(&mut self, r: usize, job: usize, version: u64) {
        if self.strikes(Fault::KilledAfterSave) {
            return self.kill_replica(r, false);
        }
        if self.strikes(Fault::DriverBroken) {
            return self.begin_again(r, job);
        }
        let Some(process) = &mut self.replicas[r].process else { return };
        let Some(driver) = process.drivers[job].as_mut() else { return };
        let Stage::Saving(saving) = std::mem::replace(&mut driver.stage, Stage::Idle) else { return };
        let Saving { step, lines, answers, .. } = *saving;
        driver.version = version;
        if !lines.is_empty() {
            process.spending = None;
        }
        for line in lines {
            if let Err(e) = process.chain.apply(line) {
                return self.watch.fail(Predicate::LedgerOnlyGrows, e.to_string());
            }
        }
        for entry in step.ledger {
            if let Err(e) = driver.ledger.apply(entry) {
                return self.watch.fail(Predicate::LedgerOnlyGrows, e.to_string());
            }
        }
        driver.state = step.next;
        driver.stage = Stage::Acting { effects: step.effects.into(), answers };
        for event in &step.events {
            self.coverage.note(told(event));
            let text = serde_json::to_string(event).expect("plain data");
            self.note(format!("job {job} at version {version}: {text}"));
        }
        let after = self.chance.below(3);
        self.later_at_replica(after, r, AtReplica::Effect { job });
    }

    /// Has the driver begin again from what is stored: somebody else was here, or the ledger went on, or it broke. What was not
    /// answered is not known.
    fn begin_again(&mut self, r: usize, job: usize) {
        let Some(process) = &mut self.replicas[r].process else { return };
        if process.spending == Some(job) {
            process.spending = None;
        }
        let Some(driver) = process.drivers[job].as_mut() else { return };
        let answers = match std::mem::replace(&mut driver.stage, Stage::Stale) {
            Stage::Saving(saving) => saving.answers,
            Stage::Acting { answers, .. } => answers,
            Stage::Idle | Stage::Due | Stage::Stale => vec![],
        };
        for (reply, _) in answers {
            self.upload_judged(r, reply, Err(Refused::Unavailable));
        }
        self.later_at_replica(FIRST_PAUSE_MS, r, AtReplica::Reload { job });
    }

    /// Carries out the next effect; after the last one those who asked are answered.
    pub(crate) fn next_effect(&mut self, r: usize, job: usize) {
        if self.driver(r, job).is_none_or(|driver| !matches!(driver.stage, Stage::Acting { .. })) {
            return;
        }
        if self.strikes(Fault::KilledBetweenEffects) {
            return self.kill_replica(r, false);
        }
        if self.strikes(Fault::DriverBroken) {
            return self.begin_again(r, job);
        }
        if self.strikes(Fault::PausedInStep) {
            let ms = self.chance.pick(&[1_000, 11_000, 30_000]);
            self.pause_replica(r, ms);
            return self.later_at_replica(0, r, AtReplica::Effect { job });
        }
        let Some(Driver { stage: Stage::Acting { effects, .. }, .. }) = self.driver(r, job) else { return };
        let Some(effect) = effects.pop_front() else { return self.acted(r, job) };
        self.carry_out(r, job, effect);
        let after = self.chance.below(3);
        self.later_at_replica(after, r, AtReplica::Effect { job });
    }

    fn acted(&mut self, r: usize, job: usize) {
        let Some(driver) = self.driver(r, job) else { return };
        let Stage::Acting { mut answers, .. } = std::mem::replace(&mut driver.stage, Stage::Idle) else {
            return;
        };
        answers.extend(self.let_go(r, job));
        self.rest(r, job, answers, 0);
    }

    /// Lets go of a job, if it is over. Whoever waits is told.
    pub(crate) fn let_go(&mut self, r: usize, job: usize) -> Answers {
        let id = &self.scenario.jobs[job].id;
        let Some(process) = &mut self.replicas[r].process else { return vec![] };
        let Some(driver) = process.drivers[job].take_if(|driver| driver.state.is_over()) else {
            return vec![];
        };
        process.chain.close(id);
        let late = driver.inputs.into_iter().filter_map(|command| command.reply);
        late.map(|reply| (reply, Err(Refused::NotNow))).collect()
    }

    /// Answers, and goes on with what waits; else the next deadline is waited for.
    pub(crate) fn rest(&mut self, r: usize, job: usize, answers: Answers, pause_ms: u64) {
        for (reply, answer) in answers {
            self.upload_judged(r, reply, answer);
        }
        let (wall_ms, sim) = (self.wall_ms(r), self.scenario.jobs[job].job.clone());
        let ticks = self.mutant != Some(Mutant::NeverTicks);
        let Some(driver) = self.driver(r, job) else { return };
        if !matches!(driver.stage, Stage::Idle) {
            return;
        }
        if !driver.inputs.is_empty() {
            driver.stage = Stage::Due;
            return self.later_at_replica(pause_ms, r, AtReplica::Work { job });
        }
        driver.ticks += 1;
        let no = driver.ticks;
        if let Some(at_ms) = driver.state.wake_at_ms(&sim).filter(|_| ticks) {
            let left = at_ms.saturating_sub(wall_ms);
            self.later_at_replica(left.max(1), r, AtReplica::Tick { job, no });
        }
    }

    pub(crate) fn tick(&mut self, r: usize, job: usize, no: u64) {
        // One that rested anew since has looked anew at when it is to wake.
        if self.driver(r, job).is_some_and(|driver| driver.ticks == no && matches!(driver.stage, Stage::Idle))
        {
            self.feed_job(r, job, Input::Tick, None);
        }
    }
}
