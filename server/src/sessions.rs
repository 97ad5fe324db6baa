//! Who is connected now, here or to another coordinator, and how to reach them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::{broadcast, mpsc};
use undertone::v1::{Goodbye, ServerMessage, server_message};
use undertone::{ApiError, Fault};
use undertone_core::id::{ClientId, ClientRole};
use undertone_store::fleet::SessionRow;

/// Messages that wait for a slow participant; past this its session is closed.
const QUEUE: usize = 64;
/// Session changes that a slow driver may lag behind; past this it looks at the whole list.
const CHANGES: usize = 1024;

/// A change that job drivers look at.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// A session was opened.
    Opened(ClientId),
    /// A session ended.
    Closed,
}

/// Who is connected, by role, sorted.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    pub(crate) trainers: Vec<ClientId>,
    pub(crate) evaluators: Vec<ClientId>,
}

/// The live sessions of this coordinator.
pub(crate) struct Sessions {
    live: Mutex<Live>,
    changes: broadcast::Sender<Change>,
    next: AtomicU64,
    limit: usize,
}

#[derive(Default)]
struct Live {
    sessions: HashMap<ClientId, Session>,
    /// Those of other coordinators; a client that is here too is here.
    elsewhere: HashMap<ClientId, Elsewhere>,
    /// Made when it is asked for, dropped at a change: drivers ask far more often than clients come and go.
    roster: Option<Arc<Roster>>,
}

/// A queue sets room aside for 32 of what it carries, which for a client that waits is all that it ever uses: it carries pointers.
type Outbox = mpsc::Sender<Box<ServerMessage>>;

struct Session {
    number: u64,
    role: ClientRole,
    outbox: Outbox,
}

/// A session at another coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Elsewhere {
    role: ClientRole,
    replica: String,
    number: u64,
}

/// Where a participant is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Here,
    /// At this other coordinator.
    At(String),
    Nowhere,
}

/// What to send to a client whose session was just opened.
pub(crate) type Opened = mpsc::Receiver<Box<ServerMessage>>;

impl Sessions {
    pub(crate) fn new(limit: usize) -> Self {
        let (changes, _) = broadcast::channel(CHANGES);
        Self { live: Mutex::default(), changes, next: AtomicU64::new(1), limit }
    }

    /// A number for a session, which tells it from later ones of the same client.
    pub(crate) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Opens a session whose first message is `welcome`. An older session of the same client ends.
    pub(crate) fn open(
        &self,
        client: &ClientId,
        role: ClientRole,
        number: u64,
        welcome: ServerMessage,
    ) -> Result<Opened, ApiError> {
        let (tx, outbox) = mpsc::channel(QUEUE);
        tx.try_send(Box::new(welcome)).expect("a new queue has room");
        let replaced = {
            let mut live = self.live.lock().expect("no panic while locked");
            if live.sessions.len() >= self.limit && !live.sessions.contains_key(client) {
                return Err(ApiError::new(
                    Fault::Unavailable,
                    format!(
                        "{} participants are connected, the limit of this coordinator",
                        live.sessions.len()
                    ),
                ));
            }
            live.roster = None;
            live.elsewhere.remove(client);
            live.sessions.insert(client.clone(), Session { number, role, outbox: tx })
        };
        if let Some(old) = replaced {
            let _ = old.outbox.try_send(newer_session(client));
        }
        let _ = self.changes.send(Change::Opened(client.clone()));
        Ok(outbox)
    }

    /// Ends a session, unless a newer one of the same client has taken its place.
    pub(crate) fn close(&self, client: &ClientId, number: u64) {
        let mut live = self.live.lock().expect("no panic while locked");
        if live.sessions.get(client).is_some_and(|s| s.number == number) {
            live.remove(client);
            drop(live);
            let _ = self.changes.send(Change::Closed);
        }
    }

    /// Who is connected now.
    pub(crate) fn roster(&self) -> Arc<Roster> {
        let mut live = self.live.lock().expect("no panic while locked");
        let Live { sessions, elsewhere, roster } = &mut *live;
        roster.get_or_insert_with(|| Arc::new(Roster::of(sessions, elsewhere))).clone()
    }

    pub(crate) fn is_connected(&self, client: &ClientId) -> bool {
        self.place(client) != Place::Nowhere
    }

    /// Where a participant is connected.
    pub(crate) fn place(&self, client: &ClientId) -> Place {
        let live = self.live.lock().expect("no panic while locked");
        match live.elsewhere.get(client) {
            _ if live.sessions.contains_key(client) => Place::Here,
            Some(elsewhere) => Place::At(elsewhere.replica.clone()),
            None => Place::Nowhere,
        }
    }

    /// How many are connected here.
    pub(crate) fn here(&self) -> usize {
        self.live.lock().expect("no panic while locked").sessions.len()
    }

    /// The sessions here: their numbers and roles.
    pub(crate) fn numbers(&self) -> HashMap<ClientId, (u64, ClientRole)> {
        let live = self.live.lock().expect("no panic while locked");
        live.sessions
            .iter()
            .map(|(client, session)| (client.clone(), (session.number, session.role)))
            .collect()
    }

    /// Notes what was found of a participant: that it is connected to another coordinator, or to none. Its session here that had the
    /// number `here` before the look is older, and ends; one that was opened since is newer, and stays.
    pub(crate) fn elsewhere(&self, client: &ClientId, found: Option<SessionRow>, here: Option<u64>) {
        let found = found.map(|row| Elsewhere { role: row.role, replica: row.replica, number: row.number });
        let (older, change) = {
            let mut live = self.live.lock().expect("no panic while locked");
            let is_newer = live.sessions.get(client).is_some_and(|session| Some(session.number) != here);
            if is_newer {
                return;
            }
            let older = found.is_some().then(|| live.sessions.remove(client)).flatten();
            let before = match &found {
                Some(found) => live.elsewhere.insert(client.clone(), found.clone()),
                None => live.elsewhere.remove(client),
            };
            if older.is_none() && before == found {
                return;
            }
            live.roster = None;
            (older, if found.is_some() { Change::Opened(client.clone()) } else { Change::Closed })
        };
        if let Some(older) = older {
            let _ = older.outbox.try_send(newer_session(client));
        }
        let _ = self.changes.send(change);
    }

    /// Notes all that were found connected to other coordinators, as [`elsewhere`](Self::elsewhere) does; `here` are the
    /// [`numbers`](Self::numbers) of before the look.
    pub(crate) fn all_elsewhere(&self, rows: Vec<SessionRow>, here: &HashMap<ClientId, (u64, ClientRole)>) {
        let gone: Vec<ClientId> = {
            let live = self.live.lock().expect("no panic while locked");
            let found: HashSet<&ClientId> = rows.iter().map(|row| &row.client).collect();
            live.elsewhere.keys().filter(|client| !found.contains(client)).cloned().collect()
        };
        for client in gone {
            self.elsewhere(&client, None, here.get(&client).map(|(number, _)| *number));
        }
        for row in rows {
            let (client, number) = (row.client.clone(), here.get(&row.client).map(|(number, _)| *number));
            self.elsewhere(&client, Some(row), number);
        }
    }

    /// Forgets those who were connected to coordinators that are gone.
    pub(crate) fn only_of(&self, replicas: &BTreeSet<String>) {
        let mut live = self.live.lock().expect("no panic while locked");
        let before = live.elsewhere.len();
        live.elsewhere.retain(|_, session| replicas.contains(&session.replica));
        if live.elsewhere.len() < before {
            live.roster = None;
            drop(live);
            let _ = self.changes.send(Change::Closed);
        }
    }

    /// Sends a message if the client is connected here. A client that does not read is cut off: it will come back and
    /// be told again.
    pub(crate) fn send(&self, client: &ClientId, kind: server_message::Kind) {
        let message = Box::new(ServerMessage { kind: Some(kind) });
        let mut live = self.live.lock().expect("no panic while locked");
        if live.sessions.get(client).is_some_and(|s| s.outbox.try_send(message).is_err()) {
            live.remove(client);
            drop(live);
            let _ = self.changes.send(Change::Closed);
        }
    }

    /// Ends all sessions; clients may come back.
    pub(crate) fn close_all(&self, reason: &str) {
        let sessions = {
            let mut live = self.live.lock().expect("no panic while locked");
            live.roster = None;
            std::mem::take(&mut live.sessions)
        };
        for session in sessions.into_values() {
            let _ = session.outbox.try_send(goodbye(reason.to_owned(), true));
        }
        let _ = self.changes.send(Change::Closed);
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }
}

impl Live {
    fn remove(&mut self, client: &ClientId) {
        self.sessions.remove(client);
        self.roster = None;
    }
}

impl Roster {
    fn of(sessions: &HashMap<ClientId, Session>, elsewhere: &HashMap<ClientId, Elsewhere>) -> Self {
        let mut roster = Self::default();
        let here = sessions.iter().map(|(client, session)| (client, session.role));
        let others = elsewhere.iter().filter(|(client, _)| !sessions.contains_key(*client));
        for (client, role) in here.chain(others.map(|(client, session)| (client, session.role))) {
            match role {
                ClientRole::Trainer => roster.trainers.push(client.clone()),
                ClientRole::Evaluator => roster.evaluators.push(client.clone()),
            }
        }
        roster.trainers.sort();
        roster.evaluators.sort();
        roster
    }
}

fn newer_session(client: &ClientId) -> Box<ServerMessage> {
    goodbye(format!("another session of {client} was opened"), false)
}

fn goodbye(reason: String, retry: bool) -> Box<ServerMessage> {
    Box::new(ServerMessage { kind: Some(server_message::Kind::Goodbye(Goodbye { reason, retry })) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn welcome() -> ServerMessage {
        ServerMessage { kind: None }
    }

    #[test]
    fn the_newest_session_wins() {
        let sessions = Sessions::new(2);
        let id = ClientId::new("a").unwrap();
        let mut first = sessions.open(&id, ClientRole::Trainer, 1, welcome()).unwrap();
        let _second = sessions.open(&id, ClientRole::Trainer, 2, welcome()).unwrap();
        first.try_recv().unwrap();
        let told = first.try_recv().unwrap();
        assert!(matches!(told.kind, Some(server_message::Kind::Goodbye(Goodbye { retry: false, .. }))));
        // The late end of the first one does not end the second.
        sessions.close(&id, 1);
        assert!(sessions.is_connected(&id));
        sessions.close(&id, 2);
        assert!(!sessions.is_connected(&id));
    }

    #[test]
    fn a_full_house_and_a_deaf_client() {
        let sessions = Sessions::new(1);
        let (a, b) = (ClientId::new("a").unwrap(), ClientId::new("b").unwrap());
        let _opened = sessions.open(&a, ClientRole::Trainer, 1, welcome()).unwrap();
        assert!(sessions.open(&b, ClientRole::Trainer, 2, welcome()).is_err());
        for _ in 0..QUEUE + 1 {
            sessions.send(&a, server_message::Kind::Goodbye(Goodbye::default()));
        }
        assert!(!sessions.is_connected(&a));
    }

    #[test]
    fn the_roster_follows_every_change() {
        let sessions = Sessions::new(9);
        let names = ["c", "a", "b"].map(|n| ClientId::new(n).unwrap());
        assert!(sessions.roster().trainers.is_empty());
        let _opened: Vec<_> = (1..)
            .zip(&names)
            .map(|(number, n)| sessions.open(n, ClientRole::Trainer, number, welcome()).unwrap())
            .collect();
        let trainers = sessions.roster().trainers.iter().map(|c| c.to_string()).collect::<Vec<_>>();
        assert_eq!(trainers, ["a", "b", "c"]);
        assert!(Arc::ptr_eq(&sessions.roster(), &sessions.roster()), "made once");
        sessions.close(&names[0], 1);
        assert_eq!(sessions.roster().trainers, [names[1].clone(), names[2].clone()]);
        sessions.close_all("the end");
        assert!(sessions.roster().trainers.is_empty());
    }

    fn row(client: &ClientId, replica: &str, number: u64) -> SessionRow {
        SessionRow { client: client.clone(), role: ClientRole::Trainer, replica: replica.into(), number }
    }

    #[test]
    fn sessions_of_other_coordinators_count_too() {
        let sessions = Sessions::new(9);
        let [a, b, c] = ["a", "b", "c"].map(|n| ClientId::new(n).unwrap());
        let mut changes = sessions.subscribe();
        let mut here = sessions.open(&a, ClientRole::Trainer, 1, welcome()).unwrap();
        assert!(matches!(changes.try_recv(), Ok(Change::Opened(client)) if client == a));
        sessions.elsewhere(&b, Some(row(&b, "r2", 1)), None);
        assert!(matches!(changes.try_recv(), Ok(Change::Opened(client)) if client == b));
        sessions.elsewhere(&b, Some(row(&b, "r2", 1)), None);
        assert!(changes.try_recv().is_err(), "nothing new");
        assert_eq!(sessions.roster().trainers, [a.clone(), b.clone()]);
        let places = || [&a, &b, &c].map(|client| sessions.place(client));
        assert_eq!(places(), [Place::Here, Place::At("r2".into()), Place::Nowhere]);
        assert_eq!(sessions.here(), 1);

        // It comes back by another way: the session here ends, if it is not the newer one.
        sessions.elsewhere(&a, Some(row(&a, "r3", 5)), None);
        assert_eq!(sessions.place(&a), Place::Here, "it was opened after the look");
        sessions.elsewhere(&a, Some(row(&a, "r3", 5)), Some(1));
        here.try_recv().unwrap();
        let told = here.try_recv().unwrap();
        assert!(matches!(told.kind, Some(server_message::Kind::Goodbye(Goodbye { retry: false, .. }))));
        assert_eq!(sessions.place(&a), Place::At("r3".into()));
        assert!(matches!(changes.try_recv(), Ok(Change::Opened(client)) if client == a));

        // Of coordinators that are gone nobody is left.
        sessions.only_of(&BTreeSet::from(["r2".to_owned()]));
        assert_eq!(places(), [Place::Nowhere, Place::At("r2".into()), Place::Nowhere]);
        assert!(matches!(changes.try_recv(), Ok(Change::Closed)));

        // A look at all of them; who came here meanwhile stays here.
        let before = sessions.numbers();
        let _here = sessions.open(&a, ClientRole::Trainer, 2, welcome()).unwrap();
        sessions.all_elsewhere(vec![row(&a, "r3", 5), row(&c, "r2", 2)], &before);
        assert_eq!(places(), [Place::Here, Place::Nowhere, Place::At("r2".into())]);
        sessions.close_all("the end");
        assert_eq!(sessions.roster().trainers, [c]);
    }
}
