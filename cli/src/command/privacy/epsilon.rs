//! `undertone privacy epsilon` and `calibrate`: what noise costs, and what noise a target needs.

use crate::failure::bad_input;
use crate::output::{Screen, given};
use anyhow::Result;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use std::process::ExitCode;
use undertone_privacy::blt::{self, Parameters};
use undertone_privacy::participation::Participation;
use undertone_privacy::pld::{self, Adjacency, Composition, EpsilonInterval, Mechanism};

/// What is released how often, under which neighbours.
#[derive(Debug, Args)]
pub(crate) struct Release {
    /// The probability with which each record (or client) is in a round's random sample; 1 if nothing is sampled
    #[arg(long, value_name = "Q", default_value_t = 1.0, allow_negative_numbers = true)]
    sampling_rate: f64,
    /// Releases: rounds, or rounds times local steps at record level
    #[arg(long, value_name = "N", default_value_t = 1)]
    rounds: u64,
    /// The probability that the promise of ε does not cover
    #[arg(long, allow_negative_numbers = true)]
    delta: f64,
    /// Which noise
    #[arg(long, value_enum, default_value_t)]
    mechanism: Noise,
    /// Whether neighbours differ by one more or less, or by one replaced
    #[arg(long, value_enum, default_value_t)]
    adjacency: Neighbours,
    /// blt: how often one client takes part at most
    #[arg(long, value_name = "K", default_value_t = 1)]
    participations: u32,
    /// blt: rounds from one participation of a client to its next at least
    #[arg(long, value_name = "B", default_value_t = 1)]
    separation: u32,
    /// blt: buffers, 1 to 4; more noise is saved with more, at a model's memory each
    #[arg(long, value_name = "M", default_value_t = 2)]
    buffers: usize,
    /// discrete-gaussian: the sensitivity in units of the integer grid
    #[arg(long, value_name = "UNITS", default_value_t = 1)]
    sensitivity: u32,
}

/// The noise of a release.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Noise {
    /// Gaussian; the multiplier is its standard deviation over the sensitivity
    #[default]
    Gaussian,
    /// Gaussian on the integers, of one number
    DiscreteGaussian,
    /// Laplace, of one number or in L1; the multiplier is its scale over the sensitivity
    Laplace,
    /// Correlated over the rounds (BLT-DP-FTRL), for clients that take part a few times
    Blt,
}

/// What neighbouring means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Neighbours {
    #[default]
    AddRemove,
    ReplaceOne,
}

/// The privacy loss of a given noise
#[derive(Debug, Args)]
#[command(after_help = "\
Example: 1000 rounds in each of which a client is asked with probability 0.01
  undertone privacy epsilon --noise-multiplier 1.0 --sampling-rate 0.01 --rounds 1000 --delta 1e-5

The ε of the mechanism lies between the two bounds; a budget is held against the upper one. Sampling lowers ε only if the
sample is really drawn at random with that probability and stays unknown to whoever the promise is made against: shuffled
or fixed-size cohorts have no such proof.")]
pub(crate) struct Epsilon {
    /// Standard deviation of the noise over the sensitivity (the clip norm; for blt, that of the whole run)
    #[arg(long, value_name = "Z", allow_negative_numbers = true)]
    noise_multiplier: f64,
    #[command(flatten)]
    release: Release,
}

/// The least noise that keeps a target
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  undertone privacy calibrate --epsilon 2 --sampling-rate 0.01 --rounds 1000 --delta 1e-5")]
pub(crate) struct Calibrate {
    /// The ε that all releases together may reach
    #[arg(long, allow_negative_numbers = true)]
    epsilon: f64,
    #[command(flatten)]
    release: Release,
}

impl Epsilon {
    /// Runs the command.
    ///
    /// # Errors
    /// For numbers that make no sense.
    pub(crate) fn run(self, screen: Screen) -> Result<ExitCode> {
        let run = self.release.prepared()?;
        let found = run.interval(self.noise_multiplier)?;
        run.tell(screen, self.noise_multiplier, found)
    }
}

impl Calibrate {
    /// Runs the command.
    ///
    /// # Errors
    /// For numbers that make no sense, or a target that no noise keeps.
    pub(crate) fn run(self, screen: Screen) -> Result<ExitCode> {
        let run = self.release.prepared()?;
        let range = match run.release.mechanism {
            Noise::Laplace => (0.02, 1e6),
            _ => (undertone_privacy::rdp::MIN_NOISE_MULTIPLIER, undertone_privacy::rdp::MAX_NOISE_MULTIPLIER),
        };
        let z = pld::calibrate::least_noise(self.epsilon, run.release.delta, range, |z| run.composition(z));
        let z = z.map_err(|e| bad_input(e.to_string()))?;
        let found = run.interval(z)?;
        run.tell(screen, z, found)
    }
}

impl Release {
    /// Checks what goes with what, and fixes BLT's parameters.
    fn prepared(self) -> Result<Prepared> {
        if self.mechanism != Noise::Gaussian && self.sampling_rate != 1.0 {
            return Err(bad_input(
                "only gaussian noise is amplified by a random sample here: leave out --sampling-rate, or use --mechanism \
                 gaussian",
            ));
        }
        let whole_run = match self.mechanism {
            Noise::Blt => {
                let rounds =
                    u32::try_from(self.rounds).map_err(|_| bad_input("blt runs over at most 2^32 rounds"))?;
                let participation = Participation::new(self.participations, self.separation)
                    .map_err(|e| bad_input(e.to_string()))?;
                let parameters = blt::optimise(self.buffers, rounds, participation)
                    .map_err(|e| bad_input(e.to_string()))?;
                Some(parameters)
            }
            _ => None,
        };
        Ok(Prepared { release: self, blt: whole_run })
    }
}

/// A release whose parts go together.
struct Prepared {
    release: Release,
    blt: Option<Parameters>,
}

impl Prepared {
    fn composition(&self, z: f64) -> Result<Composition, pld::AccountantError> {
        let r = &self.release;
        let adjacency = match r.adjacency {
            Neighbours::AddRemove => Adjacency::AddRemove,
            Neighbours::ReplaceOne => Adjacency::ReplaceOne,
        };
        let (mechanism, count) = match r.mechanism {
            Noise::Gaussian => (Mechanism::poisson_gaussian(z, r.sampling_rate)?, r.rounds),
            Noise::DiscreteGaussian => {
                (Mechanism::discrete_gaussian(z * f64::from(r.sensitivity), r.sensitivity)?, r.rounds)
            }
            Noise::Laplace => (Mechanism::laplace(z)?, r.rounds),
            // The whole run is one Gaussian release, as long as nobody takes part more often.
            Noise::Blt => (Mechanism::gaussian(z)?, 1),
        };
        Composition::new(adjacency).add(mechanism, count)
    }

    /// BLT's sensitivity over the whole run, in clip norms.
    fn run_sensitivity(&self) -> f64 {
        let r = &self.release;
        let rounds = u32::try_from(r.rounds).unwrap_or(u32::MAX);
        match (&self.blt, Participation::new(r.participations, r.separation)) {
            (Some(parameters), Ok(participation)) => parameters.sensitivity(rounds, participation),
            _ => 1.0,
        }
    }

    fn interval(&self, z: f64) -> Result<EpsilonInterval> {
        let found = self.composition(z).and_then(|c| c.epsilon(self.release.delta));
        found.map_err(|e| bad_input(e.to_string()))
    }

    fn tell(&self, screen: Screen, z: f64, found: EpsilonInterval) -> Result<ExitCode> {
        let r = &self.release;
        if screen.json {
            let mut value = json!({
                "epsilon_upper": found.upper,
                "epsilon_lower": found.lower,
                "delta": r.delta,
                "accountant": pld::ACCOUNTANT,
                "noise_multiplier": z,
            });
            if let Some(parameters) = &self.blt {
                value["blt"] = serde_json::to_value(parameters).unwrap_or(Value::Null);
            }
            screen.json(&value)?;
            return Ok(ExitCode::SUCCESS);
        }
        screen.line(&format!("ε from {:.4} to {:.4} at δ {}", found.lower, found.upper, given(r.delta)))?;
        screen.line(&format!("noise multiplier {z:.6}, accountant {}", pld::ACCOUNTANT))?;
        if let Some(parameters) = &self.blt {
            screen.line(&format!(
                "blt: the whole run has a sensitivity of {:.4} clip norms, so σ is {:.4} of them; decays {}, weights {}, over \
                 {} rounds with at most {} participations, {} rounds apart",
                self.run_sensitivity(),
                z * self.run_sensitivity(),
                list(parameters.theta()),
                list(parameters.omega()),
                r.rounds,
                r.participations,
                r.separation
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn list(numbers: impl Iterator<Item = f64>) -> String {
    numbers.map(|x| format!("{x:.5}")).collect::<Vec<_>>().join(" ")
}
