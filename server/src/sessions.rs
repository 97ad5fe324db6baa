//! Who is connected now, and how to reach them.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// The live sessions of this coordinator.
pub(crate) struct Sessions {
    live: Mutex<HashMap<ClientId, Session>>,
    changes: broadcast::Sender<Change>,
    next: AtomicU64,
    limit: usize,
}

struct Session {
    number: u64,
    role: ClientRole,
    outbox: mpsc::Sender<ServerMessage>,
}

/// A session that was just opened.
pub(crate) struct Opened {
    /// Tells it from later sessions of the same client.
    pub(crate) number: u64,
    /// What to send to the client.
    pub(crate) outbox: mpsc::Receiver<ServerMessage>,
}

impl Sessions {
    pub(crate) fn new(limit: usize) -> Self {
        let (changes, _) = broadcast::channel(CHANGES);
        Self { live: Mutex::new(HashMap::new()), changes, next: AtomicU64::new(1), limit }
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
        tx.try_send(welcome).expect("a new queue has room");
        let replaced = {
            let mut live = self.live.lock().expect("no panic while locked");
            if live.len() >= self.limit && !live.contains_key(client) {
                return Err(ApiError::new(
                    Fault::Unavailable,
                    format!("{} participants are connected, the limit of this coordinator", live.len()),
                ));
            }
            live.insert(client.clone(), Session { number, role, outbox: tx })
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
        if live.get(client).is_some_and(|s| s.number == number) {
            live.remove(client);
            drop(live);
            let _ = self.changes.send(Change::Closed);
        }
    }

    /// The connected clients of a role, sorted.
    pub(crate) fn connected(&self, role: ClientRole) -> Vec<ClientId> {
        let live = self.live.lock().expect("no panic while locked");
        let mut list: Vec<_> = live.iter().filter(|(_, s)| s.role == role).map(|(c, _)| c.clone()).collect();
        list.sort();
        list
    }

    pub(crate) fn is_connected(&self, client: &ClientId) -> bool {
        self.live.lock().expect("no panic while locked").contains_key(client)
    }

    /// Sends a message if the client is connected. A client that does not read is cut off: it will come back and
    /// be told again.
    pub(crate) fn send(&self, client: &ClientId, kind: server_message::Kind) {
        let message = ServerMessage { kind: Some(kind) };
        let mut live = self.live.lock().expect("no panic while locked");
        if live.get(client).is_some_and(|s| s.outbox.try_send(message).is_err()) {
            live.remove(client);
            drop(live);
            let _ = self.changes.send(Change::Closed);
        }
    }

    /// Ends all sessions; clients may come back.
    pub(crate) fn close_all(&self, reason: &str) {
        let live = std::mem::take(&mut *self.live.lock().expect("no panic while locked"));
        for session in live.into_values() {
            let _ = session.outbox.try_send(goodbye(reason.to_owned(), true));
        }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }
}

fn goodbye(reason: String, retry: bool) -> ServerMessage {
    ServerMessage { kind: Some(server_message::Kind::Goodbye(Goodbye { reason, retry })) }
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
}
