//! How many calls of one kind may be under way at once for one client, or one update, so that none of them takes what is there for all
//! or gets in another's way.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use undertone_core::id::ClientId;

/// Calls under way, by whose they are.
#[derive(Debug, Clone)]
pub(crate) struct Turns<K> {
    most: usize,
    under_way: Arc<Mutex<HashMap<K, usize>>>,
}

/// A call under way; ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn<K: Hash + Eq = ClientId> {
    whose: K,
    turns: Turns<K>,
}

impl<K: Hash + Eq + Clone> Turns<K> {
    /// At most so many of each.
    pub(crate) fn of(most: usize) -> Self {
        Self { most, under_way: Arc::default() }
    }

    /// One more call; `None` if there are as many as there may be.
    pub(crate) fn take(&self, whose: &K) -> Option<Turn<K>> {
        let mut under_way = self.under_way.lock().expect("no panic while locked");
        let calls = under_way.entry(whose.clone()).or_default();
        if *calls >= self.most {
            return None;
        }
        *calls += 1;
        Some(Turn { whose: whose.clone(), turns: self.clone() })
    }
}

impl<K: Hash + Eq> Drop for Turn<K> {
    fn drop(&mut self) {
        let mut under_way = self.turns.under_way.lock().expect("no panic while locked");
        if let Some(calls) = under_way.get_mut(&self.whose) {
            *calls -= 1;
            if *calls == 0 {
                under_way.remove(&self.whose);
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
