//! Rows dealt out to clients.

use crate::csv_source::CsvError;
use crate::csv_text::CsvText;
use crate::split::random_order;
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;

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

    proptest! {
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
