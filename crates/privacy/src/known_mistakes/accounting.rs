//! Mistakes in what is charged.

use super::*;
use crate::gaussian::analytic_epsilon;
use crate::ledger::ReserveError;
use crate::rdp::RdpCurve;
use crate::rdp::filter::RdpFilter;
use crate::resolve::ContractError;
use undertone_core::cohort::{Cohort, CohortRule};

const DELTA: f64 = 1e-5;

/// A contract of each kind that is charged: with the noise multiplier, over the rounds, within the budget.
fn kinds(z: f64, rounds: u32, budget: f64) -> Vec<Result<ResolvedContract, ContractError>> {
    let noise = Noise::Multiplier(z);
    let plan = Schedule { rounds, local_steps: 2 };
    let drawn = Cohort::new(CohortRule::Poisson { rate: 0.2, population: 500, cap: 150, min_clients: 1 });
    let central = PrivacyContract::client_central(1.0, noise, DELTA, budget).unwrap();
    vec![
        central.resolve(plan),
        central.with_adjacency(Adjacency::ReplaceOne).unwrap().resolve(plan),
        central.resolve_for(plan, &drawn),
        PrivacyContract::client_local(1.0, noise, DELTA, budget).unwrap().resolve(plan),
        PrivacyContract::record_local(1.0, 0.2, noise, DELTA, budget).unwrap().resolve(plan),
    ]
}

/// P1, pfl-research: of the lower bound, the estimate and the upper bound that its accountant gave, it took the estimate,
/// so that the true ε could lie above what was told. Here what is told, charged and held against the budget is the upper
/// bound, and a budget between the two bounds is not enough.
#[test]
fn p1_what_is_enforced_is_the_upper_bound() {
    for (kind, contract) in kinds(1.2, 5, 100.0).into_iter().enumerate() {
        let contract = contract.unwrap();
        let interval = contract.epsilon_interval_after(5).unwrap();
        assert!(interval.lower < interval.upper, "kind {kind}: {interval:?}");
        assert_eq!(contract.epsilon_after(5), Some(interval.upper));

        let between = 0.5 * (interval.lower + interval.upper);
        let refused = kinds(1.2, 5, between).swap_remove(kind).unwrap_err();
        assert!(matches!(refused, ContractError::OverBudget { fits: 4, .. }), "kind {kind}: {refused}");
        // Room for a round fewer, and the ledger stops there too.
        let shorter = kinds(1.2, 4, between).swap_remove(kind).unwrap();
        let (population, mut ledger) = (Totals::new(Budgets::default()), Ledger::default());
        let mut reserve = |round| {
            let key = AttemptKey { job: JobId::new("j").unwrap(), round: Round(round), attempt: Attempt(1) };
            let entry = ledger.reserve(key, &shorter, &population)?;
            assert_eq!(entry.epsilon_after, shorter.epsilon_after(round));
            ledger.apply(entry).unwrap();
            Ok(())
        };
        assert!((1..=4).all(|round| reserve(round).is_ok()));
        assert!(matches!(reserve(5), Err(ReserveError::BudgetSpent(_))), "kind {kind}");
    }
}

/// δ of one Gaussian release on a Poisson sample, with one more contribution, exactly: q·δ(log(1 + (e^ε - 1)/q)) of the
/// release without sampling.
fn sampled_delta(z: f64, q: f64, epsilon: f64) -> f64 {
    q * analytic_delta(1.0 / z, libm::log1p(libm::expm1(epsilon) / q))
}

proptest! {
    // Each case queries the accountant some dozens of times.
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// P1: the upper bound is one, and not far away.
    #[test]
    fn p1_the_upper_bound_is_above_the_truth(z in 0.5f64..8.0, rounds in 1u32..200, q in 0.01f64..0.99) {
        let central = PrivacyContract::client_central(1.0, Noise::Multiplier(z), DELTA, 1e6).unwrap();
        let central = central.resolve(Schedule { rounds, local_steps: 1 }).unwrap();
        let truth = analytic_epsilon(f64::from(rounds).sqrt() / z, DELTA);
        let told = central.epsilon_after(rounds).unwrap();
        // The closed form is itself rounded up, by less than one part in 10^9.
        prop_assert!(told >= truth * (1.0 - 2e-9) && told <= truth * 1.001 + 1e-6, "{} of {}", told, truth);

        let record = PrivacyContract::record_local(1.0, q, Noise::Multiplier(z), DELTA, 1e6).unwrap();
        let record = record.resolve(Schedule { rounds: 1, local_steps: 1 }).unwrap();
        let interval = record.epsilon_interval_after(1).unwrap();
        prop_assert!(sampled_delta(z, q, interval.upper) <= DELTA * (1.0 + 1e-9), "{interval:?}");
        prop_assert!(interval.lower == 0.0 || sampled_delta(z, q, interval.lower * 0.999) >= DELTA, "{interval:?}");
    }

    /// S1, PySyft: an argument the wrong way round, and a query with less noise was charged less. Here it costs more,
    /// and so does another round.
    #[test]
    fn s1_less_noise_and_more_rounds_cost_more(z in 0.6f64..6.0, factor in 1.05f64..2.0, rounds in 1u32..20) {
        let (loud, quiet) = (kinds(z * factor, rounds + 1, 1e6), kinds(z, rounds + 1, 1e6));
        for (loud, quiet) in loud.into_iter().zip(quiet) {
            let (loud, quiet) = (loud.unwrap(), quiet.unwrap());
            prop_assert!(loud.epsilon_after(rounds) < quiet.epsilon_after(rounds));
            prop_assert!(quiet.epsilon_after(rounds) < quiet.epsilon_after(rounds + 1));
        }
    }
}

proptest! {
    /// S1, SmartNoise: the formula of its odometer had lost a logarithm, so that it showed less than was spent. Here the
    /// odometer of the population, which bounds what is chosen after results were seen, is never below what the same
    /// releases cost if they are fixed in advance, which is known exactly.
    #[test]
    fn s1_the_odometer_is_above_the_exact_loss(
        multipliers in prop::collection::vec((0.5f64..20.0, 1u64..30), 1..8), epsilon in 0.5f64..20.0, log_delta in -23f64..-2.0,
    ) {
        let delta = log_delta.exp();
        let plan = RdpCurve::new(1.0, 1.0).unwrap();
        let mut filter = RdpFilter::planned(epsilon, delta, &plan).unwrap();
        let mut squares = 0.0;
        for (z, count) in multipliers {
            filter.charge(&RdpCurve::new(z, 1.0).unwrap(), count);
            squares += count as f64 / (z * z);
            let exact = analytic_epsilon(squares.sqrt(), delta);
            prop_assert!(filter.odometer() >= exact, "{} is below {}", filter.odometer(), exact);
            // What the filter lets through at all is within its ε.
            prop_assert!(filter.share_spent() > 1.0 || exact <= epsilon * (1.0 + 1e-9));
        }
    }
}
