use super::*;
use crate::nn::made::{self, P, every_kind, made};
use crate::nn::to_vec;
use proptest::prelude::*;
use tch::Kind;
use undertone_core::shape::Input;
use undertone_core::trainer::{RecordMechanism, RecordPrivacy};
use undertone_privacy::dp_sgd::SENSITIVITY_MARGIN;
use undertone_privacy::noise::NoiseRng;

const CLIP: f64 = 0.3;

/// With the least noise there is, and a divisor of one: the mean is the clipped sum.
fn mechanism(mechanism: RecordMechanism) -> GradientMechanism {
    let (clip_norm, noise_multiplier, sampling_rate, expected_batch) = (CLIP, 1e-6, 1.0, 1.0);
    GradientMechanism::new(&RecordPrivacy {
        clip_norm,
        noise_multiplier,
        sampling_rate,
        expected_batch,
        mechanism,
    })
    .unwrap()
}

fn weights(network: &Network, scale: f64) -> Weights {
    let flat = made::weights(network, scale, 8).to_kind(Kind::Float);
    Weights::whole(network.layout(), &flat).unwrap()
}

fn choose<'a>(
    network: &'a Network,
    mechanism: &GradientMechanism,
    views: i64,
) -> Result<Engine<'a>, Failure> {
    let (x, _) = made::rows(network, 1, 3, 1);
    Engine::choose(network, &weights(network, 0.5), mechanism, &made::single(&x), views)
}

fn sum(engine: &Engine<'_>, mechanism: &GradientMechanism, scale: f64, x: &Tensor, y: &Tensor) -> Vec<f64> {
    let weights = engine.prepared(weights(engine.network, scale)).unwrap();
    let mut sum = mechanism.empty_sum(engine.network.len());
    engine.add(&weights, x, y, &mut sum).unwrap();
    sum.noised(&mut NoiseRng::from_os().unwrap()).mean().collect()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
}

fn classes(name: &str) -> usize {
    if name.contains("tied") { 5 } else { 3 }
}

/// Every way to sum, whatever the rule would take.
fn every_way<'a>(network: &'a Network, views: i64) -> Vec<(Engine<'a>, GradientMechanism)> {
    let (exact, fast) =
        (mechanism(RecordMechanism::DiscreteGaussian), mechanism(RecordMechanism::FastGaussian));
    let of = |mechanism: &GradientMechanism, way| {
        let mut engine = choose(network, mechanism, views).unwrap();
        engine.way = way;
        (engine, *mechanism)
    };
    let clipping = fast.float_clipping().unwrap();
    vec![
        of(&exact, Way::PerExample),
        of(&exact, Way::OneByOne),
        of(&fast, Way::OneByOne),
        of(&fast, Way::BookKeeping(clipping)),
        of(&fast, Way::Ghost(clipping)),
    ]
}

#[test]
fn all_ways_give_the_sum_of_clipped_gradients() {
    for (name, network) in every_kind() {
        for views in [1, 3] {
            let (x, _) = made::rows(&network, 8 * views, classes(name), 2);
            let (_, y) = made::rows(&network, 8, classes(name), 2);
            let x = made::single(&x);
            // By the definition.
            let followed = weights(&network, 0.5).followed().unwrap();
            let rows = to_vec(&one_by_one(&network, &followed, &x, &y, views as i64).unwrap()).unwrap();
            let mut wanted = vec![0.0; network.len()];
            let mut clipped = 0;
            for row in rows.chunks(network.len()) {
                let norm = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
                clipped += u32::from(norm > CLIP);
                wanted.iter_mut().zip(row).for_each(|(w, &v)| *w += f64::from(v) * (CLIP / norm).min(1.0));
            }
            assert!(clipped > 0, "{name}: nothing to clip");
            for (engine, mechanism) in every_way(&network, views as i64) {
                let found = sum(&engine, &mechanism, 0.5, &x, &y);
                let error = distance(&found, &wanted) / CLIP;
                assert!(error < 1e-3, "{name}, {}, {views} views: {error}", engine.name());
            }
        }
    }
}

/// NaN, infinity, and finite values whose gradients are not, in every way and anywhere in a batch.
#[test]
fn examples_that_are_not_finite_count_as_zero() {
    for (name, network) in every_kind() {
        if name.contains("embedding") || name.contains("positions") {
            continue; // Tokens are always finite.
        }
        let (x, y) = made::rows(&network, 6, 3, 3);
        let x = made::single(&x);
        let good = [0i64, 2, 3, 5];
        let of = |t: &Tensor| t.index_select(0, &Tensor::from_slice(&good));
        for bad in [f64::NAN, f64::INFINITY, 3e38] {
            let spoilt = x.copy();
            for row in [1, 4] {
                let _ = spoilt.get(row).fill_(bad);
            }
            for (engine, mechanism) in every_way(&network, 1) {
                let without = sum(&engine, &mechanism, 0.5, &of(&x), &of(&y));
                let with = sum(&engine, &mechanism, 0.5, &spoilt, &y);
                assert!(with.iter().all(|v| v.is_finite()), "{name}, {}, {bad}", engine.name());
                if bad != 3e38 {
                    let error = distance(&with, &without) / CLIP;
                    assert!(error < 1e-3, "{name}, {}, {bad}: {error}", engine.name());
                }
                // Whatever they come to: no more than two clip norms.
                let moved = distance(&with, &without) / CLIP;
                assert!(
                    moved <= 2.0 * (1.0 + SENSITIVITY_MARGIN),
                    "{name}, {}, {bad}: {moved}",
                    engine.name()
                );
            }
        }
        let none = x.full_like(f64::NAN);
        for (engine, mechanism) in every_way(&network, 1) {
            let found = sum(&engine, &mechanism, 0.5, &none, &y);
            assert!(distance(&found, &vec![0.0; found.len()]) < 1e-4, "{name}, {}", engine.name());
        }
    }
}

/// What is dropped differs from pass to pass: there is no second one for the sake of an example that is left out.
#[test]
fn an_example_that_is_left_out_costs_no_other_one_its_mask() {
    let mechanism = mechanism(RecordMechanism::FastGaussian);
    // Another scale in each pass of training, as dropout has another mask.
    let network = || {
        let passes = std::sync::atomic::AtomicU32::new(0);
        made(Input::features(7), 3, &[&[5, 7], &[5], &[3, 5], &[3]], move |pass, x| {
            let scale = match pass.trains() {
                true => 1.0 + f64::from(passes.fetch_add(1, std::sync::atomic::Ordering::Relaxed)),
                false => 1.0,
            };
            let h = pass.linear(x, P(0), Some(P(1)))?.f_tanh()?.f_mul_scalar(scale)?;
            pass.linear(&h, P(2), Some(P(3)))
        })
        .dropping()
    };
    let (x, y) = made::rows(&network(), 6, 3, 3);
    let x = made::single(&x);
    let summed = |x: &Tensor, y: &Tensor| {
        let network = network();
        let engine = choose(&network, &mechanism, 1).unwrap();
        assert_eq!(engine.name(), "book-keeping");
        sum(&engine, &mechanism, 0.5, x, y)
    };
    let good = Tensor::from_slice(&[0i64, 2, 3, 5]);
    let without = summed(&x.index_select(0, &good), &y.index_select(0, &good));
    for row in [1, 4] {
        let _ = x.get(row).fill_(f64::NAN);
    }
    let error = distance(&summed(&x, &y), &without) / CLIP;
    assert!(error < 1e-3, "{error}");
}

#[test]
fn the_contract_and_the_memory_choose() {
    let (exact, fast) =
        (mechanism(RecordMechanism::DiscreteGaussian), mechanism(RecordMechanism::FastGaussian));
    for (name, network) in every_kind() {
        assert_eq!(choose(&network, &exact, 1).unwrap().name(), "per-example", "{name}");
        assert_eq!(choose(&network, &fast, 1).unwrap().name(), "book-keeping", "{name}");
    }
    // Two uses of different kinds leave a whole gradient for each example, of eight million values.
    let tied = |vocabulary: usize| {
        let input = Input::Tokens { length: 2, vocabulary };
        made(input, vocabulary, &[&[vocabulary, 64]], |pass, x| {
            let h = pass.embedding(x, P(0))?.f_mean_dim(1i64, false, None::<Kind>)?;
            pass.linear(&h, P(0), None)
        })
    };
    assert_eq!(choose(&tied(300), &fast, 1).unwrap().name(), "book-keeping");
    let large = tied(120_000);
    let engine = choose(&large, &fast, 1).unwrap();
    assert_eq!(engine.name(), "ghost");
    assert!((1..16).contains(&engine.at_once(256)), "{}", engine.at_once(256));
    assert_eq!(choose(&large, &exact, 1).unwrap().name(), "per-example");
    // A ghost passes the others again where it leaves one out, and what each comes to would hang on two masks.
    assert_eq!(choose(&large.dropping(), &fast, 1).unwrap().name(), "book-keeping");
}

#[test]
fn parameters_behind_the_books_are_found_one_by_one() {
    let network = made(Input::features(4), 3, &[&[3, 4], &[3]], |pass, x| {
        let y = pass.linear(x, P(0), None)?;
        y.f_add(pass.value(P(1)))
    });
    let (x, y) = made::rows(&network, 5, 3, 4);
    let x = made::single(&x);
    for mechanism in [mechanism(RecordMechanism::DiscreteGaussian), mechanism(RecordMechanism::FastGaussian)]
    {
        let engine = choose(&network, &mechanism, 1).unwrap();
        assert_eq!(engine.name(), "one-by-one");
        let found = sum(&engine, &mechanism, 0.5, &x, &y);
        assert!(found[12..].iter().all(|v| v.abs() > 1e-4), "{found:?}");
    }
}

#[test]
fn a_module_that_mixes_examples_is_refused() {
    let centred = made(Input::features(4), 3, &[&[3, 4]], |pass, x| {
        let y = pass.linear(x, P(0), None)?;
        y.f_sub(&y.f_mean_dim(0i64, true, None::<Kind>)?)
    });
    let e = choose(&centred, &mechanism(RecordMechanism::FastGaussian), 1).unwrap_err();
    let TrainerError::Unsupported(text) = TrainerError::from(e) else { panic!() };
    assert!(text.contains("depends on the others in its batch") && text.contains("GroupNorm"), "{text}");
}

#[test]
fn no_piece_is_so_large_that_rounding_outgrows_its_margin() {
    for (name, network) in every_kind() {
        let engine = choose(&network, &mechanism(RecordMechanism::FastGaussian), 1).unwrap();
        for batch in [0usize, 1, 7, 256, 8192, 1 << 20] {
            let at_once = engine.at_once(batch);
            let times = engine.footprint.times as f64;
            let error = 8.0 * at_once as f64 * (batch as f64 * times).sqrt() / f64::from(1u32 << 24);
            assert!(at_once >= 1 && (error <= SENSITIVITY_MARGIN / 2.0 || at_once == 1), "{name}, {batch}");
        }
    }
}

/// Whichever parameter it is that a sum over time goes to.
#[test]
fn pieces_are_small_where_many_points_in_time_add_up() {
    let text = || Input::Tokens { length: 512, vocabulary: 9 };
    let over_time = |t: Tensor| t.f_mean_dim(1i64, false, None::<Kind>);
    let embedding = made(text(), 3, &[&[9, 3]], move |pass, x| over_time(pass.embedding(x, P(0))?));
    let scale = made(Input::Series { steps: 512, features: 3 }, 3, &[&[3], &[3]], move |pass, x| {
        over_time(pass.layer_norm(x, P(0), P(1), 1e-5)?)
    });
    let fast = mechanism(RecordMechanism::FastGaussian);
    for (network, views) in [(&embedding, 1), (&scale, 1), (&embedding, 2)] {
        let engine = choose(network, &fast, views).unwrap();
        assert_eq!(engine.footprint.times, 512 * views);
        let error = 8.0 * engine.at_once(256) as f64 * (256.0 * 512.0 * views as f64).sqrt();
        assert!(error / f64::from(1u32 << 24) <= SENSITIVITY_MARGIN / 2.0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    /// What one example moves, in the batch as it is computed: rounding of all the others included.
    #[test]
    fn an_example_more_moves_the_sum_by_its_clip_norm_and_the_margin(
        kind in 0usize..11, rows in 1usize..40, scale in 0.05f64..3.0, size in -3i32..6, seed in 0u64..1_000_000,
    ) {
        let (name, network) = every_kind().remove(kind);
        let (x, y) = made::rows(&network, rows + 1, classes(name), seed);
        let x = made::single(&x);
        if x.kind() == Kind::Float {
            // The one that is added may be far out.
            let mut last = x.get(rows as i64);
            let _ = last.f_mul_scalar_(10f64.powi(size)).unwrap();
        }
        for (engine, mechanism) in every_way(&network, 1) {
            let with = sum(&engine, &mechanism, scale, &x, &y);
            let less = |t: &Tensor| t.narrow(0, 0, rows as i64);
            let without = sum(&engine, &mechanism, scale, &less(&x), &less(&y));
            let moved = distance(&with, &without) / CLIP;
            prop_assert!(moved <= 1.0 + SENSITIVITY_MARGIN, "{name}, {}: {moved}", engine.name());
        }
    }
}
