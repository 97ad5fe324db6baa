//! From what training gave to what is released, for each kind of contract: clip, grid, noise where the contract has it, the
//! receiver's check, fold, release. The sensitivity is the one that the contract's own mechanism has.
//!
//! A cohort that is drawn is replayed as it came out: the draw is decided before any update is seen, and the empty one is
//! among those replayed.

use super::*;
use crate::contract::CentralMechanism;
use crate::dp_sgd::{GradientMechanism, poisson_batch};
use crate::release::Carried;
use crate::release::Counted;
use undertone_core::cohort::{Cohort, CohortRule};

/// One path over one input.
#[derive(Debug, Clone, PartialEq)]
struct Replayed {
    /// What the noise is added to, in units of the grid.
    before: Vec<i64>,
    /// What leaves, in the same units.
    after: Vec<i64>,
    /// Random words taken.
    words: u64,
}

/// What must hold of two neighbours.
fn compare(a: &Replayed, b: &Replayed, sensitivity: L2Sensitivity) -> Result<(), String> {
    let (before, after) = (squared_distance(&a.before, &b.before), squared_distance(&a.after, &b.after));
    let most = u128::from(sensitivity.units()).pow(2);
    if (a.before.len(), a.after.len()) != (b.before.len(), b.after.len()) {
        Err("what leaves has another shape".into())
    } else if a.words != b.words {
        Err(format!("{} random words, and {} for a neighbour", a.words, b.words))
    } else if before > most {
        Err(format!("a squared distance of {before} before the noise, above {most}"))
    } else if after != before {
        Err(format!("a squared distance of {after} after the noise, not {before}"))
    } else {
        Ok(())
    }
}

/// A contract, and the entry of an attempt that may be released.
fn reserve(resolved: ResolvedContract) -> (ResolvedContract, LedgerEntry) {
    let key = AttemptKey { job: JobId::new("j").unwrap(), round: Round(1), attempt: Attempt(1) };
    let entry = Ledger::default().reserve(key, &resolved, &Totals::new(Budgets::default())).unwrap();
    let entry = entry.sampled(Digest::of(b"the cohort")).unwrap();
    (resolved, entry)
}

const PLAN: Schedule = Schedule { rounds: 3, local_steps: 2 };

/// The contracts under which the coordinator adds the noise, with what a round counts on. Denominators are powers of two,
/// so that a mean times its divisor is exact.
fn central(clip_norm: f64) -> Vec<(ResolvedContract, LedgerEntry, Counted)> {
    let contract = PrivacyContract::client_central(clip_norm, Noise::Multiplier(1.0), 1e-5, 90.0).unwrap();
    let replace = contract.with_adjacency(Adjacency::ReplaceOne).unwrap();
    let drawn = Cohort::new(CohortRule::Poisson { rate: 0.25, population: 16, cap: COHORT, min_clients: 1 });
    let counted = Counted { most: drawn.size(), denominator: drawn.denominator(), fresh_weight: None };
    let limited: Cohort = serde_json::from_value(serde_json::json!({
        "rule": "uniform", "size": COHORT, "min_clients": 1, "participations": 1, "separation": 1,
    }))
    .unwrap();
    let moving = crate::adaptive_clip::Rule {
        initial: clip_norm,
        min: clip_norm,
        max: clip_norm,
        target_quantile: 0.5,
        learning_rate: 0.2,
        count_noise: 5.0,
    };
    [
        (contract.resolve(PLAN), COHORT.into()),
        (replace.resolve(PLAN), COHORT.into()),
        (contract.resolve_for(PLAN, &drawn), counted),
        (contract.with_mechanism(CentralMechanism::FastGaussian).unwrap().resolve(PLAN), COHORT.into()),
        (contract.with_mechanism(CentralMechanism::Blt).unwrap().resolve_for(PLAN, &limited), COHORT.into()),
        (contract.with_adaptive_clip(moving.try_into().unwrap()).unwrap().resolve(PLAN), COHORT.into()),
    ]
    .map(|(resolved, counted)| {
        let (resolved, entry) = reserve(resolved.unwrap());
        (resolved, entry, counted)
    })
    .into()
}

fn released_centrally(
    clients: &Clients,
    (contract, entry, counted): &(ResolvedContract, LedgerEntry, Counted),
    seed: u64,
) -> Replayed {
    let sum = sum_of(clients, contract.contract().clip_norm().unwrap());
    let before = sum.units().to_vec();
    let mut rng = NoiseRng::seeded_for_tests(seed);
    let (released, _) = release(sum, contract, entry, *counted, Carried::default(), &mut rng).unwrap();
    let divisor = counted.denominator * grid().units_per_one();
    let after = released.mean().map(|mean| (mean * divisor) as i64).collect();
    Replayed { before, after, words: rng.words_drawn() }
}

/// Client level, noise by the coordinator: with a client, without it, with another update of its.
fn replay_central(
    contracts: &[(ResolvedContract, LedgerEntry, Counted)],
    clients: &Clients,
    who: u8,
    other: &[f32],
    seed: u64,
) -> Result<(), String> {
    let (without, replaced) = neighbours(clients, who, other.to_vec());
    for contract in contracts {
        let Terms::ClientCentral(terms) = contract.0.terms() else { panic!("a central contract") };
        let sensitivity = terms.sensitivity(terms.clip_norm(None), grid()).unwrap();
        let [all, without, replaced] =
            [clients, &without, &replaced].map(|clients| released_centrally(clients, contract, seed));
        compare(&all, &without, sensitivity)?;
        compare(&replaced, &without, sensitivity)?;
        if contract.0.adjacency() == Some(Adjacency::ReplaceOne) {
            compare(&all, &replaced, sensitivity)?;
        }
    }
    Ok(())
}

/// What one client has to send: what training gave, if it gave something fit.
fn clipped(values: &[f32], clip_norm: f64) -> Option<crate::clip::ClippedUpdate> {
    let fits = values.len() == LEN;
    fits.then(|| clip(RawUpdate::new(values.to_vec()), clip_norm).ok()).flatten()
}

/// Client level, noise by each client: everyone sends, whatever it has. One message is delivered twice.
fn released_locally(
    updates: &[Vec<f32>],
    contract: &ResolvedContract,
    entry: &LedgerEntry,
    seed: u64,
) -> Replayed {
    let Terms::ClientLocal(terms) = contract.terms() else { panic!("a local contract") };
    let noise = terms.noise(grid()).unwrap();
    let (mut sum, mut before, mut words) = (IntegerSum::zero(grid(), LEN), vec![0; LEN], 0);
    let mut counted = BTreeSet::new();
    for (client, values) in updates.iter().enumerate() {
        // Clients draw apart.
        let mut rng = NoiseRng::seeded_for_tests(seed.wrapping_add(client as u64));
        let message = match clipped(values, noise.clip_norm()) {
            Some(update) => {
                let fixed = update.to_grid(grid()).unwrap();
                before.iter_mut().zip(fixed.units()).for_each(|(sum, &units)| *sum += i64::from(units));
                noise.privatise(&update, &mut rng).unwrap()
            }
            None => noise.absent(LEN, &mut rng),
        };
        words += rng.words_drawn();
        let message = message.into_vector();
        for _delivery in 0..2 {
            check_norm(message.units(), grid(), noise.message_bound(LEN)).unwrap();
            if counted.insert(client) {
                sum.fold(message.units(), 1).unwrap();
            }
        }
    }
    let mut rng = NoiseRng::seeded_for_tests(seed);
    let (released, _) =
        release(sum, contract, entry, updates.len() as u32, Carried::default(), &mut rng).unwrap();
    // Post-processing: the coordinator draws nothing.
    words += rng.words_drawn();
    assert_eq!(rng.words_drawn(), 0);
    let divisor = updates.len() as f64 * grid().units_per_one();
    Replayed { before, after: released.mean().map(|mean| (mean * divisor).round() as i64).collect(), words }
}

/// Client level, noise by each client: one of them has another update, or none.
fn replay_local(
    updates: &[Vec<f32>],
    who: usize,
    other: &[f32],
    clip_norm: f64,
    seed: u64,
) -> Result<(), String> {
    for adjacency in [Adjacency::ReplaceOne, Adjacency::AddRemove] {
        let contract = PrivacyContract::client_local(clip_norm, Noise::Multiplier(1.0), 1e-5, 90.0).unwrap();
        let contract = contract.with_adjacency(adjacency).unwrap().resolve(PLAN).unwrap();
        let (contract, entry) = reserve(contract);
        let Terms::ClientLocal(terms) = contract.terms() else { panic!("a local contract") };
        let sensitivity = terms.noise(grid()).unwrap().sensitivity();
        let of = |values: &[f32]| {
            let mut updates = updates.to_vec();
            updates[who] = values.to_vec();
            released_locally(&updates, &contract, &entry, seed)
        };
        let (one, silent) = (of(&updates[who]), of(&[]));
        compare(&one, &silent, sensitivity)?;
        compare(&of(other), &silent, sensitivity)?;
        if adjacency == Adjacency::ReplaceOne {
            compare(&one, &of(other), sensitivity)?;
        }
    }
    Ok(())
}

/// Record level: one noisy step of a client, and what becomes of the update. Coins of the batch and noise are from
/// generators of their own, as in training; the coins of a row do not depend on the others' number.
fn stepped(rows: &[Vec<f32>], contract: &ResolvedContract, entry: &LedgerEntry, seed: u64) -> Replayed {
    let privacy = contract.record_privacy(64).unwrap();
    let mechanism = GradientMechanism::new(&privacy).unwrap();
    let mut coins = NoiseRng::seeded_for_tests(!seed);
    let (mut sum, mut before) = (mechanism.empty_sum(LEN), vec![0; LEN]);
    for row in poisson_batch(rows.len(), privacy.sampling_rate, || coins.bits()) {
        clip_example_to_grid(&rows[row], mechanism.clip_norm(), mechanism.grid(), &mut before).unwrap();
        sum.add(&rows[row]);
    }
    let mut rng = NoiseRng::seeded_for_tests(seed);
    let noised = sum.noised(&mut rng);
    let words = rng.words_drawn();
    let divisor = privacy.expected_batch * mechanism.grid().units_per_one();
    let after = noised.mean().map(|mean| (mean * divisor) as i64).collect();

    // The rest is post-processing, and takes no randomness.
    let update = noised.mean().map(|mean| (-0.1 * mean) as f32).collect();
    let fixed = clip(RawUpdate::new(update), 100.0).unwrap().to_grid(grid()).unwrap();
    check_norm(fixed.units(), grid(), 100.0).unwrap();
    let mut sum = IntegerSum::zero(grid(), LEN);
    sum.fold(fixed.units(), 1).unwrap();
    let (released, _) = release(sum, contract, entry, COHORT, Carried::default(), &mut rng).unwrap();
    assert_eq!(rng.words_drawn(), words);
    assert!(released.mean().zip(fixed.decode()).all(|(mean, sent)| mean as f32 == sent));
    Replayed { before, after, words }
}

/// Record level: one row more.
fn replay_record(rows: &[Vec<f32>], extra: &[f32], clip_norm: f64, seed: u64) -> Result<(), String> {
    for rate in [0.5, 1.0] {
        let contract =
            PrivacyContract::record_local(clip_norm, rate, Noise::Multiplier(1.0), 1e-5, 90.0).unwrap();
        let (contract, entry) = reserve(contract.resolve(PLAN).unwrap());
        let more = [rows, &[extra.to_vec()]].concat();
        let grid = GradientMechanism::new(&contract.record_privacy(64).unwrap()).unwrap().grid();
        let sensitivity = L2Sensitivity::of_clipped(clip_norm, grid, Adjacency::AddRemove).unwrap();
        compare(
            &stepped(rows, &contract, &entry, seed),
            &stepped(&more, &contract, &entry, seed),
            sensitivity,
        )?;
    }
    Ok(())
}

proptest! {
    // Each case resolves several contracts.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn central_contracts(
        clients in any_clients(), who in 0u8..COHORT as u8, other in any_update(), clip_norm in 0.01f64..5.0, seed: u64,
    ) {
        prop_assert_eq!(replay_central(&central(clip_norm), &clients, who, &other, seed), Ok(()));
    }

    #[test]
    fn local_contracts(
        updates in prop::collection::vec(any_update(), 1..6), who: prop::sample::Index, other in any_update(),
        clip_norm in 0.01f64..5.0, seed: u64,
    ) {
        let who = who.index(updates.len());
        prop_assert_eq!(replay_local(&updates, who, &other, clip_norm, seed), Ok(()));
    }

    #[test]
    fn record_contracts(
        rows in prop::collection::vec(prop::collection::vec(odd_value(), LEN), 0..10),
        extra in prop::collection::vec(odd_value(), LEN), clip_norm in 0.01f64..5.0, seed: u64,
    ) {
        prop_assert_eq!(replay_record(&rows, &extra, clip_norm, seed), Ok(()));
    }
}

/// Each oddity for certain, alone and throughout, from a client that is there once, twice, or by itself.
#[test]
fn every_oddity_under_every_contract() {
    let odd = [
        f32::NAN,
        -f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        0.0,
        -0.0,
        f32::from_bits(1),
        -f32::MIN_POSITIVE / 2.0,
        1e38,
        -1e38,
        f32::MAX,
    ];
    let usual: Vec<f32> = (0..LEN).map(|i| 0.3 - 0.1 * i as f32).collect();
    let one_of =
        |value: f32| usual.iter().enumerate().map(|(i, &v)| if i == 5 { value } else { v }).collect();
    let mut updates: Vec<Vec<f32>> =
        odd.into_iter().flat_map(|value| [vec![value; LEN], one_of(value)]).collect();
    let rows = updates.clone();
    updates.extend([vec![], vec![0.5; LEN - 1], vec![0.5; LEN + 1], vec![f32::NAN; 1]]);
    let contracts = [0.01, 0.7].map(|clip_norm| (clip_norm, central(clip_norm)));
    for (seed, update) in updates.iter().enumerate() {
        for (clip_norm, contracts) in &contracts {
            let (seed, one) = (seed as u64, (1u8, update.clone()));
            let twice = vec![one.clone(), (2, usual.clone()), one.clone(), (1, usual.clone())];
            for clients in [vec![one], twice, vec![(2, usual.clone())], vec![]] {
                assert_eq!(replay_central(contracts, &clients, 1, &usual, seed), Ok(()), "{clients:?}");
                assert_eq!(replay_central(contracts, &clients, 1, update, seed), Ok(()), "{clients:?}");
            }
            let others = [update.clone(), usual.clone()];
            for who in [0, 1] {
                assert_eq!(replay_local(&others, who, update, *clip_norm, seed), Ok(()), "{update:?}");
            }
        }
    }
    for (seed, row) in rows.iter().enumerate() {
        assert_eq!(replay_record(&[], row, 0.7, seed as u64), Ok(()), "{row:?}");
        assert_eq!(replay_record(&rows, row, 0.7, seed as u64), Ok(()), "{row:?}");
    }
}

/// Where nothing is promised nothing is drawn, and what is bad still leaves no trace in the sum.
#[test]
fn without_a_promise_no_noise_is_drawn() {
    let (contract, entry) = reserve(PrivacyContract::none().resolve(PLAN).unwrap());
    let good = vec![(1, vec![0.25; LEN])];
    let bad = [good.clone(), vec![(2, vec![f32::NAN; LEN]), (3, vec![]), (1, vec![9.0; LEN])]].concat();
    for clients in [good, bad] {
        let mut rng = NoiseRng::seeded_for_tests(1);
        let (released, _) =
            release(sum_of(&clients, 5.0), &contract, &entry, COHORT, Carried::default(), &mut rng).unwrap();
        assert!(released.mean().all(|mean| mean == 0.25));
        assert_eq!(rng.words_drawn(), 0);
    }
}

/// The replay finds what it is for: noise for a nearer neighbour, no clipping, silence in place of noise, a value dropped,
/// noise that depends on what it is added to.
#[test]
fn violations_are_found() {
    let clip_norm = 0.7;
    let contract = &central(clip_norm)[0];
    let [one, opposite] = [1.0f32, -1.0].map(|v| released_centrally(&vec![(1, vec![v; LEN])], contract, 7));
    let sensitivity = |adjacency| L2Sensitivity::of_clipped(clip_norm, grid(), adjacency).unwrap();
    let near = sensitivity(Adjacency::AddRemove);
    assert_eq!(compare(&one, &opposite, sensitivity(Adjacency::ReplaceOne)), Ok(()));
    let e = compare(&one, &opposite, near).unwrap_err();
    assert!(e.contains("before the noise"), "{e}");

    let nobody = released_centrally(&vec![], contract, 7);
    assert_eq!(compare(&one, &nobody, near), Ok(()));
    let mut unclipped = one.clone();
    unclipped.before.iter_mut().zip(&mut unclipped.after).for_each(|(b, a)| (*b, *a) = (*b * 9, *a * 9));
    for (broken, says) in [
        (unclipped, "before the noise"),
        (Replayed { words: 0, ..nobody.clone() }, "random words"),
        (Replayed { after: nobody.before.clone(), ..nobody.clone() }, "after the noise"),
        (Replayed { after: vec![], ..nobody.clone() }, "another shape"),
        (Replayed { words: one.words, ..released_centrally(&vec![], contract, 8) }, "after the noise"),
    ] {
        let e = compare(&one, &broken, near).unwrap_err();
        assert!(e.contains(says), "{e}");
    }
}
