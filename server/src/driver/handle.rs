//! A job that goes on, from outside: its driver may be here, or at another coordinator.

use super::{LoadedJob, Snapshot, supervise};
use crate::coordinator::Shared;
use crate::fleet::{Fleet, Seat};
use crate::sweep::let_go;
use bytes::Bytes;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use undertone::{ApiError, Fault};
use undertone_core::digest::Digest;
use undertone_core::id::JobId;
use undertone_round::coordinator::Input;
use undertone_round::job::Job;
use undertone_store::Blobs;

/// How long after the end of a job an answer of its driver may be on its way.
const LATE_ANSWER: Duration = Duration::from_secs(3);

/// Who wants to know what came of an input.
pub(super) type Reply = oneshot::Sender<Result<(), ApiError>>;

/// An input and who wants to know what came of it.
pub(super) struct Command {
    pub(super) input: Input,
    pub(super) reply: Option<Reply>,
}

/// A job's driver, from outside. Clones are the same one, and stay so when the driver moves.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) job: Arc<Job>,
    /// The job's canonical JSON, shared by all offers.
    pub(crate) document: Bytes,
    pub(crate) created_unix_s: u64,
    /// Bytes of models handed to the network for this job's clients; the driver takes them at each release.
    pub(crate) sent: Arc<AtomicU64>,
    id: JobId,
    snapshot: Arc<watch::Sender<Snapshot>>,
    fleet: Option<Arc<Fleet>>,
    driver: Arc<Mutex<Option<Here>>>,
}

/// A driver that is here.
struct Here {
    inputs: mpsc::Sender<Command>,
    task: Option<JoinHandle<()>>,
    seat: Arc<Seat>,
    /// Blobs as its lease lets it delete them.
    blobs: Arc<dyn Blobs>,
}

impl Handle {
    /// Of a job that nobody drives here yet.
    pub(crate) fn new(loaded: &LoadedJob, fleet: Option<Arc<Fleet>>) -> Self {
        let job = loaded.job.clone();
        Self {
            document: Bytes::from(job.spec().to_document()),
            created_unix_s: loaded.created_unix_s,
            sent: Arc::default(),
            id: loaded.id.clone(),
            snapshot: Arc::new(watch::channel(Snapshot::of(loaded)).0),
            fleet,
            driver: Arc::default(),
            job,
        }
    }

    /// Starts its driver here.
    pub(crate) fn drive(&self, loaded: LoadedJob, shared: Arc<Shared>, seat: Arc<Seat>, recovered: bool) {
        if let Some(fleet) = &self.fleet {
            fleet.stands_anew(&self.id, true);
        }
        let mut driver = self.here();
        let blobs = seat.guard(&shared.blobs);
        let (inputs, task) =
            supervise::start(loaded, self.clone(), shared, seat.clone(), blobs.clone(), recovered);
        *driver = Some(Here { inputs, task: Some(task), seat, blobs });
    }

    /// The driver by this seat is here no more. (There may be another one by now.)
    pub(super) fn left(&self, seat: &Arc<Seat>) {
        let left = self.here().take_if(|driver| Arc::ptr_eq(&driver.seat, seat));
        if let Some(fleet) = self.fleet.as_ref().filter(|_| left.is_some()) {
            fleet.stands_anew(&self.id, false);
        }
    }

    /// Notes that it stands still.
    pub(super) fn halt(&self, reason: String) {
        if let Some(fleet) = &self.fleet {
            fleet.tell_standing(&self.id, |standing| standing.halted = Some(reason.clone()));
        }
        self.snapshot.send_modify(|shown| shown.halted = Some(reason));
    }

    pub(crate) fn id(&self) -> &JobId {
        &self.id
    }

    fn here(&self) -> MutexGuard<'_, Option<Here>> {
        self.driver.lock().expect("no panic while locked")
    }

    /// Whether its driver is here.
    pub(crate) fn is_here(&self) -> bool {
        self.here().is_some()
    }

    /// Feeds an input and waits until what follows from it is durable, wherever the driver is.
    pub(crate) async fn feed(&self, input: Input) -> Result<(), ApiError> {
        let inputs = self.here().as_ref().map(|driver| driver.inputs.clone());
        match (inputs, &self.fleet) {
            (Some(inputs), _) => {
                let (reply, answer) = oneshot::channel();
                if inputs.send(Command { input, reply: Some(reply) }).await.is_err() {
                    return Err(self.gone());
                }
                answer.await.unwrap_or_else(|_| Err(self.gone()))
            }
            // Where nobody else has the blobs nobody else may count on them.
            (None, Some(fleet)) if fleet.shares_blobs() => {
                let mut shown = self.watch();
                let over = async { drop(shown.wait_for(|shown| shown.state.is_over()).await) };
                let mut asking = std::pin::pin!(fleet.ask(&self.id, input));
                tokio::select! {
                    answer = &mut asking => answer,
                    // Nobody drives it any more, and the answer is on its way or will not come.
                    () = over => {
                        tokio::time::timeout(LATE_ANSWER, asking).await.unwrap_or_else(|_| Err(self.gone()))
                    }
                }
            }
            (None, Some(_)) => Err(self.gone()),
            (None, None) => Err(self.gone()),
        }
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

    /// Deletes the blob of an update that the driver refused for good, unless the job names it after all. Only the driver's own
    /// picture of the job says that.
    pub(crate) async fn discard_refused(&self, blob: Digest) {
        let blobs = self.here().as_ref().map(|driver| driver.blobs.clone());
        if let Some(blobs) = blobs
            && !self.snapshot().state.blobs().contains(&blob)
        {
            let_go(&*blobs, [blob], "a refused update").await;
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.snapshot.borrow().clone()
    }

    /// Shows what another coordinator made of the job, unless something newer is known. Gives what was shown before, if it did.
    pub(crate) fn show(&self, newer: Snapshot) -> Option<Snapshot> {
        let driver = self.here();
        let mut before = None;
        if driver.is_none() {
            self.snapshot.send_if_modified(|shown| {
                let is_newer = newer.version > shown.version;
                if is_newer {
                    before = Some(std::mem::replace(shown, newer));
                }
                is_newer
            });
        }
        before
    }

    /// Shows what its driver elsewhere says of why it stands still. False: its driver is here.
    pub(crate) fn show_halted(&self, halted: Option<String>) -> bool {
        let driver = self.here();
        if driver.is_none() {
            self.snapshot.send_if_modified(|shown| {
                let is_new = shown.halted != halted;
                shown.halted = halted;
                is_new
            });
        }
        driver.is_none()
    }

    /// Waits until the driver has stopped.
    pub(crate) async fn stopped(&self) {
        let task = self.here().as_mut().and_then(|driver| driver.task.take());
        if let Some(task) = task {
            let _ = task.await;
        }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Snapshot> {
        self.snapshot.subscribe()
    }

    /// Shows what a driver here made of the job, unless a later one was here.
    pub(super) fn show_own(&self, newer: Snapshot) {
        self.snapshot.send_if_modified(|shown| {
            let is_newer = newer.version >= shown.version;
            if is_newer {
                *shown = newer;
            }
            is_newer
        });
    }

    pub(super) fn shown(&self) -> &watch::Sender<Snapshot> {
        &self.snapshot
    }
}
