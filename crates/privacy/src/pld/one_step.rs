//! Connect the dots: a loss distribution moved onto the grid {i·h}, as an upper bound (Doroshenko, Ghazi, Kamath,
//! Kumar and Manurangsi 2022, arXiv 2207.04380), and the same move as a post-processing, for a lower bound.
//!
//! A loss L in the cell [ih, (i+1)h] goes to one of the two ends at random, to the upper with probability
//! K = (1-e^{-u})/(1-e^{-h}), u = L - ih, which keeps E[e^{-L}]. δ(ε) = E[(1-e^{ε-L})₊] is convex in e^{-L}, in each
//! factor of a composition too, so δ can only grow (Jensen): no pair on this grid that dominates is closer.
//!
//! That move is also a channel from outputs to grid points, the same for P and Q. After it P has the masses above and
//! Q the masses E_P[e^{-L}; moved to i]. For any event, P(event) - e^ε·Q(event) is a lower bound of δ(ε).
//!
//! Both are integrals of positive functions over a cell, computed by Gaussian quadrature with a relative error below
//! [`MASS_ERROR`]: no cancellation, however far in the tail (differences of δ, as the paper has it, lose their digits
//! there).

use super::pair::{Density, Pair};

/// Bound on the relative error of every mass by quadrature.
pub(super) const MASS_ERROR: f64 = 1e-12;

/// One use of a mechanism on the grid, in one direction: the grid points that have a mass, in order.
#[derive(Debug, Clone)]
pub(super) struct OneStep {
    /// Their grid indices.
    pub(super) at: Vec<i64>,
    /// P's masses, connect-the-dots.
    pub(super) p: Vec<f64>,
    /// e^{ih} times Q's masses after the same move: nearly P's.
    pub(super) q: Vec<f64>,
    /// Bound on P's mass that is not on the grid.
    pub(super) outside: f64,
    /// Bound on the relative error of every mass.
    pub(super) mass_error: f64,
    /// Bound on the error of a computed loss.
    pub(super) loss_error: f64,
}

impl OneStep {
    /// `pair` on the grid of width `step`, with cells as wide as `width` allows.
    pub(super) fn new(pair: &Pair, step: f64, width: &CellWidth) -> Self {
        let mut grid = Grid { points: Vec::new(), loss_error: pair.loss_error() };
        let move_to = Move::new(step);
        for density in &pair.densities {
            grid.spread(density, step, width);
        }
        for &(loss, mass) in &pair.atoms {
            grid.place(loss, mass, &move_to);
        }
        // Stable: masses at one point are added up in one order everywhere.
        grid.points.sort_by_key(|point| point.0);
        let (mut at, mut p, mut q): (Vec<i64>, Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new(), Vec::new());
        for (index, p_mass, q_mass) in grid.points.into_iter().filter(|point| point.1 > 0.0) {
            if at.last() == Some(&index) {
                *p.last_mut().expect("as long as `at`") += p_mass;
                *q.last_mut().expect("as long as `at`") += q_mass;
            } else {
                at.push(index);
                p.push(p_mass);
                q.push(q_mass);
            }
        }
        Self {
            at,
            p,
            q,
            outside: pair.outside,
            mass_error: MASS_ERROR + pair.weight_error,
            loss_error: grid.loss_error,
        }
    }

    /// The number of cells that `pair` takes on the grid of width `step`.
    pub(super) fn cells(pair: &Pair, step: f64) -> f64 {
        let (low, high) = pair.range();
        (high - low) / step
    }
}

/// Masses on their way to the grid.
struct Grid {
    /// Index, P's mass, Q's; an index may come more than once.
    points: Vec<(i64, f64, f64)>,
    loss_error: f64,
}

impl Grid {
    fn place(&mut self, loss: f64, mass: f64, to: &Move) {
        let nearest = libm::round(loss / to.step);
        let apart = (loss - nearest * to.step).abs();
        if apart <= 1e-12 * loss.abs() {
            // On the grid but for rounding.
            self.loss_error = self.loss_error.max(apart + 1e-15 * loss.abs());
            self.points.push((nearest as i64, mass, mass));
            return;
        }
        let below = (loss / to.step).floor();
        self.add(below as i64, 1, to.share(loss - below * to.step, mass));
    }

    fn spread(&mut self, density: &Density, step: f64, width: &CellWidth) {
        let moves: Vec<Move> = (0..=MAX_DOUBLINGS).map(|j| Move::new(step * f64::from(1u32 << j))).collect();
        let mut y = density.from;
        let mut cell = (density.loss(y) / step).floor() as i64;
        let mut before = 0;
        while y < density.to {
            let end_of =
                |doublings: u32| density.point((cell + (1 << doublings)) as f64 * step).min(density.to);
            let mut doublings = 0;
            let mut end = end_of(0);
            if end > y {
                let room = if cell == 0 { MAX_DOUBLINGS } else { cell.trailing_zeros().min(MAX_DOUBLINGS) };
                // Widths change little from one cell to the next.
                doublings = width.doublings(density, y, end, step).min(room).min(before + 1);
                while doublings > 0 {
                    // The far end may be denser.
                    let (far, near) = (end_of(doublings), end_of(doublings - 1));
                    if far > near
                        && width.doublings(density, near, far, step * f64::from(1u32 << (doublings - 1))) >= 1
                    {
                        end = far;
                        break;
                    }
                    doublings -= 1;
                }
            }
            let (start, to) = (cell as f64 * step, &moves[doublings as usize]);
            let mut shares = [0.0; 4];
            while y < end {
                let stop = (y + density.stretch(y)).min(end);
                integrate(density, y, stop, start, to, &mut shares);
                y = stop;
            }
            self.add(cell, 1 << doublings, shares);
            cell += 1 << doublings;
            before = doublings.max(before.saturating_sub(1));
        }
    }

    /// Adds shares (P left, P right, Q left, Q right) to the ends of a cell that is `wide` grid points wide.
    fn add(&mut self, cell: i64, wide: i64, [p_left, p_right, q_left, q_right]: [f64; 4]) {
        match self.points.last_mut() {
            Some((at, p, q)) if *at == cell => {
                *p += p_left;
                *q += q_left;
            }
            _ => self.points.push((cell, p_left, q_left)),
        }
        self.points.push((cell + wide, p_right, q_right));
    }
}

/// A cell may be 2^12 grid points wide.
const MAX_DOUBLINGS: u32 = 12;

/// How wide a cell may be where the loss is rare: its ends are on the grid, and rounding in it adds the variance
/// mass·w²/4. Spread evenly over the range that allows w² = 4·variance / (range · density).
#[derive(Debug, Clone, Copy)]
pub(super) struct CellWidth {
    /// The tilt under which a loss is rare or not.
    pub(super) tilt: f64,
    /// log E[e^{λL}] of one use, roughly.
    pub(super) log_moment: f64,
    /// The variance to add in one use, over the range of losses.
    pub(super) variance_density: f64,
    /// Losses of a size up to this are near the kink of (1-e^{ε-L})₊.
    pub(super) kink: f64,
    /// The largest w² there.
    pub(super) at_kink: f64,
    /// The largest w² elsewhere.
    pub(super) elsewhere: f64,
}

impl CellWidth {
    /// How often a cell of width `step`, from `y` to `end`, may be doubled.
    fn doublings(&self, density: &Density, y: f64, end: f64, step: f64) -> u32 {
        let exponent = |loss: f64| self.tilt * loss - self.log_moment;
        let tilted_density =
            |y: f64, loss: f64| density.weight * libm::exp(density.log_density(y, loss) + exponent(loss));
        let (loss, middle) = (density.loss(y), 0.5 * (y + end));
        let end_loss = density.loss(end);
        let densest = tilted_density(y, loss)
            .max(tilted_density(middle, density.loss(middle)))
            .max(tilted_density(end, end_loss));
        let tilted = densest * (end - y) / step;
        let widest = 4.0 * self.variance_density / tilted.max(1e-300);
        // Where e^{λw} is not near 1 the variance is not what counts, unless the tilted mass is nothing even so.
        let spare = 0.5 * (-exponent(end_loss) - 60.0);
        let steepest = spare.max(0.5) / (self.tilt + 1.0);
        let widest = widest.min(steepest * steepest);
        let near = loss.abs() <= self.kink;
        let widest = widest.min(if near { self.at_kink } else { self.elsewhere });
        let mut doublings = 0;
        while doublings < MAX_DOUBLINGS
            && widest >= step * step * f64::from(1u32 << (2 * (doublings + 1)).min(31))
        {
            doublings += 1;
        }
        doublings
    }
}

/// The move to a cell's ends.
struct Move {
    step: f64,
    /// 1 - e^{-h}.
    width: f64,
    /// e^h.
    growth: f64,
}

impl Move {
    fn new(step: f64) -> Self {
        Self { step, width: -libm::expm1(-step), growth: libm::exp(step) }
    }

    /// The shares of `mass` with a loss `u` above the lower end.
    fn share(&self, u: f64, mass: f64) -> [f64; 4] {
        let u = u.clamp(0.0, self.step);
        let fallen = -libm::expm1(-u);
        let right = fallen / self.width;
        // (e^{-u} - e^{-h}) / (1 - e^{-h}).
        let left = ((self.width - fallen) / self.width).max(0.0);
        let (p_left, p_right) = (mass * left, mass * right);
        let likelihood = 1.0 - fallen;
        [p_left, p_right, p_left * likelihood, p_right * likelihood * self.growth]
    }
}

/// Adds the shares of `density` between `from` and `to`, a stretch within the cell that begins at the loss `start`.
///
/// Gauss-Legendre with 3, 5 or 8 nodes by the length of the stretch. The integrand is analytic up to |Im y| = π/μ
/// ≥ 0.9, so that the error is below 1e-13 of the integral ([`Density::stretch`] shortens stretches where e^{-y²/2}
/// is steep).
fn integrate(density: &Density, from: f64, to: f64, start: f64, move_to: &Move, shares: &mut [f64; 4]) {
    let (middle, half) = (0.5 * (from + to), 0.5 * (to - from));
    let nodes: &[(f64, f64)] = match half {
        h if h <= 5e-4 => &NODES_3,
        h if h <= 1e-2 => &NODES_5,
        _ => &NODES_8,
    };
    for &(node, weight) in nodes {
        let y = middle + half * node;
        let loss = density.loss(y);
        let mass = density.weight * density.density(y, loss) * weight * half;
        for (sum, share) in shares.iter_mut().zip(move_to.share(loss - start, mass)) {
            *sum += share;
        }
    }
}

const NODES_3: [(f64, f64); 3] =
    [(-0.774_596_669_241_483_4, 5.0 / 9.0), (0.0, 8.0 / 9.0), (0.774_596_669_241_483_4, 5.0 / 9.0)];

const NODES_5: [(f64, f64); 5] = [
    (-0.906_179_845_938_664, 0.236_926_885_056_189_08),
    (-0.538_469_310_105_683_1, 0.478_628_670_499_366_47),
    (0.0, 0.568_888_888_888_888_9),
    (0.538_469_310_105_683_1, 0.478_628_670_499_366_47),
    (0.906_179_845_938_664, 0.236_926_885_056_189_08),
];

const NODES_8: [(f64, f64); 8] = [
    (-0.960_289_856_497_536_3, 0.101_228_536_290_376_26),
    (-0.796_666_477_413_626_7, 0.222_381_034_453_374_48),
    (-0.525_532_409_916_329, 0.313_706_645_877_887_27),
    (-0.183_434_642_495_649_8, 0.362_683_783_378_362),
    (0.183_434_642_495_649_8, 0.362_683_783_378_362),
    (0.525_532_409_916_329, 0.313_706_645_877_887_27),
    (0.796_666_477_413_626_7, 0.222_381_034_453_374_48),
    (0.960_289_856_497_536_3, 0.101_228_536_290_376_26),
];

#[cfg(test)]
mod tests {
    use super::super::mechanism::Mechanism;
    use super::super::pair::Direction;
    use super::*;

    const EVEN: CellWidth = CellWidth {
        tilt: 0.0,
        log_moment: 0.0,
        variance_density: 0.0,
        kink: 0.0,
        at_kink: 0.0,
        elsewhere: 0.0,
    };

    /// Φ(b) - Φ(a), from the tail that does not cancel.
    fn between(a: f64, b: f64) -> f64 {
        let upper = |x: f64| 0.5 * libm::erfc(x / std::f64::consts::SQRT_2);
        if a > 0.0 { upper(a) - upper(b) } else { upper(-b) - upper(-a) }
    }

    #[test]
    fn masses_are_right_to_the_stated_error_in_the_middle_and_in_the_tails() {
        for (z, q) in [(0.3, 0.01), (1.0, 0.3), (1.0, 1e-6), (5.0, 0.9)] {
            for (from, to) in [(-9.0, -8.0), (-1.0, 0.0), (0.0, 1.0), (5.0, 6.5), (9.0, 10.0)] {
                for cells in [0.7, 60.0, 4000.0] {
                    let mechanism = Mechanism::poisson_gaussian(z, q).unwrap();
                    let mut pair = Pair::new(&mechanism, Direction::Remove, 1e-30);
                    (pair.densities[0].from, pair.densities[0].to) = (from, to);
                    let (low, high) = pair.range();
                    let step = (high - low) / cells;
                    let grid = OneStep::new(&pair, step, &EVEN);
                    let case = format!("z={z} q={q} y from {from} to {to} in {cells} cells");
                    let exact = (1.0 - q) * between(from, to) + q * between(from - 1.0 / z, to - 1.0 / z);
                    let found: f64 = grid.p.iter().sum();
                    // 1e-14·x² is what erfc itself is off by.
                    assert!(
                        (found / exact - 1.0).abs() < MASS_ERROR + 2e-14 * 100.0,
                        "{case}: {found} {exact}"
                    );
                    // The move keeps E[e^{-L}], which is Q's mass.
                    let lattice = |(at, p): (&i64, &f64)| p * libm::exp(-(*at as f64) * step);
                    let kept: f64 = grid.at.iter().zip(&grid.p).map(lattice).sum();
                    let exact = between(from, to);
                    assert!((kept / exact - 1.0).abs() < 1e-9, "{case}: {kept} {exact}");
                    // And so does the channel.
                    let moved: f64 = grid.at.iter().zip(&grid.q).map(lattice).sum();
                    assert!((moved / exact - 1.0).abs() < 1e-9, "{case}: {moved} {exact}");
                }
            }
        }
    }

    #[test]
    fn wide_cells_keep_what_narrow_ones_keep() {
        let mechanism = Mechanism::poisson_gaussian(0.8, 0.01).unwrap();
        let wide = CellWidth { tilt: 3.0, variance_density: 1e-6, kink: 0.0, elsewhere: 1.0, ..EVEN };
        for direction in [Direction::Remove, Direction::Add, Direction::Replace] {
            let pair = Pair::new(&mechanism, direction, 1e-12);
            let sums = |width: &CellWidth| {
                let grid = OneStep::new(&pair, 1e-3, width);
                let lattice = |(at, p): (&i64, &f64)| p * libm::exp(-(*at as f64) * 1e-3);
                (
                    grid.p.len(),
                    grid.p.iter().sum::<f64>(),
                    grid.at.iter().zip(&grid.p).map(lattice).sum::<f64>(),
                    grid.at.iter().zip(&grid.q).map(lattice).sum::<f64>(),
                )
            };
            let (narrow, wide) = (sums(&EVEN), sums(&wide));
            assert!(wide.0 * 2 < narrow.0, "{direction:?}: {wide:?} {narrow:?}");
            assert!((wide.1 / narrow.1 - 1.0).abs() < 1e-12, "{direction:?}: {wide:?} {narrow:?}");
            assert!((wide.2 / narrow.2 - 1.0).abs() < 1e-10, "{direction:?}: {wide:?} {narrow:?}");
            assert!((wide.3 / narrow.3 - 1.0).abs() < 1e-10, "{direction:?}: {wide:?} {narrow:?}");
        }
    }
}
