//! What a list of mechanisms costs together.

use super::bounds::{Found, OneWay, Transforms};
use super::closed_form;
use super::layout::{COARSE, FINE, Fineness, Layout, Room};
use super::mechanism::{Adjacency, Kind, Mechanism, within};
use super::pair::{Direction, Pair, directions};
use super::scout::Scout;
use super::{AccountantError, MAX_COMPOSITIONS, MAX_EPSILON, MIN_DELTA};

/// Bounds on ε at a given δ: the dominating pair's exact value lies between them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EpsilonInterval {
    /// Not above the exact value.
    pub lower: f64,
    /// Not below it: the one to enforce.
    pub upper: f64,
}

/// Bounds on δ at a given ε.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeltaInterval {
    /// Not above the exact value.
    pub lower: f64,
    /// Not below it: the one to enforce.
    pub upper: f64,
}

/// Mechanisms that are used one after the other on the same data, all fixed before the first.
///
/// What may depend on earlier results needs a filter instead: [`crate::rdp::filter`].
#[derive(Debug, Clone, PartialEq)]
pub struct Composition {
    adjacency: Adjacency,
    /// Different mechanisms and how often each is used; no pure Gaussian.
    parts: Vec<(Mechanism, u64)>,
    /// The sum of μ² of the pure Gaussians: together they are one with the root of it (Dong, Roth and Su 2019,
    /// arXiv 1905.02383).
    mu_squared: f64,
}

/// Looks at a distribution before what was found is taken as it is.
const MOST_LOOKS: u32 = 5;
/// Windows that ε may turn out not to be in, before a looser bound is taken.
const MOST_MISSES: u32 = 12;

impl Composition {
    /// Nothing yet.
    pub fn new(adjacency: Adjacency) -> Self {
        Self { adjacency, parts: Vec::new(), mu_squared: 0.0 }
    }

    /// Adds `count` uses of `mechanism`. The order does not matter.
    ///
    /// # Errors
    /// [`AccountantError::Compositions`] above [`MAX_COMPOSITIONS`] in all; [`AccountantError::ReplaceOne`] for a
    /// mechanism whose replace-one cost is not known.
    pub fn add(mut self, mechanism: Mechanism, count: u64) -> Result<Self, AccountantError> {
        let already: u64 = self.parts.iter().map(|p| p.1).sum();
        if count > MAX_COMPOSITIONS - already {
            return Err(AccountantError::Compositions(already.saturating_add(count)));
        }
        if self.adjacency == Adjacency::ReplaceOne
            && matches!(
                mechanism.0,
                Kind::Laplace { .. } | Kind::DiscreteLaplace { .. } | Kind::DiscreteGaussian { .. }
            )
        {
            return Err(AccountantError::ReplaceOne);
        }
        if count == 0 {
            return Ok(self);
        }
        if let Some(mu) = mechanism.gaussian_mu(self.adjacency) {
            self.mu_squared += count as f64 * mu * mu;
        } else if let Some(part) = self.parts.iter_mut().find(|p| p.0 == mechanism) {
            part.1 += count;
        } else {
            self.parts.push((mechanism, count));
        }
        Ok(self)
    }

    /// Bounds on the least ε at which all of it is (ε, `delta`)-differentially private.
    ///
    /// # Errors
    /// [`AccountantError`] for a δ outside [`MIN_DELTA`] to 1, or an ε above [`MAX_EPSILON`].
    pub fn epsilon(&self, delta: f64) -> Result<EpsilonInterval, AccountantError> {
        let mut transforms = Transforms::default();
        let answer = self.epsilon_with(delta, &mut transforms, true)?;
        Ok(EpsilonInterval { lower: answer.0.min(answer.1), upper: answer.1 })
    }

    /// The upper bound alone, at two thirds of the price.
    ///
    /// # Errors
    /// As [`Self::epsilon`].
    pub fn epsilon_upper(&self, delta: f64) -> Result<f64, AccountantError> {
        Ok(self.epsilon_with(delta, &mut Transforms::default(), false)?.1)
    }

    fn epsilon_with(
        &self,
        delta: f64,
        transforms: &mut Transforms,
        both: bool,
    ) -> Result<(f64, f64), AccountantError> {
        if !(MIN_DELTA..1.0).contains(&delta) {
            return Err(AccountantError::Delta(delta));
        }
        let parts = self.merged();
        if self.parts.is_empty() {
            let mu = self.mu_squared.sqrt();
            return bounded(if mu == 0.0 { (0.0, 0.0) } else { closed_form::epsilon(mu, delta) });
        }
        let tail = 1e-7 * delta / parts.iter().map(|p| p.1).sum::<u64>() as f64;
        let mut worst: Option<(f64, OneWay)> = None;
        for &direction in directions(self.adjacency, &parts) {
            if worst.as_ref().is_some_and(|w| largest_loss(&parts, direction, tail) <= w.0) {
                continue;
            }
            let scout = Scout::new(&parts, direction, tail);
            let mut aim = scout.for_delta(libm::log(delta));
            if aim.epsilon > MAX_EPSILON {
                return Err(AccountantError::Epsilon(aim.epsilon));
            }
            // A coarse look first: Chernoff may point far off, and often the other direction is already worse. Then
            // finer ones, until the loss is spread no more sharply than the grid was made for.
            let mut fineness = Fineness { error: COARSE, hazard: 0.0 };
            let mut room = Room::FIRST;
            let (mut looks, mut misses) = (0, 0);
            loop {
                let layout = Layout::new(&parts, direction, (&scout, aim, room), tail, fineness);
                let worse_known = |epsilon: f64| worst.as_ref().is_some_and(|w| epsilon <= w.0);
                let cheap = layout.epsilon_chernoff(delta).min(layout.epsilon_pure());
                if worse_known(cheap) {
                    break;
                }
                let way = layout.compose(transforms);
                let epsilon = match way.epsilon(delta) {
                    Found::Epsilon(epsilon) => epsilon,
                    Found::Below(epsilon) if misses < MOST_MISSES => {
                        misses += 1;
                        room.below = 4.0 * room.below.max(0.5);
                        aim = scout.for_epsilon(epsilon);
                        continue;
                    }
                    Found::Above if misses < MOST_MISSES => {
                        misses += 1;
                        room.relative = 2.0 * room.relative.max(0.05);
                        continue;
                    }
                    Found::Below(epsilon) => epsilon,
                    Found::Above => cheap,
                };
                if worse_known(epsilon) {
                    break;
                }
                let (hazard, known) = (way.hazard(epsilon), fineness.hazard.max(aim.tilt + 1.0));
                let sharper = hazard > 4.0 * known;
                // What a coarse grid calls a peak may be one farther off.
                let hazard = hazard.min(16.0 * known);
                let again = fineness.error == COARSE
                    || looks < MOST_LOOKS && (sharper || way.is_astray(aim.epsilon - epsilon));
                if epsilon > 0.0 && again {
                    (aim, room) = (scout.for_epsilon(epsilon), Room::NEXT);
                    fineness = Fineness { error: FINE, hazard };
                    looks += 1;
                    continue;
                }
                worst = Some((epsilon, way));
                break;
            }
        }
        let (upper, way) = worst.expect("an adjacency has a direction");
        let lower = if both && upper > 0.0 { way.lower(transforms).epsilon(delta, upper) } else { 0.0 };
        bounded((lower, upper))
    }

    /// Uses of a pure Gaussian without its closed form: what the grid is tested with.
    #[cfg(test)]
    pub(super) fn on_grid(mechanism: Mechanism, count: u64) -> Self {
        Self { adjacency: Adjacency::AddRemove, parts: vec![(mechanism, count)], mu_squared: 0.0 }
    }

    /// ε by Chernoff's inequality and a coarse sum: no bound, but near and quick. For choosing where to look.
    pub(super) fn epsilon_rough(&self, delta: f64) -> Result<f64, AccountantError> {
        if !(MIN_DELTA..1.0).contains(&delta) {
            return Err(AccountantError::Delta(delta));
        }
        let parts = self.merged();
        if self.parts.is_empty() {
            return Ok(closed_form::epsilon(self.mu_squared.sqrt(), delta).1);
        }
        let direction = directions(self.adjacency, &parts)[0];
        Ok(Scout::new(&parts, direction, 1e-3 * delta / self.uses() as f64)
            .for_delta(libm::log(delta))
            .epsilon)
    }

    /// How many uses there are; all pure Gaussians count as one.
    pub(super) fn uses(&self) -> u64 {
        self.merged().iter().map(|p| p.1).sum()
    }

    /// Bounds on the least δ at which all of it is (`epsilon`, δ)-differentially private.
    ///
    /// # Errors
    /// [`AccountantError`] for an ε below 0 or above [`MAX_EPSILON`].
    pub fn delta(&self, epsilon: f64) -> Result<DeltaInterval, AccountantError> {
        within("epsilon", epsilon, 0.0, MAX_EPSILON)?;
        let parts = self.merged();
        if self.parts.is_empty() {
            let mu = self.mu_squared.sqrt();
            let (lower, upper) = if mu == 0.0 { (0.0, 0.0) } else { closed_form::delta(mu, epsilon) };
            return Ok(DeltaInterval { lower, upper });
        }
        let mut transforms = Transforms::default();
        let count = parts.iter().map(|p| p.1).sum::<u64>() as f64;
        let mut worst: Option<(f64, OneWay)> = None;
        for &direction in directions(self.adjacency, &parts) {
            // Tails far below the δ that a first look finds.
            let rough = Scout::new(&parts, direction, 1e-60 / count).for_epsilon(epsilon).log_delta;
            let mut tail = (1e-9 * libm::exp(rough.min(0.0)) / count).max(1e-290);
            if worst.as_ref().is_some_and(|w| 2.0 * tail * count <= w.0)
                && largest_loss(&parts, direction, tail) <= epsilon
            {
                continue;
            }
            let mut fineness = Fineness { error: FINE, hazard: 0.0 };
            let mut look = 0;
            let way = loop {
                let scout = Scout::new(&parts, direction, tail);
                let aim = scout.for_epsilon(epsilon);
                let way = Layout::new(&parts, direction, (&scout, aim, Room::NONE), tail, fineness)
                    .compose(&mut transforms);
                let (hazard, known) = (way.hazard_of_delta(epsilon), fineness.hazard.max(aim.tilt + 1.0));
                let tails_count = 2.0 * tail * count > 1e-6 * way.delta(epsilon) && tail > 1e-290;
                let sharper = hazard > 4.0 * known;
                look += 1;
                if look == MOST_LOOKS || !(tails_count || sharper) {
                    break way;
                }
                if tails_count {
                    tail = (1e-8 * way.delta(epsilon) / count).max(1e-290);
                }
                fineness.hazard = hazard.min(16.0 * known);
            };
            let upper = way.delta(epsilon);
            if worst.as_ref().is_none_or(|w| upper > w.0) {
                worst = Some((upper, way));
            }
        }
        let (upper, way) = worst.expect("an adjacency has a direction");
        Ok(DeltaInterval { lower: way.lower(&mut transforms).delta(epsilon).min(upper), upper })
    }

    /// The parts, with all pure Gaussians as one.
    fn merged(&self) -> Vec<(Mechanism, u64)> {
        let mut parts = self.parts.clone();
        if self.mu_squared > 0.0 {
            parts.push((Mechanism(Kind::Gdp { mu: self.mu_squared.sqrt() }), 1));
        }
        parts
    }
}

/// An ε that the total loss exceeds with at most the probability of the tails: 2·`tail` for each use.
fn largest_loss(parts: &[(Mechanism, u64)], direction: Direction, tail: f64) -> f64 {
    let of = |(mechanism, count): &(Mechanism, u64)| {
        let pair = Pair::new(mechanism, direction, tail);
        (pair.range().1 + pair.loss_error()) * *count as f64
    };
    parts.iter().map(of).sum::<f64>() * (1.0 + 1e-12)
}

fn bounded(interval: (f64, f64)) -> Result<(f64, f64), AccountantError> {
    if interval.1 <= MAX_EPSILON { Ok(interval) } else { Err(AccountantError::Epsilon(interval.1)) }
}
