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
//! Both get noise of scale 2/ε from one mechanism (Dwork, McSherry, Nissim and Smith 2006). Where a number is predicted,
//! being right means nothing: then there is the loss alone, which moves by at most 1, and noise of scale 1/ε is enough.

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
        let is_impossible = sums.right.is_some_and(|right| right > sums.rows);
        if possible.is_none_or(|most| sums.loss_units > most) || is_impossible {
            return Err(MetricsError::Impossible(sums.rows));
        }
        // In units of which one row, or all rows of a client together, give at most LOSS_UNITS to each sum.
        let (rows, divisor) = if unit == Unit::Client {
            // Without a row all is zero, and nobody can tell.
            (sums.rows.max(1), 1)
        } else {
            (1, declared_rows.filter(|rows| *rows > 0).ok_or(MetricsError::NotDeclared)?)
        };
        let share = |sum: u128| (sum / u128::from(rows)) as i64;
        let right = sums.right.map(|right| u128::from(right) * u128::from(LOSS_UNITS));
        let mut noised: Vec<i64> =
            [Some(u128::from(sums.loss_units)), right].into_iter().flatten().map(share).collect();
        let most = noised.len() as u64 * LOSS_UNITS;
        let noise = DiscreteLaplace::for_epsilon(
            L1Sensitivity::of_bounded(most, Adjacency::AddRemove),
            self.epsilon,
        )?;
        noise.add_to(&mut noised, rng);
        let mean = |units: i64| units as f64 / (LOSS_UNITS as f64 * divisor as f64);
        Ok(Metrics {
            loss: mean(noised[0]) * self.max_loss,
            accuracy: noised.get(1).map(|right| mean(*right)),
            mean_absolute_error: None,
            rows: declared_rows.unwrap_or(1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(rows: u64, right: u64, loss_units: u64) -> BoundedSums {
        BoundedSums { rows, right: Some(right), loss_units }
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
        let (accuracy, deviation) = mean_and_deviation(found.iter().map(|m| m.accuracy.unwrap()));
        // Laplace of scale 4 rows: √2·4/100.
        assert!((accuracy - 0.45).abs() < 0.005, "{accuracy}");
        assert!((deviation / (2f64.sqrt() * 0.04) - 1.0).abs() < 0.1, "{deviation}");
        let (loss, deviation) = mean_and_deviation(found.iter().map(|m| m.loss));
        assert!((loss - 4.0 * 0.30).abs() < 0.02, "{loss}");
        assert!((deviation / (2f64.sqrt() * 0.16) - 1.0).abs() < 0.1, "{deviation}");
        assert!(found.iter().all(|m| m.rows == 100), "the real number stays");
    }

    #[test]
    fn of_numbers_the_loss_alone_is_noised_by_one_over_epsilon() {
        let numbers = BoundedSums { right: None, ..sums(90, 0, 30 * LOSS_UNITS) };
        let found = many(Unit::Record, 0.5, &numbers, Some(100));
        assert!(found.iter().all(|m| m.accuracy.is_none() && m.mean_absolute_error.is_none()));
        let (loss, deviation) = mean_and_deviation(found.iter().map(|m| m.loss));
        assert!((loss - 4.0 * 0.30).abs() < 0.01, "{loss}");
        // Laplace of scale 2 rows, each of at most 4: √2·2·4/100.
        assert!((deviation / (2f64.sqrt() * 0.08) - 1.0).abs() < 0.1, "{deviation}");
    }

    #[test]
    fn a_client_is_hidden_whatever_it_has() {
        for rows in [1, 1000] {
            let found = many(Unit::Client, 20.0, &sums(rows, rows, 0), None);
            let (accuracy, deviation) = mean_and_deviation(found.iter().map(|m| m.accuracy.unwrap()));
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
