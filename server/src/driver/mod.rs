//! The driver: one task a job, which feeds its round machine one input at a time.
//!
//! The rule it exists for is *persist, then speak*: a step's state, ledger entries and events are one
//! compare-and-swap transaction, and only after it are effects carried out or anybody answered. If the store
//! cannot save, the job stands still and tries again; nothing is said meanwhile. A driver that breaks, or finds that
//! another one was here, is begun again from what is durable ([`supervise`]).

mod effects;
mod handle;
pub(crate) mod record;
mod supervise;

pub(crate) use effects::with_document;
pub(crate) use handle::Handle;
pub(crate) use record::{LoadedJob, load};

use crate::clock::{left_until, unix_ms};
use crate::coordinator::Shared;
use crate::crash::crash_point;
use crate::fleet::Seat;
use crate::ledger::LedgerFault;
use crate::sessions::Change;
use handle::{Command, Reply};
use rand_chacha::ChaCha20Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{broadcast, mpsc};
use undertone::{ApiError, Fault};
use undertone_core::id::JobId;
use undertone_privacy::ledger::Ledger;
use undertone_privacy::ledger::chain::{Chain, Line};
use undertone_privacy::ledger::population::Totals;
use undertone_round::coordinator::{Context, Input, JobState, Step, invariants, step};
use undertone_round::job::Job;
use undertone_store::{Blobs, CommitError, StoreError, Transition};

/// How often a step that spends is decided anew because others spent at the same time.
const MOST_MOVES: u32 = 32;
/// Inputs that wait for a busy driver; as many are taken together.
const QUEUE: usize = 256;
/// Pause before something that failed is tried again; doubles up to [`LAST_PAUSE`].
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest such pause.
pub(crate) const LAST_PAUSE: Duration = Duration::from_secs(60);

/// The answers that a batch of inputs will get.
type Answers = Vec<(Option<Reply>, Answer)>;

/// What somebody will be told.
enum Answer {
    /// Whatever else becomes of the batch.
    Saved(Result<(), ApiError>),
    /// Once what it rests on is saved.
    Unsaved(Result<(), ApiError>),
}

impl Answer {
    fn save(&mut self) {
        if let Self::Unsaved(answer) = self {
            *self = Self::Saved(std::mem::replace(answer, Ok(())));
        }
    }
}

/// What others may see of a job without asking its driver.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) state: Arc<JobState>,
    pub(crate) epsilon: Option<f64>,
    pub(crate) attempts: u32,
    /// Of the job that this is.
    pub(crate) version: u64,
    /// Why nothing happens any more although the job has not ended.
    pub(crate) halted: Option<String>,
}

impl Snapshot {
    /// Of a job as it was read.
    pub(crate) fn of(loaded: &LoadedJob) -> Self {
        Self::new(Arc::new(loaded.state.clone()), &loaded.ledger, &loaded.job, loaded.version)
    }

    fn new(state: Arc<JobState>, ledger: &Ledger, job: &Job, version: u64) -> Self {
        let (epsilon, attempts) = (ledger.spent(job.contract()), ledger.entries().len() as u32);
        Self { state, epsilon, attempts, version, halted: None }
    }

    /// The word used in listings.
    pub(crate) fn status(&self) -> &'static str {
        if self.halted.is_some() { "halted" } else { self.state.status() }
    }
}

/// Runs one job.
struct Driver {
    id: JobId,
    job: Arc<Job>,
    handle: Handle,
    state: Arc<JobState>,
    version: u64,
    ledger: Ledger,
    shared: Arc<Shared>,
    /// By which it drives.
    seat: Arc<Seat>,
    /// Blobs, to delete only while the seat is its own.
    blobs: Arc<dyn Blobs>,
    rng: ChaCha20Rng,
    own: mpsc::WeakSender<Command>,
    /// A release of this job is under way.
    releasing: Arc<AtomicBool>,
}

fn set_back() -> Stop {
    let why = "its database is older than what was done already: it was set back; end all coordinators and run `undertone-server restore \
               --in-place` (docs/OPERATIONS.md)";
    Stop::Halt(why.into())
}

/// Why a driver takes no further step.
enum Stop {
    /// The job has ended, or the daemon shuts down.
    Done,
    /// What is stored is not what this driver believes: begin again from there.
    Stale(String),
    /// Another coordinator drives the job now.
    Unseated,
    /// What others spent meanwhile is known now: to be decided anew.
    Moved(String),
    /// Going on would break a promise. Only a person can mend it.
    Halt(String),
}

impl Driver {
    /// Takes inputs until the job has ended, the daemon shuts down, or there is another reason to stop.
    async fn run(
        &mut self,
        inputs: &mut mpsc::Receiver<Command>,
        changes: &mut broadcast::Receiver<Change>,
        recovered: bool,
    ) -> Result<(), Stop> {
        if recovered {
            self.handle(vec![Command { input: Input::Recovered, reply: None }]).await?;
        }
        self.handle(vec![Command { input: Input::Sessions, reply: None }]).await?;
        while !self.state.is_over() {
            let wake = self.state.wake_at_ms(&self.job);
            let sleep = async {
                match wake {
                    Some(at) => tokio::time::sleep(left_until(at)).await,
                    None => std::future::pending().await,
                }
            };
            let alone = |input| Command { input, reply: None };
            let first = tokio::select! {
                command = inputs.recv() => match command {
                    Some(command) => command,
                    None => return Ok(()),
                },
                change = changes.recv() => match change {
                    Ok(Change::Opened(client)) => alone(Input::Connected { client }),
                    Ok(Change::Closed) => alone(Input::Sessions),
                    Err(broadcast::error::RecvError::Lagged(_)) => alone(Input::Missed),
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                },
                () = sleep => alone(Input::Tick),
                () = self.may_stop() => return Ok(()),
                () = self.seat.lost() => return Err(Stop::Unseated),
            };
            // What came while the last save was under way is saved together: a thousand answers are a few commits.
            let mut batch = vec![first];
            while batch.len() < QUEUE
                && let Ok(command) = inputs.try_recv()
            {
                batch.push(command);
            }
            self.handle(batch).await?;
        }
        Ok(())
    }

    /// Resolves at a shutdown, once no release is under way: one that is given up half-way may have drawn noise, and
    /// would be charged without a model. (A release that waits for a disk gives up by itself.)
    async fn may_stop(&self) {
        self.shared.stopping().await;
        while self.releasing.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Inputs, one after the other: step and check each, save them together, carry out, answer. Nobody hears of anything
    /// before it is saved, of a refusal neither: it may rest on what is not saved yet.
    async fn handle(&mut self, batch: Vec<Command>) -> Result<(), Stop> {
        let mut answers = Vec::with_capacity(batch.len());
        let taken = self.advance(batch, &mut answers).await;
        let stopped = match &taken {
            Ok(()) => None,
            Err(Stop::Halt(_)) => {
                Some("the job stands still; its operator finds the reason in `undertone job show`")
            }
            Err(Stop::Stale(_) | Stop::Moved(_) | Stop::Unseated | Stop::Done) => {
                Some("the coordinator cannot take this now: try again later")
            }
        };
        for (reply, answer) in answers {
            let answer = match (stopped, answer) {
                (_, Answer::Saved(answer)) => answer,
                (None, Answer::Unsaved(answer)) => answer,
                (Some(text), Answer::Unsaved(_)) => Err(ApiError::new(Fault::Unavailable, text)),
            };
            match reply {
                Some(reply) => drop(reply.send(answer)),
                None => {
                    if let Err(e) = answer {
                        tracing::warn!(error = %e, "an input was refused");
                    }
                }
            }
        }
        taken
    }

    async fn advance(&mut self, batch: Vec<Command>, answers: &mut Answers) -> Result<(), Stop> {
        let mut together: Option<Step> = None;
        let mut batch = batch.into_iter();
        while let Some(Command { input, reply }) = batch.next() {
            let totals = self.shared.ledger.totals();
            let saved = self.state.clone();
            let state = together.as_ref().map_or(&*saved, |step| &step.next);
            let decided = self.decide(state, input.clone(), &totals);
            match decided {
                // Whoever else is in the batch when this driver stops is told so, too.
                Err(stop) => {
                    let rest = std::iter::once(reply).chain(batch.map(|c| c.reply));
                    answers.extend(rest.map(|reply| (reply, Answer::Unsaved(Ok(())))));
                    return Err(stop);
                }
                Ok(Err(refusal)) => {
                    answers.push((reply, Answer::Unsaved(Err(ApiError::new(Fault::NotNow, refusal)))));
                }
                Ok(Ok(None)) => answers.push((reply, Answer::Unsaved(Ok(())))),
                Ok(Ok(Some(step))) if step.ledger.is_empty() => {
                    match &mut together {
                        Some(before) => before.absorb(step),
                        None => together = Some(step),
                    }
                    answers.push((reply, Answer::Unsaved(Ok(()))));
                }
                Ok(Ok(Some(_))) => {
                    let rest = self.spend(together.take(), input, reply, answers).await;
                    if let Err(stop) = rest {
                        answers.extend(batch.map(|c| (c.reply, Answer::Unsaved(Ok(())))));
                        return Err(stop);
                    }
                }
            }
        }
        match together {
            Some(step) => self.take(step, None).await,
            // What is refused rests on a job that may have moved elsewhere: what saves nothing is not told that by the store.
            None if answers.iter().any(|(_, answer)| matches!(answer, Answer::Unsaved(Err(_)))) => {
                match self.seat.is_ours().await {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(Stop::Unseated),
                    Err(e) => Err(Stop::Stale(e.to_string())),
                }
            }
            None => Ok(()),
        }
    }

    /// A step that spends is decided on what all jobs have spent by now, and nobody spends until it is saved. What was
    /// decided before it is saved first.
    async fn spend(
        &mut self,
        before: Option<Step>,
        input: Input,
        reply: Option<Reply>,
        answers: &mut Answers,
    ) -> Result<(), Stop> {
        if let Some(step) = before
            && let Err(stop) = self.take(step, None).await
        {
            answers.push((reply, Answer::Unsaved(Ok(()))));
            return Err(stop);
        }
        answers.iter_mut().for_each(|(_, answer)| answer.save());
        let shared = self.shared.clone();
        let mut chain = shared.ledger.lock().await;
        let state = self.state.clone();
        let mut tries = 0;
        let taken = loop {
            let taken = match self.decide(&state, input.clone(), chain.totals()) {
                Ok(Ok(Some(step))) => self.take(step, Some(&mut chain)).await,
                Ok(Ok(None)) => Ok(()),
                Ok(Err(refusal)) => {
                    answers.push((reply, Answer::Saved(Err(ApiError::new(Fault::NotNow, refusal)))));
                    return Ok(());
                }
                Err(stop) => Err(stop),
            };
            match taken {
                // Drivers elsewhere spend from the same budget.
                Err(Stop::Moved(_)) if tries < MOST_MOVES => tries += 1,
                Err(Stop::Moved(reason)) => break Err(Stop::Stale(reason)),
                taken => break taken,
            }
        };
        let answer = if taken.is_ok() { Answer::Saved(Ok(())) } else { Answer::Unsaved(Ok(())) };
        answers.push((reply, answer));
        taken
    }

    /// What the machine decides. The inner error is a refusal for the input's sender.
    fn decide(
        &mut self,
        state: &JobState,
        input: Input,
        population: &Totals,
    ) -> Result<Result<Option<Step>, String>, Stop> {
        let roster = self.shared.sessions.roster();
        let enrolled = self.shared.enrolled_evaluators();
        let mut context = Context {
            id: &self.id,
            job: &self.job,
            ledger: &self.ledger,
            population,
            trainers: &roster.trainers,
            evaluators: &roster.evaluators,
            enrolled_evaluators: &enrolled,
            now_ms: unix_ms(),
            rng: &mut self.rng,
        };
        let decided = step(state, input, &mut context);
        if let Ok(Some(step)) = &decided {
            invariants::check(state, step, &context).map_err(|e| Stop::Halt(e.to_string()))?;
        }
        Ok(decided.map_err(|refusal| refusal.to_string()))
    }

    /// Makes a step durable, with its lines in the population's ledger, then carries it out.
    async fn take(&mut self, step: Step, chain: Option<&mut Chain>) -> Result<(), Stop> {
        let lines = match &chain {
            Some(chain) => chain.lines_for(&step.ledger, unix_ms()).map_err(|e| Stop::Halt(e.to_string()))?,
            None => vec![],
        };
        self.save(&step, &lines, chain).await?;
        // Durable. Now it may be known.
        for entry in step.ledger {
            self.ledger.apply(entry).map_err(|e| Stop::Halt(e.to_string()))?;
        }
        self.state = Arc::new(step.next);
        for event in &step.events {
            record::log(event);
        }
        // Before the effects: a client that is asked may answer at once.
        self.handle.show_own(self.look());
        for effect in step.effects {
            self.carry_out(effect).await;
        }
        Ok(())
    }

    async fn save(&mut self, step: &Step, lines: &[Line], chain: Option<&mut Chain>) -> Result<(), Stop> {
        crash_point("before", lines);
        let mut pause = FIRST_PAUSE;
        loop {
            let transition = record::transition(&self.id, self.version, step, lines);
            let transition = Transition { lease: self.seat.lease().cloned(), ..transition };
            match self.shared.store.commit(transition).await {
                Ok(version) => {
                    self.version = version;
                    break;
                }
                // Another try would end the same way.
                Err(CommitError::Store(e @ (StoreError::OutOfRange { .. } | StoreError::Damaged { .. }))) => {
                    return Err(Stop::Halt(e.to_string()));
                }
                Err(CommitError::Store(StoreError::Fenced { .. })) => return Err(Stop::Unseated),
                Err(CommitError::Store(e)) => {
                    tracing::error!(error = %e, "cannot save the job's next step; trying again");
                    self.shared.note_fault(&self.id, Some(format!("its next step cannot be saved: {e}")));
                    self.wait(&mut pause).await?;
                }
                // A save whose answer was lost and that was tried again finds its own step.
                Err(CommitError::Conflict { found, .. })
                    if found == self.version + 1 && self.is_saved(step).await? =>
                {
                    self.version = found;
                    break;
                }
                Err(
                    e @ (CommitError::UnknownJob(_)
                    | CommitError::OtherJob { .. }
                    | CommitError::UploadDiffers { .. }
                    | CommitError::ReleaseDiffers { .. }),
                ) => return Err(Stop::Halt(e.to_string())),
                // Versions and lines only grow: what has fewer than this driver saw is a state of another day.
                Err(CommitError::Conflict { found, .. }) if found < self.version => return Err(set_back()),
                Err(CommitError::LedgerMoved { offered, expected }) if expected < offered => {
                    return Err(set_back());
                }
                Err(e @ (CommitError::Conflict { .. } | CommitError::LedgerMoved { .. })) => {
                    if let Some(chain) = chain {
                        match self.shared.ledger.catch_up(chain, &*self.shared.store).await {
                            Ok(()) => {}
                            Err(LedgerFault::Damaged(reason)) => return Err(Stop::Halt(reason)),
                            // Read again when the driver is begun again.
                            Err(LedgerFault::Store(e)) => return Err(Stop::Stale(e.to_string())),
                        }
                    }
                    return Err(match e {
                        CommitError::LedgerMoved { .. } => Stop::Moved(e.to_string()),
                        _ => Stop::Stale(e.to_string()),
                    });
                }
            }
        }
        if pause != FIRST_PAUSE {
            self.shared.note_fault(&self.id, None);
        }
        crash_point("after", lines);
        if let Some(chain) = chain {
            self.shared.ledger.apply(chain, lines.to_vec()).map_err(Stop::Halt)?;
        }
        Ok(())
    }

    fn look(&self) -> Snapshot {
        Snapshot::new(self.state.clone(), &self.ledger, &self.job, self.version)
    }

    /// Whether what is stored is what this step would have stored. A store that cannot be read is asked again: not
    /// knowing is no reason to believe either.
    async fn is_saved(&self, step: &Step) -> Result<bool, Stop> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.shared.store.job(&self.id).await {
                Ok(record) => {
                    let wanted = record::transition(&self.id, self.version, step, &[]).state;
                    return Ok(record.is_some_and(|r| r.state == wanted));
                }
                Err(e) => {
                    tracing::error!(error = %e, "cannot read the job back; trying again");
                    self.wait(&mut pause).await?;
                }
            }
        }
    }

    /// Waits before something is tried again, for as long as it is this driver's to do.
    async fn wait(&self, pause: &mut Duration) -> Result<(), Stop> {
        tokio::select! {
            waited = self.shared.wait_or_stop(pause) => waited.map_err(|()| Stop::Done),
            () = self.seat.lost() => Err(Stop::Unseated),
        }
    }
}
