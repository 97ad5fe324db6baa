//! How many calls of one kind a client may have under way at once, so that none of them takes what is there for all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use undertone_core::id::ClientId;

/// Calls under way, by client.
#[derive(Debug, Clone)]
pub(crate) struct Turns {
    most: usize,
    under_way: Arc<Mutex<HashMap<ClientId, usize>>>,
}

/// A client's call under way; ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    client: ClientId,
    turns: Turns,
}

impl Turns {
    /// At most so many of each client.
    pub(crate) fn of(most: usize) -> Self {
        Self { most, under_way: Arc::default() }
    }

    /// One more call of this client; `None` if it has as many as it may.
    pub(crate) fn take(&self, client: &ClientId) -> Option<Turn> {
        let mut under_way = self.under_way.lock().expect("no panic while locked");
        let of_client = under_way.entry(client.clone()).or_default();
        if *of_client >= self.most {
            return None;
        }
        *of_client += 1;
        Some(Turn { client: client.clone(), turns: self.clone() })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut under_way = self.turns.under_way.lock().expect("no panic while locked");
        if let Some(of_client) = under_way.get_mut(&self.client) {
            *of_client -= 1;
            if *of_client == 0 {
                under_way.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_its_own_turns_and_leaves_nothing_behind() {
        let (turns, name) = (Turns::of(2), |n: &str| ClientId::new(n).unwrap());
        let (first, second) = (turns.take(&name("a")).unwrap(), turns.take(&name("a")).unwrap());
        assert!(turns.take(&name("a")).is_none());
        let other = turns.take(&name("b")).unwrap();
        drop(first);
        let third = turns.take(&name("a")).unwrap();
        assert!(turns.take(&name("a")).is_none());
        drop((second, third, other));
        assert!(turns.under_way.lock().unwrap().is_empty(), "memory does not grow with who was here");
    }
}
