//! A store that forgets: for tests and simulation. Its state is the model that the others are compared with.

use crate::error::{CommitError, EnrolError, StoreError};
use crate::records::{
    ClientRecord, EnrolRequest, EventRecord, JobRecord, Lease, LedgerRow, NewEvent, ReleaseRecord,
    TokenRecord, Transition, UploadRecord,
};
use crate::rules::{self, Admission};
use crate::store::Store;
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use undertone_core::digest::Digest;
use undertone_core::id::{AttemptKey, ClientId, JobId, Round};

/// A [`Store`] in memory.
#[derive(Debug)]
pub struct MemoryStore {
    /// `None` once closed. Shared by the handles of [`MemoryStore::another`].
    state: Arc<Mutex<Option<State>>>,
    clock: Clock,
    /// The lease that is needed for a change.
    fence: Mutex<Option<(String, Lease)>>,
}

/// The time since some moment, by which leases end.
#[derive(Clone)]
struct Clock(Arc<dyn Fn() -> Duration + Send + Sync>);

impl Clock {
    fn now(&self) -> Duration {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.now())
    }
}

#[derive(Debug, Default)]
struct State {
    tokens: BTreeMap<String, TokenRecord>,
    clients: BTreeMap<ClientId, ClientRecord>,
    jobs: BTreeMap<JobId, Job>,
    ledger: Vec<LedgerRow>,
    leases: BTreeMap<String, Held>,
}

#[derive(Debug)]
struct Held {
    holder: String,
    number: u64,
    until: Duration,
}

impl Held {
    fn is(&self, lease: &Lease) -> bool {
        (&self.holder, self.number) == (&lease.holder, lease.number)
    }
}

#[derive(Debug)]
struct Job {
    record: JobRecord,
    events: Vec<EventRecord>,
    uploads: BTreeMap<(AttemptKey, ClientId), UploadRecord>,
    releases: BTreeMap<Round, ReleaseRecord>,
}

impl Job {
    fn new(record: JobRecord) -> Self {
        Self { record, events: Vec::new(), uploads: BTreeMap::new(), releases: BTreeMap::new() }
    }

    fn append(&mut self, events: Vec<NewEvent>) {
        for (seq, event) in (self.events.len() as u64 + 1..).zip(events) {
            self.events.push(EventRecord { seq, unix_ms: event.unix_ms, document: event.document });
        }
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        let begun = Instant::now();
        Self::with_clock(move || begun.elapsed())
    }

    /// An empty store whose leases end by this clock: it gives the time since some moment, and never an earlier one than before.
    pub fn with_clock(clock: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self {
            state: Arc::new(Mutex::new(Some(State::default()))),
            clock: Clock(Arc::new(clock)),
            fence: Mutex::default(),
        }
    }

    /// The same store as another program has it open: with a fence of its own.
    pub fn another(&self) -> Self {
        Self { state: Arc::clone(&self.state), clock: self.clock.clone(), fence: Mutex::default() }
    }

    /// From now on nothing is changed through this handle unless this lease is its holder's still.
    pub fn fence(&self, name: &str, lease: &Lease) {
        *self.fence.lock().unwrap_or_else(PoisonError::into_inner) = Some((name.to_owned(), lease.clone()));
    }

    /// Does work elsewhere that rests on the lease, such as deleting what only its holder may: whoever takes the lease waits for it.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if the lease was taken by another; then nothing was done.
    pub fn guarded<T>(&self, work: impl FnOnce() -> T) -> Result<T, StoreError> {
        self.change(|_| Ok(work()))
    }

    /// Runs `change` alone, if the lease that it rests on is held still.
    fn change<T, E: From<StoreError>>(
        &self,
        change: impl FnOnce(&mut State) -> Result<T, E>,
    ) -> Result<T, E> {
        let fence = self.fence.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.with(|state| {
            let held = |(name, lease): &(String, Lease)| state.leases.get(name).is_some_and(|h| h.is(lease));
            if fence.as_ref().is_some_and(|fence| !held(fence)) {
                return Err(StoreError::Fenced { at: "in memory".into() }.into());
            }
            change(state)
        })
    }

    /// Runs `work` alone. No work panics between two writes, so a poisoned lock guards a whole state.
    fn with<T, E: From<StoreError>>(&self, work: impl FnOnce(&mut State) -> Result<T, E>) -> Result<T, E> {
        match self.lock().as_mut() {
            Some(state) => work(state),
            None => Err(StoreError::Closed { at: "in memory".into() }.into()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `list` finds in a job; nothing in a job that does not exist.
    fn of_job<T>(&self, id: &JobId, list: impl FnOnce(&Job) -> Vec<T>) -> Result<Vec<T>, StoreError> {
        self.with(|state| Ok(state.jobs.get(id).map(list).unwrap_or_default()))
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    fn enrol(
        &mut self,
        secret: Digest,
        now_unix_s: u64,
        request: EnrolRequest,
    ) -> Result<ClientRecord, EnrolError> {
        let token = self.tokens.values_mut().find(|t| t.secret_digest == secret);
        let token = token.ok_or(EnrolError::UnknownToken)?;
        let same = |c: &&ClientRecord| c.token_id == token.id && c.key_digest == request.key_digest;
        let earlier = self.clients.values().find(same).cloned();
        let client = match rules::admit(token, earlier, now_unix_s, request)? {
            Admission::Again(client) => return Ok(client),
            Admission::New(client) => client,
        };
        if self.clients.contains_key(&client.id) {
            return Err(EnrolError::NameTaken(client.id));
        }
        token.uses_left -= 1;
        self.clients.insert(client.id.clone(), client.clone());
        Ok(client)
    }

    /// Checks everything first: a step is made whole or not at all.
    fn commit(&mut self, step: Transition) -> Result<u64, CommitError> {
        rules::check_transition(&step)?;
        if let Some(lease) = &step.lease
            && !self.leases.get(&JobRecord::lease_name(&step.job)).is_some_and(|held| held.is(lease))
        {
            return Err(StoreError::Fenced { at: "in memory".into() }.into());
        }
        let job = self.jobs.get_mut(&step.job);
        let version = rules::next_version(&step, job.as_ref().map(|j| j.record.version))?;
        let job = job.ok_or_else(|| CommitError::UnknownJob(step.job.clone()))?;
        rules::check_ledger(&step.ledger, self.ledger.last().map_or(0, |row| row.seq))?;
        let mut uploads = BTreeMap::new();
        for upload in step.uploads {
            let key = (upload.key.clone(), upload.client.clone());
            match job.uploads.get(&key).or(uploads.get(&key)) {
                Some(stored) => rules::check_upload(stored, &upload)?,
                None => drop(uploads.insert(key, upload)),
            }
        }
        if let Some(release) = &step.release
            && let Some(stored) = job.releases.get(&release.round)
        {
            rules::check_release(stored, release)?;
        }
        // Nothing fails from here on.
        self.ledger.extend(step.ledger);
        if let Some(release) = step.release {
            job.releases.entry(release.round).or_insert(release);
        }
        job.uploads.append(&mut uploads);
        job.append(step.events);
        job.record.version = version;
        job.record.status = step.status;
        job.record.ended = step.ended;
        job.record.state = step.state;
        Ok(version)
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn create_token(&self, token: TokenRecord) -> Result<(), StoreError> {
        rules::check_token(&token)?;
        self.change(|state| {
            if state.tokens.values().any(|t| t.id == token.id || t.secret_digest == token.secret_digest) {
                return Err(StoreError::Exists { what: "token", id: token.id });
            }
            state.tokens.insert(token.id.clone(), token);
            Ok(())
        })
    }

    async fn list_tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        self.with(|state| {
            let mut tokens: Vec<_> = state.tokens.values().cloned().collect();
            tokens.sort_by_key(|t| t.created_unix_s);
            Ok(tokens)
        })
    }

    async fn delete_token(&self, id: &str) -> Result<bool, StoreError> {
        self.change(|state| Ok(state.tokens.remove(id).is_some()))
    }

    async fn enrol(
        &self,
        secret_digest: Digest,
        now_unix_s: u64,
        request: EnrolRequest,
    ) -> Result<ClientRecord, EnrolError> {
        self.change(|state| state.enrol(secret_digest, now_unix_s, request))
    }

    async fn client(&self, id: &ClientId) -> Result<Option<ClientRecord>, StoreError> {
        self.with(|state| Ok(state.clients.get(id).cloned()))
    }

    async fn clients(&self) -> Result<Vec<ClientRecord>, StoreError> {
        self.with(|state| Ok(state.clients.values().cloned().collect()))
    }

    async fn touch_client(&self, id: &ClientId, now_unix_s: u64) -> Result<bool, StoreError> {
        StoreError::check_number("the time", now_unix_s)?;
        self.change(|state| {
            let client = state.clients.get_mut(id);
            Ok(client.map(|c| c.last_seen_unix_s = c.last_seen_unix_s.max(Some(now_unix_s))).is_some())
        })
    }

    async fn insert_job(&self, job: JobRecord, events: Vec<NewEvent>) -> Result<(), StoreError> {
        rules::check_job(&job, &events)?;
        self.change(|state| {
            if state.jobs.contains_key(&job.id) {
                return Err(StoreError::Exists { what: "job", id: job.id.to_string() });
            }
            let mut new = Job::new(job);
            new.append(events);
            state.jobs.insert(new.record.id.clone(), new);
            Ok(())
        })
    }

    async fn job(&self, id: &JobId) -> Result<Option<JobRecord>, StoreError> {
        self.with(|state| Ok(state.jobs.get(id).map(|j| j.record.clone())))
    }

    async fn jobs(&self) -> Result<Vec<JobRecord>, StoreError> {
        self.with(|state| {
            let mut jobs: Vec<_> = state.jobs.values().map(|j| j.record.clone()).collect();
            jobs.sort_by_key(|j| j.created_unix_s);
            Ok(jobs)
        })
    }

    async fn open_jobs(&self) -> Result<Vec<JobRecord>, StoreError> {
        Ok(self.jobs().await?.into_iter().filter(|j| !j.ended).collect())
    }

    async fn commit(&self, transition: Transition) -> Result<u64, CommitError> {
        self.change(|state| state.commit(transition))
    }

    async fn events(&self, job: &JobId, after_seq: u64, limit: u32) -> Result<Vec<EventRecord>, StoreError> {
        let wanted = |e: &&EventRecord| e.seq > after_seq;
        self.of_job(job, |j| j.events.iter().filter(wanted).take(limit as usize).cloned().collect())
    }

    async fn ledger(&self, after_seq: u64, limit: u32) -> Result<Vec<LedgerRow>, StoreError> {
        let wanted = |row: &&LedgerRow| row.seq > after_seq;
        self.with(|state| Ok(state.ledger.iter().filter(wanted).take(limit as usize).cloned().collect()))
    }

    async fn uploads(&self, key: &AttemptKey) -> Result<Vec<UploadRecord>, StoreError> {
        self.of_job(&key.job, |j| j.uploads.values().filter(|u| u.key == *key).cloned().collect())
    }

    async fn releases(&self, job: &JobId) -> Result<Vec<ReleaseRecord>, StoreError> {
        self.of_job(job, |j| j.releases.values().cloned().collect())
    }

    async fn released_models(&self) -> Result<Vec<Digest>, StoreError> {
        self.with(|state| {
            Ok(state.jobs.values().flat_map(|j| j.releases.values().map(|r| r.model)).collect())
        })
    }

    async fn take_lease(&self, name: &str, holder: &str, ttl: Duration) -> Result<Lease, StoreError> {
        rules::check_holder(holder)?;
        rules::lease_ms(ttl)?;
        let now = self.clock.now();
        self.with(|state| {
            let nobody = Held { holder: String::new(), number: 0, until: now };
            let held = state.leases.entry(name.to_owned()).or_insert(nobody);
            if held.until <= now {
                *held = Held { holder: holder.to_owned(), number: held.number + 1, until: now + ttl };
            }
            let left_ms = held.until.saturating_sub(now).as_millis() as u64;
            Ok(Lease { holder: held.holder.clone(), number: held.number, left_ms })
        })
    }

    async fn renew_lease(&self, name: &str, lease: &Lease, ttl: Duration) -> Result<bool, StoreError> {
        rules::lease_ms(ttl)?;
        self.with(|state| {
            let held = state.leases.get_mut(name).filter(|held| held.is(lease));
            Ok(held.map(|held| held.until = self.clock.now() + ttl).is_some())
        })
    }

    async fn end_lease(&self, name: &str, lease: &Lease) -> Result<(), StoreError> {
        self.with(|state| {
            if let Some(held) = state.leases.get_mut(name).filter(|held| held.is(lease)) {
                held.holder = String::new();
                held.until = self.clock.now();
            }
            Ok(())
        })
    }

    async fn close(&self) {
        *self.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::store_contract;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn keeps_the_contract() {
        store_contract(async || Arc::new(MemoryStore::new()) as Arc<dyn Store>).await;
    }

    #[tokio::test]
    async fn whoever_lost_the_lease_changes_nothing() {
        let time_s = Arc::new(AtomicU64::new(0));
        let clock = Arc::clone(&time_s);
        let one = MemoryStore::with_clock(move || Duration::from_secs(clock.load(Ordering::Relaxed)));
        let other = one.another();
        let ttl = Duration::from_secs(10);
        let lease = one.take_lease("x", "one", ttl).await.unwrap();
        one.fence("x", &lease);
        let client = ClientId::new("basel").unwrap();
        assert!(!one.touch_client(&client, 1).await.unwrap());
        // Its time is over, and nobody has taken it: it is held still.
        time_s.store(11, Ordering::Relaxed);
        assert_eq!(one.guarded(|| 7).unwrap(), 7);
        let taken = other.take_lease("x", "other", ttl).await.unwrap();
        assert_eq!((taken.holder.as_str(), taken.number), ("other", 2));
        other.fence("x", &taken);
        assert!(matches!(one.touch_client(&client, 1).await, Err(StoreError::Fenced { .. })));
        let refused: Result<(), _> = one.guarded(|| panic!("done by one that may not"));
        assert!(matches!(refused, Err(StoreError::Fenced { .. })));
        let step = Transition::new(JobId::new("j").unwrap(), 1, "waiting", "{}");
        let refused = one.commit(step).await;
        assert!(matches!(refused, Err(CommitError::Store(StoreError::Fenced { .. }))), "{refused:?}");
        // Reading goes on, and so does the other.
        assert!(one.jobs().await.unwrap().is_empty());
        assert!(!other.touch_client(&client, 1).await.unwrap());
    }
}
