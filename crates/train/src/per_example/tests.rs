//! Every formula against autograd, one example after the other.

use super::books::{Books, Ghost};
use super::*;
use crate::nn::made::{self, every_kind};
use crate::nn::to_vec;
use proptest::prelude::*;
use tch::Device;
use undertone_core::model::{Activation, ModelSpec};
use undertone_core::shape::{Shape, Target};

fn whole(network: &Network, flat: &Tensor) -> Weights {
    Weights::whole(network.layout(), flat).unwrap()
}

fn joined(parts: &[Tensor]) -> Tensor {
    Tensor::cat(parts, 0)
}

/// What everything has to equal, in double precision.
fn by_loop(network: &Network, flat: &Tensor, x: &Tensor, y: &Tensor, views: i64) -> Tensor {
    one_by_one(network, &whole(network, flat).followed().unwrap(), x, y, views).unwrap()
}

fn norm(t: &Tensor) -> Tensor {
    t.square().sum_dim_intlist(-1, false, Kind::Double).sqrt()
}

/// Largest difference of a row, relative to the row's norm.
fn worst(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    (norm(&(&a - &b)) / norm(&b).clamp_min(1e-30)).max().double_value(&[])
}

/// The largest relative errors of gradients, norms and weighted sums, in each of the ways to them.
fn errors(network: &Network, flat: &Tensor, x: &Tensor, y: &Tensor, views: i64, wanted: &Tensor) -> Vec<f64> {
    let examples = y.size()[0];
    let factors = Tensor::from_slice(&(0..examples).map(|i| 1.0 / (1 + i) as f64).collect::<Vec<_>>());
    let sum = (wanted * factors.unsqueeze(1)).sum_dim_intlist(0, false, Kind::Double);
    // Gradients may cancel in a sum: what rounding is measured against is what went in.
    let scale = (norm(wanted) * &factors).square().sum(Kind::Double).sqrt().double_value(&[]);
    let off = |found: &Tensor| norm(&(found.to_kind(Kind::Double) - &sum)).double_value(&[]) / scale;
    let norms = norm(wanted);
    let off_norms = |squared: &Tensor| ((squared.sqrt() - &norms) / &norms).abs().max().double_value(&[]);
    let factors = factors.to_kind(flat.kind());

    let weights = whole(network, flat);
    let found = joined_gradients(network, &weights, x, y, views).unwrap();
    assert!(!found.requires_grad() && found.kind() == flat.kind());
    let tape = |weights: &Weights, keep| Tape::record(network, weights, x, y, views, keep).unwrap();
    assert!(tape(&weights, false).is_complete(&weights));
    let books = Books::of(tape(&weights, false), &weights).unwrap();
    let followed = whole(network, flat).followed().unwrap();
    let ghost = Ghost::of(tape(&followed, true), &followed).unwrap();
    let mut errors = vec![worst(&found, wanted)];
    errors.extend([off_norms(books.squared_norms()), off(&joined(&books.weighted_sums(&factors).unwrap()))]);
    errors.push(off_norms(ghost.squared_norms()));
    errors.push(off(&ghost.weighted_sum(&factors, &followed).unwrap()));
    errors
}

/// Both precisions, against the loop in double precision.
#[track_caller]
fn compare(
    name: &str,
    network: &Network,
    examples: usize,
    classes: usize,
    views: usize,
    scale: f64,
    seed: u64,
) {
    let flat = made::weights(network, scale, seed);
    let (x, _) = made::rows(network, examples * views, classes, seed);
    let (_, y) = made::rows(network, examples, classes, seed);
    // The loop gets the values that single precision has.
    let (flat, x) = (flat.to_kind(Kind::Float), made::single(&x));
    let doubled =
        |t: &Tensor| if t.kind() == Kind::Float { t.to_kind(Kind::Double) } else { t.shallow_clone() };
    let wanted = by_loop(network, &doubled(&flat), &doubled(&x), &y, views as i64);
    let single = errors(network, &flat, &x, &y, views as i64, &wanted);
    assert!(single.iter().all(|e| *e < 1e-5), "{name}, {examples} by {views}: {single:?}");
    let double = errors(network, &doubled(&flat), &doubled(&x), &y, views as i64, &wanted);
    assert!(double.iter().all(|e| *e < 1e-9), "{name}, {examples} by {views}, double: {double:?}");
}

fn specs() -> Vec<ModelSpec> {
    let mlp = |hidden: &[usize], activation| ModelSpec::Mlp { hidden: hidden.to_vec(), activation, seed: 0 };
    vec![
        ModelSpec::Logistic {},
        mlp(&[10], Activation::Relu),
        mlp(&[10], Activation::Tanh),
        mlp(&[9, 1, 4], Activation::Relu),
        mlp(&[9, 1, 4], Activation::Tanh),
    ]
}

#[test]
fn the_built_in_models_equal_a_loop_over_examples() {
    for spec in specs() {
        for classes in [2, 3] {
            let network = Network::new(&spec, &Shape::table(7, classes)).unwrap();
            compare(&format!("{spec:?}"), &network, 33, classes, 1, 0.5, 1);
        }
    }
}

/// Models as they are trained: recurrent cells, attention, convolutions, embeddings and normalisation, one behind the other.
#[test]
fn every_built_in_model_equals_a_loop_over_examples() {
    for (spec, shape) in crate::nn::tests::every_kind() {
        let network = Network::new(&spec, &shape).unwrap();
        let classes = match shape.target {
            Target::Class { classes } => classes,
            Target::Number => 3,
        };
        for (examples, views) in [(5, 1), (2, 3)] {
            compare(&format!("{spec} on {}", shape.input), &network, examples, classes, views, 0.3, 9);
        }
    }
}

/// Small values behind large ones: in one f32 sum none of them would be left.
#[test]
fn a_long_norm_is_not_too_short() {
    let small = 2f32.powf(-11.55);
    for count in [1usize << 22, (1 << 22) + 5] {
        let mut values = vec![small; count];
        values[..16].fill(1.0);
        let found = formula::squares(&Tensor::from_slice(&values).view([1, -1])).unwrap().double_value(&[0]);
        let wanted: f64 = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        assert!((found / wanted - 1.0).abs() < 1e-4, "{found}, not {wanted}");
    }
}

/// Equal tokens whose gradients cancel to what rounding leaves: the norm is not believed.
#[test]
fn what_cancels_is_clipped_by_what_rounding_could_be() {
    let times = 4096i64;
    let values: Vec<f32> = (0..times).map(|t| if t % 2 == 0 { 1.0 } else { -1.0 }).collect();
    let gradient = Gradient::Rows {
        places: Tensor::zeros([1, times], (Kind::Int64, Device::Cpu)),
        values: Tensor::from_slice(&values).view([1, times, 1]),
        vocabulary: 2,
    };
    let found = { gradient }.squared_norms(true).unwrap().double_value(&[0]).sqrt();
    // Σ‖v‖ = 4096 on the way, λ·u·√4096 of it twice over 2^-8.
    let error = 8.0 / f64::from(1u32 << 24) * 64.0 * 4096.0;
    assert!((found * 2f64.powi(-8) / error - 1.0).abs() < 1e-3, "{found}");
}

#[test]
fn every_kind_of_layer_equals_a_loop_over_examples() {
    for (name, network) in every_kind() {
        let classes = network.layout().tensors().last().map_or(3, |_| outputs(name));
        compare(name, &network, 9, classes, 1, 0.5, 3);
        compare(name, &network, 1, classes, 1, 0.5, 4);
    }
}

/// Several views of an example are one example, with the mean of their gradients.
#[test]
fn views_are_averaged_before_norms() {
    for (name, network) in every_kind() {
        compare(name, &network, 4, outputs(name), 3, 0.5, 5);
    }
}

fn outputs(name: &str) -> usize {
    if name.contains("tied") { 5 } else { 3 }
}

/// Examples that are taken off the books leave those of the others, in any form, with views, and of any part.
#[test]
fn books_of_some_are_the_books_of_those_alone() {
    for (name, network) in every_kind() {
        for (views, part) in [(1, false), (3, false), (1, true)] {
            let flat = made::weights(&network, 0.5, 7).to_kind(Kind::Float);
            let (x, _) = made::rows(&network, 6 * views, outputs(name), 7);
            let (_, y) = made::rows(&network, 6, outputs(name), 7);
            let x = made::single(&x);
            let weights = match part {
                false => whole(&network, &flat),
                true => {
                    // Every second tensor: weights without their biases, and the other way round.
                    let tensors = network.layout().ranges().step_by(2);
                    let (names, values): (Vec<String>, Vec<Tensor>) = tensors
                        .map(|(t, r)| (t.name.clone(), flat.narrow(0, r.start as i64, r.len() as i64)))
                        .unzip();
                    let part = network.layout().part(&names).unwrap();
                    Weights::of(network.layout(), &part, &Tensor::cat(&values, 0), &flat).unwrap()
                }
            };
            let books = |x: &Tensor, y: &Tensor| {
                Books::of(Tape::record(&network, &weights, x, y, views as i64, false).unwrap(), &weights)
                    .unwrap()
            };
            let good = [0i64, 2, 5];
            let rows: Vec<i64> = good
                .iter()
                .flat_map(|i| (0..views as i64).map(move |view| i * views as i64 + view))
                .collect();
            let chosen = |t: &Tensor, places: &[i64]| t.index_select(0, &Tensor::from_slice(places));
            let some = books(&x, &y).of_some(&good).unwrap();
            let alone = books(&chosen(&x, &rows), &chosen(&y, &good));
            let factors = Tensor::from_slice(&[0.5f32, 1.0, 0.25]);
            let off = |a: &Tensor, b: &Tensor| {
                let norm =
                    |t: &Tensor| t.to_kind(Kind::Double).square().sum(Kind::Double).sqrt().double_value(&[]);
                norm(&(a - b)) / norm(b).max(1e-30)
            };
            let [of_some, of_them] =
                [&some, &alone].map(|books| joined(&books.weighted_sums(&factors).unwrap()));
            let found = [off(some.squared_norms(), alone.squared_norms()), off(&of_some, &of_them)];
            assert!(found.iter().all(|off| *off < 1e-5), "{name}, {views} views, part {part}: {found:?}");
        }
    }
}

/// The gradient of a part is that part of the gradient, whatever is left out; so are norms and sums.
#[test]
fn they_are_of_the_part_that_is_trained() {
    for (name, network) in every_kind() {
        let layout = network.layout();
        let flat = made::weights(&network, 0.5, 6).to_kind(Kind::Float);
        let (x, y) = made::rows(&network, 5, outputs(name), 6);
        let x = made::single(&x);
        let all = to_vec(&joined_gradients(&network, &whole(&network, &flat), &x, &y, 1).unwrap()).unwrap();
        let names: Vec<String> = layout.tensors().iter().map(|t| t.name.clone()).collect();
        for chosen in 1..1usize << names.len() {
            let of = |i: &usize| chosen & (1 << i) != 0;
            let patterns: Vec<String> = (0..names.len()).filter(of).map(|i| names[i].clone()).collect();
            let part = layout.part(&patterns).unwrap();
            let trained = Tensor::from_slice(&part.gather(&to_vec(&flat).unwrap()));
            let weights = Weights::of(layout, &part, &trained, &flat).unwrap();
            let found = joined_gradients(&network, &weights, &x, &y, 1).unwrap();
            assert_eq!(found.size(), [5, part.len() as i64]);
            let wanted: Vec<f32> = all.chunks(network.len()).flat_map(|row| part.gather(row)).collect();
            let wanted = Tensor::from_slice(&wanted).view([5, -1]);
            let scale = norm(&wanted).max().double_value(&[]);
            let close = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]) <= 1e-6 * scale;
            assert!(close(&found, &wanted), "{name} {patterns:?}");
            let tape = Tape::record(&network, &weights, &x, &y, 1, false).unwrap();
            let books = Books::of(tape, &weights).unwrap();
            assert!(close(&books.squared_norms().sqrt(), &norm(&wanted)), "{name} {patterns:?}");
            let ones = Tensor::ones([5], (Kind::Float, Device::Cpu));
            let sum = joined(&books.weighted_sums(&ones).unwrap());
            let wanted = wanted.sum_dim_intlist(0, false, Kind::Float);
            assert!((sum - wanted).abs().max().double_value(&[]) < 5e-6 * scale, "{name} {patterns:?}");
        }
    }
}

#[test]
fn no_rows_have_no_gradients() {
    let network = Network::new(&specs()[1], &Shape::table(7, 3)).unwrap();
    let flat = Tensor::zeros([network.len() as i64], (Kind::Float, Device::Cpu));
    let x = Tensor::zeros([0, 7], (Kind::Float, Device::Cpu));
    let y = Tensor::zeros([0], (Kind::Int64, Device::Cpu));
    let none = joined_gradients(&network, &whole(&network, &flat), &x, &y, 1).unwrap();
    assert_eq!(none.size(), [0, network.len() as i64]);
}

/// Inputs so large and gradients so small that their products are below what f32 has: together they are not.
#[test]
fn norms_whose_products_are_too_small_for_f32_are_not_lost() {
    use super::outer::Outer;
    for (large, small) in [(1e18, 1e-22), (1e10, 1e-21), (1.0, 1e-25)] {
        for times in [1, 3] {
            let of = |value: f64, width| Tensor::full([2, times, width], value, (Kind::Float, Device::Cpu));
            for (inputs, outputs) in [(of(large, 4), of(small, 2)), (of(small, 4), of(large, 2))] {
                let wanted = (times * times) as f64 * 4.0 * 2.0 * (large * small).powi(2);
                let of_bias = (times * times) as f64
                    * outputs.size()[2] as f64
                    * outputs.double_value(&[0, 0, 0]).powi(2);
                for biased in [false, true] {
                    let mut outer = Outer::new(inputs.shallow_clone(), outputs.shallow_clone(), 0);
                    if biased {
                        outer.join_bias();
                    }
                    let wanted = wanted + if biased { of_bias } else { 0.0 };
                    let found = f64::try_from(outer.squared_norms().unwrap().min()).unwrap();
                    assert!(
                        found >= wanted * (1.0 - 1e-5),
                        "{large} {small} {times} {biased}: {found} of {wanted}"
                    );
                }
            }
        }
    }
}

/// Gradients that cancel over time: their computed norm could be anything, so it is taken for more.
#[test]
fn norms_that_rounding_could_have_made_are_not_believed() {
    let (examples, times, width) = (3, 20, 8);
    let a = Tensor::from_slice(&made::normal(width * 3, 1)).view([3, 1, width as i64]).to_kind(Kind::Float);
    let signs: Vec<f32> = (0..times).map(|t| if t % 2 == 0 { 1.0 } else { -1.0 }).collect();
    let signs = Tensor::from_slice(&signs).view([1, times, 1]);
    // Equal inputs whose gradients are opposite: the sum is zero, and its terms are not.
    let inputs = a.repeat([1, times, 1]);
    let outputs = &a * &signs;
    let lengths = |t: &Tensor| t.square().sum_dim_intlist(-1, false, Kind::Double);
    let trace = (lengths(&inputs) * lengths(&outputs)).sum_dim_intlist(1, false, Kind::Double);
    let outer = outer::Outer::new(inputs, outputs, 0);
    let squared = outer.squared_norms().unwrap();
    assert_eq!(squared.size(), [examples]);
    assert!((squared / trace).min().double_value(&[]) > 1e-4);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn they_equal_a_loop_over_examples_for_any_model(
        model in 0usize..5, classes in prop::sample::select(vec![2usize, 3, 5]),
        rows in 1usize..9, views in 1usize..4, scale in 0.01f64..0.7, seed in 0u64..1_000_000,
    ) {
        let network = Network::new(&specs()[model], &Shape::table(7, classes)).unwrap();
        compare("a built-in model", &network, rows, classes, views, scale, seed);
    }

    #[test]
    fn they_equal_a_loop_over_examples_for_any_layer(
        kind in 0usize..11, rows in 1usize..9, views in 1usize..4, scale in 0.05f64..0.7, seed in 0u64..1_000_000,
    ) {
        let (name, network) = every_kind().remove(kind);
        compare(name, &network, rows, outputs(name), views, scale, seed);
    }
}
