//! The gradient of each example's own loss, for DP-SGD.

use crate::model::{Network, Parameters};
use tch::{TchError, Tensor};

/// One gradient a row: shape (rows, parameters that are trained), in the order of the flat vector.
///
/// Backpropagation by hand, so that one pass serves all rows (Goodfellow 2015): with layer inputs a and gradients δ
/// of the loss with respect to a layer's outputs, a row's gradient is δ·aᵀ for W and δ for b.
pub(crate) fn gradients<'a>(
    network: &Network,
    parameters: impl Into<Parameters<'a>>,
    features: &Tensor,
    labels: &Tensor,
) -> Result<Tensor, TchError> {
    let _no_graph = tch::no_grad_guard();
    let parameters = parameters.into();
    let rows = features.size()[0];
    let (inputs, logits) = network.forward(parameters, features)?;
    let trained: Vec<_> = network.layers().iter().map(|layer| layer.trained(parameters)).collect();
    // Nothing is needed of what lies before the first layer that is trained.
    let first = trained.iter().position(|&(weight, bias)| weight || bias).unwrap_or(trained.len());
    let mut delta = network.logit_gradients(&logits, labels)?;
    // From the last parameter to the first.
    let mut parts = Vec::with_capacity(2 * inputs.len());
    for (i, (layer, input)) in network.layers().iter().zip(&inputs).enumerate().skip(first).rev() {
        let (weight, bias) = trained[i];
        if bias {
            parts.push(delta.shallow_clone());
        }
        if weight {
            let outer = delta.f_unsqueeze(2)?.f_mul(&input.f_unsqueeze(1)?)?;
            parts.push(outer.f_reshape([rows, layer.weights()])?);
        }
        if i > first {
            let (weight, _) = layer.parameters(parameters)?;
            delta = delta.f_matmul(&weight)?.f_mul(&network.activation_slope(input)?)?;
        }
    }
    parts.reverse();
    Tensor::f_cat(&parts, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tch::{Kind, Reduction};
    use undertone_core::model::{Activation, ModelSpec};

    /// What the gradients have to equal: a loop over examples with autograd.
    fn by_loop(network: &Network, flat: &Tensor, features: &Tensor, labels: &Tensor) -> Tensor {
        let flat = flat.copy().set_requires_grad(true);
        let rows: Vec<Tensor> = (0..features.size()[0])
            .map(|i| {
                let (x, y) = (features.narrow(0, i, 1), labels.narrow(0, i, 1));
                let (_, logits) = network.forward(&flat, &x).unwrap();
                let loss = network.loss(&logits, &y, Reduction::Sum).unwrap();
                Tensor::run_backward(&[loss], &[&flat], false, false).remove(0)
            })
            .collect();
        Tensor::stack(&rows, 0)
    }

    /// Largest difference of a row, relative to the row's norm.
    fn worst(a: &Tensor, b: &Tensor) -> f64 {
        assert_eq!(a.size(), b.size());
        let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
        let norm = |t: &Tensor| t.square().sum_dim_intlist(1, false, Kind::Double).sqrt();
        (norm(&(&a - &b)) / norm(&b).clamp_min(1e-30)).max().double_value(&[])
    }

    fn compare(spec: &ModelSpec, outputs: usize, rows: i64, scale: f64, seed: i64) {
        let inputs = 7;
        let network = Network::new(spec, inputs, outputs).unwrap();
        // libtorch's generator is global, and tests run side by side: so these draws come from ours.
        let mut rng = crate::sampling::sampling_rng(Some(seed as u64), &[]).unwrap();
        let mut normal = |n: usize| -> Vec<f64> {
            use rand::RngExt as _;
            (0..n).map(|_| (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0).collect()
        };
        let flat = Tensor::from_slice(&normal(network.len())) * scale;
        let x = Tensor::from_slice(&normal(rows as usize * inputs)).view([rows, inputs as i64]);
        let classes = outputs.max(2) as i64;
        let y = Tensor::from_slice(&(0..rows).map(|i| (i * i + i / 3) % classes).collect::<Vec<i64>>());
        // The loop runs in double precision: ours, in the single precision it is used in, is held against that.
        let (flat, x) = (flat.to_kind(Kind::Float), x.to_kind(Kind::Float));
        let wanted = by_loop(&network, &flat.to_kind(Kind::Double), &x.to_kind(Kind::Double), &y);
        let fast = gradients(&network, &flat, &x, &y).unwrap();
        assert!(!fast.requires_grad() && fast.kind() == Kind::Float);
        let single = worst(&fast, &wanted);
        assert!(single < 1e-5, "{spec:?}, {outputs} outputs: {single}");
        let fast = gradients(&network, &flat.to_kind(Kind::Double), &x.to_kind(Kind::Double), &y).unwrap();
        let double = worst(&fast, &wanted);
        assert!(double < 1e-9, "{spec:?}, {outputs} outputs, double precision: {double}");
    }

    fn models() -> Vec<ModelSpec> {
        let mlp =
            |hidden: &[usize], activation| ModelSpec::Mlp { hidden: hidden.to_vec(), activation, seed: 0 };
        vec![
            ModelSpec::Logistic {},
            mlp(&[10], Activation::Relu),
            mlp(&[10], Activation::Tanh),
            mlp(&[9, 1, 4], Activation::Relu),
            mlp(&[9, 1, 4], Activation::Tanh),
        ]
    }

    #[test]
    fn they_equal_a_loop_over_examples() {
        for spec in models() {
            for outputs in [1, 3] {
                compare(&spec, outputs, 33, 0.5, 1);
            }
        }
    }

    /// The gradient of a part is that part of the gradient, whatever is left out.
    #[test]
    fn they_are_of_the_part_that_is_trained() {
        let spec = &models()[3];
        let network = Network::new(spec, 7, 3).unwrap();
        let layout = spec.layout(7, 3).unwrap();
        let values: Vec<f32> = (0..network.len()).map(|i| ((i * 29 % 83) as f32 - 41.0) / 60.0).collect();
        let whole = Tensor::from_slice(&values);
        let x = Tensor::from_slice(&(0..35).map(|i| (i * 17 % 23) as f32 / 11.0 - 1.0).collect::<Vec<_>>());
        let (x, y) = (x.view([5, 7]), Tensor::from_slice(&[0i64, 2, 1, 1, 0]));
        let all = crate::model::to_vec(&gradients(&network, &whole, &x, &y).unwrap()).unwrap();
        let names: Vec<String> = layout.tensors().iter().map(|t| t.name.clone()).collect();
        for chosen in 1..1usize << names.len() {
            let of = |i: &usize| chosen & (1 << i) != 0;
            let patterns: Vec<String> = (0..names.len()).filter(of).map(|i| names[i].clone()).collect();
            let part = layout.part(&patterns).unwrap();
            let trained = Tensor::from_slice(&part.gather(&values));
            let found = gradients(&network, Parameters::of(&trained, &whole, &part), &x, &y).unwrap();
            assert_eq!(found.size(), [5, part.len() as i64]);
            let wanted: Vec<f32> = all.chunks(network.len()).flat_map(|row| part.gather(row)).collect();
            assert_eq!(crate::model::to_vec(&found).unwrap(), wanted, "{patterns:?}");
        }
    }

    #[test]
    fn no_rows_have_no_gradients() {
        let network = Network::new(&models()[1], 7, 3).unwrap();
        let flat = Tensor::zeros([network.len() as i64], (Kind::Float, tch::Device::Cpu));
        let x = Tensor::zeros([0, 7], (Kind::Float, tch::Device::Cpu));
        let y = Tensor::zeros([0], (Kind::Int64, tch::Device::Cpu));
        let none = gradients(&network, &flat, &x, &y).unwrap();
        assert_eq!(none.size(), [0, network.len() as i64]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn they_equal_a_loop_over_examples_for_any_model(
            model in 0usize..5, outputs in prop::sample::select(vec![1usize, 3, 5]),
            rows in 1i64..9, scale in 0.01f64..0.7, seed in 0i64..1_000_000,
        ) {
            compare(&models()[model], outputs, rows, scale, seed);
        }
    }
}
