//! FedNova and q-FedAvg against the formulas of their papers.

use super::*;
use crate::rules::fednova::{self, LocalSolver};
use crate::rules::q_fedavg::QFedAvg;

fn real(updates: &[Vec<i32>]) -> Vec<Vec<f64>> {
    updates.iter().map(|u| u.iter().map(|&v| f64::from(v) / 65_536.0).collect()).collect()
}

fn assert_close(found: &[f64], wanted: &[f64], tolerance: f64) {
    for (at, (f, w)) in found.iter().zip(wanted).enumerate() {
        assert!((f - w).abs() <= tolerance, "value {at}: {f}, not {w}");
    }
    assert_eq!(found.len(), wanted.len());
}

#[test]
fn normalisers_are_the_sums_of_what_a_step_leaves_behind() {
    for steps in [1, 2, 3, 10, 57] {
        assert_eq!(LocalSolver::Sgd {}.normaliser(steps), f64::from(steps));
        for rho in [0.0, 0.5, 0.9, 0.99] {
            // A gradient of one each step, momentum by definition.
            let (mut speed, mut way) = (0.0, 0.0);
            for _ in 0..steps {
                speed = rho * speed + 1.0;
                way += speed;
            }
            let found = LocalSolver::Momentum { momentum: rho }.normaliser(steps);
            assert!((found - way).abs() < 1e-9 * way, "{rho} {steps}: {found} {way}");
        }
        for pull in [0.001, 0.1, 0.9] {
            let mut way = 0.0;
            for _ in 0..steps {
                way = (1.0 - pull) * way + 1.0;
            }
            let found = LocalSolver::Proximal { pull }.normaliser(steps);
            assert!((found - way).abs() < 1e-9 * way, "{pull} {steps}: {found} {way}");
        }
    }
}

#[test]
fn fednova_is_the_formula_and_with_equal_steps_the_mean() {
    let updates = updates(7, 300, 1 << 18, 21);
    let weights = [1, 5, 2, 900, 3, 77, 1];
    let rows = MemoryRows::new(updates.iter().cloned().zip(weights).collect()).unwrap();
    let tiling = Tiling::with_block(2, 256);
    let steps = [1, 10, 3, 50, 2, 400, 8];
    for solver in [LocalSolver::Sgd {}, LocalSolver::Momentum { momentum: 0.9 }] {
        let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        let shares = weights.map(|w| f64::from(w) / total);
        let norms = steps.map(|s| solver.normaliser(s));
        let effective: f64 = shares.iter().zip(norms).map(|(p, a)| p * a).sum();
        let wanted: Vec<f64> = (0..300)
            .map(|at| {
                let normalised = real(&updates).iter().zip(norms).map(|(u, a)| u[at] / a).collect::<Vec<_>>();
                effective * normalised.iter().zip(shares).map(|(d, p)| p * d).sum::<f64>()
            })
            .collect();
        let found = fednova::aggregate(&rows, tiling, &solver, &steps).unwrap().mean(grid());
        assert_close(&found, &wanted, 1e-6);

        let same = fednova::aggregate(&rows, tiling, &solver, &[6; 7]).unwrap().mean(grid());
        let mean = Rule::Mean {}.aggregate(&rows, grid(), tiling, None).unwrap().mean(grid());
        assert_close(&same, &mean, 1e-7);
    }
    for bad in [&[1; 6][..], &[1, 1, 1, 0, 1, 1, 1], &[1, 1, 1, u32::MAX, 1, 1, 1]] {
        let found = fednova::aggregate(&rows, tiling, &LocalSolver::Sgd {}, bad);
        assert!(matches!(found, Err(RuleError::Refused(_))));
    }
    for bad in [1.0, -0.1, f64::NAN] {
        assert!(LocalSolver::Momentum { momentum: bad }.validate().is_err());
    }
    for bad in [0.0, 1.0, f64::NAN] {
        assert!(LocalSolver::Proximal { pull: bad }.validate().is_err());
    }
}

/// What FedNova is for: a client that makes 50 times the steps does not decide alone where the model goes.
#[test]
fn fednova_takes_the_pull_out_of_many_steps() {
    let rows = equal_rows(&[vec![1000], vec![-50_000]]);
    let mean = Rule::Mean {}.aggregate(&rows, grid(), Tiling::new(1, 2), None).unwrap();
    assert!(mean.mean(grid())[0] < -0.3);
    let found = fednova::aggregate(&rows, Tiling::new(1, 2), &LocalSolver::Sgd {}, &[1, 50]).unwrap();
    assert!(found.mean(grid())[0].abs() < 1e-7);
}

#[test]
fn q_fedavg_is_the_formula() {
    let updates = updates(6, 200, 1 << 14, 22);
    let rows = equal_rows(&updates);
    let losses = [0.3, 1.7, 0.0, 12.0, 0.9, 2.2];
    let tiling = Tiling::with_block(2, 256);
    for q in [0.0, 0.001, 0.5, 1.0, 2.0, 5.0] {
        for lipschitz in [1.0, 20.0] {
            let mut numerator = [0.0; 200];
            let mut denominator = 0.0;
            for (update, loss) in real(&updates).iter().zip(losses) {
                let loss: f64 = loss + 1e-10;
                let gradient: Vec<f64> = update.iter().map(|u| -lipschitz * u).collect();
                let squared: f64 = gradient.iter().map(|g| g * g).sum();
                for (sum, g) in numerator.iter_mut().zip(&gradient) {
                    *sum += loss.powf(q) * g;
                }
                denominator += q * loss.powf(q - 1.0) * squared + lipschitz * loss.powf(q);
            }
            let wanted: Vec<f64> = numerator.iter().map(|n| -n / denominator).collect();
            let found = QFedAvg { q, lipschitz }.aggregate(&rows, grid(), tiling, &losses).unwrap();
            assert_close(&found.mean(grid()), &wanted, 1e-8);
        }
    }
    let mean = Rule::Mean {}.aggregate(&rows, grid(), tiling, None).unwrap().mean(grid());
    let plain = QFedAvg { q: 0.0, lipschitz: 3.0 }.aggregate(&rows, grid(), tiling, &losses).unwrap();
    assert_close(&plain.mean(grid()), &mean, 1e-8);
    let extreme = QFedAvg { q: 100.0, lipschitz: 3.0 };
    let found = extreme.aggregate(&rows, grid(), tiling, &[1e300; 6]).unwrap().mean(grid());
    assert!(found.iter().all(|v| v.is_finite()), "no power overflows");
    for bad in [&[1.0; 5][..], &[1.0, 1.0, f64::NAN, 1.0, 1.0, 1.0], &[-1.0; 6], &[f64::INFINITY; 6]] {
        let found = QFedAvg { q: 1.0, lipschitz: 1.0 }.aggregate(&rows, grid(), tiling, bad);
        assert!(matches!(found, Err(RuleError::Refused(_))));
    }
    for (q, lipschitz) in [(-1.0, 1.0), (f64::NAN, 1.0), (101.0, 1.0), (1.0, 0.0), (1.0, f64::INFINITY)] {
        assert!(QFedAvg { q, lipschitz }.validate().is_err());
    }
}
