//! How a vector is rounded, and how it stays within its norm bound through that.
//!
//! The bound on the norm of an update must hold for what is summed: for the *decoded* integers. They are what the
//! coordinator checks, and what the sensitivity of its noise is declared for. Rounding to nearest and stochastic
//! rounding may lengthen a vector, and one that was clipped has the bound's length to begin with. So the client rounds
//! conditionally ([`Rounding::within`], after Kairouz, Liu and Steinke 2021, "The distributed discrete Gaussian
//! mechanism for federated learning with secure aggregation", theorem 1): it draws a rounding, measures what would
//! arrive, and draws again if that is too long, each time with the vector shrunk by what was missing. It ends with
//! rounding towards zero, which lengthens no vector.
//!
//! The shrinking is a bias like that of a slightly smaller clip norm, and [`Rounding::shrink`] says how large. It depends
//! on the step: for normally distributed updates of the bound's length about 0.02 % with `fixed` at 8 bits, some per
//! cent at 4, and half the length at 2.
//!
//! A rounding is a seed and a factor, no copy of the vector: encoding with the same one gives the same bytes, which is
//! how a client measures first and encodes later, or encodes again for another attempt to send.

use super::codec::{Codec, Codes, RUN, Unencodable};
use super::domain::{Domain, Units};
use super::{Direction, EncodeError, Encoding};
use crate::digest::Digest;
use crate::fixed::Grid;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use std::fmt;

/// How values between two that can be said are rounded.
#[derive(Clone, PartialEq)]
pub struct Rounding {
    mode: Mode,
    shrink: f64,
}

#[derive(Clone, PartialEq)]
enum Mode {
    /// As the encoding does: by chance with these coins, or to the nearest.
    Encodings([u8; 32]),
    TowardZero,
}

impl Rounding {
    /// Draws the coins of stochastic rounding; encodings without chance round to nearest. For models, and for updates
    /// without a norm bound.
    pub fn draw(rng: &mut impl Rng) -> Self {
        Self::drawn(rng, 1.0)
    }

    /// The coins that everybody can draw who knows what they are for: the same thing is rounded the same way each time.
    pub fn of(what: Digest) -> Self {
        Self { mode: Mode::Encodings(*what.as_bytes()), shrink: 1.0 }
    }

    /// Each magnitude down to the next that can be said: biased, and never longer.
    pub fn toward_zero() -> Self {
        Self { mode: Mode::TowardZero, shrink: 1.0 }
    }

    /// Finds a rounding with which the decoded update has an L2 norm of at most `bound` units, exactly. Takes one pass
    /// over the vector for each try, most often one to three, and the memory of one block.
    ///
    /// # Errors
    /// [`EncodeError`] if the update is longer than the bound, or cannot be encoded.
    pub fn within(
        encoding: &Encoding,
        grid: Grid,
        units: &[i32],
        bound: u64,
        rng: &mut impl Rng,
    ) -> Result<Self, EncodeError> {
        const TRIES: i32 = 8;
        let limit = u128::from(bound) * u128::from(bound);
        let before = run_squared_norm(units);
        if before > limit {
            return Err(EncodeError::TooLong { norm: root(before), bound });
        }
        let codec = codec_of(encoding)?;
        if !encoding.is_lossy(Direction::Up) {
            return Ok(Self::draw(rng));
        }
        let mut shrink = 1.0;
        for try_ in 0..TRIES {
            let rounding = Self::drawn(rng, shrink);
            let after = rounding.decoded_squared_norm(encoding, codec, grid, units)?;
            if after <= limit {
                return Ok(rounding);
            }
            // With fine steps the norm falls with the factor, with coarse ones with its root: so the first correction is
            // the mild one. The margin is for the luck of the next draw.
            let ratio = bound as f64 / root(after);
            shrink *=
                (0..try_).fold(ratio, |power, _| power * power) * (1.0 - f64::from(1 << try_) / 16_384.0);
        }
        let last = Self::toward_zero();
        let after = last.decoded_squared_norm(encoding, codec, grid, units)?;
        if after <= limit { Ok(last) } else { Err(EncodeError::TooLong { norm: root(after), bound }) }
    }

    /// The factor on the vector before it is rounded, 1 where none was needed.
    pub fn shrink(&self) -> f64 {
        self.shrink
    }

    /// Whether magnitudes are rounded down.
    pub fn is_toward_zero(&self) -> bool {
        self.mode == Mode::TowardZero
    }

    fn drawn(rng: &mut impl Rng, shrink: f64) -> Self {
        let mut seed = [0; 32];
        rng.fill_bytes(&mut seed);
        Self { mode: Mode::Encodings(seed), shrink }
    }

    fn decoded_squared_norm(
        &self,
        encoding: &Encoding,
        codec: Codec,
        grid: Grid,
        units: &[i32],
    ) -> Result<u128, EncodeError> {
        let domain = Units::new(grid);
        let mut rounder = Rounder::new(self);
        let (mut codes, mut bytes, mut decoded) = (Codes::new(), Vec::new(), vec![0; RUN]);
        let mut sum = 0;
        for (i, run) in units.chunks(RUN).enumerate() {
            bytes.clear();
            let run = rounder.shrunk(domain, run);
            codec
                .encode_run(domain, &mut rounder, &mut codes, &run, &mut bytes)
                .map_err(|at| unencodable(domain, encoding, &run, i * RUN, at))?;
            let decoded = &mut decoded[..run.len()];
            codec.decode_run(domain, &mut codes, &bytes, decoded).expect("what was encoded can be decoded");
            sum += run_squared_norm(decoded);
        }
        Ok(sum)
    }
}

impl fmt::Debug for Rounding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.is_toward_zero() { "towards zero" } else { "drawn" };
        write!(f, "Rounding({how}, shrunk by {})", self.shrink)
    }
}

/// The codec of an encoding that is made as a stream.
pub(super) fn codec_of(encoding: &Encoding) -> Result<Codec, EncodeError> {
    Codec::of(encoding)
        .map_err(EncodeError::Invalid)?
        .ok_or_else(|| EncodeError::NeedsAllCoordinates(encoding.to_string()))
}

/// The error about a value of a run that begins at `start`.
pub(super) fn unencodable<D: Domain>(
    domain: D,
    encoding: &Encoding,
    items: &[D::Item],
    start: usize,
    Unencodable(offset): Unencodable,
) -> EncodeError {
    let (index, value) = (start + offset, domain.real(items[offset]));
    if value.is_finite() {
        EncodeError::OutOfRange { index, value, encoding: encoding.to_string() }
    } else {
        EncodeError::NotFinite { index, value }
    }
}

/// A rounding at work: it has come to some place of its coins.
#[derive(Clone)]
pub(super) struct Rounder {
    coins: Option<ChaCha8Rng>,
    bytes: Vec<u8>,
    shrink: f64,
}

impl Rounder {
    pub(super) fn new(rounding: &Rounding) -> Self {
        let coins = match rounding.mode {
            Mode::Encodings(seed) => Some(ChaCha8Rng::from_seed(seed)),
            Mode::TowardZero => None,
        };
        Self { coins, bytes: Vec::new(), shrink: rounding.shrink }
    }

    pub(super) fn toward_zero(&self) -> bool {
        self.coins.is_none()
    }

    /// The next uniform words: one for each value, so that where a vector is cut makes no difference.
    pub(super) fn words(&mut self, n: usize) -> impl Iterator<Item = u32> {
        self.bytes.resize(4 * n, 0);
        self.coins.as_mut().expect("not asked when rounding towards zero").fill_bytes(&mut self.bytes);
        self.bytes.as_chunks().0.iter().map(|&b| u32::from_le_bytes(b))
    }

    /// The items times the rounding's factor.
    pub(super) fn shrunk<'a, D: Domain>(
        &self,
        domain: D,
        items: &'a [D::Item],
    ) -> std::borrow::Cow<'a, [D::Item]> {
        if self.shrink == 1.0 {
            items.into()
        } else {
            items.iter().map(|&item| domain.shrunk(item, self.shrink)).collect::<Vec<_>>().into()
        }
    }
}

/// The exact squared norm of a run; eight squares of 2^60 fit a u64, whose sums are vectorised.
fn run_squared_norm(run: &[i32]) -> u128 {
    let square = |unit: &i32| u64::from(unit.unsigned_abs()).pow(2);
    let (chunks, rest) = run.as_chunks::<8>();
    let whole: u128 = chunks.iter().map(|chunk| u128::from(chunk.iter().map(square).sum::<u64>())).sum();
    whole + rest.iter().map(|unit| u128::from(square(unit))).sum::<u128>()
}

/// The square root of an exact square norm.
fn root(squared: u128) -> f64 {
    (squared as f64).sqrt()
}
