//! Each rule against the few lines that its paper's formula is.

use super::*;
use crate::aggregate::IntegerSum;
use crate::fixed::MAX_FIXED;
use crate::rules::distances::{self, Distances};
use proptest::prelude::*;

fn aggregate(rule: Rule, rows: &MemoryRows) -> Vec<f64> {
    rule.aggregate(rows, grid(), Tiling::with_block(2, 256), None).unwrap().mean(grid())
}

fn squared_distance(a: &[i32], b: &[i32]) -> u128 {
    a.iter().zip(b).map(|(&a, &b)| (i128::from(a) - i128::from(b)).pow(2) as u128).sum()
}

fn columns(updates: &[Vec<i32>]) -> impl Iterator<Item = Vec<i64>> + '_ {
    (0..updates[0].len()).map(|at| {
        let mut column: Vec<i64> = updates.iter().map(|u| u[at].into()).collect();
        column.sort_unstable();
        column
    })
}

fn mean_of(values: &[i64]) -> f64 {
    values.iter().sum::<i64>() as f64 / values.len() as f64 / 65_536.0
}

/// Krum over some of the updates: (row, scores in order of `left`).
fn krum(updates: &[Vec<i32>], left: &[usize], f: usize) -> Vec<(u128, usize)> {
    let mut scores: Vec<(u128, usize)> = left
        .iter()
        .map(|&i| {
            let others = left.iter().filter(|&&j| j != i);
            let mut near: Vec<u128> = others.map(|&j| squared_distance(&updates[i], &updates[j])).collect();
            near.sort_unstable();
            (near.iter().take(left.len().saturating_sub(f + 2).max(1)).sum(), i)
        })
        .collect();
    scores.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| updates[a.1].cmp(&updates[b.1])));
    scores
}

fn close(found: &[f64], wanted: &[f64], tolerance: f64) -> bool {
    found.len() == wanted.len() && found.iter().zip(wanted).all(|(f, w)| (f - w).abs() <= tolerance)
}

/// Any magnitude, so that each arithmetic of the distances has its turn.
fn magnitudes() -> impl Strategy<Value = i32> {
    prop_oneof![Just(3), Just(5000), Just(100_000), Just(1 << 25), Just(MAX_FIXED)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn order_statistics(n in 1usize..40, values in 1usize..600, most in magnitudes(), beta in 0.0f64..0.5, seed: u64) {
        let updates = updates(n, values, most, seed);
        let rows = equal_rows(&updates);
        let wanted: Vec<f64> = columns(&updates).map(|c| mean_of(&c[(n - 1) / 2..=n / 2])).collect();
        prop_assert_eq!(aggregate(Rule::Median {}, &rows), wanted);
        let rule = TrimmedMean { beta };
        let trim = rule.trim(n);
        let wanted: Vec<f64> = columns(&updates).map(|c| mean_of(&c[trim..n - trim])).collect();
        prop_assert!(close(&aggregate(Rule::TrimmedMean(rule), &rows), &wanted, 1e-9));
    }

    #[test]
    fn distances_are_exact(n in 1usize..14, values in 1usize..600, most in prop::collection::vec(magnitudes(), 14), seed: u64) {
        let updates: Vec<Vec<i32>> =
            (0..n).flat_map(|row| updates(1, values, most[row], seed.wrapping_add(row as u64))).collect();
        let rows = equal_rows(&updates);
        let tiling = Tiling::with_block(2, 256);
        let found = Distances::between(&rows, tiling).unwrap();
        let norms = distances::squared_norms(&rows, tiling).unwrap();
        let zero = vec![0; values];
        for i in 0..n {
            prop_assert_eq!(norms[i], squared_distance(&updates[i], &zero));
            for j in 0..n {
                prop_assert_eq!(found.squared(i, j), squared_distance(&updates[i], &updates[j]));
            }
        }
        let centre: Vec<f64> = updates[0].iter().map(|&u| f64::from(u)).collect();
        for (i, found) in distances::from_centre(&rows, tiling, &centre).unwrap().into_iter().enumerate() {
            let wanted = squared_distance(&updates[i], &updates[0]) as f64;
            prop_assert!((found - wanted).abs() <= 1e-12 * wanted, "{} {}", found, wanted);
        }
    }

    #[test]
    fn krum_and_multi_krum(f in 0usize..4, more in 0usize..6, most in magnitudes(), keep in 1usize..9, seed: u64) {
        let n = 2 * f + 3 + more;
        // Few values of few kinds, so that scores tie.
        let updates = updates(n, 2, most, seed);
        let rows = equal_rows(&updates);
        let scores = krum(&updates, &Vec::from_iter(0..n), f);
        let real = |units: &[i32]| -> Vec<f64> { units.iter().map(|&u| f64::from(u) / 65_536.0).collect() };
        prop_assert_eq!(aggregate(Rule::Krum(Krum { byzantine: f }), &rows), real(&updates[scores[0].1]));
        let keep = keep.min(n - f);
        let best: Vec<Vec<i32>> = scores[..keep].iter().map(|s| updates[s.1].clone()).collect();
        let wanted: Vec<f64> = columns(&best).map(|c| mean_of(&c)).collect();
        let rule = Rule::MultiKrum(MultiKrum { byzantine: f, keep: Some(keep) });
        prop_assert!(close(&aggregate(rule, &rows), &wanted, 1e-9));
    }

    #[test]
    fn bulyan(f in 0usize..4, more in 0usize..4, values in 1usize..300, most in magnitudes(), seed: u64) {
        let n = 4 * f + 3 + more;
        let updates = updates(n, values, most, seed);
        let mut left: Vec<usize> = (0..n).collect();
        let mut selected = Vec::new();
        while selected.len() < n - 2 * f {
            let next = krum(&updates, &left, f)[0].1;
            left.retain(|&i| i != next);
            selected.push(updates[next].clone());
        }
        let (theta, beta) = (n - 2 * f, n - 4 * f);
        let wanted: Vec<f64> = columns(&selected)
            .map(|column| {
                let twice_median = column[(theta - 1) / 2] + column[theta / 2];
                let mut nearest = column.clone();
                nearest.sort_by_key(|v| ((2 * v - twice_median).abs(), *v));
                mean_of(&nearest[..beta])
            })
            .collect();
        let found = aggregate(Rule::Bulyan(Bulyan { byzantine: f }), &equal_rows(&updates));
        prop_assert!(close(&found, &wanted, 1e-9));
    }

    #[test]
    fn rules_that_weigh(n in 1usize..20, values in 1usize..300, weights in prop::collection::vec(1u32..=5000, 20), seed: u64) {
        let updates = updates(n, values, 1 << 17, seed);
        let rows: Vec<_> = updates.iter().cloned().zip(weights.iter().copied()).collect();
        let rows = MemoryRows::new(rows).unwrap();
        let real: Vec<Vec<f64>> =
            updates.iter().map(|u| u.iter().map(|&v| f64::from(v) / 65_536.0).collect()).collect();
        let total: f64 = weights[..n].iter().map(|&w| f64::from(w)).sum();
        let combine = |factors: &[f64]| -> Vec<f64> {
            (0..values).map(|at| real.iter().zip(factors).map(|(u, f)| f * u[at]).sum()).collect()
        };
        let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let apart = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum::<f64>().sqrt();

        let mut folded = IntegerSum::zero(grid(), values);
        updates.iter().zip(&weights).for_each(|(u, w)| folded.fold(u, *w).unwrap());
        let exact = Rule::Mean {}.aggregate(&rows, grid(), Tiling::with_block(2, 256), None).unwrap();
        prop_assert_eq!(
            exact,
            Aggregate::Exact { units: folded.units().to_vec(), denominator: folded.total_weight() }
        );

        let bound = 0.6 * norm(&real[0]);
        let factors: Vec<f64> = (0..n)
            .map(|i| f64::from(weights[i]) / total * (bound / norm(&real[i])).min(1.0))
            .collect();
        let found = aggregate(Rule::NormBoundedMean(NormBoundedMean { bound }), &rows);
        prop_assert!(close(&found, &combine(&factors), 1e-6));

        let mut point = vec![0.0; values];
        for _ in 0..3 {
            let pull: Vec<f64> = (0..n).map(|i| f64::from(weights[i]) / apart(&real[i], &point).max(1e-6)).collect();
            let all: f64 = pull.iter().sum();
            point = combine(&pull.iter().map(|p| p / all).collect::<Vec<_>>());
        }
        let found = aggregate(Rule::GeometricMedian(GeometricMedian::default()), &rows);
        prop_assert!(close(&found, &point, 1e-5));

        let radius = 0.9 * norm(&real[0]);
        let mut centre = real[n - 1].clone();
        let first = centre.clone();
        for _ in 0..2 {
            let moved: Vec<f64> = (0..values)
                .map(|at| {
                    let pulls = real.iter().map(|u| (u[at] - centre[at]) * (radius / apart(u, &centre)).min(1.0));
                    centre[at] + pulls.sum::<f64>() / n as f64
                })
                .collect();
            centre = moved;
        }
        let rule = Rule::CentredClipping(CentredClipping { radius, iterations: 2 });
        let found = rule.aggregate(&rows, grid(), Tiling::new(1, n), Some(&first)).unwrap().mean(grid());
        prop_assert!(close(&found, &centre, 1e-5));
    }
}

#[test]
fn a_norm_bound_that_nobody_reaches_changes_no_bit() {
    for weights in [[1, 1, 1], [1, 2, 3], [1 << 20, 1 << 20, 1 << 20], [7, 1 << 20, 1]] {
        let rows = updates(3, 50, 1000, 5).into_iter().zip(weights).collect();
        let rows = MemoryRows::new(rows).unwrap();
        let bounded = aggregate(Rule::NormBoundedMean(NormBoundedMean { bound: 1e6 }), &rows);
        assert_eq!(bounded, aggregate(Rule::Mean {}, &rows));
    }
    let one = MemoryRows::new(vec![(vec![5, -7], 2)]).unwrap();
    assert_eq!(
        aggregate(Rule::NormBoundedMean(NormBoundedMean { bound: 1e6 }), &one),
        aggregate(Rule::Mean {}, &one)
    );
}

#[test]
fn more_rows_than_a_network_has_lines_are_chosen_column_by_column() {
    let n = crate::rules::order_statistics::MOST_LINES + 3;
    let updates = updates(n, 9, 40, 8);
    let wanted: Vec<f64> = columns(&updates).map(|c| mean_of(&c[(n - 1) / 2..=n / 2])).collect();
    assert_eq!(aggregate(Rule::Median {}, &equal_rows(&updates)), wanted);
    for beta in [0.0, 0.001, 0.1, 0.49] {
        let rule = TrimmedMean { beta };
        let wanted: Vec<f64> =
            columns(&updates).map(|c| mean_of(&c[rule.trim(n)..n - rule.trim(n)])).collect();
        assert!(close(&aggregate(Rule::TrimmedMean(rule), &equal_rows(&updates)), &wanted, 1e-12));
    }
}
