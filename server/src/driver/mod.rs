//! The driver: one task a job, which feeds its round machine one input at a time.
//!
//! The rule it exists for is *persist, then speak*: a step's state, ledger entries and events are one
//! compare-and-swap transaction, and only after it are effects carried out or anybody answered. If the store
//! cannot save, the job stands still and tries again; nothing is said meanwhile.

mod effects;
mod record;

pub(crate) use record::{LoadedJob, load};

use crate::clock::unix_ms;
use crate::coordinator::Shared;
use crate::sessions::Change;
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use undertone::{ApiError, Fault};
use undertone_core::id::{ClientRole, JobId};
use undertone_privacy::ledger::Ledger;
use undertone_round::coordinator::{Context, Input, JobState, Step, step};
use undertone_round::job::Job;
use undertone_store::CommitError;

/// Inputs that wait for a busy driver.
const QUEUE: usize = 256;
/// Pause before a failed save is tried again; doubles up to a minute.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// An input and who wants to know what came of it.
struct Command {
    input: Input,
    reply: Option<oneshot::Sender<Result<(), ApiError>>>,
}

/// What others may see of a job without asking its driver.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) state: JobState,
    pub(crate) epsilon: Option<f64>,
    pub(crate) attempts: u32,
}

/// A job's driver, from outside.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) job: Arc<Job>,
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
            ApiError::new(Fault::Unavailable, "the job's driver has stopped: try again later")
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
    state: JobState,
    version: u64,
    ledger: Ledger,
    shared: Arc<Shared>,
    rng: ChaCha20Rng,
    own: mpsc::WeakSender<Command>,
    snapshot: watch::Sender<Snapshot>,
}

/// Starts a job's driver.
pub(crate) fn start(loaded: LoadedJob, shared: Arc<Shared>, recovered: bool) -> Result<Handle, ApiError> {
    let mut seed = [0u8; 32];
    getrandom::fill(&mut seed).map_err(|e| {
        ApiError::new(Fault::Internal, format!("the operating system gave no randomness: {e}"))
    })?;
    let (inputs, receiver) = mpsc::channel(QUEUE);
    let job = Arc::new(loaded.job);
    let first = Snapshot {
        state: loaded.state.clone(),
        epsilon: loaded.ledger.spent(job.contract()),
        attempts: loaded.ledger.entries().len() as u32,
    };
    let (snapshot, watcher) = watch::channel(first);
    let driver = Driver {
        id: loaded.id,
        job: job.clone(),
        state: loaded.state,
        version: loaded.version,
        ledger: loaded.ledger,
        rng: ChaCha20Rng::from_seed(seed),
        own: inputs.downgrade(),
        snapshot,
        shared,
    };
    // Before the first look at who is there: no session can slip between.
    let changes = driver.shared.sessions.subscribe();
    let task = tokio::spawn(driver.run(receiver, changes, recovered));
    let task = Arc::new(Mutex::new(Some(task)));
    Ok(Handle { job, created_unix_s: loaded.created_unix_s, inputs, snapshot: watcher, task })
}

impl Driver {
    #[tracing::instrument(name = "job", skip_all, fields(job = %self.id))]
    async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Command>,
        mut changes: broadcast::Receiver<Change>,
        recovered: bool,
    ) {
        let mut alive = true;
        if recovered {
            alive = self.handle(Input::Recovered, None).await;
        }
        alive = alive && self.handle(Input::Sessions, None).await;
        while alive && !self.state.is_over() {
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
                    None => break,
                },
                change = changes.recv() => match change {
                    Ok(Change::Opened(client)) => (Input::Connected { client }, None),
                    Ok(Change::Closed) | Err(broadcast::error::RecvError::Lagged(_)) => (Input::Sessions, None),
                    Err(broadcast::error::RecvError::Closed) => break,
                },
                () = sleep => (Input::Tick, None),
                () = self.shared.stopping() => break,
            };
            alive = self.handle(input, reply).await;
        }
        // Late inputs of an ended job are answered, not left hanging.
        inputs.close();
        while let Some(command) = inputs.recv().await {
            if self.state.is_over() {
                self.handle(command.input, command.reply).await;
            } else if let Some(reply) = command.reply {
                // A driver that must stop takes no further step.
                let _ =
                    reply.send(Err(ApiError::new(Fault::Unavailable, "the coordinator is shutting down")));
            }
        }
    }

    /// One input: step, save, carry out, answer. `false`: this driver must stop.
    async fn handle(&mut self, input: Input, reply: Option<oneshot::Sender<Result<(), ApiError>>>) -> bool {
        let (trainers, evaluators) = (
            self.shared.sessions.connected(ClientRole::Trainer),
            self.shared.sessions.connected(ClientRole::Evaluator),
        );
        let decided = {
            let mut context = Context {
                id: &self.id,
                job: &self.job,
                ledger: &self.ledger,
                trainers: &trainers,
                evaluators: &evaluators,
                now_ms: unix_ms(),
                rng: &mut self.rng,
            };
            step(&self.state, input, &mut context)
        };
        let (alive, answer) = match decided {
            Err(refusal) => (true, Err(ApiError::new(Fault::NotNow, refusal.to_string()))),
            Ok(None) => (true, Ok(())),
            Ok(Some(step)) => self.take(step).await,
        };
        if let Some(reply) = reply {
            let _ = reply.send(answer);
        } else if let Err(e) = answer {
            tracing::warn!(error = %e, "an input was refused");
        }
        alive
    }

    async fn take(&mut self, step: Step) -> (bool, Result<(), ApiError>) {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.shared.store.commit(record::transition(&self.id, self.version, &step)).await {
                Ok(version) => {
                    self.version = version;
                    break;
                }
                Err(CommitError::Store(e)) => {
                    tracing::error!(error = %e, "cannot save the job's next step; trying again");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(60)),
                        () = self.shared.stopping() => {
                            return (false, Err(ApiError::new(Fault::Unavailable, "shutting down")));
                        }
                    }
                }
                // A save whose answer was lost and that was tried again finds its own step.
                Err(CommitError::Conflict { found, .. })
                    if found == self.version + 1 && self.is_saved(&step).await =>
                {
                    self.version = found;
                    break;
                }
                Err(e) => {
                    tracing::error!(error = %e, "the job was changed by somebody else; this driver stops");
                    return (false, Err(ApiError::new(Fault::Internal, e.to_string())));
                }
            }
        }
        // Durable. Now it may be known.
        for entry in step.ledger {
            if let Err(e) = self.ledger.apply(entry) {
                tracing::error!(error = %e, "the job's privacy ledger does not add up; this driver stops");
                return (false, Err(ApiError::new(Fault::Internal, e.to_string())));
            }
        }
        self.state = step.next;
        for event in &step.events {
            record::log(event);
        }
        // Before the effects: a client that is asked may answer at once.
        self.snapshot.send_replace(Snapshot {
            state: self.state.clone(),
            epsilon: self.ledger.spent(self.job.contract()),
            attempts: self.ledger.entries().len() as u32,
        });
        for effect in step.effects {
            self.carry_out(effect).await;
        }
        (true, Ok(()))
    }

    /// Whether what is stored is what this step would have stored.
    async fn is_saved(&self, step: &Step) -> bool {
        match self.shared.store.job(&self.id).await {
            Ok(Some(record)) => record.state == record::transition(&self.id, self.version, step).state,
            _ => false,
        }
    }
}
