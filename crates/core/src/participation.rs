//! How often a client may take part: at most k times, at least b rounds apart.
//!
//! Where nobody draws a random sample ("who shows up"), this is what the privacy of correlated noise rests on
//! (BLT in the privacy crate). The coordinator keeps a [`History`] for each client and so does the client itself, durably: a
//! client refuses an offer that breaks the rule, whatever the coordinator says.

use serde::{Deserialize, Serialize};

/// The rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawParticipation", into = "RawParticipation")]
pub struct Participation {
    limit: u32,
    separation: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawParticipation {
    limit: u32,
    separation: u32,
}

/// A rule that says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("participation needs a limit and a separation of at least 1, not {limit} and {separation}")]
pub struct InvalidParticipation {
    limit: u32,
    separation: u32,
}

/// Why a client may not join a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MayNotJoin {
    /// All participations are used up.
    #[error("the client took part {limit} times, as often as the contract allows")]
    LimitReached {
        /// k.
        limit: u32,
    },
    /// The last participation is too recent.
    #[error("the client took part in round {last}: by the contract it may do so again from round {next} on")]
    TooSoon {
        /// The last round that the client took part in.
        last: u32,
        /// The first round that it may take part in again.
        next: u64,
    },
    /// Rounds do not go backwards; an old offer was replayed.
    #[error("round {round} is before round {last}, in which the client took part: an old offer")]
    Past {
        /// The round on offer.
        round: u32,
        /// The last round that the client took part in.
        last: u32,
    },
}

impl TryFrom<RawParticipation> for Participation {
    type Error = InvalidParticipation;

    fn try_from(raw: RawParticipation) -> Result<Self, InvalidParticipation> {
        Self::new(raw.limit, raw.separation)
    }
}

impl From<Participation> for RawParticipation {
    fn from(rule: Participation) -> Self {
        Self { limit: rule.limit, separation: rule.separation }
    }
}

impl Participation {
    /// At most `limit` (k) rounds, the numbers of any two of which differ by at least `separation` (b).
    ///
    /// # Errors
    /// If either is zero.
    pub fn new(limit: u32, separation: u32) -> Result<Self, InvalidParticipation> {
        if limit == 0 || separation == 0 {
            return Err(InvalidParticipation { limit, separation });
        }
        Ok(Self { limit, separation })
    }

    /// k.
    pub fn limit(self) -> u32 {
        self.limit
    }

    /// b.
    pub fn separation(self) -> u32 {
        self.separation
    }

    /// The most rounds of `rounds` that a client can be in.
    pub fn most_within(self, rounds: u32) -> u32 {
        self.limit.min(rounds.div_ceil(self.separation))
    }

    /// Whether a client with this history may join `round`. A round that it has joined before may be tried again: only
    /// one attempt at a round is ever released.
    ///
    /// # Errors
    /// [`MayNotJoin`], with the reason.
    pub fn may_join(self, history: &History, round: u32) -> Result<(), MayNotJoin> {
        let Some(last) = history.last else { return Ok(()) };
        if round == last {
            return Ok(());
        }
        if round < last {
            return Err(MayNotJoin::Past { round, last });
        }
        if history.joined >= self.limit {
            return Err(MayNotJoin::LimitReached { limit: self.limit });
        }
        let next = u64::from(last) + u64::from(self.separation);
        if u64::from(round) < next {
            return Err(MayNotJoin::TooSoon { last, next });
        }
        Ok(())
    }

    /// The history once the client has joined `round`. To be made durable before the update leaves.
    ///
    /// # Errors
    /// [`MayNotJoin`], with the reason.
    pub fn join(self, history: &History, round: u32) -> Result<History, MayNotJoin> {
        self.may_join(history, round)?;
        let joined = if history.last == Some(round) { history.joined } else { history.joined + 1 };
        Ok(History { joined, last: Some(round) })
    }
}

/// The rounds of one job that one client took part in: as much of it as the rule asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    joined: u32,
    last: Option<u32>,
}

impl History {
    /// Rounds that the client took part in.
    pub fn joined(&self) -> u32 {
        self.joined
    }

    /// The last of them.
    pub fn last(&self) -> Option<u32> {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever is offered, in whatever order and however often: the rounds joined keep the rule, and nothing that
        /// the rule allows is refused.
        #[test]
        fn rounds_joined_keep_the_rule(
            limit in 1u32..6, separation in 1u32..10, offers in prop::collection::vec(0u32..60, 0..80),
        ) {
            let rule = Participation::new(limit, separation).unwrap();
            let mut history = History::default();
            let mut joined: Vec<u32> = Vec::new();
            for round in offers {
                let fits = match joined.last() {
                    None => true,
                    Some(&last) if round == last => true,
                    Some(&last) => {
                        round > last && round - last >= separation && joined.len() < limit as usize
                    }
                };
                prop_assert_eq!(rule.may_join(&history, round).is_ok(), fits);
                match rule.join(&history, round) {
                    Ok(next) => {
                        // Kept on disk between any two offers.
                        let text = serde_json::to_string(&next).unwrap();
                        history = serde_json::from_str(&text).unwrap();
                        if joined.last() != Some(&round) {
                            joined.push(round);
                        }
                    }
                    Err(_) => prop_assert!(!fits),
                }
            }
            prop_assert_eq!(history.joined() as usize, joined.len());
            prop_assert!(joined.len() <= limit as usize);
            prop_assert!(joined.windows(2).all(|w| w[1] - w[0] >= separation));
            prop_assert!(joined.len() <= rule.most_within(60) as usize);
        }
    }

    #[test]
    fn reasons_name_the_round_to_come_back() {
        let rule = Participation::new(2, 10).unwrap();
        let once = rule.join(&History::default(), 5).unwrap();
        assert_eq!(rule.may_join(&once, 14), Err(MayNotJoin::TooSoon { last: 5, next: 15 }));
        assert_eq!(rule.may_join(&once, 4), Err(MayNotJoin::Past { round: 4, last: 5 }));
        let twice = rule.join(&once, 15).unwrap();
        assert_eq!(rule.may_join(&twice, 1000), Err(MayNotJoin::LimitReached { limit: 2 }));
        assert_eq!((twice.joined(), twice.last()), (2, Some(15)));
        let far = Participation::new(9, u32::MAX).unwrap();
        let late = far.join(&History::default(), u32::MAX - 1).unwrap();
        assert!(matches!(far.may_join(&late, u32::MAX), Err(MayNotJoin::TooSoon { .. })));
    }

    #[test]
    fn a_rule_of_zero_is_refused_when_it_is_read() {
        assert!(Participation::new(0, 1).is_err() && Participation::new(1, 0).is_err());
        assert!(serde_json::from_str::<Participation>("{\"limit\":0,\"separation\":3}").is_err());
        let rule: Participation = serde_json::from_str("{\"limit\":4,\"separation\":256}").unwrap();
        assert_eq!((rule.limit(), rule.separation()), (4, 256));
        assert_eq!((rule.most_within(1024), rule.most_within(513), rule.most_within(0)), (4, 3, 0));
    }
}
