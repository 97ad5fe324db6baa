//! The pool as it is stored, and as it was: clients at work each had the whole of what they began from beside them.

use super::{AtWork, Broadcast, Gone, ModelRef, Pool, Update, Version};
use serde::Deserialize;
use std::collections::BTreeMap;
use undertone_core::id::{Attempt, ClientId, Round};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stored {
    #[serde(default)]
    versions: BTreeMap<Round, Version>,
    #[serde(default)]
    at_work: BTreeMap<ClientId, StoredWork>,
    #[serde(default)]
    waiting: Vec<Update>,
    #[serde(default)]
    gone: BTreeMap<ClientId, Gone>,
}

/// A client at work; with its own model in states from before versions had a table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredWork {
    round: Round,
    attempt: Attempt,
    model: Option<ModelRef>,
    broadcast: Option<Broadcast>,
    deadline_ms: u64,
    away_since_ms: Option<u64>,
}

/// A state that cannot have been written by any version of this program.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unsound {
    #[error("{client} is at work from the model of round {round}, which is not there")]
    NoVersion { client: ClientId, round: Round },
    #[error("{client} is at work from another model than the others who were asked in round {round}")]
    OtherVersion { client: ClientId, round: Round },
}

impl TryFrom<Stored> for Pool {
    type Error = Unsound;

    fn try_from(stored: Stored) -> Result<Self, Unsound> {
        let Stored { mut versions, at_work, waiting, gone } = stored;
        let at_work = at_work.into_iter().map(|(client, work)| {
            let StoredWork { round, attempt, model, broadcast, deadline_ms, away_since_ms } = work;
            if let Some(model) = model {
                let own = Version { model, broadcast };
                if *versions.entry(round).or_insert(own) != own {
                    return Err(Unsound::OtherVersion { client, round });
                }
            }
            if !versions.contains_key(&round) {
                return Err(Unsound::NoVersion { client, round });
            }
            Ok((client, AtWork { round, attempt, deadline_ms, away_since_ms }))
        });
        let at_work = at_work.collect::<Result<_, _>>()?;
        Ok(Pool { versions, at_work, waiting, gone })
    }
}
