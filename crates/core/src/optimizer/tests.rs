//! Optimisers against the lines of their papers, and their state against damage.

use super::*;

const ADAM: ServerOptimizer =
    ServerOptimizer::Adam { learning_rate: 0.1, beta1: 0.9, beta2: 0.99, tau: 1e-3 };
const YOGI: ServerOptimizer =
    ServerOptimizer::Yogi { learning_rate: 0.1, beta1: 0.9, beta2: 0.99, tau: 1e-3 };
const ADAGRAD: ServerOptimizer = ServerOptimizer::Adagrad { learning_rate: 0.1, beta1: 0.0, tau: 1e-3 };
const MOMENTUM: ServerOptimizer = ServerOptimizer::Momentum { learning_rate: 1.0, momentum: 0.9 };
const SGD: ServerOptimizer = ServerOptimizer::Sgd { learning_rate: 0.5 };
const ALL: [ServerOptimizer; 5] = [SGD, MOMENTUM, ADAM, YOGI, ADAGRAD];

fn read(text: &str) -> Result<ServerOptimizer, String> {
    toml::from_str(text).map_err(|e| e.message().to_owned())
}

#[test]
fn published_defaults_and_the_old_format() {
    assert_eq!(read("kind = \"sgd\""), Ok(ServerOptimizer::Sgd { learning_rate: 1.0 }));
    assert_eq!(read("kind = \"sgd\"\nlearning_rate = 0.5"), Ok(SGD));
    assert_eq!(read("kind = \"momentum\""), Ok(MOMENTUM));
    assert_eq!(read("kind = \"adam\"\nlearning_rate = 0.1"), Ok(ADAM));
    assert_eq!(read("kind = \"yogi\"\nlearning_rate = 0.1"), Ok(YOGI));
    assert_eq!(read("kind = \"adagrad\"\nlearning_rate = 0.1"), Ok(ADAGRAD));
    assert!(read("kind = \"adam\"").unwrap_err().contains("learning_rate"));
    for bad in [
        "kind = \"sgd\"\nmomentum = 0.9",
        "kind = \"adagrad\"\nlearning_rate = 1\nbeta2 = 0.9",
        "kind = \"lion\"",
    ] {
        assert!(read(bad).is_err(), "{bad}");
    }
    for optimizer in ALL {
        assert_eq!(read(&toml::to_string(&optimizer).unwrap()), Ok(optimizer));
        assert_eq!(optimizer.validate(), Ok(()));
        assert_eq!(optimizer.keeps_state(), optimizer != SGD);
    }
}

#[test]
fn a_wrong_number_is_named() {
    let adam = |learning_rate, beta1, beta2, tau| {
        let adam = ServerOptimizer::Adam { learning_rate, beta1, beta2, tau };
        let yogi = ServerOptimizer::Yogi { learning_rate, beta1, beta2, tau };
        assert_eq!(adam.validate(), yogi.validate());
        adam.validate().unwrap_err()
    };
    assert!(adam(0.0, 0.9, 0.9, 0.1).contains("learning_rate"));
    assert!(adam(f64::NAN, 0.9, 0.9, 0.1).contains("learning_rate"));
    assert!(adam(0.1, 1.0, 0.9, 0.1).contains("beta1"));
    assert!(adam(0.1, 0.9, -0.1, 0.1).contains("beta2"));
    assert!(adam(0.1, 0.9, 0.9, f64::INFINITY).contains("tau"));
    let momentum = ServerOptimizer::Momentum { learning_rate: 1.0, momentum: f64::NAN };
    assert!(momentum.validate().unwrap_err().contains("momentum"));
    assert!(ServerOptimizer::Adagrad { learning_rate: 1.0, beta1: 0.0, tau: 0.0 }.validate().is_err());
    assert!(ServerOptimizer::Sgd { learning_rate: f64::NAN }.validate().is_err());
}

#[test]
fn sgd_moves_by_the_mean() {
    let mut w = [1.0, -1.0];
    SGD.apply(&mut SGD.start(2), &mut w, [2.0, 4.0].into_iter()).unwrap();
    assert_eq!(w, [2.0, 1.0]);
}

/// Algorithm 2 of Reddi et al. and FedAvgM of Hsu et al. for one value, in f64 throughout.
fn reference(optimizer: ServerOptimizer, deltas: &[f64]) -> f64 {
    let (mut w, mut m) = (0.5, 0.0);
    let mut v = match optimizer {
        ServerOptimizer::Adam { tau, .. }
        | ServerOptimizer::Yogi { tau, .. }
        | ServerOptimizer::Adagrad { tau, .. } => tau * tau,
        _ => 0.0,
    };
    for d in deltas {
        let d2 = d * d;
        match optimizer {
            ServerOptimizer::Sgd { learning_rate } => w += learning_rate * d,
            ServerOptimizer::Momentum { learning_rate, momentum } => {
                m = momentum * m + d;
                w += learning_rate * m;
            }
            ServerOptimizer::Adam { learning_rate, beta1, beta2, tau } => {
                m = beta1 * m + (1.0 - beta1) * d;
                v = beta2 * v + (1.0 - beta2) * d2;
                w += learning_rate * m / (v.sqrt() + tau);
            }
            ServerOptimizer::Yogi { learning_rate, beta1, beta2, tau } => {
                m = beta1 * m + (1.0 - beta1) * d;
                v -= (1.0 - beta2) * d2 * (v - d2).signum();
                w += learning_rate * m / (v.sqrt() + tau);
            }
            ServerOptimizer::Adagrad { learning_rate, beta1, tau } => {
                m = beta1 * m + (1.0 - beta1) * d;
                v += d2;
                w += learning_rate * m / (v.sqrt() + tau);
            }
        }
    }
    w
}

#[test]
fn many_rounds_follow_the_papers() {
    let deltas: Vec<f64> = (0..200).map(|i| f64::from((i * 7919) % 101 - 40) * 1e-3).collect();
    for optimizer in ALL {
        let mut state = optimizer.start(3);
        let mut weights = [0.5f32; 3];
        for (round, d) in deltas.iter().enumerate() {
            // As after a restart between any two rounds.
            state = OptimizerState::from_bytes(&optimizer, 3, &state.to_bytes()).unwrap();
            assert_eq!(state.rounds(), round as u64);
            optimizer.apply(&mut state, &mut weights, [*d, 0.0, -d].into_iter()).unwrap();
        }
        let wanted = reference(optimizer, &deltas);
        assert!(
            (f64::from(weights[0]) - wanted).abs() < 1e-4 * wanted.abs(),
            "{optimizer:?}: {} {wanted}",
            weights[0]
        );
        assert_eq!(weights[1], 0.5, "what nobody moves stays: {optimizer:?}");
        // The mirror image moves as far the other way: up to rounding.
        assert!((weights[0] + weights[2] - 1.0).abs() < 1e-4, "{optimizer:?}");
    }
}

/// Worked by hand: Δ = 0.003, τ = 0.001, so v begins at 1e-6 and Δ² is 9e-6.
#[test]
fn the_first_round_by_hand() {
    let step = |optimizer: ServerOptimizer| {
        let mut w = [0.0f32];
        optimizer.apply(&mut optimizer.start(1), &mut w, [0.003].into_iter()).unwrap();
        f64::from(w[0])
    };
    let near = |found: f64, wanted: f64| assert!((found - wanted).abs() < 1e-8, "{found} {wanted}");
    near(step(MOMENTUM), 0.003);
    near(step(ADAM), 0.1 * 0.0003 / (0.000_001_08f64.sqrt() + 0.001));
    near(step(YOGI), 0.1 * 0.0003 / (0.000_001_09f64.sqrt() + 0.001));
    near(step(ADAGRAD), 0.1 * 0.003 / (0.000_01f64.sqrt() + 0.001));
}

/// Frozen: another result on another machine, or of another version, would be another model.
#[test]
fn the_bits_are_the_same_everywhere() {
    let mut found = Vec::new();
    for optimizer in ALL {
        let mut state = optimizer.start(2);
        let mut weights = [0.1f32, -3.0];
        for round in 1..=5 {
            let mean = [0.01 / f64::from(round), -0.3 * f64::from(round)];
            optimizer.apply(&mut state, &mut weights, mean.into_iter()).unwrap();
        }
        found.push(weights.map(f32::to_bits));
    }
    assert_eq!(found, FROZEN);
}

/// From a separate program of the same formulas (Python's floats, rounded to f32 where a value is stored).
const FROZEN: [[u32; 2]; 5] = [
    [1038364268, 3232235520],
    [1043470984, 3242732741],
    [1053442860, 3228420952],
    [1053369740, 3228413452],
    [1049989236, 3227137170],
];

#[test]
fn a_state_of_another_optimiser_or_model_moves_nothing() {
    for optimizer in ALL {
        let mut weights = [1.0f32, 2.0];
        let short = optimizer.apply(&mut optimizer.start(1), &mut weights, [9.0, 9.0].into_iter());
        assert!(matches!(short, Err(StateError::Length { found: 1, wanted: 2 })));
        for other in ALL.into_iter().filter(|other| *other != optimizer) {
            let mut state = other.start(2);
            let before = state.clone();
            let found = optimizer.apply(&mut state, &mut weights, [9.0, 9.0].into_iter());
            assert!(matches!(found, Err(StateError::Kind { .. })));
            assert_eq!(state, before);
            let found = OptimizerState::from_bytes(&optimizer, 2, &state.to_bytes());
            assert!(matches!(found, Err(StateError::Kind { .. })));
        }
        assert_eq!(weights, [1.0, 2.0]);
    }
}

#[test]
fn any_damage_to_a_stored_state_is_noticed() {
    // More than a piece, so that the pieces' seams are in it.
    let len = 20_000;
    let mut state = ADAM.start(len);
    let mut weights = vec![0.0; len];
    ADAM.apply(&mut state, &mut weights, (0..len).map(|i| i as f64 * 1e-6)).unwrap();
    let bytes = state.to_bytes();
    assert_eq!(bytes.len(), state.stored_bytes());
    assert_eq!(OptimizerState::from_bytes(&ADAM, len, &bytes).unwrap(), state);
    for other in [0, len - 1, len + 1, usize::MAX] {
        let found = OptimizerState::from_bytes(&ADAM, other, &bytes);
        assert!(matches!(found, Err(StateError::Length { .. })), "{other}");
    }
    let small = ADAM.start(2).to_bytes();
    for at in 0..small.len() {
        let mut damaged = small.clone();
        damaged[at] ^= 0x10;
        assert!(OptimizerState::from_bytes(&ADAM, 2, &damaged).is_err(), "byte {at}");
        assert!(OptimizerState::from_bytes(&ADAM, 2, &small[..at]).is_err(), "cut at {at}");
    }
    let longer = [&small[..], &[0]].concat();
    assert!(matches!(OptimizerState::from_bytes(&ADAM, 2, &longer), Err(StateError::Damaged(_))));
    let mut later = small;
    later[4] = 2;
    let said = OptimizerState::from_bytes(&ADAM, 2, &later).unwrap_err().to_string();
    assert_eq!(said, "the optimiser's state has format 2, this version reads 1: update the server");
}
