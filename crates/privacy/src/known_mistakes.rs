//! Mistakes that others shipped, each as the property that must hold here.
//!
//! | label | the property | kept by |
//! |---|---|---|
//! | F1 | an adaptive clip norm moves towards its quantile | here |
//! | F2 | noise and influence follow neither replies nor weights | here |
//! | F3 | nothing gets past a clipping bound | here |
//! | F4 | local noise follows the clip norm, at any ε | here |
//! | F5 | no generator is keyed with less than it has room for, no value is left out | here; for masks there is nothing yet |
//! | F6 | an attempt is answered once | here, and in `undertone-round`, `participant`: `a_stored_update_is_sent_again_and_never_made_again`, `a_repeated_offer_repeats_the_answer_and_nothing_else` |
//! | N1, N2 | every value of a release carries noise, and without noise there is no ε | here |
//! | O1 | divisors are public | here |
//! | O2 | sampler and accountant read one number; contradictions are refused | here |
//! | T1 | the quantile is charged | here |
//! | P1 | what is enforced is the upper bound | [`accounting`] |
//! | S1 | less noise never costs less, and odometers are above the true ε | [`accounting`] |
//! | X1 | neighbours take the same path | [`crate::neighbour_replay`] |

mod accounting;

use crate::adaptive_clip::{AdaptiveClip, CountSum, Rule, WithinBit};
use crate::clip::{ClipError, RawUpdate, clip, clip_example_to_grid};
use crate::contract::{Noise, PrivacyContract};
use crate::gaussian::{analytic_delta, analytic_sigma};
use crate::ledger::population::{Budgets, Totals};
use crate::ledger::{Ledger, LedgerEntry, TransitionError};
use crate::local::LocalNoise;
use crate::noise::NoiseRng;
use crate::release::Carried;
use crate::release::{ReleaseError, release};
use crate::resolve::{ResolvedContract, Schedule};
use crate::sensitivity::Adjacency;
use proptest::prelude::*;
use std::collections::HashSet;
use undertone_core::aggregate::IntegerSum;
use undertone_core::config::parse_toml;
use undertone_core::digest::Digest;
use undertone_core::fixed::Grid;
use undertone_core::id::{Attempt, AttemptKey, JobId, Round};

const COHORT: u32 = 16;

fn grid() -> Grid {
    Grid::new(16).unwrap()
}

fn reserved(contract: PrivacyContract) -> (ResolvedContract, LedgerEntry) {
    let resolved = contract.resolve(Schedule { rounds: 3, local_steps: 2 }).unwrap();
    let key = AttemptKey { job: JobId::new("j").unwrap(), round: Round(1), attempt: Attempt(1) };
    let population = Totals::new(Budgets::default());
    let entry = Ledger::default().reserve(key, &resolved, &population).unwrap();
    let entry = entry.sampled(Digest::of(b"the cohort")).unwrap();
    (resolved, entry)
}

fn central(clip_norm: f64) -> (ResolvedContract, LedgerEntry) {
    reserved(PrivacyContract::client_central(clip_norm, Noise::Multiplier(1.0), 1e-5, 50.0).unwrap())
}

fn record() -> (ResolvedContract, LedgerEntry) {
    reserved(PrivacyContract::record_local(1.0, 0.5, Noise::Multiplier(1.0), 1e-5, 50.0).unwrap())
}

fn rule(initial: f64) -> AdaptiveClip {
    let rule =
        Rule { initial, min: 1e-6, max: 1e6, target_quantile: 0.5, learning_rate: 0.2, count_noise: 5.0 };
    AdaptiveClip::try_from(rule).unwrap()
}

/// F1, Flower to 1.41: with the sign of the feedback inverted, a clip norm of a tenth of the median was 1e-10 after 200
/// rounds. Whichever side of the median it starts on, here it comes to it.
#[test]
fn f1_the_clip_norm_moves_towards_the_median() {
    let mut rng = NoiseRng::seeded_for_tests(1);
    for start in [0.1, 0.95, 1.05, 10.0] {
        let rule = rule(start);
        let mut state = rule.start();
        for _ in 0..200 {
            let mut sum = CountSum::default();
            for client in 0..100 {
                let norm = 0.5 + (client as f32 + 0.5) / 100.0;
                sum.fold(WithinBit::of(&RawUpdate::new(vec![norm]), state.clip_norm()));
            }
            let share = sum.noised(&rule, Adjacency::AddRemove, 100.0, &mut rng).unwrap();
            state = state.after(&rule, share).unwrap();
        }
        assert!((0.8..1.25).contains(&state.clip_norm()), "from {start} to {}", state.clip_norm());
    }
}

proptest! {
    /// F2, Flower: noise was set for a mean over the cohort, while the mean was weighted and over whoever replied. Here
    /// the noise of a release is the same however many report, a weight other than 1 is refused, and one client moves
    /// the mean by at most C/n₀.
    #[test]
    fn f2_noise_and_influence_follow_neither_replies_nor_weights(
        reported in 0u32..COHORT, values in prop::collection::vec(-3f32..3.0, 6), weight in 2u32..1000, seed: u64,
    ) {
        let (contract, entry) = central(1.0);
        let fixed = clip(RawUpdate::new(values), 1.0).unwrap().to_grid(grid()).unwrap();
        let mut sum = IntegerSum::zero(grid(), 6);
        for _ in 0..reported {
            sum.fold(&[100; 6], 1).unwrap();
        }
        let mut more = sum.clone();
        more.fold(fixed.units(), 1).unwrap();
        let mean = |sum: &IntegerSum| -> Vec<f64> {
            let mut rng = NoiseRng::seeded_for_tests(seed);
            release(sum.clone(), &contract, &entry, COHORT, Carried::default(), &mut rng).unwrap().0.mean().collect()
        };
        let moved: f64 = mean(&sum).iter().zip(mean(&more)).map(|(a, b)| (a - b).powi(2)).sum();
        prop_assert!(moved.sqrt() <= 1.0 / f64::from(COHORT) + 1e-12, "{}", moved.sqrt());

        let mut weighted = sum.clone();
        weighted.fold(fixed.units(), weight).unwrap();
        let refused = release(weighted, &contract, &entry, COHORT, Carried::default(), &mut NoiseRng::seeded_for_tests(seed));
        let not_uniform = matches!(refused, Err(ReleaseError::TooHeavy { .. }));
        prop_assert!(not_uniform);
    }

    /// F3, Flower: min(1, C/‖·‖) let NaN through unclipped, made NaN of infinity and divided by zero.
    #[test]
    fn f3_no_input_gets_past_the_bound(
        mut values in prop::collection::vec(any::<f32>(), 1..20), at: prop::sample::Index, clip_norm in 0.01f64..10.0,
    ) {
        let mut sum = vec![0; values.len()];
        let finite = values.iter().all(|v| v.is_finite());
        prop_assert_eq!(clip(RawUpdate::new(values.clone()), clip_norm).is_ok(), finite);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let index = at.index(values.len());
            values[index] = bad;
            let refused = clip(RawUpdate::new(values.clone()), clip_norm);
            let not_finite = matches!(refused, Err(ClipError::NotFinite { .. }));
            prop_assert!(not_finite);
            prop_assert!(!clip_example_to_grid(&values, clip_norm, grid(), &mut sum).unwrap());
        }
        prop_assert!(sum.iter().all(|&s| s == 0));
        let zero = clip(RawUpdate::new(vec![0.0; 3]), clip_norm).unwrap().to_grid(grid()).unwrap();
        prop_assert_eq!(zero.units(), [0; 3]);
    }

    /// F4, Flower's local mechanism: a free `sensitivity` beside the clip norm, and the textbook's σ at any ε.
    #[test]
    fn f4_local_noise_follows_the_clip_norm_and_holds_at_any_epsilon(
        clip_norm in 0.01f64..5.0, log_epsilon in -6.9f64..4.6, log_delta in -27f64..-0.7,
    ) {
        let (epsilon, delta) = (log_epsilon.exp(), log_delta.exp());
        let z = analytic_sigma(epsilon, delta).unwrap();
        prop_assert!(analytic_delta(1.0 / z, epsilon) <= delta);
        // Not more than it needs, either.
        prop_assert!(analytic_delta(1.0 / (z * 0.999_999), epsilon) > delta);
        if let Ok(noise) = LocalNoise::new(clip_norm, z, Adjacency::ReplaceOne, grid()) {
            let needed = z * 2.0 * (clip_norm * 65_536.0).floor();
            prop_assert!(noise.sigma() >= needed && noise.sigma() <= needed * 1.001 + 0.001);
        }
    }
}

/// F5, Flower's masks: a secret of 256 bits was folded to the 32 that a Mersenne twister takes for a seed, so that two
/// secrets gave one mask, and the largest value of the range was never drawn. Here three hundred thousand generators begin
/// apart: of as many with 32 bits of key, ten would be expected to begin like another one.
#[test]
fn f5_generators_have_whole_keys_and_reach_the_last_value() {
    let first_words: HashSet<u64> = (0..300_000).map(|_| NoiseRng::from_os().unwrap().bits()).collect();
    assert_eq!(first_words.len(), 300_000);
    let mut rng = NoiseRng::from_os().unwrap();
    for bound in [1, 2, 3, 10, 255, 256, 257] {
        // Left out by chance: (1 - 1/bound)^(40·bound), below e^-40.
        let drawn: HashSet<u64> = (0..40 * bound).map(|_| rng.below(bound)).collect();
        assert!(drawn.contains(&0) && drawn.contains(&(bound - 1)), "below {bound}");
        assert!(drawn.iter().all(|&value| value < bound));
    }
    let (mut zeros, mut ones) = (u64::MAX, u64::MIN);
    for _ in 0..100 {
        let word = rng.bits();
        (zeros, ones) = (zeros & word, ones | word);
    }
    assert_eq!((zeros, ones), (0, u64::MAX), "each of the 64 bits is drawn both ways");
}

/// F6, Flower's clients when asked to unmask: a coordinator that named the same neighbour as there and as gone got both of
/// its shares, and so the update behind the mask. Whoever asks twice must not get two answers that together tell what each
/// hides. Here an attempt has one draw and one result: what is committed is neither drawn again nor replaced.
#[test]
fn f6_an_attempt_is_answered_once() {
    let (contract, sampled) = central(1.0);
    let mut sum = IntegerSum::zero(grid(), 4);
    sum.fold(&[100; 4], 1).unwrap();
    let mut rng = NoiseRng::seeded_for_tests(6);
    let mut draw =
        |entry: &LedgerEntry| release(sum.clone(), &contract, entry, COHORT, Carried::default(), &mut rng);
    assert!(draw(&sampled).is_ok());

    let population = Totals::new(Budgets::default());
    let mut ledger = Ledger::default();
    ledger.apply(ledger.reserve(sampled.key.clone(), &contract, &population).unwrap()).unwrap();
    ledger.apply(sampled.clone()).unwrap();
    let committed = ledger.commit(&sampled.key, Digest::of(b"one answer")).unwrap();
    ledger.apply(committed.clone()).unwrap();
    assert!(matches!(draw(&committed), Err(ReleaseError::NotReserved { .. })));
    // Asked again, it says the same; no other answer takes its place, and no other cohort.
    assert_eq!(ledger.commit(&sampled.key, Digest::of(b"one answer")).unwrap(), committed);
    let other = ledger.commit(&sampled.key, Digest::of(b"another answer"));
    assert!(matches!(other, Err(TransitionError::OtherOutput { .. })), "{other:?}");
    assert!(committed.sampled(Digest::of(b"the cohort")).is_err());
    assert!(sampled.sampled(Digest::of(b"another cohort")).is_err());
    assert!(ledger.reserve(sampled.key.clone(), &contract, &population).is_err());
    let burnt = ledger.burn(&sampled.key, "the result was lost").unwrap();
    assert!(matches!(draw(&burnt), Err(ReleaseError::NotReserved { .. })));
}

/// N1, NVFlare's sparse vectors: values left without noise, and 37 % were zeroed. N2, its percentile filter: a
/// sparsifier without noise was deployed as differential privacy. Here every value of a release under a promise carries
/// noise, the zeros of a sparse sum included, and none is dropped.
#[test]
fn n1_n2_every_value_carries_noise() {
    let (contract, entry) = central(1.0);
    let values = 100_000;
    let mut sparse = vec![0; values];
    sparse[17] = 60_000;
    let mut sum = IntegerSum::zero(grid(), values);
    sum.fold(&sparse, 1).unwrap();
    let mut rng = NoiseRng::seeded_for_tests(2);
    let mut draw = || -> Vec<f64> {
        release(sum.clone(), &contract, &entry, 1, Carried::default(), &mut rng).unwrap().0.mean().collect()
    };
    let (one, two) = (draw(), draw());
    // Two releases agree in a value with a probability of 1/(2σ√π), σ = 65536: about once in 2.3·10^5 values.
    let equal = one.iter().zip(&two).filter(|(a, b)| a == b).count();
    let zeros = one.iter().filter(|&&v| v == 0.0).count();
    assert!(equal <= 8 && zeros <= 8, "{equal} values without fresh noise, {zeros} dropped");
    // In blocks too: no stretch has less.
    for block in one.chunks(1000) {
        let deviation = (block.iter().map(|v| v * v).sum::<f64>() / 1000.0).sqrt();
        assert!((0.85..1.15).contains(&deviation), "{deviation}");
    }
}

/// N2: what promises nothing shows no number that could be taken for a promise.
#[test]
fn n2_without_noise_there_is_no_epsilon() {
    let (contract, _) = reserved(PrivacyContract::none());
    assert_eq!(
        (contract.epsilon_after(1), contract.delta(), contract.noise_multiplier()),
        (None, None, None)
    );
}

proptest! {
    /// O1, Opacus to 1.6: the divisor followed the private number of rows, which told neighbours apart. Here it is the
    /// declared number times the sampling rate, and nothing private is an argument.
    #[test]
    fn o1_divisors_are_public(declared in 0u64..1_000_000) {
        let (contract, _) = record();
        let privacy = contract.record_privacy(declared).unwrap();
        prop_assert_eq!(privacy.expected_batch, 0.5 * declared.max(1) as f64);
        // And a client-level mean has the cohort's size for a divisor, also with fewer reports.
        let (contract, entry) = central(1.0);
        let sum = IntegerSum::zero(grid(), 4);
        let mut rng = NoiseRng::seeded_for_tests(declared);
        let small: Vec<f64> = release(sum.clone(), &contract, &entry, 4, Carried::default(), &mut rng).unwrap().0.mean().collect();
        let mut rng = NoiseRng::seeded_for_tests(declared);
        let large: Vec<f64> = release(sum, &contract, &entry, 8, Carried::default(), &mut rng).unwrap().0.mean().collect();
        prop_assert!(small.iter().zip(&large).all(|(s, l)| *s == 2.0 * l));
    }

    /// O2, Opacus: a data loader changed the sampling rate behind the accountant's back, ε came out negative, and
    /// contradictory settings were taken. Here sampler, noise and accountant read one contract.
    #[test]
    fn o2_sampler_and_accountant_read_one_number(rate in 0.001f64..1.0, z in 0.3f64..50.0, rounds in 0u32..100) {
        let contract = PrivacyContract::record_local(1.0, rate, Noise::Multiplier(z), 1e-5, 1e6).unwrap();
        let (resolved, _) = reserved(contract);
        let privacy = resolved.record_privacy(100).unwrap();
        prop_assert_eq!(privacy.sampling_rate.to_bits(), rate.to_bits());
        prop_assert_eq!(privacy.noise_multiplier.to_bits(), z.to_bits());
        let epsilon = resolved.epsilon_after(rounds).unwrap();
        prop_assert!(epsilon >= 0.0 && (rounds > 0 || epsilon == 0.0));
        prop_assert!(resolved.epsilon_after(rounds + 1).unwrap() >= epsilon);
    }

    /// T1, TFF until 2021, and Opacus until 1.6: the noised quantile behind adaptive clipping was not charged. Here the
    /// update gets more noise for it, or the contract is refused.
    #[test]
    fn t1_the_quantile_is_charged(z in 0.01f64..30.0) {
        match rule(1.0).update_noise(z) {
            Ok(update) => prop_assert!(update > z),
            Err(_) => prop_assert!(z >= 10.0),
        }
    }
}

/// O2: what does not go together is refused when it is read, not patched up.
#[test]
fn o2_contradictory_terms_are_refused() {
    let read = |text: &str| parse_toml::<PrivacyContract>(text, "job.toml").map_err(|e| e.to_string());
    let good = "unit = \"client\"\ntrust = \"central\"\nclip_norm = 1.0\nnoise_multiplier = 1.0\ndelta = 1e-5\n\
                budget_epsilon = 50.0\n";
    assert!(read(good).is_ok());
    for bad in ["sampling_rate = 0.1\n", "target_epsilon = 3.0\n", "poisson = true\n"] {
        assert!(read(&format!("{good}{bad}")).is_err(), "{bad}");
    }
}
