//! Several coordinators on one database: any of them serves any client, and each job is driven by one of them.
//!
//! ```text
//!  client ── coordinator A ── inbox ──▶ driver at B ── mail ──▶ coordinator A ── client
//!                  ▲                        │
//!                  └──── the job's state ◀──┘      all in PostgreSQL; NOTIFY says where to look
//! ```
//!
//! - **Who drives** ([`Seat`]): a lease of each job, renewed all together. One that runs out is taken by another coordinator, and what
//!   the former holder still does is refused by the store.
//! - **Who is connected** is a row for each session: drivers see those of all coordinators that are there.
//! - **What a driver has for a client elsewhere** is mail; **what comes for a job driven elsewhere** is asked through its inbox and
//!   answered when it is durable. A question whose driver ended is there for the next one. Feeding it twice does no harm: the machine
//!   counts nothing twice.
//! - **What others may know of a job** is read from its row whenever it moved ([`keeper`]).
//!
//! Nothing rests on a notification: all is looked at every few seconds too.

mod forwarded;
mod keeper;
mod seat;
mod sums;

pub(crate) use keeper::{adopt, keep, refresh};
pub(crate) use seat::Seat;

use forwarded::{Answered, Forwarded};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use undertone::v1::{self, server_message::Kind};
use undertone::{ApiError, Fault};
use undertone_core::id::{ClientId, ClientRole, JobId};
use undertone_round::coordinator::Input;
use undertone_store::fleet::{JobStanding, Mail, Note, SessionRow};
use undertone_store::{BucketBlobs, JobRecord, Lease, SqlStore, StoreError};

/// How long a coordinator has what it leased without saying so again.
pub(crate) const LEASE: Duration = Duration::from_secs(10);
/// How often it says so, and how often it looks for what was not told.
pub(crate) const RENEWAL: Duration = Duration::from_secs(2);
/// How long it waits to be heard.
pub(crate) const HEARD_IN: Duration = Duration::from_secs(4);
/// How long whoever asks a driver waits: for longer than another coordinator takes to take over.
const ANSWERED_IN: Duration = Duration::from_secs(45);
/// Answers that nobody waits for yet, or any more.
const EARLY: usize = 4096;

/// This coordinator among the others.
#[derive(Debug)]
pub(crate) struct Fleet {
    store: Arc<SqlStore>,
    me: String,
    /// Needed where blobs are in a folder: then there is no other coordinator.
    alone: Option<Lease>,
    bucket: Option<Arc<BucketBlobs>>,
    waiting: Mutex<Waiting>,
    seats: Mutex<BTreeMap<JobId, Taken>>,
    /// Leases of jobs by which nobody here drove when they were last renewed.
    loose: Mutex<HashSet<(String, u64)>>,
    /// Sessions that are noted and not open yet.
    opening: Mutex<HashSet<u64>>,
    /// Questions that a driver here has, and those among them that are answered.
    in_hand: Mutex<HashSet<u64>>,
    answered: Mutex<HashSet<u64>>,
    todo: Mutex<Todo>,
    wake: Notify,
    mail: mpsc::UnboundedSender<(String, Mail)>,
    answers: mpsc::UnboundedSender<(u64, String)>,
    standings: mpsc::UnboundedSender<(JobId, JobStanding)>,
    /// How jobs that are driven here stand.
    stands: Mutex<BTreeMap<JobId, JobStanding>>,
    queues: Mutex<Option<Queues>>,
    /// Whether the database was heard of within the time of a lease.
    in_reach: watch::Sender<bool>,
    /// Why this coordinator must end.
    over: watch::Sender<Option<String>>,
    /// It is none of them any more.
    has_left: watch::Sender<bool>,
}

/// What is written in batches: as much as cohorts are large.
#[derive(Debug)]
struct Queues {
    mail: mpsc::UnboundedReceiver<(String, Mail)>,
    answers: mpsc::UnboundedReceiver<(u64, String)>,
    standings: mpsc::UnboundedReceiver<(JobId, JobStanding)>,
}

/// A job that is driven here.
#[derive(Debug)]
struct Taken {
    seat: Arc<Seat>,
    since: Instant,
}

/// Who waits for the answer of a driver elsewhere.
#[derive(Debug, Default)]
struct Waiting {
    open: HashMap<u64, oneshot::Sender<Answered>>,
    /// Answers that came before whoever asked knew their number.
    early: HashMap<u64, Answered>,
}

/// Somebody who waits, for as long as this lives.
struct Waits<'a> {
    fleet: &'a Fleet,
    number: u64,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.fleet.waiting().open.remove(&self.number);
    }
}

/// Where to look next.
#[derive(Debug, Default)]
struct Todo {
    jobs: BTreeSet<JobId>,
    inboxes: BTreeSet<JobId>,
    sessions: BTreeSet<ClientId>,
    mail: bool,
    answers: bool,
    enrolled: bool,
    leases: bool,
    everything: bool,
}

impl Fleet {
    /// A coordinator of this name, whose own lease was just taken.
    pub(crate) fn new(
        store: Arc<SqlStore>,
        me: String,
        alone: Option<Lease>,
        bucket: Option<Arc<BucketBlobs>>,
    ) -> Arc<Self> {
        let ((mail, mails), (answers, answered)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let (standings, stood) = mpsc::unbounded_channel();
        Arc::new(Self {
            store,
            me,
            alone,
            bucket,
            waiting: Mutex::default(),
            seats: Mutex::default(),
            loose: Mutex::default(),
            opening: Mutex::default(),
            in_hand: Mutex::default(),
            answered: Mutex::default(),
            standings,
            stands: Mutex::default(),
            todo: Mutex::default(),
            wake: Notify::new(),
            mail,
            answers,
            queues: Mutex::new(Some(Queues { mail: mails, answers: answered, standings: stood })),
            in_reach: watch::channel(true).0,
            over: watch::channel(None).0,
            has_left: watch::channel(false).0,
        })
    }

    /// Whether other coordinators may read and write the blobs, too.
    pub(crate) fn shares_blobs(&self) -> bool {
        self.bucket.is_some()
    }

    /// Whether the database was heard of lately. If not, others may have taken over all that this coordinator had.
    pub(crate) fn is_in_reach(&self) -> bool {
        *self.in_reach.borrow()
    }

    pub(crate) fn reach(&self) -> watch::Receiver<bool> {
        self.in_reach.subscribe()
    }

    /// Resolves with the reason when this coordinator must end.
    pub(crate) async fn over(&self) -> String {
        let mut over = self.over.subscribe();
        match over.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Has a driver elsewhere take an input; resolves when what follows from it is durable.
    ///
    /// # Errors
    /// What the driver refuses it with; [`Fault::Unavailable`] if none answers in time.
    pub(crate) async fn ask(&self, job: &JobId, input: Input) -> Result<(), ApiError> {
        let Some(forwarded) = Forwarded::of(input) else {
            return Err(ApiError::new(Fault::Internal, "only a job's own driver says this"));
        };
        let text = serde_json::to_string(&forwarded).expect("plain data");
        let unavailable = |why: String| ApiError::new(Fault::Unavailable, why);
        let asked = self.store.ask(job, &self.me, &text).await;
        let number = asked.map_err(|e| unavailable(format!("the job's driver cannot be asked: {e}")))?;
        let answer = {
            let mut waiting = self.waiting();
            match waiting.early.remove(&number) {
                Some(answer) => return answer.into_result(),
                None => {
                    let (tell, answer) = oneshot::channel();
                    waiting.open.insert(number, tell);
                    answer
                }
            }
        };
        // Also if whoever asks gives up before.
        let _waits = Waits { fleet: self, number };
        match tokio::time::timeout(ANSWERED_IN, answer).await {
            Ok(Ok(answer)) => answer.into_result(),
            _ => Err(unavailable(
                "the job's driver, at another coordinator, has not answered: try again".into(),
            )),
        }
    }

    /// Tells a job's driver elsewhere how much was sent to its clients; whether it arrives is not waited for.
    async fn tell_sent(&self, job: &JobId, bytes: u64) -> Result<(), StoreError> {
        let text = serde_json::to_string(&Forwarded::Sent { bytes }).expect("plain data");
        self.store.ask(job, &self.me, &text).await.map(drop)
    }

    /// Has another coordinator tell a participant something about a job.
    pub(crate) fn post(&self, replica: String, client: &ClientId, job: &JobId, version: u64, kind: Kind) {
        let message = v1::ServerMessage { kind: Some(kind) }.encode_to_vec();
        let message = data_encoding::BASE64.encode(&message);
        let mail = Mail { client: client.clone(), job: job.clone(), version, message };
        // Whoever takes it ends with the process.
        let _ = self.mail.send((replica, mail));
    }

    /// Notes, before it is opened, that a participant has a session here.
    ///
    /// # Errors
    /// That other coordinators cannot be told of it: then it must not be opened.
    pub(crate) async fn note_session(
        &self,
        client: &ClientId,
        role: ClientRole,
        number: u64,
    ) -> Result<(), ApiError> {
        let unavailable = |why: &str| {
            ApiError::new(Fault::Unavailable, format!("this coordinator {why}: try again, or at another one"))
        };
        if !self.is_in_reach() {
            return Err(unavailable("does not reach its database"));
        }
        self.opening().insert(number);
        let row = SessionRow { client: client.clone(), role, replica: self.me.clone(), number };
        self.store.session_opened(&row).await.map_err(|e| {
            tracing::warn!(error = %e, "cannot note a session");
            self.opening().remove(&number);
            unavailable("cannot note the session in its database")
        })
    }

    /// A session that was noted is open, or will not be.
    pub(crate) fn opened(&self, number: u64) {
        self.opening().remove(&number);
    }

    /// Notes that a session here has ended. If that cannot be noted now, it is found out in a while.
    pub(crate) async fn ended(&self, client: &ClientId, number: u64) {
        if let Err(e) = self.store.session_ended(client, &self.me, number).await {
            tracing::warn!(error = %e, "cannot note that a session ended");
        }
    }

    /// Tells all coordinators of a new evaluator.
    pub(crate) async fn enrolled(&self) {
        if let Err(e) = self.store.notify(&Note::Enrolled).await {
            tracing::warn!(error = %e, "cannot tell other coordinators of a new evaluator; they will look");
        }
    }

    /// Has all coordinators know how a job stands that is driven here.
    pub(crate) fn tell_standing(&self, job: &JobId, change: impl FnOnce(&mut JobStanding)) {
        let mut stands = self.stands.lock().expect("no panic while locked");
        let standing = stands.entry(job.clone()).or_default();
        let before = standing.clone();
        change(standing);
        if *standing != before {
            // Whoever takes it ends with the process.
            let _ = self.standings.send((job.clone(), standing.clone()));
        }
    }

    /// Its driver begins here, or is here no more: what an earlier one said counts no longer, or is another one's to say.
    pub(crate) fn stands_anew(&self, job: &JobId, is_here: bool) {
        self.stands.lock().expect("no panic while locked").remove(job);
        if is_here {
            let _ = self.standings.send((job.clone(), JobStanding::default()));
        }
    }

    /// Resolves when this coordinator has left.
    async fn left(&self) {
        let mut left = self.has_left.subscribe();
        let _ = left.wait_for(|left| *left).await;
    }

    /// Leaves: what it had is free at once.
    pub(crate) async fn leave(&self) {
        self.has_left.send_replace(true);
        let leaving = async {
            self.store.sessions_ended(&self.me).await?;
            self.store.end_leases(&self.me).await
        };
        match tokio::time::timeout(HEARD_IN, leaving).await {
            Ok(Ok(())) => {}
            _ => tracing::warn!(
                "cannot tell other coordinators that this one ends; they wait some seconds for it"
            ),
        }
    }

    fn opening(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.opening.lock().expect("no panic while locked")
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("no panic while locked")
    }

    fn seats(&self) -> MutexGuard<'_, BTreeMap<JobId, Taken>> {
        self.seats.lock().expect("no panic while locked")
    }

    fn in_hand(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.in_hand.lock().expect("no panic while locked")
    }

    fn answered_lately(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.answered.lock().expect("no panic while locked")
    }

    fn todo(&self) -> MutexGuard<'_, Todo> {
        self.todo.lock().expect("no panic while locked")
    }

    /// Notes where to look.
    fn heard(&self, note: Note) {
        {
            let mut todo = self.todo();
            match note {
                Note::Job(id) => drop(todo.jobs.insert(id)),
                Note::Inbox(id) => drop(todo.inboxes.insert(id)),
                Note::Session(client) => drop(todo.sessions.insert(client)),
                Note::Answers(replica) if replica == self.me => todo.answers = true,
                Note::Mail(replica) if replica == self.me => todo.mail = true,
                Note::Answers(_) | Note::Mail(_) => return,
                Note::Enrolled => todo.enrolled = true,
                Note::Lease => todo.leases = true,
                Note::Missed => todo.everything = true,
            }
        }
        self.wake.notify_one();
    }

    /// Has everything looked at that others may have changed, or that could not be noted.
    pub(crate) fn look_everywhere(&self) {
        self.heard(Note::Missed);
    }

    /// Has whoever asked know the answer.
    fn answered(&self, number: u64, answer: Answered) {
        let mut waiting = self.waiting();
        match waiting.open.remove(&number) {
            Some(tell) => drop(tell.send(answer)),
            None => {
                // Nobody's, all but some of a moment ago.
                if waiting.early.len() >= EARLY {
                    waiting.early.clear();
                }
                waiting.early.insert(number, answer);
            }
        }
    }

    /// Compares what this coordinator has with what the database says it had at `asked`. Gives leases of jobs that nobody here drives
    /// by, and that were there the last time already: what took them did not come to its end.
    fn compare(&self, held: &[(String, u64)], asked: Instant) -> Vec<(String, Lease)> {
        let all: HashSet<(&str, u64)> = held.iter().map(|(name, number)| (name.as_str(), *number)).collect();
        let mut seats = self.seats();
        seats.retain(|id, taken| {
            let Some(lease) = taken.seat.lease().filter(|_| !taken.seat.is_left()) else { return false };
            let name = JobRecord::lease_name(id);
            let is_ours = taken.since >= asked || all.contains(&(name.as_str(), lease.number));
            if !is_ours {
                taken.seat.lose();
            }
            is_ours
        });
        let used: HashSet<String> = seats.keys().map(JobRecord::lease_name).collect();
        drop(seats);
        if let Some(alone) = &self.alone
            && !all.contains(&(ALONE, alone.number))
        {
            self.must_end();
        }
        let loose = held.iter().filter(|(name, _)| name.starts_with("job/") && !used.contains(name));
        let loose: HashSet<(String, u64)> = loose.cloned().collect();
        let before =
            std::mem::replace(&mut *self.loose.lock().expect("no panic while locked"), loose.clone());
        let both = before.intersection(&loose).cloned();
        both.map(|(name, number)| (name, Lease { holder: self.me.clone(), number, left_ms: 0 })).collect()
    }

    /// Another coordinator has the folder's place: this one must not go on.
    pub(crate) fn must_end(&self) {
        self.over.send_replace(Some("another coordinator has taken over its database".to_owned()));
    }

    /// Does what only the one coordinator may whose blobs are in a folder; with a bucket, any may.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if there is another one by now.
    pub(crate) async fn as_one_of_them<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        match &self.alone {
            None => work.await,
            Some(alone) => {
                let done = self.store.guarded(ALONE, alone, work).await;
                if matches!(done, Err(StoreError::Fenced { .. })) {
                    self.must_end();
                }
                done?
            }
        }
    }
}

/// The lease of a coordinator whose blobs are in a folder.
pub(crate) const ALONE: &str = "alone";
