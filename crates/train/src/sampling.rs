//! Which rows are in a batch.

use crate::checkpoint::SamplerState;
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

/// What one step draws beside its batch.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Draws {
    /// How pictures are moved and turned.
    Moves,
    /// What is added to numbers.
    Jitter,
    /// What dropout drops.
    Dropout,
}

/// The generator of what a step draws beside its batch. It follows from the key of the batches' generator, wherever that
/// stands, and from the step: so training that goes on after a kill draws what it would have drawn.
pub(crate) fn step_rng(draws: Draws, batches: &ChaCha20Rng, step: u64) -> ChaCha20Rng {
    let mut rng = ChaCha20Rng::from_seed(batches.get_seed());
    // Stream 0 orders batches, stream 1 splits rows.
    rng.set_stream(match draws {
        Draws::Moves => 3 * step + 2,
        Draws::Jitter => 3 * step + 3,
        Draws::Dropout => 3 * step + 4,
    });
    rng
}

/// Lets what dropout drops in a step follow from the batches' key. libtorch has one generator for a whole process: a trainer
/// trains one model at a time.
pub(crate) fn seed_dropout(batches: &ChaCha20Rng, step: u64) {
    tch::manual_seed(step_rng(Draws::Dropout, batches, step).next_u64() as i64);
}

/// The places of the rows of a Poisson batch.
pub(crate) fn poisson_batch(rows: usize, rate: f64, rng: &mut ChaCha20Rng) -> Vec<i64> {
    undertone_privacy::dp_sgd::poisson_batch(rows, rate, || rng.next_u64()).map(|row| row as i64).collect()
}

/// Splits rows at random into those that are held out and those that are trained on; `share` is above 0 and at most a
/// half, and each part has a row. The split follows from the generator's key alone, wherever the generator stands.
///
/// # Errors
/// [`TrainerError::Data`] if there are too few rows to split.
pub(crate) fn hold_out(
    rows: usize,
    share: f64,
    rng: &ChaCha20Rng,
) -> Result<(Vec<i64>, Vec<i64>), TrainerError> {
    if rows < 2 {
        return Err(TrainerError::Data(format!(
            "early_stop holds rows out, and {rows} cannot be split: give more rows, or leave early_stop out of the plan"
        )));
    }
    let mut rng = ChaCha20Rng::from_seed(rng.get_seed());
    // Stream 0 orders batches; see also `step_rng`.
    rng.set_stream(1);
    let mut order: Vec<i64> = (0..rows as i64).collect();
    order.shuffle(&mut rng);
    let held = ((rows as f64 * share).round() as usize).clamp(1, rows - 1);
    let kept = order.split_off(held);
    Ok((order, kept))
}

/// Batches of a fixed size, pass after pass over the rows, each pass in a new order; the last batch of a pass may be
/// smaller.
#[derive(Debug)]
pub(crate) struct ShuffledBatches {
    order: Vec<i64>,
    size: usize,
    next: usize,
    rng: ChaCha20Rng,
    /// The generator before it ordered the pass in hand: the order follows from it alone.
    pass: SamplerState,
}

impl ShuffledBatches {
    /// Batches of `size` out of `rows` rows, both at least 1.
    pub(crate) fn new(rows: usize, size: usize, rng: ChaCha20Rng) -> Self {
        let pass = SamplerState::of(&rng, 0);
        Self { order: (0..rows as i64).collect(), size, next: rows, rng, pass }
    }

    /// Goes on after a batch.
    pub(crate) fn resume(rows: usize, size: usize, state: &SamplerState) -> Self {
        let mut batches = Self::new(rows, size, state.rng());
        batches.begin_pass();
        batches.next = (state.next as usize).min(rows);
        batches
    }

    /// Where it stands after a batch.
    pub(crate) fn state(&self) -> SamplerState {
        self.pass.clone().with_next(self.next as u64)
    }

    fn begin_pass(&mut self) {
        self.pass = SamplerState::of(&self.rng, 0);
        self.order.iter_mut().enumerate().for_each(|(i, row)| *row = i as i64);
        self.order.shuffle(&mut self.rng);
        self.next = 0;
    }

    /// The places of the next batch's rows.
    pub(crate) fn next_batch(&mut self) -> &[i64] {
        if self.next >= self.order.len() {
            self.begin_pass();
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
    fn what_a_step_draws_follows_from_key_and_step_alone() {
        let mut batches = rng(5);
        let draw = |draws, batches: &ChaCha20Rng, step| step_rng(draws, batches, step).next_u64();
        let mut seen = vec![rng(5).next_u64()];
        for (step, draws) in
            (0..9).flat_map(|step| [(step, Draws::Moves), (step, Draws::Jitter), (step, Draws::Dropout)])
        {
            seen.push(draw(draws, &batches, step));
            batches.next_u64();
            assert_eq!(draw(draws, &batches, step), *seen.last().unwrap());
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 28);
        assert_ne!(draw(Draws::Moves, &batches, 0), draw(Draws::Moves, &rng(6), 0));
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

    #[test]
    fn a_split_follows_from_the_key_and_holds_each_row_once() {
        for (rows, share, held) in [(2, 0.1, 1), (3, 0.5, 2), (10, 0.5, 5), (100, 0.1, 10)] {
            let mut rng = rng(9);
            let (out, kept) = hold_out(rows, share, &rng).unwrap();
            assert_eq!((out.len(), kept.len()), (held, rows - held));
            let mut all = [&out[..], &kept].concat();
            all.sort_unstable();
            assert_eq!(all, (0..rows as i64).collect::<Vec<_>>());
            rng.next_u64();
            assert_eq!(hold_out(rows, share, &rng).unwrap(), (out, kept));
        }
        assert!(matches!(hold_out(1, 0.1, &rng(9)), Err(TrainerError::Data(_))));
    }

    proptest! {
        #[test]
        fn batches_go_on_where_they_were(
            rows in 1usize..40, size in 1usize..50, seed in any::<u64>(), before in 1usize..60, after in 1usize..60,
        ) {
            let mut whole = ShuffledBatches::new(rows, size, rng(seed));
            (0..before).for_each(|_| _ = whole.next_batch());
            let mut resumed = ShuffledBatches::resume(rows, size, &whole.state());
            for _ in 0..after {
                prop_assert_eq!(whole.next_batch(), resumed.next_batch());
            }
        }

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
