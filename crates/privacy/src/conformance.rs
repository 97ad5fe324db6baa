//! Do draws follow a distribution on the integers? Chi-square against exact probabilities, moments, tails.

use std::collections::BTreeMap;

/// Asserts that `draws` follow `Pr[k] ∝ weight(k)`, a distribution with a mean of zero and a standard deviation of
/// roughly `spread`.
pub(crate) fn assert_conforms(draws: impl Iterator<Item = i64>, weight: impl Fn(i64) -> f64, spread: f64) {
    let mut counts = BTreeMap::new();
    let (mut n, mut sum, mut sum2, mut sum4) = (0u64, 0.0, 0.0, 0.0);
    for k in draws {
        *counts.entry(k).or_insert(0u64) += 1;
        n += 1;
        let x = k as f64;
        sum += x;
        sum2 += x * x;
        sum4 += x.powi(4);
    }
    let n = n as f64;
    // Laplace tails need the reach: e^-60 is left out.
    let reach = (60.0 * spread) as i64 + 60;
    let total: f64 = (-reach..=reach).map(&weight).sum();
    let p = |k: i64| weight(k) / total;

    let (mut statistic, mut cells) = (0.0, 0);
    let (mut rare, mut rare_expected) = (0, 0.0);
    for k in -reach..=reach {
        let (count, expected) = (counts.remove(&k).unwrap_or(0), p(k) * n);
        if expected < 10.0 {
            rare += count;
            rare_expected += expected;
        } else {
            statistic += (count as f64 - expected).powi(2) / expected;
            cells += 1;
        }
    }
    assert!(counts.is_empty(), "draws beyond reach: {counts:?}");
    if rare_expected > 1.0 {
        statistic += (rare as f64 - rare_expected).powi(2) / rare_expected;
        cells += 1;
    }
    // Mean f, variance 2f: five standard deviations (and the skew of few cells) above.
    let freedom = f64::from(cells - 1);
    let limit = freedom + 5.0 * (2.0 * freedom).sqrt() + 10.0;
    assert!(statistic < limit, "spread {spread}: χ² {statistic} with {freedom} degrees of freedom");

    let moment = |power: i32| -> f64 { (-reach..=reach).map(|k| (k as f64).powi(power) * p(k)).sum() };
    let (m2, m4, m8) = (moment(2), moment(4), moment(8));
    assert!((sum / n).abs() < 5.0 * (m2 / n).sqrt(), "spread {spread}: mean {}", sum / n);
    let off = (sum2 / n - m2).abs();
    assert!(off < 5.0 * ((m4 - m2 * m2) / n).sqrt(), "spread {spread}: variance {} not {m2}", sum2 / n);
    let off = (sum4 / n - m4).abs();
    assert!(off < 6.0 * ((m8 - m4 * m4) / n).sqrt(), "spread {spread}: fourth moment {} not {m4}", sum4 / n);
}
