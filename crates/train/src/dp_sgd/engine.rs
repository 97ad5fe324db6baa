//! How clipped gradients are summed: which way, and how many examples at a time.
//!
//! | engine | how | chosen where |
//! |---|---|---|
//! | `book-keeping` | one backward pass; norms by formula; one weighted product a parameter | the contract allows floating-point sums |
//! | `ghost` | norms as above, then a second backward pass of the scaled losses | the same, where book-keeping would hold so much that fewer than [`FEW`] examples fit, and without it twice as many do; not with dropout |
//! | `per-example` | every gradient materialised, from one backward pass | the contract sums on an integer grid |
//! | `one-by-one` | autograd for one example after the other | a module reaches parameters on its own, or is a TorchScript file (which no record-level contract allows yet): there is no formula |
//!
//! All give the same sum. None is chosen for a built-in module that mixes examples: that one is refused. Nobody knows what a
//! TorchScript file does with a batch, so it never sees one: alone no example can mix with others.

use crate::failure::Failure;
use crate::nn::weights::Weights;
use crate::nn::{Network, joined_values};
use crate::per_example::books::{Books, Footprint, Ghost};
use crate::per_example::mixing::mixes_examples;
use crate::per_example::{Tape, gradients, one_by_one};
use tch::{Device, TchError, Tensor};
use undertone_core::trainer::TrainerError;
use undertone_privacy::dp_sgd::{FloatClipping, GradientMechanism, GradientSum};

/// Values held at once for the examples at work (256 MiB of f32): bounds memory whatever batch is drawn.
const VALUES_ON_CPU: i64 = 64 << 20;
/// The same (1 GiB) where small pieces would leave a GPU idle.
const VALUES_ON_GPU: i64 = 256 << 20;
/// Of single gradients, which are read once, as many (32 MiB) are enough on a CPU where they are of [`FEW`] examples: more than the
/// allocator keeps from one piece to the next has to be cleared by the system first, each time.
const VALUES_IN_REACH: i64 = 8 << 20;
/// Fewer examples than these at a time are no matrices any more.
const FEW: i64 = 8;
/// b·√(B·T) for b examples in one f32 sum over T points in time, out of a batch of B, at most: it keeps λ·u·b·√(B·T), the
/// part of the clip norm that the rounding of sums may be, below half of
/// [`SENSITIVITY_MARGIN`](undertone_privacy::dp_sgd::SENSITIVITY_MARGIN), with λ = 8 and u = 2^-24.
const SUMMED_AT_ONCE: f64 = 16_384.0;

/// Sums clipped gradients of one network.
#[derive(Debug)]
pub(crate) struct Engine<'a> {
    network: &'a Network,
    way: Way,
    /// Rows of the model's input to one example.
    views: i64,
    footprint: Footprint,
    on_cpu: bool,
    /// Values at once.
    budget: i64,
    /// Values of one gradient.
    trained: i64,
}

/// One way to sum. Floating-point sums need the evidence that the contract allows them.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    BookKeeping(FloatClipping),
    Ghost(FloatClipping),
    PerExample,
    OneByOne,
}

impl<'a> Engine<'a> {
    /// Chooses by the rule above. `x` is any one row, of which shape and kind count; so the choice tells nothing of the data.
    ///
    /// # Errors
    /// [`TrainerError::Unsupported`] if the network mixes examples.
    pub(crate) fn choose(
        network: &'a Network,
        weights: &Weights,
        mechanism: &GradientMechanism,
        x: &Tensor,
        views: i64,
    ) -> Result<Self, Failure> {
        let on_cpu = x.device() == Device::Cpu;
        let budget = if on_cpu { VALUES_ON_CPU } else { VALUES_ON_GPU };
        let trained = weights.trained().map(|p| weights.get(p).numel() as i64).sum();
        if network.is_script() {
            let (way, footprint) = (Way::OneByOne, Footprint::default());
            return Ok(Self { network, way, views, footprint, on_cpu, budget, trained });
        }
        if mixes_examples(network, weights, x)? {
            return Err(TrainerError::Unsupported(
                "this model's output for one example depends on the others in its batch, so that no example has a gradient of \
                 its own to clip: a record-level contract cannot be kept with it; take GroupNorm or LayerNorm in place of \
                 BatchNorm"
                    .into(),
            )
            .into());
        }
        let x = x.f_zeros_like()?.f_repeat([&[views][..], &vec![1; x.dim() - 1]].concat())?;
        let truth = network.objective().any_truth(1, x.device())?;
        let tape = Tape::record(network, weights, &x, &truth, views, false)?;
        let complete = tape.is_complete(weights);
        let mut footprint = Footprint::of(&tape, weights)?;
        footprint.tape *= views;
        let way = match mechanism.float_clipping() {
            _ if !complete => Way::OneByOne,
            None => Way::PerExample,
            Some(clipping) => {
                let Footprint { tape, books, passing, .. } = footprint;
                let books = budget / (tape + books + passing).max(1);
                let ghost = budget / (tape + passing).max(1);
                // A ghost that leaves an example out passes the others again. With dropout each of them would count only if it is
                // finite under both masks: what it comes to would hang on the one that was left out.
                match books < FEW && ghost >= 2 * books && !network.drops() {
                    true => Way::Ghost(clipping),
                    false => Way::BookKeeping(clipping),
                }
            }
        };
        Ok(Self { network, way, views, footprint, on_cpu, budget, trained })
    }

    /// Its word in logs.
    pub(crate) fn name(&self) -> &'static str {
        match self.way {
            Way::BookKeeping(_) => "book-keeping",
            Way::Ghost(_) => "ghost",
            Way::PerExample => "per-example",
            Way::OneByOne => "one-by-one",
        }
    }

    /// How many examples of a batch of so many to hand to [`Self::add`] at once.
    pub(crate) fn at_once(&self, batch: usize) -> usize {
        let Footprint { tape, books, passing, times } = self.footprint;
        let rounding = SUMMED_AT_ONCE / ((batch.max(1) as f64) * (times as f64)).sqrt();
        let (held, most) = match self.way {
            Way::BookKeeping(_) => (tape + books + passing, rounding as i64),
            Way::Ghost(_) => (tape + passing, rounding as i64),
            Way::PerExample => (tape + self.trained, i64::MAX),
            // Each, and all of them as one tensor.
            Way::OneByOne => (2 * self.trained, i64::MAX),
        };
        let held = held.max(1);
        let single = matches!(self.way, Way::PerExample | Way::OneByOne);
        let most = if single && self.on_cpu { most.min((VALUES_IN_REACH / held).max(FEW)) } else { most };
        (self.budget / held).min(most).max(1) as usize
    }

    /// Weights as this engine needs them.
    pub(crate) fn prepared(&self, weights: Weights) -> Result<Weights, TchError> {
        match self.way {
            Way::BookKeeping(_) | Way::PerExample => Ok(weights),
            Way::Ghost(_) | Way::OneByOne => weights.followed(),
        }
    }

    /// Adds the clipped gradients of these examples; `x` has their views one behind the other, `truth` one entry an example.
    pub(crate) fn add(
        &self,
        weights: &Weights,
        x: &Tensor,
        truth: &Tensor,
        sum: &mut GradientSum<'_>,
    ) -> Result<(), Failure> {
        let (network, views) = (self.network, self.views);
        let (clipping, clipped) = match self.way {
            Way::PerExample => {
                return self.add_each(&gradients(network, weights, x, truth, views)?, sum);
            }
            Way::OneByOne => return self.add_each(&[one_by_one(network, weights, x, truth, views)?], sum),
            Way::BookKeeping(clipping) => {
                let mut books = Books::of(Tape::record(network, weights, x, truth, views, false)?, weights)?;
                let mut squared = squared_norms(books.squared_norms())?;
                if let Some(finite) = only_finite(&squared) {
                    // The others count as zero, and leave the books: 0·∞ would spoil the sum.
                    if finite.is_empty() {
                        return Ok(());
                    }
                    books = books.of_some(&finite)?;
                    squared = squared_norms(books.squared_norms())?;
                }
                (clipping, books.weighted_sums(&factors(&clipping, &squared, x.device())?)?)
            }
            Way::Ghost(clipping) => {
                let ghost = Ghost::of(Tape::record(network, weights, x, truth, views, true)?, weights)?;
                let squared = squared_norms(ghost.squared_norms())?;
                if let Some(finite) = only_finite(&squared) {
                    return self.add_some(weights, x, truth, &finite, sum);
                }
                (clipping, vec![ghost.weighted_sum(&factors(&clipping, &squared, x.device())?, weights)?])
            }
        };
        sum.add_clipped_sum(&clipping, joined_values(&clipped)?);
        Ok(())
    }

    /// Gradients in parts, each of shape (examples, values).
    fn add_each(&self, parts: &[Tensor], sum: &mut GradientSum<'_>) -> Result<(), Failure> {
        let here = |part: &Tensor| part.f_to_device(Device::Cpu)?.f_contiguous();
        let parts = parts.iter().map(here).collect::<Result<Vec<_>, _>>()?;
        // One after the other: a copy of them all would be as much memory again, and its allocation could not fail without ending
        // the process.
        let mut gradient = vec![0f32; self.trained as usize];
        for i in 0..parts.first().map_or(0, |part| part.size()[0]) {
            let mut rest = &mut gradient[..];
            for part in &parts {
                let row = part.f_get(i)?;
                let own = rest.split_off_mut(..row.numel()).expect("the parts are of all that is trained");
                row.f_copy_data(own, row.numel())?;
            }
            sum.add(&gradient);
        }
        Ok(())
    }

    /// Those whose norms are finite, by a pass of their own: what is not finite would spoil the second pass backward. No model with
    /// dropout comes here: see [`Self::choose`].
    fn add_some(
        &self,
        weights: &Weights,
        x: &Tensor,
        truth: &Tensor,
        finite: &[i64],
        sum: &mut GradientSum<'_>,
    ) -> Result<(), Failure> {
        if finite.is_empty() {
            return Ok(());
        }
        let rows: Vec<i64> =
            finite.iter().flat_map(|i| (0..self.views).map(move |view| i * self.views + view)).collect();
        let chosen = |of: &Tensor, places: &[i64]| {
            of.f_index_select(0, &Tensor::f_from_slice(places)?.f_to_device(of.device())?)
        };
        // There are fewer each time.
        self.add(weights, &chosen(x, &rows)?, &chosen(truth, finite)?, sum)
    }
}

fn squared_norms(squared: &Tensor) -> Result<Vec<f64>, TchError> {
    Vec::try_from(squared.f_to_device(Device::Cpu)?)
}

/// The places of the norms that are finite, if some are not.
fn only_finite(squared: &[f64]) -> Option<Vec<i64>> {
    let finite = squared.iter().enumerate().filter(|(_, s)| s.is_finite()).map(|(i, _)| i as i64);
    let finite: Vec<i64> = finite.collect();
    (finite.len() < squared.len()).then_some(finite)
}

/// What to scale examples by: f32, shape (examples).
fn factors(clipping: &FloatClipping, squared: &[f64], device: Device) -> Result<Tensor, TchError> {
    Tensor::f_from_slice(&clipping.factors(squared))?.f_to_device(device)
}

#[cfg(test)]
mod tests;
