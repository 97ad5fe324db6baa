//! Keeping a driver alive: it is begun again from what is durable when it broke or its picture is stale.

use super::{Command, Driver, FIRST_PAUSE, Handle, LoadedJob, QUEUE, Snapshot, Stop, load};
use crate::coordinator::Shared;
use crate::ledger::LedgerFault;
use bytes::Bytes;
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use tokio::sync::{Mutex as AsyncMutex, mpsc, watch};
use undertone::{ApiError, Fault};
use undertone_core::id::JobId;
use undertone_round::coordinator::{Input, JobState, Phase};
use undertone_round::event::Outcome;
use undertone_round::job::Job;

/// How often a driver is begun again at the same step before a person must look.
const MOST_IN_VAIN: u32 = 6;

/// A job under supervision.
struct Supervised {
    id: JobId,
    job: Arc<Job>,
    document: Bytes,
    shared: Arc<Shared>,
    own: mpsc::WeakSender<Command>,
    /// Outlives a driver that breaks.
    inputs: Arc<AsyncMutex<mpsc::Receiver<Command>>>,
    snapshot: watch::Sender<Snapshot>,
    sent: Arc<AtomicU64>,
}

/// Starts a job's driver.
pub(crate) fn start(loaded: LoadedJob, shared: Arc<Shared>, recovered: bool) -> Handle {
    let (inputs, receiver) = mpsc::channel(QUEUE);
    let job = loaded.job.clone();
    let document = Bytes::from(job.spec().to_document());
    let created_unix_s = loaded.created_unix_s;
    let first = Snapshot {
        state: Arc::new(loaded.state.clone()),
        epsilon: loaded.ledger.spent(job.contract()),
        attempts: loaded.ledger.entries().len() as u32,
        halted: None,
    };
    let (snapshot, watcher) = watch::channel(first);
    let sent = Arc::<AtomicU64>::default();
    let supervised = Supervised {
        id: loaded.id.clone(),
        job: job.clone(),
        document: document.clone(),
        shared,
        own: inputs.downgrade(),
        inputs: Arc::new(AsyncMutex::new(receiver)),
        snapshot,
        sent: sent.clone(),
    };
    let task = tokio::spawn(supervised.run(loaded, recovered));
    let task = Arc::new(Mutex::new(Some(task)));
    Handle { job, document, created_unix_s, sent, inputs, snapshot: watcher, task }
}

impl Supervised {
    #[tracing::instrument(name = "job", skip_all, fields(job = %self.id))]
    async fn run(self, mut loaded: LoadedJob, mut recovered: bool) {
        let mut pause = FIRST_PAUSE;
        let (mut version, mut in_vain) = (loaded.version, 0);
        let halted = loop {
            match self.drive(loaded, recovered).await {
                Stop::Done => break None,
                Stop::Halt(reason) => break Some(reason),
                Stop::Stale(reason) => {
                    tracing::error!(
                        reason,
                        "the job's driver stopped; it is begun again from what is stored"
                    );
                }
            }
            recovered = true;
            loaded = match self.reload(&mut pause).await {
                Ok(loaded) => loaded,
                Err(stop) => break stop,
            };
            if loaded.version > version {
                (version, in_vain, pause) = (loaded.version, 0, FIRST_PAUSE);
            } else {
                in_vain += 1;
            }
            if in_vain == MOST_IN_VAIN {
                break Some(format!("its driver stopped {in_vain} times at the same step; the log says why"));
            }
        };
        if let Some(reason) = halted {
            tracing::error!(reason, "the job stands still until its operator mends this");
            self.snapshot.send_modify(|s| s.halted = Some(reason));
        }
        self.answer_late_inputs().await;
        if self.snapshot.borrow().state.is_over() {
            self.shared.ledger.close(&self.id).await;
            self.shared.forget_job(&self.id);
        }
    }

    /// Runs a driver in a task of its own, so that its panic ends it alone.
    async fn drive(&self, loaded: LoadedJob, recovered: bool) -> Stop {
        let mut seed = [0u8; 32];
        if let Err(e) = getrandom::fill(&mut seed) {
            return Stop::Stale(format!("the operating system gave no randomness: {e}"));
        }
        let mut driver = Driver {
            id: self.id.clone(),
            job: self.job.clone(),
            document: self.document.clone(),
            state: Arc::new(loaded.state),
            version: loaded.version,
            ledger: loaded.ledger,
            shared: self.shared.clone(),
            rng: ChaCha20Rng::from_seed(seed),
            own: self.own.clone(),
            snapshot: self.snapshot.clone(),
            sent: self.sent.clone(),
            releasing: Arc::default(),
        };
        // What was reloaded is what others should see.
        self.snapshot.send_replace(driver.look());
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

    /// Reads the job again, however long the store takes. `Err`: stop, with the reason if it is not a shutdown.
    async fn reload(&self, pause: &mut std::time::Duration) -> Result<LoadedJob, Option<String>> {
        loop {
            self.shared.wait_or_stop(pause).await.map_err(|()| None)?;
            let record = match self.shared.store.job(&self.id).await {
                Ok(Some(record)) => record,
                Ok(None) => return Err(Some("it is gone from the store".into())),
                Err(e) => {
                    tracing::error!(error = %e, "cannot read the job; trying again");
                    continue;
                }
            };
            // Read under the lock: what the job spent is what the chain says now.
            let mut chain = self.shared.ledger.lock().await;
            match self.shared.ledger.catch_up(&mut chain, &*self.shared.store).await {
                Ok(()) => {}
                Err(LedgerFault::Damaged(reason)) => return Err(Some(reason)),
                Err(LedgerFault::Store(e)) => {
                    tracing::error!(error = %e, "cannot read the privacy ledger; trying again");
                    continue;
                }
            }
            let ledger = chain.job(&self.id);
            drop(chain);
            return load(ledger, record).await.map_err(|e| Some(e.to_string()));
        }
    }

    /// Late inputs are answered, not left hanging. A job that stands still may yet be cancelled.
    async fn answer_late_inputs(&self) {
        let mut inputs = self.inputs.lock().await;
        let stands_still = || {
            let snapshot = self.snapshot.borrow();
            !snapshot.state.is_over() && snapshot.halted.is_some()
        };
        if !stands_still() {
            inputs.close();
        }
        loop {
            let command = tokio::select! {
                command = inputs.recv() => command,
                () = self.shared.stopping(), if stands_still() => None,
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
        let snapshot = self.snapshot.borrow().clone();
        match (&snapshot.halted, input) {
            _ if snapshot.state.is_over() => {
                Err(ApiError::new(Fault::NotNow, format!("the job has ended ({})", snapshot.state.status())))
            }
            (Some(_), Input::Cancel { by, reason }) => self.end(by, reason).await,
            // Not for ever: participants keep what they have.
            (Some(reason), _) => {
                Err(ApiError::new(Fault::Unavailable, format!("the job stands still: {reason}")))
            }
            (None, _) => Err(ApiError::new(Fault::Unavailable, "the coordinator is shutting down")),
        }
    }

    /// Ends a job that stands still. What it reserved stays spent.
    async fn end(&self, by: String, reason: String) -> Result<(), ApiError> {
        let unavailable = |e: &dyn std::fmt::Display| ApiError::new(Fault::Unavailable, e.to_string());
        let record = self.shared.store.job(&self.id).await.map_err(|e| unavailable(&e))?;
        let record = record.ok_or_else(|| ApiError::new(Fault::NotFound, "it is gone from the store"))?;
        let step = super::record::ending(&record, by.clone(), reason.clone());
        self.shared.store.commit(step).await.map_err(|e| unavailable(&e))?;
        let outcome = Outcome::Cancelled { by, reason };
        self.snapshot.send_modify(|s| {
            s.state = Arc::new(JobState { phase: Phase::Ended { outcome }, ..(*s.state).clone() });
            s.halted = None;
        });
        Ok(())
    }
}
