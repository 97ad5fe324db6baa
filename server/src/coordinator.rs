//! What the services share: store, blobs, sessions, and a driver for each job.

use crate::clock::{unix_ms, unix_s};
use crate::config::ServerConfig;
use crate::driver::{self, Handle, LoadedJob};
use crate::identity::Authority;
use crate::sessions::Sessions;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, RwLock};
use tokio::sync::{Semaphore, watch};
use undertone::{ApiError, Fault};
use undertone_core::digest::Digest;
use undertone_core::id::{ClientId, JobId, OperatorId};
use undertone_privacy::ledger::Ledger;
use undertone_round::coordinator::{JobState, ModelRef};
use undertone_round::event::JobEvent;
use undertone_round::job::Job;
use undertone_store::{Blobs, JobRecord, NewEvent, Store, Transition};

/// What drivers and services share.
pub struct Shared {
    pub(crate) config: ServerConfig,
    pub(crate) authority: Authority,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) blobs: Arc<dyn Blobs>,
    pub(crate) sessions: Sessions,
    pub(crate) upload_slots: Semaphore,
    models: RwLock<HashMap<Digest, u64>>,
    uploading: Arc<Mutex<HashSet<ClientId>>>,
    stop: watch::Sender<bool>,
}

impl Shared {
    /// Lets participants download a model.
    pub(crate) fn publish(&self, model: ModelRef) {
        self.models.write().expect("no panic while locked").insert(model.digest, model.bytes);
    }

    /// The length of a model that participants may download. Other blobs (spooled updates!) are not for them.
    pub(crate) fn published(&self, digest: &Digest) -> Option<u64> {
        self.models.read().expect("no panic while locked").get(digest).copied()
    }

    /// One upload at a time for each client, so that none of them can hold all slots.
    pub(crate) fn upload_turn(&self, client: &ClientId) -> Result<UploadTurn, ApiError> {
        if !self.uploading.lock().expect("no panic while locked").insert(client.clone()) {
            let text = format!("another upload of {client} is under way: try again when it has ended");
            return Err(ApiError::new(Fault::Unavailable, text));
        }
        Ok(UploadTurn { client: client.clone(), uploading: self.uploading.clone() })
    }

    /// Resolves when the daemon shuts down.
    pub(crate) async fn stopping(&self) {
        let mut stop = self.stop.subscribe();
        let _ = stop.wait_for(|stopping| *stopping).await;
    }
}

/// A client's upload under way; ends when it is dropped.
pub(crate) struct UploadTurn {
    client: ClientId,
    uploading: Arc<Mutex<HashSet<ClientId>>>,
}

impl Drop for UploadTurn {
    fn drop(&mut self) {
        self.uploading.lock().expect("no panic while locked").remove(&self.client);
    }
}

/// The coordinator: all jobs of a deployment.
pub struct Coordinator {
    pub(crate) shared: Arc<Shared>,
    jobs: RwLock<BTreeMap<JobId, Handle>>,
}

impl Coordinator {
    /// Opens a deployment and takes up the jobs that had not ended.
    ///
    /// # Errors
    /// If the store cannot be read, or holds a job that this version does not understand.
    pub async fn open(
        config: ServerConfig,
        authority: Authority,
        store: Arc<dyn Store>,
        blobs: Arc<dyn Blobs>,
    ) -> Result<Self, String> {
        let shared = Arc::new(Shared {
            sessions: Sessions::new(config.limits.sessions),
            upload_slots: Semaphore::new(config.limits.uploads_in_flight),
            models: RwLock::default(),
            uploading: Arc::default(),
            stop: watch::channel(false).0,
            config,
            authority,
            store,
            blobs,
        });
        let coordinator = Self { shared, jobs: RwLock::default() };
        for record in coordinator.shared.store.jobs().await.map_err(|e| e.to_string())? {
            let loaded = driver::load(&*coordinator.shared.store, record).await.map_err(|e| e.to_string())?;
            if !loaded.state.is_over() {
                coordinator.shared.publish(loaded.state.model);
                tracing::info!(job = %loaded.id, status = loaded.state.status(), "taking up the job again");
            }
            coordinator.start(loaded, true).map_err(|e| e.to_string())?;
        }
        Ok(coordinator)
    }

    fn start(&self, loaded: LoadedJob, recovered: bool) -> Result<(), ApiError> {
        let id = loaded.id.clone();
        let handle = driver::start(loaded, self.shared.clone(), recovered)?;
        self.jobs.write().expect("no panic while locked").insert(id, handle);
        Ok(())
    }

    /// Accepts a job: checks it, makes it durable, starts it.
    pub(crate) async fn submit(&self, document: &[u8], by: &OperatorId) -> Result<(JobId, Digest), ApiError> {
        let job =
            Job::from_document(document).map_err(|e| ApiError::new(Fault::BadRequest, e.to_string()))?;
        let open = self.jobs().iter().filter(|(_, h)| !h.snapshot().state.is_over()).count();
        if open >= self.shared.config.limits.open_jobs {
            return Err(ApiError::new(
                Fault::TooMuch,
                format!("{open} jobs are open, the limit of this coordinator"),
            ));
        }
        let internal = |e: &dyn std::fmt::Display| {
            tracing::error!(error = %e, "cannot accept a job");
            ApiError::new(Fault::Internal, format!("the coordinator cannot save the job: {e}"))
        };
        let file = job.layout().to_safetensors(&job.initial_values(), BTreeMap::new());
        let (digest, bytes) = self.shared.blobs.put(&file).await.map_err(|e| internal(&e))?;
        let model = ModelRef { digest, bytes };
        let mut suffix = [0u8; 4];
        getrandom::fill(&mut suffix).map_err(|e| internal(&e))?;
        let suffix = u32::from_le_bytes(suffix) & 0xff_ffff;
        let id = JobId::new(format!("{}-{suffix:06x}", job.spec().name)).map_err(|e| internal(&e))?;
        let state = JobState::new(model, unix_ms());
        let json = |value: &JobState| serde_json::to_string(value).expect("plain data");
        let record = JobRecord {
            id: id.clone(),
            document: String::from_utf8(job.spec().to_document()).expect("JSON is UTF-8"),
            document_digest: job.digest(),
            version: 1,
            status: state.status().to_owned(),
            state: json(&state),
            created_unix_s: unix_s(),
        };
        self.shared.store.insert_job(record.clone()).await.map_err(|e| internal(&e))?;
        let submitted = JobEvent::Submitted { by: by.to_string(), job: job.digest() };
        let version = self
            .shared
            .store
            .commit(Transition {
                job: id.clone(),
                expected_version: 1,
                status: record.status,
                state: record.state,
                events: vec![NewEvent {
                    unix_ms: unix_ms(),
                    document: serde_json::to_string(&submitted).expect("plain data"),
                }],
                ledger: vec![],
                uploads: vec![],
                release: None,
            })
            .await
            .map_err(|e| internal(&e))?;
        tracing::info!(job = %id, %by, digest = %job.digest().short(), "job accepted");
        self.shared.publish(model);
        let digest = job.digest();
        let created_unix_s = record.created_unix_s;
        self.start(
            LoadedJob { id: id.clone(), job, state, version, ledger: Ledger::default(), created_unix_s },
            false,
        )?;
        Ok((id, digest))
    }

    /// A job by its id.
    pub(crate) fn job(&self, id: &JobId) -> Result<Handle, ApiError> {
        let jobs = self.jobs.read().expect("no panic while locked");
        jobs.get(id).cloned().ok_or_else(|| ApiError::new(Fault::NotFound, format!("there is no job {id}")))
    }

    /// All jobs.
    pub(crate) fn jobs(&self) -> Vec<(JobId, Handle)> {
        let jobs = self.jobs.read().expect("no panic while locked");
        jobs.iter().map(|(id, handle)| (id.clone(), handle.clone())).collect()
    }

    /// Begins a graceful shutdown: drivers stop after the step they are in, sessions are told to come back later.
    pub(crate) fn stop(&self) {
        self.shared.stop.send_replace(true);
        self.shared.sessions.close_all("the coordinator is shutting down");
    }

    /// Ends a shutdown: waits for the drivers, then lets go of the store.
    pub(crate) async fn finish(&self) {
        for (_, handle) in self.jobs() {
            handle.stopped().await;
        }
        self.shared.store.close().await;
    }
}
