//! Keeping a driver alive: it is begun again from what is durable when it broke or its picture is stale.

use super::handle::Command;
use super::{Driver, FIRST_PAUSE, Handle, LoadedJob, QUEUE, Stop, load};
use crate::coordinator::Shared;
use crate::fleet::Seat;
use crate::ledger::LedgerFault;
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use std::sync::Arc;
use tokio::sync::{Mutex as AsyncMutex, mpsc};
use tokio::task::JoinHandle;
use undertone::{ApiError, Fault};
use undertone_core::id::JobId;
use undertone_round::coordinator::{Input, JobState, Phase};
use undertone_round::event::Outcome;
use undertone_store::{Blobs, Transition};

/// How often a driver is begun again at the same step before a person must look.
const MOST_IN_VAIN: u32 = 6;

/// A job under supervision.
struct Supervised {
    id: JobId,
    handle: Handle,
    shared: Arc<Shared>,
    seat: Arc<Seat>,
    blobs: Arc<dyn Blobs>,
    own: mpsc::WeakSender<Command>,
    /// Outlives a driver that breaks.
    inputs: Arc<AsyncMutex<mpsc::Receiver<Command>>>,
}

/// Why a job is driven here no longer.
enum End {
    /// It has ended, or the daemon shuts down.
    Done,
    /// Another coordinator drives it.
    Unseated,
    /// A person must look.
    Halted(String),
}

/// Starts a job's driver: gives where inputs go, and its task.
pub(super) fn start(
    loaded: LoadedJob,
    handle: Handle,
    shared: Arc<Shared>,
    seat: Arc<Seat>,
    blobs: Arc<dyn Blobs>,
    recovered: bool,
) -> (mpsc::Sender<Command>, JoinHandle<()>) {
    let (inputs, receiver) = mpsc::channel(QUEUE);
    let supervised = Supervised {
        id: loaded.id.clone(),
        handle,
        shared,
        seat,
        blobs,
        own: inputs.downgrade(),
        inputs: Arc::new(AsyncMutex::new(receiver)),
    };
    (inputs, tokio::spawn(supervised.run(loaded, recovered)))
}

impl Supervised {
    #[tracing::instrument(name = "job", skip_all, fields(job = %self.id))]
    async fn run(self, mut loaded: LoadedJob, mut recovered: bool) {
        let mut pause = FIRST_PAUSE;
        let (mut version, mut in_vain) = (loaded.version, 0);
        let end = loop {
            match self.drive(loaded, recovered).await {
                Stop::Done => break End::Done,
                Stop::Unseated => break End::Unseated,
                Stop::Halt(reason) => break End::Halted(reason),
                Stop::Stale(reason) | Stop::Moved(reason) => {
                    tracing::error!(
                        reason,
                        "the job's driver stopped; it is begun again from what is stored"
                    );
                }
            }
            recovered = true;
            loaded = match self.reload(&mut pause).await {
                Ok(loaded) => loaded,
                Err(end) => break end,
            };
            if loaded.version > version {
                (version, in_vain, pause) = (loaded.version, 0, FIRST_PAUSE);
            } else {
                in_vain += 1;
            }
            if in_vain == MOST_IN_VAIN {
                let reason = format!("its driver stopped {in_vain} times at the same step; the log says why");
                break End::Halted(reason);
            }
        };
        match end {
            End::Done => {}
            End::Unseated => {
                tracing::info!("another coordinator drives the job now");
                if let Some(fleet) = self.shared.fleet.as_ref().filter(|fleet| !fleet.shares_blobs()) {
                    fleet.must_end();
                }
                self.shared.note_fault(&self.id, None);
                // What comes from now on goes there; what waits here is answered below.
                self.handle.left(&self.seat);
            }
            End::Halted(reason) => {
                tracing::error!(reason, "the job stands still until its operator mends this");
                self.handle.halt(reason);
            }
        }
        self.answer_late_inputs().await;
        if self.handle.snapshot().state.is_over() {
            self.shared.ledger.close(&self.id).await;
            self.shared.forget_job(&self.id);
        }
        // Whoever drives it next need not wait.
        self.seat.give_up().await;
        self.handle.left(&self.seat);
    }

    /// Runs a driver in a task of its own, so that its panic ends it alone.
    async fn drive(&self, loaded: LoadedJob, recovered: bool) -> Stop {
        let mut seed = [0u8; 32];
        if let Err(e) = getrandom::fill(&mut seed) {
            return Stop::Stale(format!("the operating system gave no randomness: {e}"));
        }
        let mut driver = Driver {
            id: self.id.clone(),
            job: self.handle.job.clone(),
            handle: self.handle.clone(),
            state: Arc::new(loaded.state),
            version: loaded.version,
            ledger: loaded.ledger,
            shared: self.shared.clone(),
            seat: self.seat.clone(),
            blobs: self.blobs.clone(),
            rng: ChaCha20Rng::from_seed(seed),
            own: self.own.clone(),
            releasing: Arc::default(),
        };
        // What was reloaded is what others should see.
        self.handle.show_own(driver.look());
        // Before the first look at who is there: no session can slip between.
        let mut changes = self.shared.sessions.subscribe();
        let inputs = self.inputs.clone();
        let work = async move { driver.run(&mut *inputs.lock().await, &mut changes, recovered).await };
        let task = tokio::spawn(tracing::Instrument::in_current_span(work));
        match task.await {
            Ok(run) => run.err().unwrap_or(Stop::Done),
            Err(e) => Stop::Stale(format!("it broke: {e}")),
        }
    }

    /// Reads the job again, however long the store takes.
    async fn reload(&self, pause: &mut std::time::Duration) -> Result<LoadedJob, End> {
        loop {
            tokio::select! {
                waited = self.shared.wait_or_stop(pause) => waited.map_err(|()| End::Done)?,
                () = self.seat.lost() => return Err(End::Unseated),
            }
            let record = match self.shared.store.job(&self.id).await {
                Ok(Some(record)) => record,
                Ok(None) => return Err(End::Halted("it is gone from the store".into())),
                Err(e) => {
                    tracing::error!(error = %e, "cannot read the job; trying again");
                    continue;
                }
            };
            // Read under the lock: what the job spent is what the chain says now.
            let mut chain = self.shared.ledger.lock().await;
            match self.shared.ledger.catch_up(&mut chain, &*self.shared.store).await {
                Ok(()) => {}
                Err(LedgerFault::Damaged(reason)) => return Err(End::Halted(reason)),
                Err(LedgerFault::Store(e)) => {
                    tracing::error!(error = %e, "cannot read the privacy ledger; trying again");
                    continue;
                }
            }
            let ledger = chain.job(&self.id);
            drop(chain);
            return load(ledger, record).await.map_err(|e| End::Halted(e.to_string()));
        }
    }

    /// Late inputs are answered, not left hanging. A job that stands still may yet be cancelled.
    async fn answer_late_inputs(&self) {
        let mut inputs = self.inputs.lock().await;
        let stands_still = || {
            let snapshot = self.handle.snapshot();
            !snapshot.state.is_over() && snapshot.halted.is_some() && !self.seat.is_lost()
        };
        if !stands_still() {
            inputs.close();
        }
        loop {
            let command = tokio::select! {
                command = inputs.recv() => command,
                () = self.shared.stopping(), if stands_still() => None,
                () = self.seat.lost(), if stands_still() => None,
            };
            let Some(command) = command else { return };
            let answer = self.answer_late(command.input).await;
            if let Some(reply) = command.reply {
                let _ = reply.send(answer);
            }
            if !stands_still() {
                inputs.close();
            }
        }
    }

    async fn answer_late(&self, input: Input) -> Result<(), ApiError> {
        let snapshot = self.handle.snapshot();
        match (&snapshot.halted, input) {
            _ if snapshot.state.is_over() => {
                Err(ApiError::new(Fault::NotNow, format!("the job has ended ({})", snapshot.state.status())))
            }
            (Some(_), Input::Cancel { by, reason }) => self.end(by, reason).await,
            // Not for ever: participants keep what they have.
            (Some(reason), _) => {
                Err(ApiError::new(Fault::Unavailable, format!("the job stands still: {reason}")))
            }
            (None, _) => Err(ApiError::new(
                Fault::Unavailable,
                "the coordinator is shutting down, or another one drives the job now: try again in a moment",
            )),
        }
    }

    /// Ends a job that stands still. What it reserved stays spent.
    async fn end(&self, by: String, reason: String) -> Result<(), ApiError> {
        let unavailable = |e: &dyn std::fmt::Display| ApiError::new(Fault::Unavailable, e.to_string());
        let record = self.shared.store.job(&self.id).await.map_err(|e| unavailable(&e))?;
        let record = record.ok_or_else(|| ApiError::new(Fault::NotFound, "it is gone from the store"))?;
        let step = super::record::ending(&record, by.clone(), reason.clone());
        let step = Transition { lease: self.seat.lease().cloned(), ..step };
        self.shared.store.commit(step).await.map_err(|e| unavailable(&e))?;
        let outcome = Outcome::Cancelled { by, reason };
        self.handle.shown().send_modify(|s| {
            s.version += 1;
            s.state = Arc::new(JobState { phase: Phase::Ended { outcome }, ..(*s.state).clone() });
            s.halted = None;
        });
        Ok(())
    }
}
