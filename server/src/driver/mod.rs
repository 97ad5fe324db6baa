//! The driver: one task a job, which feeds its round machine one input at a time.
//!
//! The rule it exists for is *persist, then speak*: a step's state, ledger entries and events are one
//! compare-and-swap transaction, and only after it are effects carried out or anybody answered. If the store
//! cannot save, the job stands still and tries again; nothing is said meanwhile. A driver that breaks, or finds that
//! another one was here, is begun again from what is durable ([`supervise`]).

mod effects;
mod record;
mod supervise;

pub(crate) use record::{JobRecordError, LoadedJob, ledger_entries, load};
pub(crate) use supervise::start;

use crate::clock::unix_ms;
use crate::coordinator::Shared;
use crate::sessions::Change;
use bytes::Bytes;
use rand_chacha::ChaCha20Rng;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use undertone::{ApiError, Fault};
use undertone_core::id::JobId;
use undertone_privacy::ledger::Ledger;
use undertone_round::coordinator::{Context, Input, JobState, Step, invariants, step};
use undertone_round::job::Job;
use undertone_store::CommitError;

/// Inputs that wait for a busy driver.
const QUEUE: usize = 256;
/// Pause before something that failed is tried again; doubles up to [`LAST_PAUSE`].
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest such pause.
pub(crate) const LAST_PAUSE: Duration = Duration::from_secs(60);

/// An input and who wants to know what came of it.
struct Command {
    input: Input,
    reply: Option<oneshot::Sender<Result<(), ApiError>>>,
}

/// What others may see of a job without asking its driver.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) state: Arc<JobState>,
    pub(crate) epsilon: Option<f64>,
    pub(crate) attempts: u32,
    /// Why nothing happens any more although the job has not ended.
    pub(crate) halted: Option<String>,
}

impl Snapshot {
    /// The word used in listings.
    pub(crate) fn status(&self) -> &'static str {
        if self.halted.is_some() { "halted" } else { self.state.status() }
    }
}

/// A job's driver, from outside.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) job: Arc<Job>,
    /// The job's canonical JSON, shared by all offers.
    pub(crate) document: Bytes,
    pub(crate) created_unix_s: u64,
    inputs: mpsc::Sender<Command>,
    snapshot: watch::Receiver<Snapshot>,
    task: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Handle {
    /// Feeds an input and waits until what follows from it is durable.
    pub(crate) async fn feed(&self, input: Input) -> Result<(), ApiError> {
        let (reply, answer) = oneshot::channel();
        if self.inputs.send(Command { input, reply: Some(reply) }).await.is_err() {
            return Err(self.gone());
        }
        answer.await.unwrap_or_else(|_| Err(self.gone()))
    }

    /// Why the driver takes no more inputs.
    fn gone(&self) -> ApiError {
        let state = &self.snapshot.borrow().state;
        if state.is_over() {
            ApiError::new(Fault::NotNow, format!("the job has ended ({})", state.status()))
        } else {
            ApiError::new(
                Fault::Unavailable,
                "the job's driver is being started again: try again in a moment",
            )
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.snapshot.borrow().clone()
    }

    /// Waits until the driver has stopped.
    pub(crate) async fn stopped(&self) {
        let task = self.task.lock().expect("no panic while locked").take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Snapshot> {
        self.snapshot.clone()
    }
}

/// Runs one job.
struct Driver {
    id: JobId,
    job: Arc<Job>,
    document: Bytes,
    state: Arc<JobState>,
    version: u64,
    ledger: Ledger,
    shared: Arc<Shared>,
    rng: ChaCha20Rng,
    own: mpsc::WeakSender<Command>,
    snapshot: watch::Sender<Snapshot>,
}

/// Why a driver takes no further step.
enum Stop {
    /// The job has ended, or the daemon shuts down.
    Done,
    /// What is stored is not what this driver believes: begin again from there.
    Stale(String),
    /// Going on would break a promise. Only a person can mend it.
    Halt(String),
}

impl Driver {
    /// Takes inputs until there is a reason to stop.
    async fn run(
        &mut self,
        inputs: &mut mpsc::Receiver<Command>,
        changes: &mut broadcast::Receiver<Change>,
        recovered: bool,
    ) -> Stop {
        match self.take_inputs(inputs, changes, recovered).await {
            Ok(()) => Stop::Done,
            Err(stop) => stop,
        }
    }

    async fn take_inputs(
        &mut self,
        inputs: &mut mpsc::Receiver<Command>,
        changes: &mut broadcast::Receiver<Change>,
        recovered: bool,
    ) -> Result<(), Stop> {
        if recovered {
            self.handle(Input::Recovered, None).await?;
        }
        self.handle(Input::Sessions, None).await?;
        while !self.state.is_over() {
            let wake = self.state.wake_at_ms(&self.job);
            let sleep = async {
                match wake {
                    Some(at) => tokio::time::sleep(Duration::from_millis(at.saturating_sub(unix_ms()))).await,
                    None => std::future::pending().await,
                }
            };
            let (input, reply) = tokio::select! {
                command = inputs.recv() => match command {
                    Some(command) => (command.input, command.reply),
                    None => return Ok(()),
                },
                change = changes.recv() => match change {
                    Ok(Change::Opened(client)) => (Input::Connected { client }, None),
                    Ok(Change::Closed) | Err(broadcast::error::RecvError::Lagged(_)) => (Input::Sessions, None),
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                },
                () = sleep => (Input::Tick, None),
                () = self.shared.stopping() => return Ok(()),
            };
            self.handle(input, reply).await?;
        }
        Ok(())
    }

    /// One input: step, check, save, carry out, answer.
    async fn handle(
        &mut self,
        input: Input,
        reply: Option<oneshot::Sender<Result<(), ApiError>>>,
    ) -> Result<(), Stop> {
        let (taken, answer) = match self.decide(input) {
            Ok(Err(refusal)) => (Ok(()), Err(ApiError::new(Fault::NotNow, refusal))),
            Ok(Ok(None)) => (Ok(()), Ok(())),
            Ok(Ok(Some(step))) => match self.take(step).await {
                Ok(()) => (Ok(()), Ok(())),
                Err(stop) => {
                    let text = "the coordinator cannot take this now: try again later";
                    (Err(stop), Err(ApiError::new(Fault::Unavailable, text)))
                }
            },
            Err(stop) => {
                let text = "the job stands still; its operator finds the reason in the listing of jobs";
                (Err(stop), Err(ApiError::new(Fault::Unavailable, text)))
            }
        };
        if let Some(reply) = reply {
            let _ = reply.send(answer);
        } else if let Err(e) = answer {
            tracing::warn!(error = %e, "an input was refused");
        }
        taken
    }

    /// What the machine decides. The inner error is a refusal for the input's sender.
    fn decide(&mut self, input: Input) -> Result<Result<Option<Step>, String>, Stop> {
        let roster = self.shared.sessions.roster();
        let enrolled = self.shared.enrolled_evaluators();
        let mut context = Context {
            id: &self.id,
            job: &self.job,
            ledger: &self.ledger,
            trainers: &roster.trainers,
            evaluators: &roster.evaluators,
            enrolled_evaluators: &enrolled,
            now_ms: unix_ms(),
            rng: &mut self.rng,
        };
        let decided = step(&self.state, input, &mut context);
        if let Ok(Some(step)) = &decided {
            invariants::check(&self.state, step, &context).map_err(|e| Stop::Halt(e.to_string()))?;
        }
        Ok(decided.map_err(|refusal| refusal.to_string()))
    }

    async fn take(&mut self, step: Step) -> Result<(), Stop> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.shared.store.commit(record::transition(&self.id, self.version, &step)).await {
                Ok(version) => {
                    self.version = version;
                    break;
                }
                Err(CommitError::Store(e)) => {
                    tracing::error!(error = %e, "cannot save the job's next step; trying again");
                    self.shared.wait_or_stop(&mut pause).await.map_err(|()| Stop::Done)?;
                }
                // A save whose answer was lost and that was tried again finds its own step.
                Err(CommitError::Conflict { found, .. })
                    if found == self.version + 1 && self.is_saved(&step).await? =>
                {
                    self.version = found;
                    break;
                }
                Err(e) => return Err(Stop::Stale(e.to_string())),
            }
        }
        // Durable. Now it may be known.
        for entry in step.ledger {
            self.ledger.apply(entry).map_err(|e| Stop::Halt(e.to_string()))?;
        }
        self.state = Arc::new(step.next);
        for event in &step.events {
            record::log(event);
        }
        // Before the effects: a client that is asked may answer at once.
        self.snapshot.send_replace(self.look());
        for effect in step.effects {
            self.carry_out(effect).await;
        }
        Ok(())
    }

    fn look(&self) -> Snapshot {
        Snapshot {
            state: self.state.clone(),
            epsilon: self.ledger.spent(self.job.contract()),
            attempts: self.ledger.entries().len() as u32,
            halted: None,
        }
    }

    /// Whether what is stored is what this step would have stored. A store that cannot be read is asked again: not
    /// knowing is no reason to believe either.
    async fn is_saved(&self, step: &Step) -> Result<bool, Stop> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.shared.store.job(&self.id).await {
                Ok(record) => {
                    let wanted = record::transition(&self.id, self.version, step).state;
                    return Ok(record.is_some_and(|r| r.state == wanted));
                }
                Err(e) => {
                    tracing::error!(error = %e, "cannot read the job back; trying again");
                    self.shared.wait_or_stop(&mut pause).await.map_err(|()| Stop::Done)?;
                }
            }
        }
    }
}
