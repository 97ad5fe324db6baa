//! Who is drawn, how often at least, and what a release says about one canary.

use super::*;

fn draw(rate: f64, population: u32, cap: u32) -> Draw {
    Draw { rate, population, cap, noise_multiplier: 0.7 }
}

#[test]
fn the_least_rate_is_one_and_close() {
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    for (rate, population, cap) in
        [(0.1, 400, 40), (0.1, 400, 60), (0.5, 100, 20), (1.0, 50, 25), (0.3, 60, 60)]
    {
        let draw = draw(rate, population, cap);
        let names: Vec<_> = (0..population).map(|i| ClientId::new(format!("c{i}")).unwrap()).collect();
        let drawn: usize = (0..2000).map(|_| draw.cohort().draw(&names, &mut rng).unwrap().len()).sum();
        let found = drawn as f64 / 2000.0 / f64::from(population);
        let least = draw.least_rate();
        assert!(least <= found * 1.01 && least > 0.9 * found, "{draw:?}: {least} of {found}");
        assert!(least <= rate);
    }
}

#[test]
fn the_ratio_is_that_of_the_densities_and_bears_extremes() {
    let draw = draw(0.2, 100, 50);
    for seen in [-3.0f64, 0.0, 0.4, 1.0, 2.5] {
        let density = |mean: f64| (-(seen - mean).powi(2) / (2.0 * 0.49)).exp();
        let exact = ((0.8 * density(0.0) + 0.2 * density(1.0)) / density(0.0)).ln();
        assert!((draw.log_likelihood_ratio(seen) - exact).abs() < 1e-12, "{seen}");
    }
    let quiet = Draw { noise_multiplier: 1e-3, ..draw };
    let everyone = Draw { rate: 1.0, ..draw };
    assert!((quiet.log_likelihood_ratio(1.0) - 5e5).abs() < 2.0);
    assert!((quiet.log_likelihood_ratio(0.0) - 0.8f64.ln()).abs() < 1e-12);
    assert!((everyone.log_likelihood_ratio(1.0) - 0.5 / 0.49).abs() < 1e-12);
}

#[test]
fn canaries_are_drawn_like_anyone_and_alone_in_their_coordinate() {
    let plan = crate::resolve::Schedule { rounds: 3, local_steps: 1 };
    let noise = crate::contract::Noise::Multiplier(1.0);
    let contract = crate::contract::PrivacyContract::client_central(0.5, noise, 1e-5, 50.0).unwrap();
    let cohort = Cohort::new(CohortRule::Poisson { rate: 0.25, population: 40, cap: 12, min_clients: 1 });
    let contract = contract.resolve_for(plan, &cohort).unwrap();
    let (draw, grid) = (Draw::of(&contract).unwrap(), Grid::new(16).unwrap());
    assert_eq!((draw.people(), draw.canaries()), (40, 20));
    let coins: Vec<bool> = (0..20).map(|i| i % 2 == 0).collect();
    let population = Population::gather(&contract, draw, grid, &coins).unwrap();
    assert_eq!((population.names.len(), population.updates.len()), (30, 10));
    assert!(population.names.is_sorted());
    let mut rng = ChaCha20Rng::seed_from_u64(2);
    let (mut hits, mut others) = ([0u32; 20], 0);
    for _ in 0..4000 {
        let sum = population.sum(draw, &mut rng).unwrap();
        assert!(sum.updates() <= 12);
        let mut in_this = 0;
        for (hits, &units) in hits.iter_mut().zip(sum.units()) {
            assert!(units == 0 || units == 32_768, "{units}");
            *hits += u32::from(units != 0);
            in_this += u32::from(units != 0);
        }
        others += sum.updates() - in_this;
    }
    // Each about 0.244 of 4000 times (the cap takes a little), give or take six standard deviations (27).
    for (hits, included) in hits.iter().zip(coins) {
        assert!(if included { (810..1150).contains(hits) } else { *hits == 0 }, "{hits}");
    }
    let rate = f64::from(others) / 20.0 / 4000.0;
    assert!((draw.least_rate() - 0.01..=0.25).contains(&rate), "{rate}");
}
