//! Linear layers alone: regressions and the perceptron.
//!
//! ```python
//! torch.nn.Linear(inputs, outputs)                                   # logistic, linear
//! torch.nn.Sequential(Linear(inputs, h1), ReLU(), Linear(h1, h2), …) # mlp
//! ```
//! They read an example laid out flat: `model(x.flatten(1))`.

use super::{Activation, Input, Layer, Shape, Target};
use crate::limits::{MAX_HIDDEN_LAYERS, MAX_WIDTH};

pub(super) fn validate(hidden: &[usize]) -> Result<(), String> {
    if hidden.is_empty() || hidden.len() > MAX_HIDDEN_LAYERS {
        Err(format!("an mlp needs 1 to {MAX_HIDDEN_LAYERS} hidden layers, not {}", hidden.len()))
    } else if let Some(w) = hidden.iter().find(|&&w| w == 0 || w > MAX_WIDTH) {
        Err(format!("a hidden layer is 1 to {MAX_WIDTH} wide, not {w}"))
    } else {
        Ok(())
    }
}

pub(super) fn logistic(shape: &Shape) -> Result<Vec<Layer>, String> {
    match shape.target {
        Target::Class { .. } => layers(&[], Activation::default(), shape),
        Target::Number => {
            Err("logistic predicts a class, and this data's label is a number: use kind = \"linear\"".into())
        }
    }
}

pub(super) fn linear(shape: &Shape) -> Result<Vec<Layer>, String> {
    match shape.target {
        Target::Number => layers(&[], Activation::default(), shape),
        Target::Class { classes } => Err(format!(
            "linear predicts a number, and this data's label is one of {classes} classes: use kind = \"logistic\""
        )),
    }
}

pub(super) fn layers(hidden: &[usize], activation: Activation, shape: &Shape) -> Result<Vec<Layer>, String> {
    if let Input::Tokens { .. } = shape.input {
        return Err(format!(
            "linear layers read numbers, this data has {}: use kind = \"transformer\", \"lstm\" or \"gru\"",
            shape.input
        ));
    }
    let mut inputs = shape.input.len();
    let mut layers = Vec::new();
    for &outputs in hidden {
        layers.extend([Layer::Linear { inputs, outputs }, Layer::Activation(activation)]);
        inputs = outputs;
    }
    layers.push(Layer::Linear { inputs, outputs: shape.outputs() });
    Ok(layers)
}
