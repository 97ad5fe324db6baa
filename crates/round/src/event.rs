//! What happened in a job, for people and programs that watch it. The durable log of a job is these, in order.

use serde::{Deserialize, Serialize};
use undertone_core::digest::Digest;
use undertone_core::id::{Attempt, ClientId, Round};
use undertone_core::trainer::Metrics;

/// One thing that happened in a job. JSON with a field `kind`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum JobEvent {
    /// The job was accepted.
    Submitted {
        /// The operator.
        by: String,
        /// Digest of the job document.
        job: Digest,
    },
    /// A round cannot begin: too few trainers are connected.
    Waiting {
        /// The round.
        round: Round,
        /// Trainers there.
        present: u32,
        /// Trainers needed.
        needed: u32,
    },
    /// Budget is reserved and the offers are out.
    Offered {
        /// The round.
        round: Round,
        /// The attempt.
        attempt: Attempt,
        /// The clients asked.
        cohort: Vec<ClientId>,
        /// ε once this attempt is counted; absent where no privacy is promised.
        epsilon: Option<f64>,
    },
    /// A client was put to work in a free place, after the offers of the attempt.
    Asked {
        /// The round.
        round: Round,
        /// The attempt.
        attempt: Attempt,
        /// The client.
        client: ClientId,
    },
    /// A client said no.
    Declined {
        /// The round.
        round: Round,
        /// The client.
        client: ClientId,
        /// Its reason.
        reason: String,
    },
    /// A client that had not delivered is out of the attempt.
    Lost {
        /// The round.
        round: Round,
        /// The client.
        client: ClientId,
        /// Why.
        reason: String,
    },
    /// A complete upload was not valid; the client is out of the attempt.
    Refused {
        /// The round.
        round: Round,
        /// The client.
        client: ClientId,
        /// Why.
        reason: String,
    },
    /// A client's update is durable and counts.
    Received {
        /// The round.
        round: Round,
        /// The client.
        client: ClientId,
        /// Size on the wire.
        bytes: u64,
        /// Where rounds are asynchronous: models released between the one that it began from and the round that it counts in.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        staleness: Option<u32>,
    },
    /// The attempt ended without a release; its budget is burnt.
    Aborted {
        /// The round.
        round: Round,
        /// The attempt.
        attempt: Attempt,
        /// Why.
        reason: String,
    },
    /// A new model.
    Released {
        /// The round.
        round: Round,
        /// The attempt.
        attempt: Attempt,
        /// Digest of the model file.
        model: Digest,
        /// Updates in it.
        clients: u32,
        /// Clients asked.
        asked: u32,
        /// ε spent so far, burnt attempts included; absent where no privacy is promised.
        epsilon: Option<f64>,
        /// Bytes of the updates in it as they travelled, without those of uploads that broke off or were refused. Absent
        /// in events from before it was counted, as the next one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        received_bytes: Option<u64>,
        /// Bytes of models that were handed to the network for this job's trainers and evaluators since the release
        /// before, repeated transfers included; a coordinator that was restarted counts from there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sent_bytes: Option<u64>,
    },
    /// An evaluator measured a released model.
    Evaluated {
        /// The round.
        round: Round,
        /// The evaluator.
        evaluator: ClientId,
        /// What it found.
        metrics: Metrics,
    },
    /// An evaluator could not measure a released model.
    NotEvaluated {
        /// The round.
        round: Round,
        /// The evaluator.
        evaluator: ClientId,
        /// Why.
        reason: String,
    },
    /// The job is over.
    Ended {
        /// How.
        outcome: Outcome,
    },
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// All rounds were released.
    Completed,
    /// Measurements got no better: the rounds that were left are not worth their privacy.
    StoppedEarly {
        /// The round whose model measured best.
        best_round: Round,
        /// The sentence with the numbers.
        reason: String,
    },
    /// Another round would exceed the budget. Not an error: the last released model stands.
    BudgetSpent {
        /// The sentence with the numbers.
        reason: String,
    },
    /// An operator ended it.
    Cancelled {
        /// The operator.
        by: String,
        /// Why.
        reason: String,
    },
    /// It could not go on.
    Failed {
        /// Why, and what to do.
        reason: String,
    },
}

impl Outcome {
    /// The word used in listings.
    pub fn status(&self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::StoppedEarly { .. } => "stopped-early",
            Self::BudgetSpent { .. } => "budget-spent",
            Self::Cancelled { .. } => "cancelled",
            Self::Failed { .. } => "failed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_from_before_bytes_were_counted_still_reads() {
        let digest = Digest::of(b"model");
        let old = format!(
            r#"{{"kind":"released","round":3,"attempt":1,"model":"{digest}","clients":2,"asked":3,"epsilon":null}}"#
        );
        let event: JobEvent = serde_json::from_str(&old).unwrap();
        let JobEvent::Released { round: Round(3), received_bytes: None, sent_bytes: None, .. } = event else {
            panic!("{event:?}");
        };
        let counted = match event {
            JobEvent::Released { round, attempt, model, clients, asked, epsilon, .. } => JobEvent::Released {
                round,
                attempt,
                model,
                clients,
                asked,
                epsilon,
                received_bytes: Some(8),
                sent_bytes: Some(0),
            },
            other => other,
        };
        let text = serde_json::to_string(&counted).unwrap();
        assert!(text.contains(r#""received_bytes":8"#) && text.contains(r#""sent_bytes":0"#), "{text}");
        assert_eq!(serde_json::from_str::<JobEvent>(&text).unwrap(), counted);
    }
}
