//! Small modules for tests: one for each kind of operation, and for what models put together from them.

use super::pass::Pass;
use super::{Module, Network, Parameter};
use std::fmt;
use tch::{Device, Kind, TchError, Tensor};
use undertone_core::layout::{ModelLayout, TensorSpec};
use undertone_core::shape::{Input, Shape, Target};

/// A module that is a function.
pub(crate) struct Made<F>(pub(crate) F);

impl<F> fmt::Debug for Made<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Made")
    }
}

impl<F> Module for Made<F>
where
    F: Fn(&mut Pass<'_>, &Tensor) -> Result<Tensor, TchError> + Send + Sync,
{
    fn forward(&self, pass: &mut Pass<'_>, x: &Tensor) -> Result<Tensor, TchError> {
        (self.0)(pass, x)
    }
}

/// A network of a function; its tensors, in the order of their shapes, are `P(0)`, `P(1)`, and so on.
pub(crate) fn made<F>(input: Input, classes: usize, shapes: &[&[usize]], forward: F) -> Network
where
    F: Fn(&mut Pass<'_>, &Tensor) -> Result<Tensor, TchError> + Send + Sync + 'static,
{
    let tensors = shapes.iter().enumerate();
    let tensors = tensors.map(|(i, shape)| TensorSpec { name: format!("t{i}"), shape: shape.to_vec() });
    let layout = ModelLayout::new(tensors.collect()).unwrap();
    let shape = Shape { input, target: Target::Class { classes } };
    Network::of(Box::new(Made(forward)), layout, &shape)
}

/// A parameter of such a network.
#[allow(non_snake_case, reason = "reads like the name that it is")]
pub(crate) fn P(place: usize) -> Parameter {
    Parameter(place)
}

/// A network, by the kind of layer that it is there for.
pub(crate) type Named = (&'static str, Network);

/// One network for each kind of layer.
pub(crate) fn every_kind() -> Vec<Named> {
    let series = |steps, features| Input::Series { steps, features };
    let tokens = Input::Tokens { length: 6, vocabulary: 5 };
    let picture = Input::Image { channels: 2, height: 9, width: 8 };
    vec![
        (
            "linear",
            made(Input::features(7), 3, &[&[5, 7], &[5], &[3, 5], &[3]], |pass, x| {
                let h = pass.linear(x, P(0), Some(P(1)))?.f_tanh()?;
                pass.linear(&h, P(2), Some(P(3)))
            }),
        ),
        (
            // Norms from inner products.
            "linear with short time",
            made(series(4, 3), 3, &[&[8, 3], &[8], &[3, 8]], |pass, x| {
                let h = pass.linear(x, P(0), Some(P(1)))?.f_relu()?;
                pass.linear(&over_time(&h)?, P(2), None)
            }),
        ),
        (
            // Norms from gradients.
            "linear with long time",
            made(series(40, 3), 3, &[&[2, 3], &[2], &[3, 2]], |pass, x| {
                let h = pass.linear(x, P(0), Some(P(1)))?.f_tanh()?;
                pass.linear(&over_time(&h)?, P(2), None)
            }),
        ),
        (
            "convolutions",
            made(
                picture.clone(),
                3,
                &[&[3, 2, 3, 3], &[3], &[4, 3, 2, 2], &[4], &[3, 36], &[3]],
                |pass, x| {
                    let h = pass.conv2d(x, P(0), Some(P(1)), 2, 1)?.f_tanh()?;
                    let h = pass.conv2d(&h, P(2), Some(P(3)), 2, 1)?.f_tanh()?;
                    pass.linear(&h.f_flatten(1, -1)?, P(4), Some(P(5)))
                },
            ),
        ),
        (
            "group norm",
            made(picture, 3, &[&[4, 2, 3, 3], &[4], &[4], &[3, 4]], |pass, x| {
                let h = pass.conv2d(x, P(0), None, 1, 0)?;
                let h = pass.group_norm(&h, 2, P(1), P(2), 1e-5)?.f_relu()?;
                pass.linear(&h.f_mean_dim(&[2i64, 3][..], false, None::<Kind>)?, P(3), None)
            }),
        ),
        (
            "embedding, with tokens that repeat",
            made(tokens.clone(), 3, &[&[5, 4], &[3, 4], &[3]], |pass, x| {
                let h = pass.embedding(x, P(0))?.f_tanh()?;
                pass.linear(&over_time(&h)?, P(1), Some(P(2)))
            }),
        ),
        (
            "layer norm and positions",
            made(tokens.clone(), 3, &[&[5, 4], &[6, 4], &[4], &[4], &[3, 4]], |pass, x| {
                let h = pass.embedding(x, P(0))?;
                let h = pass.shift(&h, P(1))?;
                let h = pass.layer_norm(&h, P(2), P(3), 1e-5)?.f_tanh()?;
                pass.linear(&over_time(&h)?, P(4), None)
            }),
        ),
        (
            "recurrent cell",
            made(series(5, 3), 3, &[&[4, 3], &[4], &[4, 4], &[4], &[3, 4], &[3]], |pass, x| {
                let mut h = Tensor::f_zeros([x.size()[0], 4], (x.kind(), x.device()))?;
                for t in 0..x.size()[1] {
                    let from_input = pass.linear(&x.f_select(1, t)?, P(0), Some(P(1)))?;
                    h = pass.linear(&h, P(2), Some(P(3)))?.f_add(&from_input)?.f_tanh()?;
                }
                pass.linear(&h, P(4), Some(P(5)))
            }),
        ),
        (
            "attention",
            made(series(4, 6), 3, &[&[18, 6], &[18], &[6, 6], &[6], &[3, 6]], |pass, x| {
                let projected = pass.linear(x, P(0), Some(P(1)))?.f_chunk(3, 2)?;
                let [q, k, v] = &projected[..] else { panic!("three chunks") };
                let weights = q.f_matmul(&k.f_transpose(1, 2)?)?.f_softmax(2, None::<Kind>)?;
                let h = pass.linear(&weights.f_matmul(v)?, P(2), Some(P(3)))?.f_add(x)?;
                pass.linear(&over_time(&h)?, P(4), None)
            }),
        ),
        (
            "an embedding tied to the output, and a bias used twice",
            made(tokens, 5, &[&[5, 4], &[4, 4], &[4]], |pass, x| {
                let h = pass.embedding(x, P(0))?;
                let h = pass.linear(&h, P(1), Some(P(2)))?.f_tanh()?;
                let h = pass.linear(&over_time(&h)?, P(1), Some(P(2)))?;
                pass.linear(&h, P(0), None)
            }),
        ),
        (
            // None of these biases is that of one matrix wherever it is used.
            "biases that are not one matrix's alone",
            made(series(4, 3), 3, &[&[5, 3], &[5], &[5, 5], &[5], &[5], &[3, 5]], |pass, x| {
                let h = pass.linear(x, P(0), Some(P(1)))?.f_tanh()?;
                let with = pass.linear(&h, P(2), Some(P(3)))?;
                let without = pass.linear(&with, P(2), None)?.f_tanh()?;
                let other = pass.linear(&without, P(2), Some(P(4)))?;
                let again = pass.linear(x, P(0), Some(P(4)))?;
                pass.linear(&over_time(&other.f_add(&again)?)?, P(5), None)
            }),
        ),
    ]
}

fn over_time(x: &Tensor) -> Result<Tensor, TchError> {
    x.f_mean_dim(1i64, false, None::<Kind>)
}

/// Values that look random, the same each time, about normal: libtorch's generator is global, and tests run side by side.
pub(crate) fn normal(count: usize, seed: u64) -> Vec<f64> {
    use rand::RngExt as _;
    let mut rng = crate::sampling::sampling_rng(Some(seed), &[]).unwrap();
    (0..count).map(|_| (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0).collect()
}

/// Weights for a network: f64, flat.
pub(crate) fn weights(network: &Network, scale: f64, seed: u64) -> Tensor {
    Tensor::from_slice(&normal(network.len(), seed)) * scale
}

/// So many rows and classes that a network takes; f64, or tokens.
pub(crate) fn rows(network: &Network, rows: usize, classes: usize, seed: u64) -> (Tensor, Tensor) {
    let input = network.input();
    let dimensions: Vec<i64> = std::iter::once(rows).chain(input.dimensions()).map(|n| n as i64).collect();
    let values = Tensor::from_slice(&normal(rows * input.len(), seed ^ 0xabcd)).view(&dimensions[..]);
    let x = match input {
        Input::Tokens { vocabulary, .. } => (values * 1e3).to_kind(Kind::Int64).remainder(*vocabulary as i64),
        _ => values,
    };
    let y: Vec<i64> = (0..rows).map(|i| ((i * i + i / 3 + seed as usize) % classes) as i64).collect();
    (x, Tensor::from_slice(&y).to_device(Device::Cpu))
}

/// In single precision, unless they are tokens.
pub(crate) fn single(x: &Tensor) -> Tensor {
    if x.kind() == Kind::Double { x.to_kind(Kind::Float) } else { x.shallow_clone() }
}
