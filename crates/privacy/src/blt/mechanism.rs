//! The noise that a contract pays for.
//!
//! # Why integers, and why that is private
//!
//! The proof for real numbers is short: the release g + C⁻¹z is C⁻¹(C·g + z). It needs real Gaussian z, and a computer's
//! is not real. Discrete Gaussian z is exact, but C·g is no integer vector. So the feedback is rounded: with all values
//! in *fine units* of 2^-q grid units,
//!
//! ẑ_t = z_t - r_t(ẑ before t),  r_t = round(Σ ω_m·S_m),  S_m ← round(θ_m·S_m) + ẑ_t,
//!
//! and g_t + ẑ_t is rounded to the grid and released. That last rounding is post-processing; as g_t is on the grid, it is
//! the same as rounding ẑ_t alone.
//!
//! Let one client's contributions δ turn g into g'. The same releases come from ẑ' = ẑ - δ, that is, from z' with
//! z' - z = -(C·δ + e), where e collects what rounding does differently in the two runs. A rounding is off by at most ½
//! in each run, so that the buffers differ by at most Σθ^i ≤ 1/(1-θ) more or less than in real numbers, and
//!
//! |e| ≤ 1 + Σ ω_m/(1-θ_m) fine units, in each round and value.
//!
//! So z is shifted by an integer vector which depends on the releases before it and has, surely, an L2 norm of at most
//! sens(C)·bound·2^q + |e|·√(rounds·values). σ is the noise multiplier times *that*. An adaptively chosen shift of a
//! bounded total norm costs no more than a fixed one, for zCDP with ρ = ½/z² (filters: Feldman and Zrnic 2021; Whitehouse
//! et al. 2023) and for Gaussian differential privacy with μ = 1/z (Smith and Thakurta 2022). q is as large as the
//! sampler allows, which makes the second term a matter of millionths. The buffers are integers, so that a run goes on
//! bit by bit the same after a restart.

use super::{BltError, MAX_BLT_ROUNDS, Parameters};
use crate::discrete_gaussian::DiscreteGaussian;
use crate::participation::Participation;
use crate::sensitivity::L2Sensitivity;
use undertone_core::digest::{Digest, Digester};

/// Correlated noise for a whole run: parameters, plan and scale.
#[derive(Debug, Clone, PartialEq)]
pub struct BltMechanism {
    parameters: Parameters,
    rounds: u32,
    participation: Participation,
    sensitivity: L2Sensitivity,
    values: usize,
    /// q: fine units are 2^-q grid units.
    fine_bits: u32,
    noise: DiscreteGaussian,
}

/// Finest unit.
const MAX_FINE_BITS: u32 = 30;

impl BltMechanism {
    /// Noise for `rounds` sums of `values` values each, in which one round's contribution of a client has the given
    /// `sensitivity`, with a standard deviation of `noise_multiplier` times the sensitivity of the whole run.
    ///
    /// # Errors
    /// [`BltError`] if a number is out of range.
    pub fn new(
        parameters: Parameters,
        rounds: u32,
        participation: Participation,
        noise_multiplier: f64,
        sensitivity: L2Sensitivity,
        values: usize,
    ) -> Result<Self, BltError> {
        if !(1..=MAX_BLT_ROUNDS).contains(&rounds) {
            return Err(BltError::Rounds(rounds));
        }
        if !(noise_multiplier.is_finite() && noise_multiplier > 0.0) {
            return Err(BltError::NoiseMultiplier(noise_multiplier));
        }
        let sigma = |fine_bits| {
            let shift = shift_norm(&parameters, rounds, participation, sensitivity, values, fine_bits);
            (noise_multiplier * shift).next_up()
        };
        let fits = |&fine_bits: &u32| sigma(fine_bits) <= DiscreteGaussian::MAX_SIGMA;
        // If nothing fits, the sampler says so.
        let fine_bits = (0..=MAX_FINE_BITS).rev().find(fits).unwrap_or(0);
        let noise = DiscreteGaussian::new(sigma(fine_bits))?;
        Ok(Self { parameters, rounds, participation, sensitivity, values, fine_bits, noise })
    }

    /// The parameters of C.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The planned rounds.
    pub fn rounds(&self) -> u32 {
        self.rounds
    }

    /// How often a client may take part.
    pub fn participation(&self) -> Participation {
        self.participation
    }

    /// Values in the sum of a round.
    pub fn values(&self) -> usize {
        self.values
    }

    /// Standard deviation of the independent noise z, in grid units.
    pub fn sigma(&self) -> f64 {
        self.noise.sigma() / fine_units(self.fine_bits)
    }

    /// The μ of Gaussian differential privacy that a run of `rounds` rounds under `participation` has with this noise,
    /// exact for what was planned (then it is 1/noise multiplier) and for what happened: fewer rounds, or clients that
    /// came less often. One Gaussian release of μ for the whole run; ε is
    /// [`analytic_epsilon`](crate::gaussian::analytic_epsilon)`(μ, δ)`, and ρ = μ²/2.
    ///
    /// ρ is exact for the discrete noise, too. The curve of the continuous Gaussian differs from the discrete one's by a
    /// step of its lattice: μ/σ in ε, with σ in fine units above 2^36, that is, nothing.
    pub fn gdp_mu(&self, rounds: u32, participation: Participation) -> f64 {
        if rounds == 0 {
            return 0.0;
        }
        shift_norm(&self.parameters, rounds, participation, self.sensitivity, self.values, self.fine_bits)
            / self.noise.sigma()
    }

    /// All that the guarantee rests on: saved noise goes on only under the same.
    pub fn digest(&self) -> Digest {
        let mut d = Digester::new();
        d.field(b"undertone BLT mechanism 1");
        for (theta, omega) in self.parameters.theta.iter().zip(&self.parameters.omega) {
            d.field(&theta.to_le_bytes());
            d.field(&omega.to_le_bytes());
        }
        d.field(&self.rounds.to_le_bytes());
        d.field(&self.participation.limit().to_le_bytes());
        d.field(&self.participation.separation().to_le_bytes());
        d.field(&self.sensitivity.units().to_le_bytes());
        d.field(&(self.values as u64).to_le_bytes());
        d.field(&self.fine_bits.to_le_bytes());
        d.field(&self.noise.sigma().to_bits().to_le_bytes());
        d.finish()
    }

    pub(super) fn fine_bits(&self) -> u32 {
        self.fine_bits
    }

    pub(super) fn noise(&self) -> &DiscreteGaussian {
        &self.noise
    }
}

impl Parameters {
    /// The most that rounding of the feedback adds to a shift of z, in fine units, for each value and round.
    pub(super) fn rounding_slack(&self) -> f64 {
        1.0 + self.theta().zip(self.omega()).map(|(theta, omega)| omega / (1.0 - theta)).sum::<f64>()
    }
}

/// The largest L2 norm of a shift of z between neighbours, in fine units. Rounded up.
fn shift_norm(
    parameters: &Parameters,
    rounds: u32,
    participation: Participation,
    sensitivity: L2Sensitivity,
    values: usize,
    fine_bits: u32,
) -> f64 {
    let contribution = sensitivity.units() as f64 * fine_units(fine_bits);
    let rounding = parameters.rounding_slack() * libm::sqrt(f64::from(rounds) * values as f64);
    (parameters.sensitivity(rounds, participation) * contribution + rounding) * (1.0 + 1e-12)
}

fn fine_units(fine_bits: u32) -> f64 {
    (1u64 << fine_bits) as f64
}
