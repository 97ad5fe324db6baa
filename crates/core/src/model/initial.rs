//! How a tensor's values begin.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha20Rng;

/// A tensor of a model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) start: Start,
}

/// How each value of a tensor begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Start {
    /// As this.
    Constant(f32),
    /// Drawn uniformly from ± this.
    Uniform(f32),
    /// Drawn from the normal distribution around zero with this standard deviation.
    Normal(f64),
}

impl Tensor {
    pub(super) fn new(name: String, shape: &[usize], start: Start) -> Self {
        Self { name, shape: shape.to_vec(), start }
    }

    /// The same tensor, all zeros at first.
    pub(super) fn zero(self) -> Self {
        Self { start: Start::Constant(0.0), ..self }
    }

    /// The number of values. A layout has been made of it, so they can be counted.
    pub(super) fn len(&self) -> usize {
        self.shape.iter().product()
    }
}

impl Start {
    /// PyTorch's default for linear layers and convolutions (He et al. 2015 with a = √5): ±1/√(inputs of one output).
    pub(super) fn fan_in(inputs: usize) -> Self {
        Self::Uniform(1.0 / (inputs as f32).sqrt())
    }
}

/// `Linear(inputs, outputs)`: weight and bias.
pub(super) fn linear(prefix: &str, inputs: usize, outputs: usize) -> [Tensor; 2] {
    let start = Start::fan_in(inputs);
    [
        Tensor::new(format!("{prefix}weight"), &[outputs, inputs], start),
        Tensor::new(format!("{prefix}bias"), &[outputs], start),
    ]
}

/// `Embedding(rows, width)`.
pub(super) fn embedding(prefix: &str, rows: usize, width: usize) -> Tensor {
    Tensor::new(format!("{prefix}weight"), &[rows, width], Start::Normal(1.0))
}

/// `LayerNorm(channels)`, or a `GroupNorm` of so many channels: ones and zeros.
pub(super) fn norm(prefix: &str, channels: usize) -> [Tensor; 2] {
    [
        Tensor::new(format!("{prefix}weight"), &[channels], Start::Constant(1.0)),
        Tensor::new(format!("{prefix}bias"), &[channels], Start::Constant(0.0)),
    ]
}

/// Draws initial values.
#[derive(Debug)]
pub(super) struct Draws(ChaCha20Rng);

impl Draws {
    pub(super) fn new(seed: u64) -> Self {
        Self(ChaCha20Rng::seed_from_u64(seed))
    }

    /// The next value.
    pub(super) fn next(&mut self, start: Start) -> f32 {
        match start {
            Start::Constant(value) => value,
            Start::Uniform(bound) => self.0.random_range(-bound..=bound),
            Start::Normal(deviation) => (deviation * self.normal()) as f32,
        }
    }

    /// A standard normal value (Box and Muller 1958). Logarithm and cosine are `libm`'s, which are the same bits on every
    /// machine.
    fn normal(&mut self) -> f64 {
        let (u, v): (f64, f64) = (1.0 - self.0.random::<f64>(), self.0.random());
        libm::sqrt(-2.0 * libm::log(u)) * libm::cos(2.0 * std::f64::consts::PI * v)
    }
}
