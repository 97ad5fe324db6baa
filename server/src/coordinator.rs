//! What the services share: store, blobs, sessions, and a driver for each job that goes on.

use crate::clock::{unix_ms, unix_s};
use crate::config::ServerConfig;
use crate::driver::{self, FIRST_PAUSE, Handle, LAST_PAUSE, LoadedJob, record};
use crate::fleet::{self, Fleet, Seat};
use crate::identity::Authority;
use crate::ledger::PopulationLedger;
use crate::refusals::Refusals;
use crate::release::{self, FirstModelError, broadcast};
use crate::sessions::Sessions;
use crate::shelf::Shelf;
use crate::spool::Unfinished;
use crate::sweep::sweep;
use crate::turns::{Turn, Turns};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};
use undertone::{ApiError, Fault};
use undertone_core::digest::Digest;
use undertone_core::id::{AttemptKey, ClientId, ClientRole, JobId, OperatorId};
use undertone_privacy::ledger::Ledger;
use undertone_round::coordinator::JobState;
use undertone_round::event::JobEvent;
use undertone_round::job::Job;
use undertone_store::{Blobs, JobRecord, NewEvent, Store, StoreError};

/// Model downloads that one client may have under way at once.
const DOWNLOADS_OF_A_CLIENT: usize = 4;

/// How long a call waits for another one that is about the same update: a disk may be slow, and a line that broke looks alive for a while.
const UPDATE_TURN: Duration = Duration::from_secs(30);

/// What is held while an update is taken in, or asked about.
pub(crate) type UpdateTurn = Turn<(AttemptKey, ClientId)>;

/// What drivers and services share.
pub struct Shared {
    pub(crate) config: ServerConfig,
    pub(crate) authority: Authority,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) blobs: Arc<dyn Blobs>,
    pub(crate) ledger: PopulationLedger,
    pub(crate) sessions: Sessions,
    /// Where several coordinators share a database.
    pub(crate) fleet: Option<Arc<Fleet>>,
    pub(crate) upload_slots: Semaphore,
    pub(crate) unfinished: Unfinished,
    /// What downloads have in memory.
    pub(crate) shelf: Arc<Shelf>,
    /// Jobs that have not ended. Ended ones are read from the store when somebody asks.
    running: RwLock<BTreeMap<JobId, Handle>>,
    /// Open jobs that this version cannot read, and why.
    unreadable: RwLock<BTreeMap<JobId, String>>,
    /// What jobs that go on are waiting for just now, when it is a fault.
    waiting_for: RwLock<BTreeMap<JobId, String>>,
    evaluators: RwLock<Arc<Vec<ClientId>>>,
    uploading: Turns<ClientId>,
    /// Updates that are on their way in, each once.
    taking_in: Turns<(AttemptKey, ClientId)>,
    downloading: Turns<ClientId>,
    pub(crate) refusals: Refusals,
    stop: watch::Sender<bool>,
}

/// What a participant may fetch.
pub(crate) struct Readable {
    pub(crate) bytes: u64,
    /// Where the job counts what is sent of it.
    pub(crate) sent: Arc<AtomicU64>,
    /// How long its transfers may stand still.
    pub(crate) idle: Duration,
    /// Until when it is of use to who trains from it.
    pub(crate) deadline_ms: Option<u64>,
}

impl Shared {
    /// A model (or a TorchScript file) that this participant needs now, for training or for measuring.
    ///
    /// # Errors
    /// That it needs it not: other blobs (spooled updates!) and other models are not for it.
    pub(crate) fn readable(&self, client: &ClientId, digest: &Digest) -> Result<Readable, ApiError> {
        let running = self.running.read().expect("no panic while locked");
        let found = running.values().find_map(|handle| {
            let watch = handle.watch();
            let state = &watch.borrow().state;
            let module = handle.job.module_file().filter(|file| file.digest == *digest && state.asks(client));
            Some(Readable {
                bytes: state.readable(client, digest).or(module.map(|file| file.bytes))?,
                sent: handle.sent.clone(),
                idle: handle.job.spec().deadlines.transfer_idle.0,
                deadline_ms: state.deadline_of(client),
            })
        });
        found.ok_or_else(|| {
            let text =
                format!("{} is not a model that {client} is asked to train or measure now", digest.short());
            ApiError::new(Fault::NotFound, text)
        })
    }

    /// Everybody who was enrolled as an evaluator, sorted.
    pub(crate) fn enrolled_evaluators(&self) -> Arc<Vec<ClientId>> {
        self.evaluators.read().expect("no panic while locked").clone()
    }

    /// Notes a new evaluator.
    pub(crate) fn add_evaluator(&self, client: ClientId) {
        let mut evaluators = self.evaluators.write().expect("no panic while locked");
        if let Err(place) = evaluators.binary_search(&client) {
            Arc::make_mut(&mut evaluators).insert(place, client);
        }
    }

    /// Notes what a job waits for, for its operator to see; `None`: for nothing any more.
    pub(crate) fn note_fault(&self, id: &JobId, fault: Option<String>) {
        if let (Some(fleet), true) = (&self.fleet, self.job(id).is_some_and(|job| job.is_here())) {
            fleet.tell_standing(id, |standing| standing.waits_for = fault.clone());
        }
        let mut waiting_for = self.waiting_for.write().expect("no panic while locked");
        match fault {
            Some(fault) => drop(waiting_for.insert(id.clone(), fault)),
            None => drop(waiting_for.remove(id)),
        }
    }

    /// What a job waits for, if it is a fault.
    pub(crate) fn fault(&self, id: &JobId) -> Option<String> {
        self.waiting_for.read().expect("no panic while locked").get(id).cloned()
    }

    /// A job that goes on.
    pub(crate) fn job(&self, id: &JobId) -> Option<Handle> {
        self.running.read().expect("no panic while locked").get(id).cloned()
    }

    /// All jobs that go on.
    pub(crate) fn jobs(&self) -> BTreeMap<JobId, Handle> {
        self.running.read().expect("no panic while locked").clone()
    }

    /// Drives a job here.
    pub(crate) fn drive(self: &Arc<Self>, loaded: LoadedJob, seat: Arc<Seat>, recovered: bool) {
        // Locked until it is listed: a job that ends at once is taken out after it was put in.
        let mut running = self.running.write().expect("no panic while locked");
        if seat.lease().is_some() {
            tracing::info!(job = %loaded.id, status = loaded.state.status(), "driving the job from here");
        }
        let new = || Handle::new(&loaded, self.fleet.clone());
        let handle = running.entry(loaded.id.clone()).or_insert_with(new).clone();
        handle.drive(loaded, self.clone(), seat, recovered);
    }

    /// Lists a job that another coordinator drives, or will.
    pub(crate) fn follow(&self, loaded: &LoadedJob) {
        let mut running = self.running.write().expect("no panic while locked");
        running.entry(loaded.id.clone()).or_insert_with(|| Handle::new(loaded, self.fleet.clone()));
    }

    /// Notes that this version cannot read a job.
    pub(crate) fn note_unreadable(&self, id: &JobId, reason: String) {
        let mut unreadable = self.unreadable.write().expect("no panic while locked");
        if unreadable.insert(id.clone(), reason.clone()).is_none() {
            tracing::error!(job = %id, error = reason, "a job stands still; the others go on");
        }
    }

    /// Open jobs that this version cannot read.
    pub(crate) fn unreadable_jobs(&self) -> BTreeSet<JobId> {
        self.unreadable.read().expect("no panic while locked").keys().cloned().collect()
    }

    /// Reads again who is enrolled as an evaluator.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(crate) async fn read_evaluators(&self) -> Result<(), StoreError> {
        let now = Arc::new(evaluators(&*self.store).await?);
        *self.evaluators.write().expect("no panic while locked") = now;
        Ok(())
    }

    /// Lets go of a job that has ended.
    pub(crate) fn forget_job(&self, id: &JobId) {
        self.note_fault(id, None);
        self.unreadable.write().expect("no panic while locked").remove(id);
        self.running.write().expect("no panic while locked").remove(id);
    }

    /// One upload at a time for each client, so that none of them can hold all slots.
    pub(crate) fn upload_turn(&self, client: &ClientId) -> Result<Turn, ApiError> {
        self.uploading.take(client).ok_or_else(|| {
            let text = format!("another upload of {client} is under way: try again when it has ended");
            ApiError::new(Fault::Unavailable, text)
        })
    }

    /// While it is held, nobody else takes an update of this client into this attempt: what the store says of it stands. Waits for an
    /// upload that is at it.
    ///
    /// # Errors
    /// That it takes longer than a caller should wait.
    pub(crate) async fn update_turn(
        &self,
        key: &AttemptKey,
        client: &ClientId,
    ) -> Result<UpdateTurn, ApiError> {
        let whose = (key.clone(), client.clone());
        let begun = Instant::now();
        while begun.elapsed() < UPDATE_TURN {
            if let Some(turn) = self.taking_in.take(&whose) {
                return Ok(turn);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let text =
            format!("an update of {client} for {key} is being taken in: ask again when that has ended");
        Err(ApiError::new(Fault::Unavailable, text))
    }

    /// A few downloads at a time for each client. Ours has one; more are those of broken connections, until that is noticed.
    pub(crate) fn download_turn(&self, client: &ClientId) -> Result<Turn, ApiError> {
        self.downloading.take(client).ok_or_else(|| {
            let text = format!(
                "{client} has {DOWNLOADS_OF_A_CLIENT} downloads under way, as many as one client may: read one to its end or \
                 cancel it, then ask again from where you are"
            );
            self.refusals.note_download(client, &text);
            ApiError::new(Fault::Unavailable, text)
        })
    }

    /// Whether the daemon shuts down.
    pub(crate) fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Resolves when the daemon shuts down.
    pub(crate) async fn stopping(&self) {
        let mut stop = self.stop.subscribe();
        let _ = stop.wait_for(|stopping| *stopping).await;
    }

    /// Waits before something is tried again, twice as long the next time. `Err`: the daemon shuts down.
    pub(crate) async fn wait_or_stop(&self, pause: &mut Duration) -> Result<(), ()> {
        let now = *pause;
        *pause = (now * 2).min(LAST_PAUSE);
        tokio::select! {
            () = tokio::time::sleep(now) => Ok(()),
            () = self.stopping() => Err(()),
        }
    }
}

/// Who is enrolled as an evaluator, sorted.
async fn evaluators(store: &dyn Store) -> Result<Vec<ClientId>, StoreError> {
    let clients = store.clients().await?.into_iter();
    Ok(clients.filter(|client| client.role == ClientRole::Evaluator).map(|client| client.id).collect())
}

/// The coordinator: all jobs of a deployment.
pub struct Coordinator {
    pub(crate) shared: Arc<Shared>,
}

impl Coordinator {
    /// Opens a deployment and takes up the jobs that had not ended. One that cannot be read is told of in the log and
    /// the listing, and keeps no other from going on.
    ///
    /// # Errors
    /// If the store or the blobs cannot be read.
    pub(crate) async fn open(
        config: ServerConfig,
        authority: Authority,
        store: Arc<dyn Store>,
        blobs: Arc<dyn Blobs>,
        fleet: Option<Arc<Fleet>>,
    ) -> Result<Self, String> {
        let evaluators = evaluators(&*store).await.map_err(|e| e.to_string())?;
        let ledger = PopulationLedger::open(&*store, config.budget).await?;
        let shared = Arc::new(Shared {
            ledger,
            sessions: Sessions::new(config.limits.sessions),
            unfinished: Unfinished::of(&*blobs).await.map_err(|e| e.to_string())?,
            upload_slots: Semaphore::new(config.limits.uploads_in_flight),
            shelf: Arc::new(Shelf::new()),
            running: RwLock::default(),
            unreadable: RwLock::default(),
            waiting_for: RwLock::default(),
            evaluators: RwLock::new(Arc::new(evaluators)),
            fleet,
            uploading: Turns::of(1),
            taking_in: Turns::of(1),
            downloading: Turns::of(DOWNLOADS_OF_A_CLIENT),
            refusals: Refusals::default(),
            stop: watch::channel(false).0,
            config,
            authority,
            store,
            blobs,
        });
        let coordinator = Self { shared };
        coordinator.take_up().await?;
        Ok(coordinator)
    }

    async fn take_up(&self) -> Result<(), String> {
        let store = &*self.shared.store;
        let mut loaded = vec![];
        let records = store.open_jobs().await.map_err(|e| e.to_string())?;
        let mut chain = self.shared.ledger.lock().await;
        chain.close_others(&|id| records.iter().any(|r| r.id == *id));
        for record in records {
            let id = record.id.clone();
            match driver::load(chain.job(&id), record).await {
                Ok(job) => loaded.push(job),
                Err(e) => self.shared.note_unreadable(&id, e.to_string()),
            }
        }
        drop(chain);
        let alone = self.shared.fleet.as_ref().is_none_or(|fleet| !fleet.shares_blobs());
        // What an unreadable job needs is unknown: then nothing is swept.
        if alone && self.unreadable().is_empty() {
            let modules = loaded.iter().filter_map(|job| job.job.module_file()).map(|file| file.digest);
            let need = loaded.iter().flat_map(|job| job.state.blobs()).chain(modules);
            match sweep(store, &*self.shared.blobs, need).await? {
                0 => {}
                swept => tracing::info!(swept, "deleted blobs that nothing refers to"),
            }
        }
        for job in loaded {
            match &self.shared.fleet {
                None => {
                    tracing::info!(job = %job.id, status = job.state.status(), "taking up the job again");
                    self.shared.drive(job, Seat::alone(), true);
                }
                // Whoever takes its lease drives it.
                Some(_) => self.shared.follow(&job),
            }
        }
        if let Some(fleet) = &self.shared.fleet {
            fleet::keep(&self.shared, fleet);
        }
        Ok(())
    }

    /// Accepts a job: checks it, makes it durable, starts it.
    pub(crate) async fn submit(
        &self,
        document: Vec<u8>,
        by: &OperatorId,
    ) -> Result<(JobId, Digest), ApiError> {
        let internal = |e: &dyn std::fmt::Display| {
            tracing::error!(error = %e, "cannot accept a job");
            ApiError::new(Fault::Internal, format!("the coordinator cannot save the job: {e}"))
        };
        // Resolving a contract is work for a core, not for an async thread.
        let parsed = tokio::task::spawn_blocking(move || Job::from_document(&document).map(Arc::new));
        let job = parsed
            .await
            .map_err(|e| internal(&e))?
            .map_err(|e| ApiError::new(Fault::BadRequest, e.to_string()))?;
        let (contract, totals) = (job.contract(), self.shared.ledger.totals());
        let measured = contract.planned_measurements();
        match totals.attempts_left(contract.unit(), contract.loss(), contract.charge(), measured) {
            Some(fits) if fits < u64::from(contract.paying_attempts()) && contract.trust().is_some() => {
                let text = format!(
                    "the privacy budget of the population has room for {fits} rounds of this job, which plans {}: plan \
                     fewer, add noise, or see `undertone ledger show`",
                    job.spec().rounds
                );
                return Err(ApiError::new(Fault::NotNow, text));
            }
            _ => {}
        }
        let open = self.shared.jobs().len();
        if open >= self.shared.config.limits.open_jobs {
            return Err(ApiError::new(
                Fault::TooMuch,
                format!("{open} jobs are open, the limit of this coordinator"),
            ));
        }
        let model = release::first_model(&job, &self.shared.blobs).await.map_err(|e| match e {
            FirstModelError::Given(_) | FirstModelError::Module(_) => {
                ApiError::new(Fault::BadRequest, e.to_string())
            }
            FirstModelError::Storage(e) => internal(&e),
        })?;
        let mut suffix = [0u8; 4];
        getrandom::fill(&mut suffix).map_err(|e| internal(&e))?;
        let suffix = u32::from_le_bytes(suffix) & 0xff_ffff;
        let id = JobId::new(format!("{}-{suffix:06x}", job.spec().name)).map_err(|e| internal(&e))?;
        let mut state = JobState::new(model, unix_ms());
        let broadcast = broadcast::initial(&job, &id, model, &self.shared.blobs).await;
        state.carried.broadcast = broadcast.map_err(|e| internal(&e))?;
        let record = JobRecord {
            id: id.clone(),
            document: String::from_utf8(job.spec().to_document()).expect("JSON is UTF-8"),
            document_digest: job.digest(),
            version: JobRecord::FIRST_VERSION,
            status: state.status().to_owned(),
            ended: false,
            state: serde_json::to_string(&state).expect("plain data"),
            created_unix_s: unix_s(),
        };
        let created_unix_s = record.created_unix_s;
        let submitted = JobEvent::Submitted { by: by.to_string(), job: job.digest() };
        let document = serde_json::to_string(&submitted).expect("plain data");
        let first = vec![NewEvent { unix_ms: unix_ms(), document }];
        let digest = job.digest();
        let (version, ledger) = (JobRecord::FIRST_VERSION, Ledger::default());
        let loaded = LoadedJob { id: id.clone(), job, state, version, ledger, created_unix_s };
        // A task of its own: whoever submits may hang up, and a job that is kept must have a driver.
        let kept = Self { shared: self.shared.clone() }.keep(record, first, loaded);
        tokio::spawn(kept).await.map_err(|e| internal(&e))?.map_err(|e| internal(&e))?;
        tracing::info!(job = %id, %by, digest = %digest.short(), "job accepted");
        Ok((id, digest))
    }

    /// Makes a job durable and starts it. A store that does not say whether it kept it is asked until it does.
    async fn keep(
        self,
        record: JobRecord,
        events: Vec<NewEvent>,
        loaded: LoadedJob,
    ) -> Result<(), StoreError> {
        let store = &self.shared.store;
        let (mut pause, mut unsure) = (FIRST_PAUSE, false);
        loop {
            let inserting = store.insert_job(record.clone(), events.clone());
            let inserted = match &self.shared.fleet {
                Some(fleet) => fleet.as_one_of_them(inserting).await,
                None => inserting.await,
            };
            match inserted {
                Ok(()) => break,
                Err(StoreError::Exists { .. }) if unsure => break,
                Err(e) if !(unsure || matches!(e, StoreError::Unsure { .. })) => return Err(e),
                Err(e) => {
                    tracing::error!(error = %e, "cannot tell whether a job was kept; asking again");
                    unsure = true;
                    if self.shared.wait_or_stop(&mut pause).await.is_err() {
                        return Err(e);
                    }
                }
            }
        }
        match &self.shared.fleet {
            None => self.shared.drive(loaded, Seat::alone(), false),
            Some(fleet) => fleet::adopt(&self.shared, fleet, loaded).await,
        }
        Ok(())
    }

    /// A job that goes on. One that is new to this coordinator is looked up.
    pub(crate) async fn job(&self, id: &JobId) -> Option<Handle> {
        let known = self.shared.job(id);
        if known.is_none() && self.shared.fleet.is_some() {
            if let Err(e) = fleet::refresh(&self.shared, id).await {
                tracing::warn!(error = %e, "cannot look up a job");
            }
            return self.shared.job(id);
        }
        known
    }

    /// The driver of a job that must go on.
    pub(crate) async fn running_job(&self, id: &JobId) -> Result<Handle, ApiError> {
        match self.job(id).await {
            Some(handle) => Ok(handle),
            None => {
                // A participant keeps what it has: the job may go on once a person has looked.
                if let Some(reason) = self.unreadable().get(id) {
                    return Err(ApiError::new(Fault::Unavailable, format!("the job stands still: {reason}")));
                }
                let record = self.record(id).await?;
                if !record.ended {
                    return Err(ApiError::new(
                        Fault::Unavailable,
                        "the job cannot be looked up now: try again",
                    ));
                }
                let text = format!("the job has ended ({})", record.status);
                Err(ApiError::new(Fault::NotNow, text))
            }
        }
    }

    /// Ends a job that cannot be read: it will not be tried again, and what it needed is no longer kept for it.
    pub(crate) async fn bury(&self, id: &JobId, by: String, reason: String) -> Result<(), ApiError> {
        let record = self.record(id).await?;
        let step = record::ending(&record, by, reason);
        self.shared.store.commit(step).await.map_err(|e| ApiError::new(Fault::Unavailable, e.to_string()))?;
        self.shared.unreadable.write().expect("no panic while locked").remove(id);
        Ok(())
    }

    /// A job as it is stored.
    pub(crate) async fn record(&self, id: &JobId) -> Result<JobRecord, ApiError> {
        let record = self.shared.store.job(id).await.map_err(|e| {
            tracing::error!(error = %e, "cannot look up a job");
            ApiError::new(Fault::Unavailable, format!("the coordinator cannot look up the job now: {e}"))
        })?;
        record.ok_or_else(|| ApiError::new(Fault::NotFound, format!("there is no job {id}")))
    }

    /// Open jobs that cannot be read, and why.
    pub(crate) fn unreadable(&self) -> BTreeMap<JobId, String> {
        self.shared.unreadable.read().expect("no panic while locked").clone()
    }

    /// Begins a graceful shutdown: drivers stop after the step they are in, sessions are told to come back later.
    pub(crate) fn stop(&self) {
        self.shared.stop.send_replace(true);
        self.shared.sessions.close_all("the coordinator is shutting down");
    }

    /// Ends a shutdown: waits for the drivers, each of which gives up its lease.
    pub(crate) async fn finish(&self) {
        for handle in self.shared.jobs().into_values() {
            handle.stopped().await;
        }
    }
}
