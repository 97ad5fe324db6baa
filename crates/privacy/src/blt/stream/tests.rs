//! The stream has the covariance that was planned, goes on bit by bit, and its rounding is within what is paid for.

use super::*;
use crate::participation::Participation;
use crate::sensitivity::{Adjacency, L2Sensitivity};
use proptest::prelude::*;
use undertone_core::fixed::Grid;

const ROUNDS: u32 = 64;

fn parameters() -> Parameters {
    Parameters::new(&[0.6, 0.97], &[0.3, 0.2]).unwrap()
}

fn mechanism(noise_multiplier: f64, values: usize) -> BltMechanism {
    let sensitivity = L2Sensitivity::of_clipped(0.01, Grid::new(16).unwrap(), Adjacency::AddRemove).unwrap();
    let participation = Participation::new(2, 20).unwrap();
    BltMechanism::new(parameters(), ROUNDS, participation, noise_multiplier, sensitivity, values).unwrap()
}

/// The noise of all rounds, in grid units.
fn run(mechanism: &BltMechanism, rng: &mut NoiseRng) -> Vec<Vec<i64>> {
    let mut noise = BltNoise::start(mechanism.clone());
    let mut released = Vec::new();
    for round in 0..ROUNDS {
        assert_eq!(noise.round(), round);
        let mut units = vec![0; mechanism.values()];
        noise = noise.add_to(&mut units, rng).unwrap();
        released.push(units);
    }
    let mut more = vec![0; mechanism.values()];
    assert_eq!(noise.add_to(&mut more, rng).unwrap_err(), BltError::Finished(ROUNDS));
    released
}

#[test]
fn prefix_sums_have_the_planned_error_and_c_makes_the_noise_independent() {
    let values = 4000;
    let mechanism = mechanism(1.0, values);
    let released = run(&mechanism, &mut NoiseRng::seeded_for_tests(1));

    let mut prefix = vec![0i64; values];
    let mut squares = 0.0;
    for round in &released {
        for (sum, &unit) in prefix.iter_mut().zip(round) {
            *sum += unit;
            squares += (*sum as f64).powi(2);
        }
    }
    let error = (squares / (values as f64 * f64::from(ROUNDS))).sqrt();
    let planned = mechanism.sigma() * parameters().prefix_error(ROUNDS);
    assert!((error / planned - 1.0).abs() < 0.02, "{error}, not {planned}");

    // C·(C⁻¹z) is z: of variance σ², without correlation between rounds (up to rounding, 1/12 a round).
    let c: Vec<f64> = parameters().coefficients(ROUNDS).collect();
    let undone = |t: usize, v: usize| -> f64 { (0..=t).map(|j| c[t - j] * released[j][v] as f64).sum() };
    let moment = |t: usize, s: usize| -> f64 {
        (0..values).map(|v| undone(t, v) * undone(s, v)).sum::<f64>()
            / values as f64
            / mechanism.sigma().powi(2)
    };
    let allowed = 5.0 * (2.0 / values as f64).sqrt();
    for (t, s, expected) in
        [(0, 0, 1.0), (63, 63, 1.0), (30, 30, 1.0), (1, 0, 0.0), (63, 62, 0.0), (40, 20, 0.0)]
    {
        assert!((moment(t, s) - expected).abs() < allowed, "rounds {t} and {s}: {}", moment(t, s));
    }
    // While the noise itself is correlated: the round before is partly taken back.
    let lag: f64 = (0..values).map(|v| (released[1][v] * released[0][v]) as f64).sum::<f64>() / values as f64;
    assert!((lag / mechanism.sigma().powi(2) + 0.5).abs() < 0.1, "{lag}");
}

#[test]
fn a_run_goes_on_bit_by_bit_after_a_restart() {
    let mechanism = mechanism(2.0, 50);
    let whole = run(&mechanism, &mut NoiseRng::seeded_for_tests(2));
    let mut rng = NoiseRng::seeded_for_tests(2);
    let mut saved = BltNoise::start(mechanism.clone()).to_bytes();
    for expected in whole {
        let noise = BltNoise::from_bytes(mechanism.clone(), &saved).unwrap();
        let mut units = vec![0; 50];
        saved = noise.add_to(&mut units, &mut rng).unwrap().to_bytes();
        assert_eq!(units, expected);
    }
}

#[test]
fn a_state_that_cannot_go_on_is_refused() {
    let ours = mechanism(2.0, 5);
    let mut rng = NoiseRng::seeded_for_tests(3);
    let noise = BltNoise::start(ours.clone()).add_to(&mut [0; 5], &mut rng).unwrap();
    assert_eq!(format!("{noise:?}"), "BltNoise(after round 1 of 64)");
    let saved = noise.to_bytes();
    assert_eq!(BltNoise::from_bytes(ours.clone(), &saved).unwrap().round(), 1);
    for at in 0..saved.len() {
        let mut damaged = saved.clone();
        damaged[at] ^= 1;
        assert!(BltNoise::from_bytes(ours.clone(), &damaged).is_err(), "byte {at}");
        assert!(BltNoise::from_bytes(ours.clone(), &saved[..at]).is_err(), "{at} bytes");
    }
    // Another clip norm or noise, another model.
    for other in [mechanism(2.1, 5), mechanism(2.0, 6)] {
        let e = BltNoise::from_bytes(other, &saved).unwrap_err();
        assert_eq!(e, BltError::State("belongs to another mechanism"));
    }
    let e = noise.add_to(&mut [0; 4], &mut rng).unwrap_err();
    assert_eq!(e, BltError::Length { found: 4, wanted: 5 });
}

/// What `step` takes back in each round, for given ẑ.
fn taken(parameters: &Parameters, correlated: &[i64]) -> Vec<i64> {
    let mut states = vec![0; parameters.buffers()];
    let mut all = Vec::new();
    for &z in correlated {
        step(parameters, &mut states.iter_mut(), |taken| {
            all.push(taken);
            z
        })
        .unwrap();
    }
    all
}

proptest! {
    /// The step of the proof: neighbouring runs with the same releases differ in z by C·δ and at most the slack.
    #[test]
    fn rounding_shifts_noise_by_less_than_is_paid_for(
        theta in prop::collection::vec(0.01f64..0.999, 2), omega in prop::collection::vec(0.01f64..0.5, 2),
        noise in prop::collection::vec(-(1i64 << 42)..1i64 << 42, 1..150), seed: u64,
    ) {
        let parameters = Parameters::new(&theta, &omega).unwrap();
        let mut rng = NoiseRng::seeded_for_tests(seed);
        // One client's contributions: anything at all, now and then.
        let moved: Vec<i64> = noise
            .iter()
            .map(|_| if rng.below(8) == 0 { rng.below(1 << 38) as i64 - (1 << 37) } else { 0 })
            .collect();
        let other: Vec<i64> = noise.iter().zip(&moved).map(|(z, m)| z - m).collect();
        let (one, two) = (taken(&parameters, &noise), taken(&parameters, &other));
        let c: Vec<f64> = parameters.coefficients(noise.len() as u32).collect();
        for t in 0..noise.len() {
            // z = ẑ + r, and C·δ without its diagonal is what r should differ by.
            let exact: f64 = (0..t).map(|j| c[t - j] * moved[j] as f64).sum();
            let off = (one[t] - two[t]) as f64 - exact;
            // 2^-12 for the f64 arithmetic of this check.
            prop_assert!(off.abs() <= parameters.rounding_slack() + 2.5e-4, "round {t}: {off}");
        }
    }
}

#[test]
fn a_buffer_out_of_range_ends_the_run() {
    let mut state = [1i64 << 60];
    let one = Parameters::new(&[0.999_999_99], &[0.5]).unwrap();
    assert_eq!(step(&one, &mut state.iter_mut(), |_| 1 << 51), Err(BltError::Overflow));
}
