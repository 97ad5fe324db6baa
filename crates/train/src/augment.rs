//! Random views of examples: see [`undertone_core::augmentation`].

use crate::failure::Failure;
use crate::sampling::{Draws, step_rng};
use rand::RngExt as _;
use rand_chacha::ChaCha20Rng;
use tch::{TchError, Tensor};
use undertone_core::augmentation::Augmentation;
use undertone_core::shape::Input;
use undertone_core::trainer::TrainerError;

/// Draws views of one call's examples.
///
/// They come from generators of their own, for each step, and each view is drawn by itself: what is drawn for one example
/// says nothing of any other, and is the same whether a batch is computed as a whole or in parts.
#[derive(Debug)]
pub(crate) struct Views {
    how: Option<Augmentation>,
    /// Of a picture: channels, height, width.
    picture: Option<[i64; 3]>,
    /// Has the key.
    batches: ChaCha20Rng,
    /// Of the step in hand.
    moves: ChaCha20Rng,
    jitter: ChaCha20Rng,
}

impl Views {
    /// Of examples of this kind, for the first step of training with these batches; without augmentation an example is its only
    /// view.
    ///
    /// # Errors
    /// [`TrainerError::Unsupported`] if there is nothing to vary in such examples.
    pub(crate) fn new(
        how: Option<Augmentation>,
        input: &Input,
        batches: &ChaCha20Rng,
    ) -> Result<Self, TrainerError> {
        if let Some(how) = &how {
            how.validate().and_then(|()| how.check(input)).map_err(TrainerError::Unsupported)?;
        }
        let picture = match input {
            Input::Image { channels, height, width } => Some([*channels, *height, *width].map(|n| n as i64)),
            _ => None,
        };
        let [moves, jitter] = [Draws::Moves, Draws::Jitter].map(|draws| step_rng(draws, batches, 0));
        Ok(Self { how, picture, batches: batches.clone(), moves, jitter })
    }

    /// Begins a step, of which views are drawn from here on; the first is step 0.
    pub(crate) fn begin(&mut self, step: u64) {
        self.moves = step_rng(Draws::Moves, &self.batches, step);
        self.jitter = step_rng(Draws::Jitter, &self.batches, step);
    }

    /// Views of one example.
    pub(crate) fn count(&self) -> i64 {
        self.how.map_or(1, |how| how.views.into())
    }

    /// The views of the examples `x`, each example's one behind the other.
    pub(crate) fn of(&mut self, x: Tensor) -> Result<Tensor, Failure> {
        let Some(how) = self.how else { return Ok(x) };
        let mut x = match self.count() {
            1 => x,
            views => x.f_repeat_interleave_self_int(views, 0, None::<i64>)?,
        };
        if how.shift > 0 || how.flip {
            x = self.moved(&x, how.shift.into(), how.flip)?;
        }
        if how.jitter > 0.0 {
            x = x.f_add(&self.normal(&x)?.f_mul_scalar(how.jitter)?)?;
        }
        Ok(x)
    }

    /// The same with a truth for each view.
    pub(crate) fn with_truth(&mut self, x: Tensor, y: Tensor) -> Result<(Tensor, Tensor), Failure> {
        let y = match self.count() {
            1 => y,
            views => y.f_repeat_interleave_self_int(views, 0, None::<i64>)?,
        };
        Ok((self.of(x)?, y))
    }

    /// Each picture cut out of itself with a margin of zeros, at a place of its own, half of them mirrored.
    fn moved(&mut self, x: &Tensor, shift: i64, flip: bool) -> Result<Tensor, TchError> {
        let [channels, height, width] = self.picture.expect("checked when it was made");
        let rows = x.size()[0];
        let (mut down, mut across) = (Vec::new(), Vec::new());
        for _ in 0..rows {
            let (top, left) =
                (self.moves.random_range(0..=2 * shift), self.moves.random_range(0..=2 * shift));
            down.extend(top..top + height);
            match flip && self.moves.random::<bool>() {
                true => across.extend((left..left + width).rev()),
                false => across.extend(left..left + width),
            }
        }
        let place = |places: &[i64]| Tensor::f_from_slice(places)?.f_to_device(x.device());
        let down = place(&down)?.f_view([rows, 1, height, 1])?;
        let across = place(&across)?.f_view([rows, 1, 1, width])?;
        let pictures = x.f_reshape([rows, channels, height, width])?;
        let padded = pictures.f_constant_pad_nd([shift, shift, shift, shift])?;
        let cut = padded
            .f_gather(2, &down.f_expand([rows, channels, height, width + 2 * shift], false)?, false)?
            .f_gather(3, &across.f_expand([rows, channels, height, width], false)?, false)?;
        cut.f_reshape(x.size())
    }

    /// Standard normal, by Box and Muller: two draws for each value, one behind the other.
    fn normal(&mut self, like: &Tensor) -> Result<Tensor, TchError> {
        // In (0, 1].
        let draws: Vec<f32> = (0..2 * like.numel()).map(|_| 1.0 - self.jitter.random::<f32>()).collect();
        let draws = Tensor::f_from_slice(&draws)?.f_view([-1, 2])?.f_to_device(like.device())?;
        let radius = draws.f_select(1, 0)?.f_log()?.f_mul_scalar(-2.0)?.f_sqrt()?;
        let angle = draws.f_select(1, 1)?.f_mul_scalar(std::f64::consts::TAU)?;
        radius.f_mul(&angle.f_cos()?)?.f_reshape(like.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::to_vec;
    use crate::sampling::sampling_rng;
    use std::collections::BTreeSet;

    const PICTURE: Input = Input::Image { channels: 2, height: 3, width: 4 };

    fn batches(seed: Option<u64>) -> ChaCha20Rng {
        sampling_rng(seed, &[]).unwrap()
    }

    fn views(how: Augmentation, input: &Input) -> Views {
        Views::new(Some(how), input, &batches(Some(1))).unwrap()
    }

    fn moving(views: u32, shift: u32, flip: bool) -> Augmentation {
        Augmentation { views, shift, flip, jitter: 0.0 }
    }

    /// A picture at all places and both ways round, by the definition.
    fn all_views(picture: &[f32], shift: i64, flip: bool) -> BTreeSet<Vec<u32>> {
        let mut found = BTreeSet::new();
        for (down, across) in (-shift..=shift).flat_map(|d| (-shift..=shift).map(move |a| (d, a))) {
            for mirrored in if flip { &[false, true][..] } else { &[false] } {
                let at = |channel: i64, row: i64, column: i64| {
                    let column = if *mirrored { 3 - column } else { column };
                    let (row, column) = (row + down, column + across);
                    let inside = (0..3).contains(&row) && (0..4).contains(&column);
                    if inside { picture[(channel * 12 + row * 4 + column) as usize] } else { 0.0 }
                };
                let places = (0..2).flat_map(|c| (0..3).flat_map(move |r| (0..4).map(move |k| (c, r, k))));
                found.insert(places.map(|(c, r, k)| at(c, r, k).to_bits()).collect());
            }
        }
        found
    }

    #[test]
    fn a_view_is_the_picture_moved_and_turned() {
        let values: Vec<f32> = (1..=48).map(|v| v as f32).collect();
        // As a data source may have them: in their dimensions, or laid flat.
        for dimensions in [&[2, 2, 3, 4][..], &[2, 24]] {
            let x = Tensor::from_slice(&values).view(dimensions);
            for (shift, flip) in [(0, true), (1, false), (2, true)] {
                let mut views = views(moving(64, shift, flip), &PICTURE);
                let mut found = [BTreeSet::new(), BTreeSet::new()];
                for _ in 0..8 {
                    let drawn = views.of(x.shallow_clone()).unwrap();
                    assert_eq!(drawn.size(), [&[128], &dimensions[1..]].concat());
                    let drawn = to_vec(&drawn).unwrap();
                    for (i, view) in drawn.chunks(24).enumerate() {
                        found[i / 64].insert(view.iter().map(|v| v.to_bits()).collect::<Vec<u32>>());
                    }
                }
                for (found, picture) in found.iter().zip(values.chunks(24)) {
                    // 512 draws of at most 50 views: one that never comes is not there.
                    assert_eq!(*found, all_views(picture, shift.into(), flip), "{shift} {flip}");
                }
            }
        }
    }

    #[test]
    fn jitter_is_normal_and_repeats_with_its_seed() {
        let how = Augmentation { views: 4, shift: 0, flip: false, jitter: 0.5 };
        let x = Tensor::zeros([2000, 5], (tch::Kind::Float, tch::Device::Cpu));
        let draw = |seed| {
            let mut views = Views::new(Some(how), &Input::features(5), &batches(seed)).unwrap();
            to_vec(&views.of(x.shallow_clone()).unwrap()).unwrap()
        };
        let values = draw(Some(1));
        let n = values.len() as f64;
        assert_eq!(values.len(), 40_000);
        let moment = |p: i32| values.iter().map(|&v| f64::from(v / 0.5).powi(p)).sum::<f64>() / n;
        // Six standard deviations of the estimates.
        assert!(moment(1).abs() < 6.0 / n.sqrt(), "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 6.0 * (2.0 / n).sqrt(), "{}", moment(2));
        assert!((moment(4) - 3.0).abs() < 6.0 * (96.0 / n).sqrt(), "{}", moment(4));
        assert_eq!(draw(Some(1)), values);
        assert_ne!(draw(Some(2)), values);
        assert_ne!(draw(None), draw(None));
        // Each step has views of its own, wherever one begins.
        let mut later = views(how, &Input::features(5));
        let mut of_step = |step| {
            later.begin(step);
            to_vec(&later.of(x.shallow_clone()).unwrap()).unwrap()
        };
        let third = of_step(3);
        assert!(third != values && of_step(0) == values && of_step(3) == third);
    }

    #[test]
    fn without_augmentation_an_example_is_its_own_view() {
        let mut views = Views::new(None, &PICTURE, &batches(None)).unwrap();
        let x = Tensor::from_slice(&[1f32, 2.0]).view([1, 2]);
        assert_eq!((views.count(), to_vec(&views.of(x).unwrap()).unwrap()), (1, vec![1.0, 2.0]));
        let e = Views::new(Some(moving(1, 3, false)), &PICTURE, &batches(None)).unwrap_err();
        assert!(e.to_string().contains("out of sight"), "{e}");
    }
}
