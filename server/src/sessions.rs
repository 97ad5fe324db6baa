//! Who is connected now, and how to reach them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::{broadcast, mpsc};
use undertone::v1::{Goodbye, ServerMessage, server_message};
use undertone::{ApiError, Fault};
use undertone_core::id::{ClientId, ClientRole};

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

/// A session that was just opened.
pub(crate) struct Opened {
    /// Tells it from later sessions of the same client.
    pub(crate) number: u64,
    /// What to send to the client.
    pub(crate) outbox: mpsc::Receiver<Box<ServerMessage>>,
}

impl Sessions {
    pub(crate) fn new(limit: usize) -> Self {
        let (changes, _) = broadcast::channel(CHANGES);
        Self { live: Mutex::default(), changes, next: AtomicU64::new(1), limit }
    }

    /// Opens a session whose first message is `welcome`. An older session of the same client ends.
    pub(crate) fn open(
        &self,
        client: &ClientId,
        role: ClientRole,
        welcome: ServerMessage,
    ) -> Result<Opened, ApiError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
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
            live.sessions.insert(client.clone(), Session { number, role, outbox: tx })
        };
        if let Some(old) = replaced {
            let reason = format!("another session of {client} was opened");
            let _ = old.outbox.try_send(goodbye(reason, false));
        }
        let _ = self.changes.send(Change::Opened(client.clone()));
        Ok(Opened { number, outbox })
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
        let Live { sessions, roster } = &mut *live;
        roster.get_or_insert_with(|| Arc::new(Roster::of(sessions))).clone()
    }

    pub(crate) fn is_connected(&self, client: &ClientId) -> bool {
        self.live.lock().expect("no panic while locked").sessions.contains_key(client)
    }

    /// Sends a message if the client is connected. A client that does not read is cut off: it will come back and
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
        let live = std::mem::take(&mut *self.live.lock().expect("no panic while locked"));
        for session in live.sessions.into_values() {
            let _ = session.outbox.try_send(goodbye(reason.to_owned(), true));
        }
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
    fn of(sessions: &HashMap<ClientId, Session>) -> Self {
        let mut roster = Self::default();
        for (client, session) in sessions {
            match session.role {
                ClientRole::Trainer => roster.trainers.push(client.clone()),
                ClientRole::Evaluator => roster.evaluators.push(client.clone()),
            }
        }
        roster.trainers.sort();
        roster.evaluators.sort();
        roster
    }
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
        let mut first = sessions.open(&id, ClientRole::Trainer, welcome()).unwrap();
        let second = sessions.open(&id, ClientRole::Trainer, welcome()).unwrap();
        first.outbox.try_recv().unwrap();
        let told = first.outbox.try_recv().unwrap();
        assert!(matches!(told.kind, Some(server_message::Kind::Goodbye(Goodbye { retry: false, .. }))));
        // The late end of the first one does not end the second.
        sessions.close(&id, first.number);
        assert!(sessions.is_connected(&id));
        sessions.close(&id, second.number);
        assert!(!sessions.is_connected(&id));
    }

    #[test]
    fn a_full_house_and_a_deaf_client() {
        let sessions = Sessions::new(1);
        let (a, b) = (ClientId::new("a").unwrap(), ClientId::new("b").unwrap());
        let _opened = sessions.open(&a, ClientRole::Trainer, welcome()).unwrap();
        assert!(sessions.open(&b, ClientRole::Trainer, welcome()).is_err());
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
        let opened: Vec<_> =
            names.iter().map(|n| sessions.open(n, ClientRole::Trainer, welcome()).unwrap()).collect();
        let trainers = sessions.roster().trainers.iter().map(|c| c.to_string()).collect::<Vec<_>>();
        assert_eq!(trainers, ["a", "b", "c"]);
        assert!(Arc::ptr_eq(&sessions.roster(), &sessions.roster()), "made once");
        sessions.close(&names[0], opened[0].number);
        assert_eq!(sessions.roster().trainers, [names[1].clone(), names[2].clone()]);
        sessions.close_all("the end");
        assert!(sessions.roster().trainers.is_empty());
    }
}
