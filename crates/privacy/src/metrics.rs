//! Measurements of a model that may leave an evaluator: bounded sums with discrete Laplace noise.
//!
//! Without this, a loss and an accuracy leave as they are, and tell of the rows that they were measured on. With it, each
//! measurement of a model is ε-differentially private for each row (record-level contracts) or for all that an evaluator
//! has (client-level ones), with δ = 0, whoever looks on; what is decided by it, such as when to stop, costs no more
//! (post-processing).
//!
//! - *Rows.* Each row adds at most one to the number of right answers and one, in units of the largest loss, to the loss:
//!   on integers, so that one row more or less moves both sums together by at most 2 (L1). Divided by the number of
//!   rows that the owner *declares*, a public figure; the real one does not leave.
//! - *Clients.* Both means are between 0 and 1: whatever the evaluator's data, they move by at most 2 together.
//!
//! Both get noise of scale 2/ε from one mechanism (Dwork, McSherry, Nissim and Smith 2006).

use crate::contract::Unit;
use crate::discrete_laplace::{DiscreteLaplace, LaplaceError};
use crate::noise::NoiseRng;
use crate::sensitivity::{Adjacency, L1Sensitivity};
use serde::{Deserialize, Serialize};
use undertone_core::trainer::{BoundedSums, LOSS_UNITS, Metrics};

/// How measurements are kept private: part of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawMetrics", into = "RawMetrics")]
pub struct MetricsPrivacy {
    epsilon: f64,
    max_loss: f64,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMetrics {
    epsilon: f64,
    max_loss: f64,
}

/// Numbers that keep nothing private, or leave nothing to see.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("metrics: {key} must be {wanted}, not {found}")]
pub struct InvalidMetrics {
    key: &'static str,
    wanted: &'static str,
    found: f64,
}

/// Why no measurement leaves.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MetricsError {
    /// The public divisor is missing.
    #[error("measurements are divided by a public number of rows: set declared_rows in client.toml")]
    NotDeclared,
    /// The sums are beyond what the rows can give.
    #[error("the trainer gave sums that {0} rows cannot have")]
    Impossible(u64),
    /// The noise.
    #[error(transparent)]
    Noise(#[from] LaplaceError),
}

impl TryFrom<RawMetrics> for MetricsPrivacy {
    type Error = InvalidMetrics;

    fn try_from(raw: RawMetrics) -> Result<Self, InvalidMetrics> {
        if !(1e-4..=100.0).contains(&raw.epsilon) {
            return Err(InvalidMetrics { key: "epsilon", wanted: "0.0001 to 100", found: raw.epsilon });
        }
        if !(raw.max_loss > 0.0 && raw.max_loss <= 1e6) {
            return Err(InvalidMetrics {
                key: "max_loss",
                wanted: "above 0 and at most 1e6",
                found: raw.max_loss,
            });
        }
        Ok(Self { epsilon: raw.epsilon, max_loss: raw.max_loss })
    }
}

impl From<MetricsPrivacy> for RawMetrics {
    fn from(m: MetricsPrivacy) -> Self {
        Self { epsilon: m.epsilon, max_loss: m.max_loss }
    }
}

impl MetricsPrivacy {
    /// Measurements of `epsilon` each, of losses that are cut at `max_loss` nats.
    ///
    /// # Errors
    /// [`InvalidMetrics`].
    pub fn new(epsilon: f64, max_loss: f64) -> Result<Self, InvalidMetrics> {
        RawMetrics { epsilon, max_loss }.try_into()
    }

    /// ε of one measurement.
    pub fn epsilon(&self) -> f64 {
        self.epsilon
    }

    /// Where a row's loss is cut, in nats.
    pub fn max_loss(&self) -> f64 {
        self.max_loss
    }

    /// One measurement with its noise. Unbiased, and so not always within the range of what was measured.
    ///
    /// # Errors
    /// [`MetricsError`]; then nothing may leave.
    pub fn noised(
        &self,
        unit: Unit,
        sums: &BoundedSums,
        declared_rows: Option<u64>,
        rng: &mut NoiseRng,
    ) -> Result<Metrics, MetricsError> {
        let possible = sums.rows.checked_mul(LOSS_UNITS).filter(|most| *most <= 1 << 50);
        if possible.is_none_or(|most| sums.loss_units > most || sums.right > sums.rows) {
            return Err(MetricsError::Impossible(sums.rows));
        }
        // Both in the same unit, of which one row, or all rows of a client together, give at most LOSS_UNITS each.
        let (right, loss, divisor) = if unit == Unit::Client {
            // Without a row both are zero, and nobody can tell.
            let share = |sum: u128| (sum / u128::from(sums.rows.max(1))) as i64;
            let right = share(u128::from(sums.right) * u128::from(LOSS_UNITS));
            (right, share(u128::from(sums.loss_units)), 1)
        } else {
            let declared = declared_rows.filter(|rows| *rows > 0).ok_or(MetricsError::NotDeclared)?;
            let right = (sums.right * LOSS_UNITS) as i64;
            (right, sums.loss_units as i64, declared)
        };
        let sensitivity = L1Sensitivity::of_bounded(2 * LOSS_UNITS, Adjacency::AddRemove);
        let noise = DiscreteLaplace::for_epsilon(sensitivity, self.epsilon)?;
        let mut both = [right, loss];
        noise.add_to(&mut both, rng);
        let share = |units: i64| units as f64 / (LOSS_UNITS as f64 * divisor as f64);
        Ok(Metrics {
            accuracy: share(both[0]),
            loss: share(both[1]) * self.max_loss,
            rows: declared_rows.unwrap_or(1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(rows: u64, right: u64, loss_units: u64) -> BoundedSums {
        BoundedSums { rows, right, loss_units }
    }

    fn many(unit: Unit, epsilon: f64, sums: &BoundedSums, declared: Option<u64>) -> Vec<Metrics> {
        let mut rng = NoiseRng::seeded_for_tests(5);
        let privacy = MetricsPrivacy::new(epsilon, 4.0).unwrap();
        (0..4000).map(|_| privacy.noised(unit, sums, declared, &mut rng).unwrap()).collect()
    }

    fn mean_and_deviation(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
        let n = values.clone().count() as f64;
        let mean = values.clone().sum::<f64>() / n;
        (mean, (values.map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt())
    }

    #[test]
    fn rows_are_divided_by_what_is_declared_and_noised_by_two_over_epsilon() {
        let found = many(Unit::Record, 0.5, &sums(90, 45, 30 * LOSS_UNITS), Some(100));
        let (accuracy, deviation) = mean_and_deviation(found.iter().map(|m| m.accuracy));
        // Laplace of scale 4 rows: √2·4/100.
        assert!((accuracy - 0.45).abs() < 0.005, "{accuracy}");
        assert!((deviation / (2f64.sqrt() * 0.04) - 1.0).abs() < 0.1, "{deviation}");
        let (loss, deviation) = mean_and_deviation(found.iter().map(|m| m.loss));
        assert!((loss - 4.0 * 0.30).abs() < 0.02, "{loss}");
        assert!((deviation / (2f64.sqrt() * 0.16) - 1.0).abs() < 0.1, "{deviation}");
        assert!(found.iter().all(|m| m.rows == 100), "the real number stays");
    }

    #[test]
    fn a_client_is_hidden_whatever_it_has() {
        for rows in [1, 1000] {
            let found = many(Unit::Client, 20.0, &sums(rows, rows, 0), None);
            let (accuracy, deviation) = mean_and_deviation(found.iter().map(|m| m.accuracy));
            assert!((accuracy - 1.0).abs() < 0.02, "{accuracy}");
            assert!((deviation / (2f64.sqrt() * 0.1) - 1.0).abs() < 0.1, "{deviation}");
            assert!(found.iter().all(|m| m.rows == 1));
        }
    }

    /// Each output is at most e^ε times as likely with one row more: the statistic is an integer vector, and the scale is
    /// at least its L1 distance over ε.
    #[test]
    fn one_row_moves_the_sums_by_no_more_than_the_noise_is_scaled_to() {
        let noise = DiscreteLaplace::for_epsilon(
            L1Sensitivity::of_bounded(2 * LOSS_UNITS, Adjacency::AddRemove),
            0.5,
        )
        .unwrap();
        // The worst row: right, and with the largest loss.
        let distance = (LOSS_UNITS + LOSS_UNITS) as f64;
        assert!(distance / noise.scale() <= 0.5);
    }

    #[test]
    fn nonsense_is_refused() {
        let mut rng = NoiseRng::seeded_for_tests(1);
        let privacy = MetricsPrivacy::new(1.0, 4.0).unwrap();
        let mut of = |s: BoundedSums, declared| privacy.noised(Unit::Record, &s, declared, &mut rng);
        assert_eq!(of(sums(5, 1, 1), None), Err(MetricsError::NotDeclared));
        assert_eq!(of(sums(5, 1, 1), Some(0)), Err(MetricsError::NotDeclared));
        assert!(of(sums(0, 0, 0), Some(5)).is_ok(), "no rows look like few");
        assert_eq!(of(sums(5, 6, 1), Some(5)), Err(MetricsError::Impossible(5)));
        assert_eq!(of(sums(5, 1, 5 * LOSS_UNITS + 1), Some(5)), Err(MetricsError::Impossible(5)));
        assert!(of(sums(u64::MAX, 0, 0), Some(5)).is_err());
        for (epsilon, max_loss) in [(0.0, 1.0), (f64::NAN, 1.0), (1.0, 0.0), (1.0, f64::INFINITY), (1e3, 1.0)]
        {
            assert!(MetricsPrivacy::new(epsilon, max_loss).is_err(), "{epsilon} {max_loss}");
        }
    }
}
