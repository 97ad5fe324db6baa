//! Attacks on a round: seven of 32 clients lie, and know what all others sent. Honest updates are a common direction and
//! noise. R is the largest distance of an honest update from the honest mean.
//!
//! A client that sends NaN is no attack here: what arrives are integers, and NaN is refused where reals become integers
//! (`tests/rounds/bad_transfers.rs` sends some). Flipped labels are in [`label_flip`]: that attack needs training.

mod label_flip;

use super::*;

const N: usize = 32;
const BAD: usize = 7;
const VALUES: usize = 500;

/// What is known of a round: the updates, the first of them the liars', and the honest ones' mean, spread and radius.
struct Round {
    updates: Vec<Vec<f64>>,
    mean: Vec<f64>,
    deviation: Vec<f64>,
    radius: f64,
}

impl Round {
    /// `lie` sees the honest mean and standard deviations, and each liar's own honest update.
    fn attacked(seed: u64, lie: impl Fn(&[f64], &[f64], &[f64]) -> Vec<f64>) -> Self {
        let mut draw = Draw(seed);
        let direction: Vec<f64> = (0..VALUES).map(|_| 0.02 * draw.normal()).collect();
        let updates: Vec<Vec<f64>> =
            (0..N).map(|_| direction.iter().map(|d| d + 0.01 * draw.normal()).collect()).collect();
        let mut round = Self::of(updates);
        for update in &mut round.updates[..BAD] {
            *update = lie(&round.mean, &round.deviation, update);
        }
        round
    }

    /// A round with these updates, the first [`BAD`] of them the liars'.
    fn of(updates: Vec<Vec<f64>>) -> Self {
        let honest = &updates[BAD..];
        let values = honest[0].len();
        let mean: Vec<f64> =
            (0..values).map(|at| honest.iter().map(|u| u[at]).sum::<f64>() / honest.len() as f64).collect();
        let deviation: Vec<f64> = (0..values)
            .map(|at| {
                (honest.iter().map(|u| (u[at] - mean[at]).powi(2)).sum::<f64>() / honest.len() as f64).sqrt()
            })
            .collect();
        let radius = honest.iter().map(|u| apart(u, &mean)).fold(0.0, f64::max);
        Self { updates, mean, deviation, radius }
    }

    fn aggregate(&self, rule: Rule) -> Vec<f64> {
        let rows = self.updates.iter().map(|u| {
            let units = u.iter().map(|v| (v * 65_536.0).round() as i32).collect();
            (units, 1)
        });
        let rows = MemoryRows::new(rows.collect()).unwrap();
        rule.aggregate(&rows, grid(), Tiling::new(2, N), None).unwrap().mean(grid())
    }

    /// The distance of what a rule makes of it from the honest mean.
    fn error(&self, rule: Rule) -> f64 {
        apart(&self.aggregate(rule), &self.mean)
    }

    /// The largest distance along each coordinate between honest updates and their mean, as a vector's norm.
    fn box_radius(&self) -> f64 {
        let far =
            |at: usize| self.updates[BAD..].iter().map(|u| (u[at] - self.mean[at]).abs()).fold(0.0, f64::max);
        (0..self.mean.len()).map(|at| far(at).powi(2)).sum::<f64>().sqrt()
    }

    fn largest_honest_norm(&self) -> f64 {
        self.updates[BAD..].iter().map(|u| norm(u)).fold(0.0, f64::max)
    }

    /// Each robust rule with the bound that theory gives its error.
    fn bounds(&self) -> Vec<(Rule, f64)> {
        let share = BAD as f64 / N as f64;
        let bound = self.largest_honest_norm() * 1.001;
        // The chosen one's score is at most the worst honest one's, (n-f-2)·(2R)², and at least one of its n-2f-2
        // or more honest neighbours is as near as their average.
        let krum = 1.0 + 2.0 * ((N - BAD - 2) as f64 / (N - 2 * BAD - 2) as f64).sqrt();
        vec![
            // Each coordinate lies between honest values.
            (Rule::Median {}, self.box_radius()),
            (Rule::TrimmedMean(TrimmedMean { beta: 0.22 }), self.box_radius()),
            (Rule::Krum(Krum { byzantine: BAD }), krum * self.radius),
            // Every kept score is at most the worst honest one's.
            (Rule::MultiKrum(MultiKrum { byzantine: BAD, keep: None }), krum * self.radius),
            // Each kept value is as near to the median, which lies between honest values, as some honest value.
            (Rule::Bulyan(Bulyan { byzantine: BAD }), 3.0 * self.box_radius()),
            // Minsker 2015, for the point that the iterations end in.
            (
                Rule::GeometricMedian(GeometricMedian { iterations: 60, smoothing: 1e-6 }),
                2.0 * (1.0 - share) / (1.0 - 2.0 * share) * self.radius,
            ),
            // A liar adds at most the bound, and takes away its share of the honest mean.
            (Rule::NormBoundedMean(NormBoundedMean { bound }), share * (bound + norm(&self.mean))),
            (
                Rule::CentredClipping(CentredClipping { radius: bound, iterations: 1 }),
                share * (bound + norm(&self.mean)),
            ),
        ]
    }

    fn assert_bounds_hold(&self) {
        for (rule, bound) in self.bounds() {
            // The grid's rounding comes on top.
            let error = self.error(rule);
            assert!(error <= bound + 1e-3, "{rule:?}: {error} from the honest mean, the bound is {bound}");
        }
    }
}

fn norm(a: &[f64]) -> f64 {
    a.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn apart(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt()
}

fn product(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// The mean is further off than any robust rule may be.
fn assert_the_mean_breaks(round: &Round) {
    let worst = round.bounds().into_iter().map(|(_, bound)| bound).fold(0.0, f64::max);
    let error = round.error(Rule::Mean {});
    assert!(error > worst, "the mean is {error} off, a robust rule at most {worst}");
}

#[test]
fn sign_flip() {
    for seed in 0..5 {
        let round = Round::attacked(seed, |_, _, own| own.iter().map(|v| -30.0 * v).collect());
        round.assert_bounds_hold();
        assert_the_mean_breaks(&round);
        let mean = round.aggregate(Rule::Mean {});
        assert!(product(&mean, &round.mean) < 0.0, "the mean goes backwards");
        for (rule, _) in round.bounds() {
            assert!(product(&round.aggregate(rule), &round.mean) > 0.0, "{rule:?} goes backwards");
        }
    }
}

#[test]
fn scaled_a_hundred_times() {
    for seed in 10..15 {
        let round = Round::attacked(seed, |_, _, own| own.iter().map(|v| 100.0 * v).collect());
        round.assert_bounds_hold();
        assert_the_mean_breaks(&round);
    }
}

#[test]
fn as_large_as_the_grid_goes() {
    let largest = grid().max_value();
    for seed in 15..18 {
        let round = Round::attacked(seed, |_, _, own| {
            own.iter().map(|v| if *v > 0.0 { -largest } else { largest }).collect()
        });
        round.assert_bounds_hold();
        assert_the_mean_breaks(&round);
    }
}

/// Inner-product manipulation (Xie, Koyejo, Gupta 2020, "Fall of empires"): all liars send the honest mean times a negative
/// factor, just large enough that the mean goes backwards.
#[test]
fn inner_product_manipulation() {
    for seed in 20..25 {
        let round = Round::attacked(seed, |mean, _, _| mean.iter().map(|m| -4.0 * m).collect());
        round.assert_bounds_hold();
        assert!(product(&round.aggregate(Rule::Mean {}), &round.mean) < 0.0, "the mean goes backwards");
        for (rule, _) in round.bounds() {
            assert!(product(&round.aggregate(rule), &round.mean) > 0.0, "{rule:?} goes backwards");
        }
    }
}

/// A little is enough (Baruch, Baruch, Goldberg 2019): all liars send the honest mean less a few standard deviations, where
/// honest updates are as well. No rule of one round can tell; that the damage stays within the bounds is what
/// there is to show. (The mean's error is small, too: f/n·z·‖σ‖.)
#[test]
fn a_little_is_enough() {
    for (seed, z) in [(30, 0.3), (31, 0.7), (32, 1.0), (33, 1.5), (34, 3.0)] {
        let round = Round::attacked(seed, |mean, deviation, _| {
            mean.iter().zip(deviation).map(|(m, d)| m - z * d).collect()
        });
        round.assert_bounds_hold();
        let shift = BAD as f64 / N as f64 * z * norm(&round.deviation);
        assert!((round.error(Rule::Mean {}) - shift).abs() < 1e-3);
        // Rules of coordinates take some of it away once the lie is in the tail.
        if z >= 3.0 {
            assert!(round.error(Rule::TrimmedMean(TrimmedMean { beta: 0.22 })) < 0.8 * shift);
            assert!(round.error(Rule::Median {}) < 0.8 * shift);
        }
    }
}

/// The other half of the promise: where nobody lies, a robust rule costs little.
#[test]
fn without_an_attack_the_rules_are_near_the_mean() {
    let round = Round::attacked(40, |_, _, own| own.to_vec());
    for (rule, _) in round.bounds() {
        let error = round.error(rule);
        assert!(
            error <= 1.1 * round.radius,
            "{rule:?}: {error}, an honest update is up to {} away",
            round.radius
        );
        if !matches!(rule, Rule::Krum(_)) {
            assert!(error <= 0.35 * round.radius, "{rule:?}: {error} of {}", round.radius);
        }
    }
}

/// Bulyan's reason to be: a liar that hides one large coordinate in a small distance passes Krum's distances, and
/// moves that coordinate in Multi-Krum's mean; each coordinate of Bulyan stays among honest values.
#[test]
fn one_large_coordinate_in_a_small_distance() {
    let round = Round::attacked(50, |mean, deviation, _| {
        let mut lie = mean.to_vec();
        // A third of what honest updates are away from the mean, all in one place.
        lie[0] += norm(deviation) / 3.0;
        lie
    });
    round.assert_bounds_hold();
    let honest_most = round.updates[BAD..].iter().map(|u| u[0]).fold(f64::MIN, f64::max);
    assert!(round.aggregate(Rule::Krum(Krum { byzantine: BAD }))[0] > 2.0 * honest_most, "Krum takes a liar");
    let bulyan = round.aggregate(Rule::Bulyan(Bulyan { byzantine: BAD }));
    assert!(bulyan[0] <= honest_most, "{} is no honest value: {honest_most}", bulyan[0]);
}
