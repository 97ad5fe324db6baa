//! Rows dealt out to clients: evenly at random, or so that each client has its own mix of classes.

use crate::csv_source::{CsvError, CsvSource};
use crate::csv_text::CsvText;
use crate::split::random_order;
use crate::synthetic::normal;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha20Rng;
use std::collections::BTreeMap;

/// Deals `rows` rows out at random to `parts` clients: independent and identically distributed. Sizes differ by at
/// most one; row numbers ascend within a part.
///
/// # Panics
/// If `parts` is zero.
pub fn iid(rows: usize, parts: usize, seed: u64) -> Vec<Vec<usize>> {
    assert!(parts > 0, "rows cannot be dealt out to no clients");
    let order = random_order(rows, &mut ChaCha20Rng::seed_from_u64(seed));
    let mut dealt = vec![Vec::new(); parts];
    for (i, row) in order.into_iter().enumerate() {
        dealt[i % parts].push(row);
    }
    for part in &mut dealt {
        part.sort_unstable();
    }
    dealt
}

/// [`iid`] for the rows of a CSV file: one file for each client, all with the header.
///
/// # Errors
/// [`CsvError`] past a limit.
///
/// # Panics
/// As [`iid`].
pub fn iid_csv(text: &str, parts: usize, seed: u64) -> Result<Vec<String>, CsvError> {
    let csv = CsvText::parse(text)?;
    Ok(iid(csv.rows.len(), parts, seed).iter().map(|part| csv.select(part)).collect())
}

/// Deals rows out so that classes are skewed: for each class, shares of the clients are drawn from a symmetric Dirichlet
/// distribution with parameter `alpha`, and the class's rows, in random order, are cut accordingly (Yurochkin et al. 2019,
/// Hsu et al. 2019). A small `alpha` gives each client few classes, a large one all alike. Row numbers ascend within a
/// part; a part may be empty.
///
/// # Panics
/// If `parts` is zero, or `alpha` is not a positive number.
pub fn dirichlet(labels: &[u32], parts: usize, alpha: f64, seed: u64) -> Vec<Vec<usize>> {
    assert!(parts > 0, "rows cannot be dealt out to no clients");
    assert!(alpha.is_finite() && alpha > 0.0, "alpha must be a positive number, not {alpha}");
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let order = random_order(labels.len(), &mut rng);
    let mut dealt = vec![Vec::new(); parts];
    let mut classes: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for row in order {
        classes.entry(labels[row]).or_default().push(row);
    }
    for rows in classes.into_values() {
        let (mut start, mut cumulated) = (0, 0.0);
        for (part, share) in dirichlet_shares(parts, alpha, &mut rng).into_iter().enumerate() {
            cumulated += share;
            // The last one takes what rounding left.
            let end = match part + 1 == parts {
                true => rows.len(),
                false => ((cumulated * rows.len() as f64).round() as usize).clamp(start, rows.len()),
            };
            dealt[part].extend(&rows[start..end]);
            start = end;
        }
    }
    for part in &mut dealt {
        part.sort_unstable();
    }
    dealt
}

/// [`dirichlet`] for the rows of a CSV file, by the values of a column: one file for each client, all with the header.
///
/// # Errors
/// [`PartitionError`].
///
/// # Panics
/// As [`dirichlet`].
pub fn dirichlet_csv(
    text: &str,
    column: &str,
    parts: usize,
    alpha: f64,
    seed: u64,
) -> Result<Vec<String>, PartitionError> {
    let csv = CsvText::parse(text)?;
    let mut source = CsvSource::new(text.as_bytes())?;
    let header = source.next()?.map(|header| header.lossy()).unwrap_or_default();
    let at = header.iter().position(|name| name == column.trim());
    let at = at.ok_or_else(|| PartitionError::NoColumn(column.into()))?;
    let mut numbers: BTreeMap<String, u32> = BTreeMap::new();
    let mut labels = Vec::with_capacity(csv.rows.len());
    while let Some(record) = source.next()? {
        if at >= record.len() {
            return Err(PartitionError::Short(record.line));
        }
        let next = numbers.len() as u32;
        let value = String::from_utf8_lossy(record.field(at)).trim().to_owned();
        labels.push(*numbers.entry(value).or_insert(next));
    }
    Ok(dirichlet(&labels, parts, alpha, seed).iter().map(|part| csv.select(part)).collect())
}

/// Why a CSV file could not be dealt out by a column.
#[derive(Debug, thiserror::Error)]
pub enum PartitionError {
    /// It is not readable as CSV.
    #[error(transparent)]
    Csv(#[from] CsvError),
    /// It has no such column.
    #[error("the header has no column \"{0}\"")]
    NoColumn(String),
    /// A row ends before the column.
    #[error("line {0} has fewer fields than the header")]
    Short(u64),
}

/// One draw from a symmetric Dirichlet distribution: gamma variates over their sum, as logarithms, because those of a small
/// `alpha` are smaller than any f64.
fn dirichlet_shares(parts: usize, alpha: f64, rng: &mut ChaCha20Rng) -> Vec<f64> {
    let logs: Vec<f64> = (0..parts)
        .map(|_| {
            // G(α) is G(α + 1)·U^(1/α).
            let uniform = 1.0 - rng.random::<f64>();
            libm::log(gamma_above_one(alpha + 1.0, rng)) + libm::log(uniform) / alpha
        })
        .collect();
    let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logs.iter().map(|l| libm::exp(l - largest)).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

/// A gamma variate of a shape above 1 (Marsaglia and Tsang 2000).
fn gamma_above_one(shape: f64, rng: &mut ChaCha20Rng) -> f64 {
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / libm::sqrt(9.0 * d);
    loop {
        let x = normal(rng);
        let v = 1.0 + c * x;
        if v <= 0.0 {
            continue;
        }
        let v = v * v * v;
        let u = 1.0 - rng.random::<f64>();
        if libm::log(u) < 0.5 * x * x + d - d * v + d * libm::log(v) {
            return d * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_csv_is_dealt_out_whole() {
        let parts = iid_csv("a\n1\n2\n3\n4\n5\n", 2, 9).unwrap();
        let mut rows: Vec<&str> = parts.iter().flat_map(|p| p.strip_prefix("a\n").unwrap().lines()).collect();
        rows.sort_unstable();
        assert_eq!(rows, ["1", "2", "3", "4", "5"]);
    }

    #[test]
    fn a_csv_is_skewed_by_a_column() {
        let rows: String = (0..60).map(|i| format!("{i},{}\n", ["a", " b", "c"][i % 3])).collect();
        let parts = dirichlet_csv(&format!("n,y\n{rows}"), "y", 3, 1e-6, 1).unwrap();
        let mut all = Vec::new();
        for part in &parts {
            let rows: Vec<&str> = part.strip_prefix("n,y\n").unwrap().lines().collect();
            // With next to no alpha a class has one client.
            let classes = |letter: char| rows.iter().filter(|r| r.ends_with(letter)).count();
            assert!(['a', 'b', 'c'].iter().all(|c| [0, 20].contains(&classes(*c))), "{part}");
            all.extend(rows);
        }
        assert_eq!(all.len(), 60);
        assert!(matches!(dirichlet_csv("n,y\n1,2\n", "z", 2, 1.0, 1), Err(PartitionError::NoColumn(_))));
        assert!(matches!(dirichlet_csv("n,y\n1\n", "y", 2, 1.0, 1), Err(PartitionError::Short(2))));
    }

    /// How unlike the mixes of classes are: the mean total variation distance of a part's mix from the whole's.
    fn skew(labels: &[u32], dealt: &[Vec<usize>]) -> f64 {
        let mix = |rows: &[usize]| {
            let mut shares = [0.0; 10];
            rows.iter().for_each(|&i| shares[labels[i] as usize] += 1.0 / rows.len() as f64);
            shares
        };
        let whole = mix(&(0..labels.len()).collect::<Vec<_>>());
        let of = |rows: &Vec<usize>| {
            mix(rows).iter().zip(whole).map(|(a, b)| (a - b).abs()).sum::<f64>() / 2.0 * rows.len() as f64
        };
        dealt.iter().filter(|p| !p.is_empty()).map(of).sum::<f64>() / labels.len() as f64
    }

    #[test]
    fn a_small_alpha_gives_each_client_few_classes() {
        let labels: Vec<u32> = (0..10_000).map(|i| i % 10).collect();
        let of = |alpha| skew(&labels, &dirichlet(&labels, 10, alpha, 3));
        let (little, some, much) = (of(1000.0), of(1.0), of(0.01));
        assert!(little < 0.05 && (0.15..0.6).contains(&some) && much > 0.7, "{little} {some} {much}");
        assert_eq!(dirichlet(&labels, 10, 1e-9, 3).concat().len(), 10_000, "shares stay numbers");
    }

    #[test]
    fn gamma_variates_have_the_mean_and_variance_of_their_shape() {
        let mut rng = ChaCha20Rng::seed_from_u64(5);
        for shape in [1.1, 3.0] {
            let n = 40_000;
            let drawn: Vec<f64> = (0..n).map(|_| gamma_above_one(shape, &mut rng)).collect();
            let mean = drawn.iter().sum::<f64>() / f64::from(n);
            let variance = drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / f64::from(n);
            assert!(
                (mean / shape - 1.0).abs() < 0.03 && (variance / shape - 1.0).abs() < 0.1,
                "{mean} {variance}"
            );
        }
    }

    proptest! {
        #[test]
        fn skewed_parts_are_a_partition(
            labels in proptest::collection::vec(0u32..5, 0..200),
            parts in 1usize..12,
            log_alpha in -9.0..9.0f64,
            seed: u64,
        ) {
            let dealt = dirichlet(&labels, parts, log_alpha.exp(), seed);
            prop_assert_eq!(dealt.len(), parts);
            prop_assert!(dealt.iter().all(|p| p.is_sorted()));
            let mut all = dealt.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..labels.len()).collect::<Vec<_>>());
        }

        #[test]
        fn parts_are_even_and_a_partition(rows in 0usize..300, parts in 1usize..12, seed: u64) {
            let dealt = iid(rows, parts, seed);
            prop_assert_eq!(dealt.len(), parts);
            prop_assert!(dealt.iter().all(|p| p.len() == rows / parts || p.len() == rows.div_ceil(parts)));
            let mut all = dealt.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..rows).collect::<Vec<_>>());
        }
    }
}
