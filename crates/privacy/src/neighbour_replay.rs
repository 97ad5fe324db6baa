//! Neighbour replay (Cebere et al. 2026, arXiv 2602.17454, found 13 violations in 12 libraries this way): the same
//! randomness over neighbouring inputs, odd ones among them. Control flow must be the same, which the number of random
//! words tells; before the noise the two may differ by at most the contract's sensitivity, and after it by the same.
//!
//! Here piece by piece; [`whole_path`] has it from what training gave to what is released, for each kind of contract.

mod whole_path;

use crate::adaptive_clip::{AdaptiveClip, CountSum, Rule, WithinBit};
use crate::clip::{RawUpdate, bound_in_units, check_norm, clip, clip_example_to_grid};
use crate::contract::{Noise, PrivacyContract};
use crate::discrete_gaussian::DiscreteGaussian;
use crate::fast_gaussian::FastGaussian;
use crate::ledger::population::{Budgets, Totals};
use crate::ledger::{Ledger, LedgerEntry};
use crate::local::LocalNoise;
use crate::noise::NoiseRng;
use crate::release::Carried;
use crate::release::{ReleaseError, release};
use crate::resolve::{ResolvedContract, Schedule, Terms};
use crate::sensitivity::{Adjacency, L2Sensitivity};
use proptest::prelude::*;
use std::collections::BTreeSet;
use undertone_core::aggregate::IntegerSum;
use undertone_core::digest::Digest;
use undertone_core::fixed::Grid;
use undertone_core::id::{Attempt, AttemptKey, JobId, Round};

const LEN: usize = 12;
/// Updates as they come in, by the number of the client.
type Clients = Vec<(u8, Vec<f32>)>;
/// A power of two, so that a mean times the divisor is exact.
const COHORT: u32 = 8;

fn grid() -> Grid {
    Grid::new(16).unwrap()
}

fn odd_value() -> impl Strategy<Value = f32> {
    let odd = vec![
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        0.0,
        -0.0,
        f32::from_bits(1),
        f32::MIN_POSITIVE / 2.0,
        1e38,
        -1e38,
        f32::MAX,
    ];
    prop_oneof![6 => -2f32..2.0, 1 => any::<f32>(), 1 => prop::sample::select(odd)]
}

/// An update that a client may send: mostly of the right length, sometimes empty or of another shape.
fn any_update() -> impl Strategy<Value = Vec<f32>> {
    prop_oneof![
        8 => prop::collection::vec(odd_value(), LEN),
        2 => prop::collection::vec(-2f32..2.0, LEN),
        1 => prop::collection::vec(odd_value(), 0..2 * LEN),
        1 => Just(vec![]),
        1 => Just(vec![0.0; LEN]),
        1 => Just(vec![1e38; LEN]),
    ]
}

/// Some of them from the same client.
fn any_clients() -> impl Strategy<Value = Clients> {
    prop::collection::vec((0u8..COHORT as u8, any_update()), 0..COHORT as usize)
}

fn contract(clip_norm: f64) -> (ResolvedContract, LedgerEntry) {
    let contract = PrivacyContract::client_central(clip_norm, Noise::Multiplier(1.0), 1e-5, 50.0).unwrap();
    let resolved = contract.resolve(Schedule { rounds: 3, local_steps: 1 }).unwrap();
    let key = AttemptKey { job: JobId::new("j").unwrap(), round: Round(1), attempt: Attempt(1) };
    let population = Totals::new(Budgets::default());
    let entry = Ledger::default().reserve(key, &resolved, &population).unwrap();
    let entry = entry.sampled(Digest::of(b"the cohort")).unwrap();
    (resolved, entry)
}

/// The path of a round: clip in the client, check and fold in the coordinator. What is bad costs its sender its place,
/// and a client counts once (the first time).
fn sum_of(clients: &Clients, clip_norm: f64) -> IntegerSum {
    let mut sum = IntegerSum::zero(grid(), LEN);
    let mut counted = BTreeSet::new();
    for (client, values) in clients {
        let Ok(clipped) = clip(RawUpdate::new(values.clone()), clip_norm) else { continue };
        let fixed = clipped.to_grid(grid()).unwrap();
        if check_norm(fixed.units(), grid(), clip_norm).is_ok()
            && !counted.contains(client)
            && sum.fold(fixed.units(), 1).is_ok()
        {
            counted.insert(client);
        }
    }
    sum
}

fn squared_distance(a: &[i64], b: &[i64]) -> u128 {
    a.iter().zip(b).map(|(a, b)| u128::from(a.abs_diff(*b)).pow(2)).sum()
}

/// The released sum in units, and the random words that it took.
fn released(sum: &IntegerSum, clip_norm: f64, seed: u64) -> (Vec<i64>, u64) {
    let (resolved, entry) = contract(clip_norm);
    let mut rng = NoiseRng::seeded_for_tests(seed);
    let (released, _) =
        release(sum.clone(), &resolved, &entry, COHORT, Carried::default(), &mut rng).unwrap();
    let divisor = f64::from(COHORT) * grid().units_per_one();
    (released.mean().map(|m| (m * divisor) as i64).collect(), rng.words_drawn())
}

/// The neighbours of a cohort: without client `who`, and with another update of its in place of all it sent.
fn neighbours(clients: &Clients, who: u8, other: Vec<f32>) -> (Clients, Clients) {
    let without: Vec<_> = clients.iter().filter(|(c, _)| *c != who).cloned().collect();
    let mut replaced = without.clone();
    replaced.push((who, other));
    (without, replaced)
}

proptest! {
    #[test]
    fn client_level_release(
        clients in any_clients(), who in 0u8..COHORT as u8, other in any_update(), clip_norm in 0.01f64..5.0, seed: u64,
    ) {
        let bound = u128::from(bound_in_units(clip_norm, grid()).unwrap());
        let (without, replaced) = neighbours(&clients, who, other);
        let [all, without, replaced] = [&clients, &without, &replaced].map(|c| sum_of(c, clip_norm));
        for (a, b, contributions) in [(&all, &without, 1), (&replaced, &without, 1), (&all, &replaced, 2)] {
            let distance = squared_distance(a.units(), b.units());
            prop_assert!(distance <= (contributions * bound).pow(2), "{distance}");
            let ((a_units, a_words), (b_units, b_words)) =
                (released(a, clip_norm, seed), released(b, clip_norm, seed));
            prop_assert_eq!(a_words, b_words);
            // The noise is the same, whatever it was added to, so that nothing but the sum moves the release.
            prop_assert_eq!(squared_distance(&a_units, &b_units), distance);
            prop_assert_eq!(a_units.len(), LEN);
        }
    }

    #[test]
    fn fast_path(
        clients in any_clients(), who in 0u8..COHORT as u8, other in any_update(), clip_norm in 0.01f64..5.0, seed: u64,
    ) {
        let (without, replaced) = neighbours(&clients, who, other);
        let (resolved, _) = contract(clip_norm);
        let Terms::ClientCentral(terms) = resolved.terms() else { panic!("a central contract") };
        let noise = FastGaussian::for_clipped_sum(terms, clip_norm, grid()).unwrap();
        let results = [&clients, &without, &replaced].map(|clients| {
            let sum = sum_of(clients, clip_norm);
            let (mut units, mut rng) = (sum.units().to_vec(), NoiseRng::seeded_for_tests(seed));
            noise.add_to(&mut units, &mut rng);
            (sum.into_units(), units, rng.words_drawn())
        });
        for (before, after, words) in &results {
            prop_assert_eq!(*words, results[0].2);
            prop_assert_eq!(squared_distance(after, &results[0].1), squared_distance(before, &results[0].0));
        }
    }

    /// DP-SGD: one example more, whatever it is.
    #[test]
    fn record_level_batch(
        examples in prop::collection::vec(prop::collection::vec(odd_value(), LEN), 0..10),
        extra in prop::collection::vec(odd_value(), LEN), clip_norm in 0.01f64..5.0, seed: u64,
    ) {
        let noised = |examples: &[Vec<f32>]| {
            let mut sum = vec![0; LEN];
            for example in examples {
                clip_example_to_grid(example, clip_norm, grid(), &mut sum).unwrap();
            }
            let (mut rng, before) = (NoiseRng::seeded_for_tests(seed), sum.clone());
            DiscreteGaussian::for_clipped_sum(1.0, clip_norm, grid()).unwrap().add_to(&mut sum, &mut rng);
            (before, sum, rng.words_drawn())
        };
        let mut more = examples.clone();
        more.push(extra);
        let (one, two) = (noised(&examples), noised(&more));
        let distance = squared_distance(&one.0, &two.0);
        prop_assert!(distance <= u128::from(bound_in_units(clip_norm, grid()).unwrap()).pow(2));
        prop_assert_eq!(one.2, two.2);
        prop_assert_eq!(squared_distance(&one.1, &two.1), distance);
    }

    /// Local noise: any two messages of one client, and that of a client with nothing to say.
    #[test]
    fn local_message(
        one in prop::collection::vec(odd_value(), LEN), two in prop::collection::vec(odd_value(), LEN),
        clip_norm in 0.01f64..5.0, seed: u64,
    ) {
        for (adjacency, others) in [(Adjacency::ReplaceOne, vec![&one, &two]), (Adjacency::AddRemove, vec![&one])] {
            let noise = LocalNoise::new(clip_norm, 1.0, adjacency, grid()).unwrap();
            let message = |values: &Vec<f32>| {
                let mut rng = NoiseRng::seeded_for_tests(seed);
                let message = match clip(RawUpdate::new(values.clone()), clip_norm) {
                    Ok(clipped) => noise.privatise(&clipped, &mut rng).unwrap(),
                    Err(_) => noise.absent(LEN, &mut rng),
                };
                let units = message.into_vector().units().iter().map(|&u| i64::from(u)).collect::<Vec<_>>();
                (units, rng.words_drawn())
            };
            let silent = message(&vec![f32::NAN; LEN]);
            let messages: Vec<_> = others.into_iter().map(message).chain([silent]).collect();
            let sensitivity = L2Sensitivity::of_clipped(clip_norm, grid(), adjacency).unwrap();
            prop_assert_eq!(noise.sensitivity(), sensitivity);
            for (a, b) in messages.iter().zip(&messages[1..]) {
                prop_assert_eq!(a.1, b.1);
                prop_assert!(squared_distance(&a.0, &b.0) <= u128::from(sensitivity.units()).pow(2));
            }
        }
    }

    /// The count behind an adaptive clip norm.
    #[test]
    fn clip_count(
        clients in any_clients(), who in 0u8..COHORT as u8, other in any_update(), clip_norm in 0.01f64..5.0, seed: u64,
    ) {
        let rule = Rule {
            initial: 1.0, min: 0.01, max: 10.0, target_quantile: 0.5, learning_rate: 0.2, count_noise: 1.0,
        };
        let rule = AdaptiveClip::try_from(rule).unwrap();
        let share = |clients: &Clients| {
            let mut sum = CountSum::default();
            let first: std::collections::BTreeMap<_, _> = clients.iter().rev().cloned().collect();
            first.into_values().for_each(|values| sum.fold(WithinBit::of(&RawUpdate::new(values), clip_norm)));
            let mut rng = NoiseRng::seeded_for_tests(seed);
            let share = sum.noised(&rule, Adjacency::AddRemove, f64::from(COHORT), &mut rng).unwrap();
            (share.value(), rng.words_drawn())
        };
        let (without, replaced) = neighbours(&clients, who, other);
        let [all, without, replaced] = [&clients, &without, &replaced].map(share);
        for (a, b, half_clients) in [(all, without, 1.0), (replaced, without, 1.0), (all, replaced, 2.0)] {
            prop_assert_eq!(a.1, b.1);
            prop_assert!((a.0 - b.0).abs() <= half_clients * 0.5 / f64::from(COHORT) + 1e-12);
        }
    }
}

#[test]
fn a_client_that_got_in_twice_is_more_than_the_cohort() {
    // Should the rule that a client counts once fail, a full cohort betrays it.
    let (resolved, entry) = contract(1.0);
    let mut sum = IntegerSum::zero(grid(), LEN);
    for _ in 0..=COHORT {
        sum.fold(&[1; LEN], 1).unwrap();
    }
    let e = release(sum, &resolved, &entry, COHORT, Carried::default(), &mut NoiseRng::seeded_for_tests(1))
        .unwrap_err();
    assert!(matches!(e, ReleaseError::Cohort { updates: 9, cohort_size: 8 }), "{e}");
}
