//! What happens next, by virtual time.

use std::collections::BTreeMap;

/// Events in the order of their time; those of one moment in the order in which they were put in.
pub(crate) struct Queue<E> {
    now_ms: u64,
    put_in: u64,
    events: BTreeMap<(u64, u64), E>,
}

impl<E> Queue<E> {
    pub(crate) fn new() -> Self {
        Self { now_ms: 0, put_in: 0, events: BTreeMap::new() }
    }

    /// Milliseconds since the beginning.
    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Has an event happen at a time, or at once if that has passed.
    pub(crate) fn at(&mut self, at_ms: u64, event: E) {
        self.put_in += 1;
        self.events.insert((at_ms.max(self.now_ms), self.put_in), event);
    }

    /// Has an event happen after a while.
    pub(crate) fn after(&mut self, ms: u64, event: E) {
        self.at(self.now_ms + ms, event);
    }

    /// Goes on to the next event, if there is one until then.
    pub(crate) fn next(&mut self, until_ms: u64) -> Option<E> {
        let first = self.events.first_entry()?;
        let (at_ms, _) = *first.key();
        if at_ms > until_ms {
            return None;
        }
        self.now_ms = at_ms;
        Some(first.remove())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_in_order() {
        let mut queue = Queue::new();
        queue.at(5, "c");
        queue.at(3, "a");
        queue.at(3, "b");
        queue.at(9, "d");
        assert_eq!([queue.next(8), queue.next(8)], [Some("a"), Some("b")]);
        assert_eq!((queue.next(8), queue.now_ms()), (Some("c"), 5));
        queue.at(1, "late");
        assert_eq!((queue.next(8), queue.now_ms()), (Some("late"), 5), "time does not run backwards");
        assert_eq!((queue.next(8), queue.next(9)), (None, Some("d")));
    }
}
