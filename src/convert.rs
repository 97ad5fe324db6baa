//! Messages to domain types, or a refusal.

use crate::v1;
use undertone_core::digest::{Digest, InvalidDigest};
use undertone_core::id::{Attempt, AttemptKey, ClientRole, InvalidName, JobId, Round};
use undertone_core::trainer::Metrics;

/// A message that does not hold what its type promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMessage {
    /// A field that must be set is not.
    #[error("the message lacks its field \"{0}\"")]
    Missing(&'static str),
    /// A bad name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A bad digest.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
    /// A number out of bounds.
    #[error("field \"{field}\" is {value}: {expected}")]
    Number {
        /// The field.
        field: &'static str,
        /// What it held.
        value: String,
        /// What it should hold.
        expected: &'static str,
    },
}

/// The field, or a refusal that names it.
///
/// # Errors
/// [`InvalidMessage::Missing`].
pub fn required<T>(field: Option<T>, name: &'static str) -> Result<T, InvalidMessage> {
    field.ok_or(InvalidMessage::Missing(name))
}

impl From<&AttemptKey> for v1::AttemptRef {
    fn from(key: &AttemptKey) -> Self {
        Self { job: key.job.to_string(), round: key.round.0, attempt: key.attempt.0 }
    }
}

impl TryFrom<v1::AttemptRef> for AttemptKey {
    type Error = InvalidMessage;
    fn try_from(m: v1::AttemptRef) -> Result<Self, InvalidMessage> {
        for (field, value) in [("round", m.round), ("attempt", m.attempt)] {
            if value == 0 {
                return Err(InvalidMessage::Number { field, value: "0".into(), expected: "counted from 1" });
            }
        }
        Ok(Self { job: JobId::new(m.job)?, round: Round(m.round), attempt: Attempt(m.attempt) })
    }
}

impl v1::BlobRef {
    /// A reference to a blob.
    pub fn new(digest: Digest, bytes: u64) -> Self {
        Self { digest: digest.as_bytes().to_vec().into(), bytes }
    }

    /// The digest.
    ///
    /// # Errors
    /// If it is not 32 bytes.
    pub fn parsed_digest(&self) -> Result<Digest, InvalidMessage> {
        Ok(Digest::try_from(&self.digest[..])?)
    }
}

/// The role as a message.
pub fn role_message(role: ClientRole) -> v1::Role {
    match role {
        ClientRole::Trainer => v1::Role::Trainer,
        ClientRole::Evaluator => v1::Role::Evaluator,
    }
}

/// The role of a message.
///
/// # Errors
/// If it is unset or unknown.
pub fn client_role(role: i32) -> Result<ClientRole, InvalidMessage> {
    match v1::Role::try_from(role) {
        Ok(v1::Role::Trainer) => Ok(ClientRole::Trainer),
        Ok(v1::Role::Evaluator) => Ok(ClientRole::Evaluator),
        _ => Err(InvalidMessage::Number {
            field: "role",
            value: role.to_string(),
            expected: "trainer or evaluator",
        }),
    }
}

impl From<Metrics> for v1::Metrics {
    fn from(m: Metrics) -> Self {
        Self {
            loss: m.loss,
            accuracy: m.accuracy.unwrap_or_default(),
            rows: m.rows,
            number: m.accuracy.is_none(),
            mean_absolute_error: m.mean_absolute_error,
        }
    }
}

/// Metrics that make sense: finite, the accuracy a share unless they are `noised`.
///
/// # Errors
/// [`InvalidMessage::Number`].
pub fn evaluation_metrics(m: v1::Metrics, noised: bool) -> Result<Metrics, InvalidMessage> {
    let bad = |field, value: f64, expected| {
        Err(InvalidMessage::Number { field, value: value.to_string(), expected })
    };
    if !m.loss.is_finite() {
        return bad("loss", m.loss, "a finite number");
    }
    if !m.accuracy.is_finite() {
        return bad("accuracy", m.accuracy, "a finite number");
    }
    if !noised && !(0.0..=1.0).contains(&m.accuracy) {
        return bad("accuracy", m.accuracy, "between 0 and 1");
    }
    match m.mean_absolute_error {
        Some(error) if !(m.number && error.is_finite() && error >= 0.0) => {
            return bad("mean_absolute_error", error, "of numbers alone, finite and not below 0");
        }
        _ => {}
    }
    Ok(Metrics {
        loss: m.loss,
        accuracy: (!m.number).then_some(m.accuracy),
        mean_absolute_error: m.mean_absolute_error,
        rows: m.rows,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    #[test]
    fn nonsense_stops_here() {
        let good = v1::AttemptRef { job: "heart-1".into(), round: 1, attempt: 1 };
        assert!(AttemptKey::try_from(good.clone()).is_ok());
        assert!(AttemptKey::try_from(v1::AttemptRef { round: 0, ..good.clone() }).is_err());
        assert!(AttemptKey::try_from(v1::AttemptRef { job: "../x".into(), ..good }).is_err());
        assert!(v1::BlobRef { digest: vec![1, 2].into(), bytes: 3 }.parsed_digest().is_err());
        assert!(client_role(0).is_err());
        let of = |loss, accuracy, mean_absolute_error: Option<f64>| v1::Metrics {
            loss,
            accuracy,
            rows: 1,
            number: mean_absolute_error.is_some(),
            mean_absolute_error,
        };
        assert!(evaluation_metrics(of(f64::NAN, 0.5, None), false).is_err());
        assert!(evaluation_metrics(of(0.1, 1.5, None), false).is_err());
        assert!(evaluation_metrics(of(-0.1, 1.5, None), true).is_ok());
        assert!(evaluation_metrics(of(0.1, f64::NAN, None), true).is_err());
        assert!(evaluation_metrics(of(0.1, 0.0, Some(-1.0)), false).is_err());
        assert!(evaluation_metrics(of(0.1, 0.0, Some(f64::INFINITY)), false).is_err());
        assert!(evaluation_metrics(v1::Metrics { number: false, ..of(0.1, 0.0, Some(1.0)) }, false).is_err());
    }

    #[test]
    fn metrics_survive_the_wire() {
        let classes = Metrics::of_classes(0.5, 0.0, 7);
        let numbers = Metrics { accuracy: None, mean_absolute_error: Some(12.5), ..classes };
        let noised = Metrics { mean_absolute_error: None, ..numbers };
        for metrics in [classes, numbers, noised] {
            let bytes = v1::Metrics::from(metrics).encode_to_vec();
            let read = v1::Metrics::decode(&bytes[..]).unwrap();
            assert_eq!(evaluation_metrics(read, false).unwrap(), metrics);
        }
        // What a client that knows no numbers sends, of an accuracy of zero: nothing.
        let old = v1::Metrics { loss: 0.5, rows: 7, ..v1::Metrics::default() };
        assert_eq!(evaluation_metrics(old, false).unwrap().accuracy, Some(0.0));
    }
}
