//! Which rows are in a batch.

use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::Rng as _;
use undertone_core::digest::Digester;
use undertone_core::trainer::TrainerError;

/// The generator of one call's batches. ChaCha20 in any case: amplification by sampling is a promise as much as noise
/// is, and holds only for batches that cannot be predicted.
///
/// Without a seed its key is the operating system's. With one, the key is a digest of seed and weights: batches can
/// be had again, yet differ from round to round as weights do.
///
/// # Errors
/// [`TrainerError::Broken`] if the operating system gives no randomness; nothing weaker takes its place.
pub(crate) fn sampling_rng(seed: Option<u64>, weights: &[f32]) -> Result<ChaCha20Rng, TrainerError> {
    let key = match seed {
        Some(seed) => {
            let mut digester = Digester::new();
            digester.field(b"undertone sampling v1");
            digester.field(&seed.to_le_bytes());
            weights.iter().for_each(|w| digester.update(&w.to_le_bytes()));
            *digester.finish().as_bytes()
        }
        None => {
            let mut key = [0; 32];
            getrandom::fill(&mut key).map_err(|e| {
                TrainerError::Broken(format!(
                    "the operating system gave no random bytes ({e}): batches cannot be drawn"
                ))
            })?;
            key
        }
    };
    Ok(ChaCha20Rng::from_seed(key))
}

/// The places of the rows of a Poisson batch.
pub(crate) fn poisson_batch(rows: usize, rate: f64, rng: &mut ChaCha20Rng) -> Vec<i64> {
    undertone_privacy::dp_sgd::poisson_batch(rows, rate, || rng.next_u64()).map(|row| row as i64).collect()
}

/// Batches of a fixed size, pass after pass over the rows, each pass in a new order; the last batch of a pass may be
/// smaller.
#[derive(Debug)]
pub(crate) struct ShuffledBatches {
    order: Vec<i64>,
    size: usize,
    next: usize,
    rng: ChaCha20Rng,
}

impl ShuffledBatches {
    /// Batches of `size` out of `rows` rows, both at least 1.
    pub(crate) fn new(rows: usize, size: usize, rng: ChaCha20Rng) -> Self {
        Self { order: (0..rows as i64).collect(), size, next: rows, rng }
    }

    /// The places of the next batch's rows.
    pub(crate) fn next_batch(&mut self) -> &[i64] {
        if self.next >= self.order.len() {
            self.order.shuffle(&mut self.rng);
            self.next = 0;
        }
        let start = self.next;
        self.next = (start + self.size).min(self.order.len());
        &self.order[start..self.next]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rng(seed: u64) -> ChaCha20Rng {
        sampling_rng(Some(seed), &[]).unwrap()
    }

    #[test]
    fn a_seed_repeats_itself_but_not_from_round_to_round() {
        let draw = |seed, weights: &[f32]| {
            let mut rng = sampling_rng(seed, weights).unwrap();
            [rng.next_u64(), rng.next_u64()]
        };
        assert_eq!(draw(Some(1), &[0.5]), draw(Some(1), &[0.5]));
        assert_ne!(draw(Some(1), &[0.5]), draw(Some(2), &[0.5]));
        assert_ne!(draw(Some(1), &[0.5]), draw(Some(1), &[0.25]));
        assert_ne!(draw(None, &[0.5]), draw(None, &[0.5]));
    }

    #[test]
    fn rows_are_drawn_independently_at_the_rate() {
        let (rows, rate, batches) = (200, 0.25, 2000);
        let mut rng = rng(3);
        let mut hits = vec![0u32; rows];
        let mut pairs = 0u32;
        let mut sizes = Vec::new();
        for _ in 0..batches {
            let batch = poisson_batch(rows, rate, &mut rng);
            batch.iter().for_each(|&i| hits[i as usize] += 1);
            pairs += u32::from(batch.contains(&7) && batch.contains(&8));
            sizes.push(batch.len() as f64);
        }
        // Six standard deviations each.
        let n = f64::from(batches);
        let spread = 6.0 * (n * rate * (1.0 - rate)).sqrt();
        assert!(hits.iter().all(|&h| (f64::from(h) - n * rate).abs() < spread), "{hits:?}");
        assert!((f64::from(pairs) - n / 16.0).abs() < 6.0 * (n / 16.0 * 15.0 / 16.0).sqrt(), "{pairs}");
        // A batch is not of fixed size: its variance is that of the binomial distribution.
        let mean = sizes.iter().sum::<f64>() / n;
        let variance = sizes.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / n;
        let wanted = rows as f64 * rate * (1.0 - rate);
        assert!((variance / wanted - 1.0).abs() < 6.0 * (2.0 / n).sqrt(), "{variance} {wanted}");
    }

    #[test]
    fn the_ends_of_the_rate_are_exact() {
        assert_eq!(poisson_batch(1000, 1.0, &mut rng(1)).len(), 1000);
        assert_eq!(poisson_batch(1000, f64::MIN_POSITIVE, &mut rng(1)).len(), 0);
    }

    proptest! {
        #[test]
        fn each_pass_takes_each_row_once(rows in 1usize..40, size in 1usize..50, seed in any::<u64>()) {
            let mut batches = ShuffledBatches::new(rows, size, rng(seed));
            for _ in 0..3 {
                let mut pass = Vec::new();
                while pass.len() < rows {
                    let batch = batches.next_batch();
                    prop_assert!(batch.len() == size || pass.len() + batch.len() == rows);
                    pass.extend_from_slice(batch);
                }
                pass.sort_unstable();
                prop_assert_eq!(pass, (0..rows as i64).collect::<Vec<_>>());
            }
        }
    }
}
