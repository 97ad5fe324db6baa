//! The times of rounds, from the coordinator's own events.
//!
//! A full round is the time from one release to the next: nothing that the coordinator does falls between two of them.
//! Only where there is no release before (no warm-up) does it begin with its own offer.

use anyhow::{Result, bail};
use std::collections::BTreeMap;
use undertone_core::id::Round;
use undertone_round::event::JobEvent;

/// When each round was offered and released, in the coordinator's milliseconds.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    offered: BTreeMap<u32, u64>,
    released: BTreeMap<u32, u64>,
}

impl Rounds {
    /// Notes an event; gives the round that was released, if one was.
    ///
    /// # Errors
    /// If a client fell out or the attempt failed: what is measured then is another round.
    pub(super) fn hear(&mut self, event: &JobEvent, unix_ms: u64) -> Result<Option<u32>> {
        match event {
            JobEvent::Offered { round: Round(round), .. } => {
                self.offered.insert(*round, unix_ms);
            }
            JobEvent::Released { round: Round(round), .. } => {
                self.released.insert(*round, unix_ms);
                return Ok(Some(*round));
            }
            JobEvent::Declined { round, client, reason }
            | JobEvent::Lost { round, client, reason }
            | JobEvent::Refused { round, client, reason } => {
                bail!("{client} fell out of round {round} ({reason}): nothing is measured with fewer clients")
            }
            JobEvent::Aborted { round, reason, .. } => bail!("round {round} failed: {reason}"),
            _ => {}
        }
        Ok(None)
    }

    /// The times of the full rounds after the first `warmup`, in seconds and in order.
    pub(super) fn full_s(&self, warmup: u32) -> Vec<f64> {
        let begin = |round: u32| match round {
            1 => self.offered.get(&1),
            _ => self.released.get(&(round - 1)),
        };
        self.since(warmup, begin)
    }

    /// The part of each from the offer on: what a client sees.
    pub(super) fn offer_to_release_s(&self, warmup: u32) -> Vec<f64> {
        self.since(warmup, |round| self.offered.get(&round))
    }

    fn since<'a>(&'a self, warmup: u32, begin: impl Fn(u32) -> Option<&'a u64>) -> Vec<f64> {
        let measured = self.released.range(warmup + 1..);
        measured.filter_map(|(r, end)| Some(end.saturating_sub(*begin(*r)?) as f64 / 1000.0)).collect()
    }
}

/// The middle of some times; of an even number, the mean of the two in the middle.
pub(super) fn median(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use undertone_core::digest::Digest;
    use undertone_core::id::{Attempt, ClientId};

    fn offered(round: u32) -> JobEvent {
        JobEvent::Offered { round: Round(round), attempt: Attempt(1), cohort: vec![], epsilon: None }
    }

    fn released(round: u32) -> JobEvent {
        let (round, attempt, model) = (Round(round), Attempt(1), Digest::of(b"model"));
        JobEvent::Released {
            round,
            attempt,
            model,
            clients: 2,
            asked: 2,
            epsilon: None,
            received_bytes: None,
            sent_bytes: None,
        }
    }

    #[test]
    fn a_full_round_is_from_release_to_release() {
        let mut rounds = Rounds::default();
        let story = [(offered(1), 100), (released(1), 600), (offered(2), 650), (released(2), 900)];
        for (event, at) in &story {
            rounds.hear(event, *at).unwrap();
        }
        assert_eq!(rounds.full_s(0), [0.5, 0.3]);
        assert_eq!(rounds.full_s(1), [0.3]);
        assert_eq!(rounds.offer_to_release_s(0), [0.5, 0.25]);
    }

    #[test]
    fn a_client_that_falls_out_ends_the_benchmark() {
        let client = ClientId::new("bench-00002").unwrap();
        let lost = JobEvent::Lost { round: Round(3), client, reason: "went away".into() };
        let e = Rounds::default().hear(&lost, 1).unwrap_err().to_string();
        assert!(e.contains("bench-00002 fell out of round 3 (went away)"), "{e}");
    }

    #[test]
    fn the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
