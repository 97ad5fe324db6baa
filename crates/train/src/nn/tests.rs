use super::*;
use crate::per_example;
use proptest::prelude::*;
use tch::{Kind, Reduction};
use undertone_core::model::Activation;
use undertone_core::shape::{Input, Target};

/// A model of each kind, small, with the shapes it reads: every layer kind is among them.
pub(crate) fn every_kind() -> Vec<(ModelSpec, Shape)> {
    let picture = |channels, height, width| Input::Image { channels, height, width };
    let (text, series) =
        (Input::Tokens { length: 6, vocabulary: 11 }, Input::Series { steps: 5, features: 3 });
    let columns = Input::Features { columns: vec![1, 3, 2] };
    let (two, three, number) = (Target::Class { classes: 2 }, Target::Class { classes: 3 }, Target::Number);
    let cnn = "kind = \"cnn\"\nactivation = \"tanh\"\nhidden = [6]\n";
    [
        ("kind = \"logistic\"".into(), columns.clone(), three),
        ("kind = \"linear\"".into(), columns.clone(), number),
        ("kind = \"mlp\"\nhidden = [9, 4]\nactivation = \"gelu\"".into(), picture(2, 3, 2), two),
        (
            format!("{cnn}blocks = [{{ channels = 4, kernel = 4, stride = 2, padding = 1, pool = {{ kernel = 2, stride = 1 }} }}, {{ channels = 6, kernel = 2 }}]"),
            picture(1, 10, 9),
            three,
        ),
        (
            format!("{cnn}norm = \"group\"\ngroups = 2\nblocks = [{{ channels = 4, kernel = 3, padding = 1, pool = {{ kind = \"average\", kernel = 2 }} }}]"),
            picture(3, 6, 6),
            two,
        ),
        ("kind = \"resnet18\"\nwidth = 4\ngroups = 2".into(), picture(3, 8, 8), three),
        ("kind = \"resnet18\"\nwidth = 2\ngroups = 1\nstem = \"large\"".into(), picture(1, 33, 40), number),
        ("kind = \"lstm\"\nhidden = 5\nlayers = 2\nembedding = 4".into(), text.clone(), three),
        ("kind = \"lstm\"\nhidden = 5".into(), series.clone(), number),
        ("kind = \"gru\"\nhidden = 5\nlayers = 2".into(), series.clone(), two),
        ("kind = \"gru\"\nhidden = 4".into(), text.clone(), number),
        ("kind = \"transformer\"\nwidth = 8\nheads = 2\nlayers = 2\npooling = \"class\"".into(), text.clone(), three),
        ("kind = \"transformer\"\nwidth = 6\nheads = 3\nlayers = 1\nactivation = \"gelu\"".into(), text, two),
        ("kind = \"transformer\"\nwidth = 8\nheads = 1\nlayers = 1\nfeed_forward = 5".into(), series, three),
        ("kind = \"transformer\"\nwidth = 8\nheads = 2\nlayers = 2\npooling = \"class\"".into(), columns, number),
    ]
    .into_iter()
    .map(|(toml, input, target): (String, _, _)| (toml::from_str(&toml).unwrap(), Shape { input, target }))
    .collect()
}

/// Made-up weights near the initial ones, examples and truth. libtorch's generator is global, and tests run side by side:
/// so these draws come from ours.
fn case(spec: &ModelSpec, shape: &Shape, examples: i64, seed: u64) -> (Network, Tensor, Tensor, Tensor) {
    use rand::RngExt as _;
    let network = Network::new(spec, shape).unwrap();
    let mut rng = crate::sampling::sampling_rng(Some(seed), &[]).unwrap();
    let start = spec.initial_values(shape);
    let flat: Vec<f32> = start.iter().map(|w| w + rng.random_range(-0.2..0.2)).collect();
    let dimensions: Vec<i64> =
        std::iter::once(examples).chain(shape.input.dimensions().iter().map(|&n| n as i64)).collect();
    let count = examples as usize * shape.input.len();
    let x = match shape.input {
        Input::Tokens { vocabulary, .. } => {
            // Every third is padding, wherever it stands.
            let token = |_| if rng.random_bool(0.3) { 0 } else { rng.random_range(1..vocabulary as i64) };
            Tensor::from_slice(&(0..count).map(token).collect::<Vec<i64>>())
        }
        _ => Tensor::from_slice(&(0..count).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>()),
    };
    let y = match shape.target {
        Target::Class { classes } => {
            Tensor::from_slice(&(0..examples).map(|i| (i * i + i / 3) % classes as i64).collect::<Vec<i64>>())
        }
        Target::Number => Tensor::from_slice(&(0..examples).map(|i| i as f32 / 3.0).collect::<Vec<f32>>()),
    };
    (network, Tensor::from_slice(&flat), x.view(&dimensions[..]), y)
}

fn double(x: &Tensor) -> Tensor {
    if x.is_floating_point() { x.to_kind(Kind::Double) } else { x.shallow_clone() }
}

/// Largest difference of a row, relative to the row's norm.
fn worst(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    let norm = |t: &Tensor| t.square().sum_dim_intlist(1, false, Kind::Double).sqrt();
    (norm(&(&a - &b)) / norm(&b).clamp_min(1e-30)).max().double_value(&[])
}

/// What per-example gradients have to equal: a loop of autograd over single examples, through libtorch's own layers.
fn by_loop(network: &Network, flat: &Tensor, x: &Tensor, y: &Tensor) -> Tensor {
    let weights = Weights::whole(network.layout(), flat).unwrap().followed().unwrap();
    let row = |i| {
        let logits = network.forward(&weights, &x.narrow(0, i, 1)).unwrap();
        let loss = network.objective().loss(&logits, &y.narrow(0, i, 1), Reduction::Sum).unwrap();
        weights.gradient(&loss).unwrap()
    };
    Tensor::stack(&(0..x.size()[0]).map(row).collect::<Vec<_>>(), 0)
}

/// How far the gradients move, in double precision, where weights and inputs are off by no more than single precision's rounding. (A
/// number that is predicted almost right leaves a gradient of rounding errors, whoever computes it.)
fn moved(network: &Network, flat: &Tensor, x: &Tensor, y: &Tensor, wanted: &Tensor, seed: u64) -> f64 {
    use rand::RngExt as _;
    let mut rng = crate::sampling::sampling_rng(Some(seed), &[1.0]).unwrap();
    let mut rounded = |t: &Tensor| {
        if !t.is_floating_point() {
            return t.shallow_clone();
        }
        let signs: Vec<f64> = (0..t.numel()).map(|_| if rng.random() { 1.0 } else { -1.0 }).collect();
        double(t) * (Tensor::from_slice(&signs).view(&t.size()[..]) * f64::from(f32::EPSILON) + 1.0)
    };
    let once = |_| worst(&by_loop(network, &rounded(flat), &rounded(x), y), wanted);
    (0..4).map(once).fold(0.0, f64::max)
}

/// To 1e-10 in double precision, which tells the formulas, and in single precision to 1e-5 or, for a draw whose gradient nearly
/// cancels, to `times` what single precision's rounding of weights and inputs comes to there.
fn gradients_equal_the_loop(spec: &ModelSpec, shape: &Shape, examples: i64, seed: u64, times: f64) {
    let (network, flat, x, y) = case(spec, shape, examples, seed);
    let of = |flat: &Tensor, x: &Tensor| {
        let weights = Weights::whole(network.layout(), flat).unwrap();
        per_example::joined_gradients(&network, &weights, x, &y, 1).unwrap()
    };
    let wanted = by_loop(&network, &double(&flat), &double(&x), &y);
    let found = worst(&of(&double(&flat), &double(&x)), &wanted);
    assert!(found < 1e-10, "{spec} on {}: {found} in double precision", shape.input);
    let found = worst(&of(&flat, &x), &wanted);
    if found >= 1e-5 {
        let moved = moved(&network, &flat, &x, &y, &wanted, seed);
        assert!(found < times * moved, "{spec} on {}: {found}, rounding {moved}", shape.input);
    }
}

#[test]
fn gradients_of_examples_equal_a_loop_for_every_kind() {
    for (spec, shape) in every_kind() {
        gradients_equal_the_loop(&spec, &shape, 7, 1, 0.0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn gradients_of_examples_equal_a_loop_for_any_draw(
        kind in 0usize..15, examples in 1i64..6, seed in any::<u64>(),
    ) {
        let (spec, shape) = every_kind().swap_remove(kind);
        // 1.8 times in 2,466 draws.
        gradients_equal_the_loop(&spec, &shape, examples, seed, 4.0);
    }
}

/// A gradient over a part of the tensors is that part of the whole gradient, whichever is trained.
#[test]
fn frozen_tensors_change_no_other_gradient() {
    for (spec, shape) in every_kind() {
        let (network, flat, x, y) = case(&spec, &shape, 3, 2);
        let (flat, x) = (double(&flat), double(&x));
        let weights = Weights::whole(network.layout(), &flat).unwrap();
        let all = per_example::joined_gradients(&network, &weights, &x, &y, 1).unwrap();
        let ranges: Vec<_> = network.layout().ranges().collect();
        for (chosen, (tensor, range)) in ranges.iter().enumerate() {
            // Alone, and with the one three places on.
            for other in [None, ranges.get(chosen + 3)] {
                let names: Vec<String> =
                    std::iter::once(tensor).chain(other.map(|(t, _)| t)).map(|t| t.name.clone()).collect();
                let part = network.layout().part(&names).unwrap();
                let wanted: Vec<Tensor> = std::iter::once(range)
                    .chain(other.map(|(_, r)| r))
                    .map(|r| all.narrow(1, r.start as i64, r.len() as i64))
                    .collect();
                let values: Vec<Tensor> = std::iter::once(range)
                    .chain(other.map(|(_, r)| r))
                    .map(|r| flat.narrow(0, r.start as i64, r.len() as i64))
                    .collect();
                let weights = Weights::of(network.layout(), &part, &Tensor::cat(&values, 0), &flat).unwrap();
                let found = per_example::joined_gradients(&network, &weights, &x, &y, 1).unwrap();
                let off = (&found - Tensor::cat(&wanted, 1)).abs().max().double_value(&[]);
                assert!(off < 1e-12, "{spec} on {}, {names:?}: {off}", shape.input);
            }
        }
    }
}

/// Another example beside it, or none, changes nothing of what an example comes to.
#[test]
fn no_model_mixes_examples() {
    for (spec, shape) in every_kind() {
        let (network, flat, x, _) = case(&spec, &shape, 4, 3);
        let (_, _, other, _) = case(&spec, &shape, 4, 4);
        let (flat, x, other) = (double(&flat), double(&x), double(&other));
        let weights = Weights::whole(network.layout(), &flat).unwrap();
        let all = network.forward(&weights, &x).unwrap();
        assert_eq!(all.size(), [4, shape.outputs() as i64]);
        for i in 0..4 {
            let alone = network.forward(&weights, &x.narrow(0, i, 1)).unwrap();
            let off = (alone - all.narrow(0, i, 1)).abs().max().double_value(&[]);
            assert!(off < 1e-12, "{spec} on {}: {off}", shape.input);
            // All others become others.
            let rows: Vec<Tensor> =
                (0..4).map(|j| if i == j { x.narrow(0, j, 1) } else { other.narrow(0, j, 1) }).collect();
            let changed = network.forward(&weights, &Tensor::cat(&rows, 0)).unwrap();
            let off = (changed - &all).abs();
            assert!(off.narrow(0, i, 1).max().double_value(&[]) < 1e-12, "{spec} on {}", shape.input);
            assert!(off.max().double_value(&[]) > 1e-6, "{spec} on {}: others change", shape.input);
        }
    }
}

/// Unrolled recurrent layers are libtorch's own, and normalisations with their books are those without.
#[test]
fn a_recording_pass_computes_the_same() {
    for (spec, shape) in every_kind() {
        let (network, flat, x, _) = case(&spec, &shape, 4, 5);
        let (flat, x) = (double(&flat), double(&x));
        let weights = Weights::whole(network.layout(), &flat).unwrap();
        let plain = network.forward(&weights, &x).unwrap();
        let (recorded, uses) = network.record(&weights, &x).unwrap();
        assert!((plain - recorded).abs().max().double_value(&[]) < 1e-12, "{spec} on {}", shape.input);
        let used: std::collections::BTreeSet<_> =
            uses.iter().flat_map(|u| [u.weight, u.bias]).flatten().collect();
        assert_eq!(used.len(), network.layout().tensors().len(), "{spec}: every parameter is in the books");
    }
}

/// A text without a token is read like one of padding alone, and gives numbers.
#[test]
fn padding_is_not_read() {
    for (spec, shape) in every_kind() {
        let Input::Tokens { .. } = shape.input else { continue };
        let (network, flat, _, _) = case(&spec, &shape, 1, 6);
        let weights = Weights::whole(network.layout(), &flat).unwrap();
        let of = |tokens: [i64; 6]| {
            to_vec(&network.forward(&weights, &Tensor::from_slice(&tokens).view([1, 6])).unwrap()).unwrap()
        };
        assert!(of([0; 6]).iter().all(|v| v.is_finite()), "{spec}");
        let text = of([3, 1, 4, 0, 0, 0]);
        assert_ne!(text, of([3, 1, 5, 0, 0, 0]), "{spec}");
        // The padding's own embedding plays no part.
        let (name, range) = network.layout().ranges().next().unwrap();
        assert_eq!(name.name, "embedding.weight");
        let mut values = to_vec(&flat).unwrap();
        values[..range.len() / 11].fill(9.0);
        let other = Tensor::from_slice(&values);
        let other = Weights::whole(network.layout(), &other).unwrap();
        let again =
            network.forward(&other, &Tensor::from_slice(&[3i64, 1, 4, 0, 0, 0]).view([1, 6])).unwrap();
        let off = text.iter().zip(to_vec(&again).unwrap()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 1e-6, "{spec}: {off}");
    }
}

#[test]
fn dropout_is_for_training_alone() {
    let kinds = [
        ("kind = \"lstm\"\nhidden = 20\nlayers = 2\ndropout = 0.5", Input::Series { steps: 5, features: 3 }),
        (
            "kind = \"transformer\"\nwidth = 20\nheads = 2\nlayers = 1\ndropout = 0.5",
            Input::Series { steps: 5, features: 3 },
        ),
    ];
    for (toml, input) in kinds {
        let spec: ModelSpec = toml::from_str(toml).unwrap();
        let shape = Shape { input, target: Target::Number };
        let (network, flat, x, _) = case(&spec, &shape, 4, 7);
        let weights = Weights::whole(network.layout(), &flat).unwrap();
        let finished = || to_vec(&network.forward(&weights, &x).unwrap()).unwrap();
        let training = || to_vec(&network.forward_training(&weights, &x).unwrap()).unwrap();
        assert_eq!(finished(), finished());
        assert_ne!(training(), training());
        assert_ne!(to_vec(&network.record(&weights, &x).unwrap().0).unwrap(), finished());
    }
}

/// One weight in two linear layers, and a shift between them: what a model with tied weights is made of.
#[derive(Debug)]
struct Tied;

impl Module for Tied {
    fn forward(&self, pass: &mut Pass<'_>, x: &Tensor) -> Result<Tensor, TchError> {
        let (weight, shift) = (Parameter(0), Parameter(1));
        let x = pass.linear(x, weight, None)?.f_tanh()?;
        let x = pass.shift(&x, shift)?;
        pass.linear(&x, weight, Some(shift))
    }
}

#[test]
fn a_parameter_that_is_used_twice_has_both_gradients() {
    use undertone_core::layout::TensorSpec;
    let tensor = |name: &str, shape: &[usize]| TensorSpec { name: name.into(), shape: shape.into() };
    let layout = ModelLayout::new(vec![tensor("weight", &[3, 3]), tensor("shift", &[3])]).unwrap();
    let shape = Shape::table(3, 3);
    let network = Network::of(Box::new(Tied), layout, &shape);
    let (_, _, x, y) = case(&ModelSpec::Logistic {}, &shape, 5, 8);
    let flat = Tensor::from_slice(&(0..12).map(|i| f64::from(i * 7 % 5) / 4.0 - 0.4).collect::<Vec<_>>());
    let weights = Weights::whole(network.layout(), &flat).unwrap();
    let found = per_example::joined_gradients(&network, &weights, &double(&x), &y, 1).unwrap();
    assert!(worst(&found, &by_loop(&network, &flat, &double(&x), &y)) < 1e-12);
}

#[test]
fn a_perceptron_computes_what_its_layout_says() {
    let spec = ModelSpec::Mlp { hidden: vec![2], activation: Activation::Relu, seed: 0 };
    let net = Network::new(&spec, &Shape::table(2, 2)).unwrap();
    // Hidden units x0 - x1 and x1 - x0 (+0.5); output 2·h0 - 3·h1 + 1.
    let values = [1.0, -1.0, -1.0, 1.0, 0.0, 0.5, 2.0, -3.0, 1.0];
    let flat = net.load(&values, Device::Cpu).unwrap();
    let weights = Weights::whole(net.layout(), &flat).unwrap();
    let x = Tensor::from_slice(&[3f32, 1.0, 1.0, 3.0]).view([2, 2]);
    let logits = net.forward(&weights, &x).unwrap();
    assert_eq!(to_vec(&logits).unwrap(), [5.0, -6.5]);
    let (recorded, uses) = net.record(&weights, &x).unwrap();
    assert_eq!(to_vec(&recorded).unwrap(), [5.0, -6.5]);
    assert_eq!(to_vec(&uses[1].input).unwrap(), [2.0, 0.0, 0.0, 2.5]);
}

#[test]
fn weights_that_do_not_fit_or_are_spoilt_are_refused() {
    let shape = Shape::table(2, 2);
    let net = Network::new(&ModelSpec::Logistic {}, &shape).unwrap();
    for weights in [&[0.0; 2][..], &[0.0; 4], &[], &[0.0, f32::NAN, 0.0], &[0.0, 0.0, f32::INFINITY]] {
        let e = TrainerError::from(net.load(weights, Device::Cpu).unwrap_err());
        assert!(matches!(e, TrainerError::Numerical(_)), "{e}");
    }
    let no_layer = ModelSpec::Mlp { hidden: vec![], activation: Activation::Relu, seed: 0 };
    assert!(matches!(Network::new(&no_layer, &shape), Err(TrainerError::Unsupported(_))));
    let vast = ModelSpec::Mlp { hidden: vec![65_536; 64], activation: Activation::Relu, seed: 0 };
    assert!(matches!(Network::new(&vast, &shape), Err(TrainerError::Unsupported(_))));
}
