//! What participants and operators say of a job, on its way to the job's driver at another coordinator.

use serde::{Deserialize, Serialize};
use undertone::{ApiError, Fault};
use undertone_core::digest::Digest;
use undertone_core::id::{AttemptKey, ClientId, Round};
use undertone_core::trainer::Metrics;
use undertone_round::coordinator::{Input, Update};

/// An input that comes from outside, or a count. Coordinators of two versions may share a database for a while: what is here is added
/// to, and not changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Forwarded {
    Answer {
        client: ClientId,
        key: AttemptKey,
        answer: Result<(), String>,
    },
    Failure {
        client: ClientId,
        key: AttemptKey,
        reason: String,
    },
    Update {
        key: AttemptKey,
        update: Update,
        claim: Digest,
    },
    BadUpdate {
        client: ClientId,
        key: AttemptKey,
        reason: String,
    },
    Evaluation {
        evaluator: ClientId,
        round: Round,
        outcome: Result<Metrics, String>,
    },
    Cancel {
        by: String,
        reason: String,
    },
    /// Bytes of models that were sent to the job's clients.
    Sent {
        bytes: u64,
    },
}

impl Forwarded {
    /// `None` for what only a driver says to itself.
    pub(super) fn of(input: Input) -> Option<Self> {
        Some(match input {
            Input::Answer { client, key, answer } => Self::Answer { client, key, answer },
            Input::Failure { client, key, reason } => Self::Failure { client, key, reason },
            Input::Update { key, update, claim } => Self::Update { key, update, claim },
            Input::BadUpdate { client, key, reason } => Self::BadUpdate { client, key, reason },
            Input::Evaluation { evaluator, round, outcome } => Self::Evaluation { evaluator, round, outcome },
            Input::Cancel { by, reason } => Self::Cancel { by, reason },
            Input::Recovered
            | Input::Sessions
            | Input::Missed
            | Input::Connected { .. }
            | Input::Tick
            | Input::Released { .. }
            | Input::ReleaseFailed { .. }
            | Input::Published { .. } => return None,
        })
    }

    /// `Err` for a count.
    pub(super) fn into_input(self) -> Result<Input, u64> {
        Ok(match self {
            Self::Answer { client, key, answer } => Input::Answer { client, key, answer },
            Self::Failure { client, key, reason } => Input::Failure { client, key, reason },
            Self::Update { key, update, claim } => Input::Update { key, update, claim },
            Self::BadUpdate { client, key, reason } => Input::BadUpdate { client, key, reason },
            Self::Evaluation { evaluator, round, outcome } => Input::Evaluation { evaluator, round, outcome },
            Self::Cancel { by, reason } => Input::Cancel { by, reason },
            Self::Sent { bytes } => return Err(bytes),
        })
    }
}

/// What a driver answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answered(Result<(), (String, String)>);

/// The faults that a driver answers with, by their names here.
const FAULTS: [(Fault, &str); 5] = [
    (Fault::BadRequest, "bad_request"),
    (Fault::NotFound, "not_found"),
    (Fault::NotNow, "not_now"),
    (Fault::Unavailable, "unavailable"),
    (Fault::Internal, "internal"),
];

impl Answered {
    pub(super) fn new(answer: Result<(), ApiError>) -> Self {
        Self(answer.map_err(|e| {
            let name =
                FAULTS.iter().find(|(fault, _)| *fault == e.fault).map_or("internal", |(_, name)| name);
            (name.to_owned(), e.message)
        }))
    }

    pub(super) fn into_result(self) -> Result<(), ApiError> {
        self.0.map_err(|(name, message)| {
            let fault = FAULTS.iter().find(|(_, known)| *known == name);
            ApiError::new(fault.map_or(Fault::Internal, |(fault, _)| *fault), message)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use undertone_core::id::{Attempt, JobId};

    #[test]
    fn what_comes_from_outside_travels_and_nothing_else_does() {
        let client = ClientId::new("basel").unwrap();
        let key = AttemptKey { job: JobId::new("a").unwrap(), round: Round(1), attempt: Attempt(2) };
        let update =
            Update { client: client.clone(), blob: Digest::of(b"x"), bytes: 9, weight: 3, origin: None };
        let reason = "no \"data\"".to_owned();
        for input in [
            Input::Answer { client: client.clone(), key: key.clone(), answer: Ok(()) },
            Input::Answer { client: client.clone(), key: key.clone(), answer: Err(reason.clone()) },
            Input::Failure { client: client.clone(), key: key.clone(), reason: reason.clone() },
            Input::Update { key: key.clone(), update, claim: Digest::of(b"y") },
            Input::BadUpdate { client: client.clone(), key, reason: reason.clone() },
            Input::Evaluation { evaluator: client.clone(), round: Round(3), outcome: Err(reason.clone()) },
            Input::Cancel { by: "ops".into(), reason },
        ] {
            let text = serde_json::to_string(&Forwarded::of(input.clone()).unwrap()).unwrap();
            let read: Forwarded = serde_json::from_str(&text).unwrap();
            assert_eq!(read.into_input(), Ok(input));
        }
        let text = serde_json::to_string(&Forwarded::Sent { bytes: 7 }).unwrap();
        assert_eq!(serde_json::from_str::<Forwarded>(&text).unwrap().into_input(), Err(7));
        for input in [Input::Tick, Input::Recovered, Input::Connected { client }] {
            assert_eq!(Forwarded::of(input), None);
        }
    }

    /// Coordinators of two versions share a database while one after another is replaced.
    #[test]
    fn what_an_older_one_wrote_is_read() {
        let key = AttemptKey { job: JobId::new("a").unwrap(), round: Round(1), attempt: Attempt(2) };
        let text =
            r#"{"answer":{"client":"basel","key":{"job":"a","round":1,"attempt":2},"answer":{"Ok":null}}}"#;
        let client = ClientId::new("basel").unwrap();
        let expected = Forwarded::Answer { client, key, answer: Ok(()) };
        assert_eq!(serde_json::from_str::<Forwarded>(text).unwrap(), expected);
        let refused = Answered::new(Err(ApiError::new(Fault::NotNow, "late")));
        assert_eq!(serde_json::from_str::<Answered>(r#"{"Err":["not_now","late"]}"#).unwrap(), refused);
        assert_eq!(refused.into_result(), Err(ApiError::new(Fault::NotNow, "late")));
        assert_eq!(serde_json::from_str::<Answered>(r#"{"Ok":null}"#).unwrap().into_result(), Ok(()));
    }
}
