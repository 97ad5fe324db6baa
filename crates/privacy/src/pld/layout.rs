//! Where a composition is computed: grid, cells and window, in one direction.

use super::bounds::{OneWay, Transforms};
use super::convolution::Factor;
use super::mechanism::Mechanism;
use super::one_step::{CellWidth, OneStep};
use super::pair::{Direction, Pair};
use super::scout::{Aim, Plan, Scout, log_hockey_peak};
use super::tails::{Tails, Window};

/// The most cells of a mechanism and the most points of a window.
const MAX_LEN: usize = 1 << 21;
/// A grid is not made finer than for a window of 2^18 points, less what the estimate may be off by.
const LONG: f64 = 0.97 * (1u32 << 18) as f64;
/// Fewer are not worth saving.
const MIN_LEN: usize = 1 << 11;

/// A composition in one direction, on the grid but not yet convolved.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) step: f64,
    pub(super) tilt: f64,
    pub(super) deviation: f64,
    pub(super) uses: Vec<(OneStep, u64)>,
    pub(super) thetas: Vec<f64>,
    pub(super) tails: Tails,
    pub(super) window: Window,
    /// Log of the tilted total.
    pub(super) log_moment: f64,
    /// Bound on P's mass that is not on the grid, over all uses.
    pub(super) outside: f64,
    /// Log of what relative errors of the masses may multiply the result by.
    pub(super) mass_error: f64,
    /// What the total loss may be off by.
    pub(super) loss_error: f64,
}

/// How finely a composition is laid out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fineness {
    /// The relative error of ε that rounding to the grid may bring, roughly.
    pub(super) error: f64,
    /// How much of P's mass past ε an ε-wide strip at ε holds, over that strip: what variance at the kink of
    /// (1-e^{ε-L})₊ is multiplied by.
    pub(super) hazard: f64,
}

/// The error of a last look.
pub(super) const FINE: f64 = 1.5e-4;
/// The error of a first look, at a quarter of the points.
pub(super) const COARSE: f64 = 16.0 * FINE;

impl Layout {
    /// Lays `mechanisms` out for `aim`, to be asked about ε in it by less than `room` below and above, with tails of
    /// mass `tail` cut off each use.
    pub(super) fn new(
        mechanisms: &[(Mechanism, u64)],
        direction: Direction,
        (scout, aim, room): (&Scout, Aim, Room),
        tail: f64,
        fineness: Fineness,
    ) -> Self {
        let saddle = aim.tilt;
        let spread = scout.spread(saddle).1.sqrt();
        let deviation = spread.max(0.05 / saddle);
        let asked = room.around(aim.epsilon, deviation);
        let Plan { tilt, thetas, span, log_wrong } = scout.plan(aim, spread, asked);
        let reach = 20.0 * deviation;
        let epsilon = aim.epsilon.max(0.1 * deviation);
        let noise = 2.0 * fineness.error * epsilon / fineness.hazard.max(saddle + 1.0);
        let on_lattice = mechanisms.iter().all(|(m, _)| m.on_lattice());
        let coarsest = match on_lattice {
            true => f64::INFINITY,
            false => (reach.max(epsilon) / MIN_LEN as f64).min((0.5 / (saddle + 1.0)).max(epsilon / 4096.0)),
        };
        let longest = LONG * (FINE / fineness.error).sqrt();
        let (mut step, on_grid) = scout.grid(saddle, noise, span / longest, coarsest);
        let pairs: Vec<Pair> = mechanisms.iter().map(|(m, _)| Pair::new(m, direction, tail)).collect();
        let all_uses: f64 = mechanisms.iter().map(|(_, count)| *count as f64).sum();
        let widths: Vec<CellWidth> = pairs
            .iter()
            .enumerate()
            .map(|(i, pair)| {
                let (low, high) = pair.range();
                let variance_density = 0.05 * noise / (all_uses * (high - low));
                // One loss alone may end at ε, whatever the tilted measure thinks of it there.
                let at_kink = (4.0 * noise).max(epsilon * epsilon / (2048.0 * 2048.0));
                let elsewhere = (4.0 * noise).max((high - low) * (high - low) / (2048.0 * 2048.0));
                CellWidth {
                    tilt: saddle,
                    log_moment: scout.log_moment_of(i, saddle),
                    variance_density,
                    kink: 2.0 * epsilon,
                    at_kink,
                    elsewhere,
                }
            })
            .collect();
        // A little coarser saves half of a long window.
        let points = span / step;
        let shorter = ((points.min(1e15).ceil() as usize).next_power_of_two() / 2) as f64;
        if !on_grid && points > 8192.0 && points < 1.3 * shorter {
            step *= points / (0.97 * shorter);
        }
        loop {
            if pairs.iter().any(|pair| OneStep::cells(pair, step) > MAX_LEN as f64) {
                step *= 2.0;
                continue;
            }
            let one_step = |((pair, width), (_, count)): ((&Pair, &CellWidth), &(Mechanism, u64))| {
                (OneStep::new(pair, step, width), *count)
            };
            let uses: Vec<(OneStep, u64)> = pairs.iter().zip(&widths).zip(mechanisms).map(one_step).collect();
            let factors = factors(&uses, |one| &one.p);
            let (tails, log_moment) = Tails::new(&factors, tilt, step, &thetas);
            let Some(window) = tails.window(asked, log_wrong).filter(|w| w.len <= MAX_LEN) else {
                step *= 2.0;
                continue;
            };
            let total =
                |of: &dyn Fn(&OneStep) -> f64| uses.iter().map(|(one, count)| of(one) * *count as f64).sum();
            return Self {
                step,
                tilt,
                deviation,
                thetas,
                tails,
                window,
                log_moment,
                outside: total(&|one| one.outside),
                mass_error: total(&|one| one.mass_error),
                loss_error: total(&|one| one.loss_error),
                uses,
            };
        }
    }

    /// An ε that no outcome on the grid exceeds.
    pub(super) fn epsilon_pure(&self) -> f64 {
        let largest = |one: &OneStep| one.at[one.at.len() - 1] as f64 * self.step;
        let sum: f64 = self.uses.iter().map(|(one, count)| largest(one) * *count as f64).sum();
        sum * (1.0 + 1e-12) + self.loss_error
    }

    /// Chernoff's upper bound of ε at `delta`: loose, and cheap.
    pub(super) fn epsilon_chernoff(&self, delta: f64) -> f64 {
        let log_moment = self.log_moment + self.mass_error + log_hockey_peak(self.tilt) + 1e-9;
        let epsilon = (log_moment - libm::log(delta - self.outside)) / self.tilt + self.loss_error;
        if log_moment.is_finite() && !epsilon.is_nan() { epsilon } else { f64::INFINITY }
    }

    /// Convolves.
    pub(super) fn compose(self, transforms: &mut Transforms) -> OneWay {
        OneWay::new(self, transforms)
    }
}

pub(super) fn factors(uses: &[(OneStep, u64)], of: impl Fn(&OneStep) -> &Vec<f64>) -> Vec<Factor<'_>> {
    uses.iter().map(|(one, count)| Factor { at: &one.at, masses: of(one), count: *count }).collect()
}

/// How far from the aim ε may turn out to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Below, in deviations of the tilted loss.
    pub(super) below: f64,
    /// Below and above, relative to ε.
    pub(super) relative: f64,
}

impl Room {
    /// After a bound that may be far above.
    pub(super) const FIRST: Self = Self { below: 2.0, relative: 0.02 };
    /// After a look.
    pub(super) const NEXT: Self = Self { below: 0.1, relative: 0.1 };
    /// ε is given.
    pub(super) const NONE: Self = Self { below: 0.0, relative: 0.0 };

    /// From where to where.
    fn around(self, epsilon: f64, deviation: f64) -> (f64, f64) {
        let low = epsilon * (1.0 - self.relative) - self.below * deviation;
        (low.max(0.0), epsilon * (1.0 + self.relative) + 0.05 * self.below * deviation)
    }
}
