//! LSTM and GRU.

use super::parameterless::tokens_present;
use super::pass::Pass;
use super::{Module, Names, Parameter};
use tch::{Kind, TchError, Tensor};
use undertone_core::model::{self, Cell};
use undertone_core::shape::{Input, Shape};

/// Recurrent layers, and a linear one that reads their last state.
#[derive(Debug)]
pub(crate) struct Recurrent {
    cell: Cell,
    embedding: Option<Parameter>,
    layers: Vec<Weights>,
    hidden: i64,
    dropout: f64,
    head: (Parameter, Parameter),
}

/// A layer's parameters in libtorch's order: of the input, of the state, and the biases of both. The gates lie one behind
/// the other along the first dimension.
#[derive(Debug, Clone, Copy)]
struct Weights {
    input: Parameter,
    state: Parameter,
    input_bias: Parameter,
    state_bias: Parameter,
}

impl Recurrent {
    /// The modules of a spec.
    pub(crate) fn new(cell: Cell, spec: &model::Recurrent, shape: &Shape, names: &Names<'_>) -> Self {
        let embedding = match shape.input {
            Input::Tokens { .. } => Some(names.get("embedding.weight")),
            _ => None,
        };
        let layer = |i: usize| Weights {
            input: names.get(&format!("rnn.weight_ih_l{i}")),
            state: names.get(&format!("rnn.weight_hh_l{i}")),
            input_bias: names.get(&format!("rnn.bias_ih_l{i}")),
            state_bias: names.get(&format!("rnn.bias_hh_l{i}")),
        };
        Self {
            cell,
            embedding,
            layers: (0..spec.layers).map(layer).collect(),
            hidden: spec.hidden as i64,
            dropout: spec.dropout,
            head: (names.get("head.weight"), names.get("head.bias")),
        }
    }

    /// The states of the last layer after each step, shape (examples, steps, hidden): libtorch's own layers.
    fn fused(&self, pass: &Pass<'_>, x: &Tensor, parameters: &[&Tensor]) -> Result<Tensor, TchError> {
        let layers = self.layers.len() as i64;
        let zero = Tensor::f_zeros([layers, x.size()[0], self.hidden], (x.kind(), x.device()))?;
        let (dropout, train) = (self.dropout, pass.trains());
        match self.cell {
            Cell::Lstm => {
                let start = [&zero, &zero];
                Ok(x.f_lstm(&start, parameters, true, layers, dropout, train, false, true)?.0)
            }
            Cell::Gru => Ok(x.f_gru(&zero, parameters, true, layers, dropout, train, false, true)?.0),
        }
    }

    /// The same, step by step, so that each use of a parameter is in the books.
    fn unrolled(&self, pass: &mut Pass<'_>, x: &Tensor) -> Result<Tensor, TchError> {
        let mut x = x.shallow_clone();
        for (i, layer) in self.layers.iter().enumerate() {
            if i > 0 {
                x = pass.dropout(&x, self.dropout)?;
            }
            x = match self.cell {
                Cell::Lstm => self.lstm(pass, &x, *layer)?,
                Cell::Gru => self.gru(pass, &x, *layer)?,
            };
        }
        Ok(x)
    }

    fn lstm(&self, pass: &mut Pass<'_>, x: &Tensor, layer: Weights) -> Result<Tensor, TchError> {
        let inputs = pass.linear(x, layer.input, Some(layer.input_bias))?.f_unbind(1)?;
        let mut state = Tensor::f_zeros([x.size()[0], self.hidden], (x.kind(), x.device()))?;
        let mut memory = state.shallow_clone();
        let mut states = Vec::with_capacity(inputs.len());
        for input in inputs {
            let gates = pass.linear(&state, layer.state, Some(layer.state_bias))?.f_add(&input)?;
            let [input, forget, new, output] = parts(&gates)?;
            let kept = memory.f_mul(&forget.f_sigmoid()?)?;
            memory = kept.f_add(&new.f_tanh()?.f_mul(&input.f_sigmoid()?)?)?;
            state = memory.f_tanh()?.f_mul(&output.f_sigmoid()?)?;
            states.push(state.shallow_clone());
        }
        Tensor::f_stack(&states, 1)
    }

    fn gru(&self, pass: &mut Pass<'_>, x: &Tensor, layer: Weights) -> Result<Tensor, TchError> {
        let inputs = pass.linear(x, layer.input, Some(layer.input_bias))?.f_unbind(1)?;
        let mut state = Tensor::f_zeros([x.size()[0], self.hidden], (x.kind(), x.device()))?;
        let mut states = Vec::with_capacity(inputs.len());
        for input in inputs {
            let [reset, update, new] = parts(&input)?;
            let gates = pass.linear(&state, layer.state, Some(layer.state_bias))?;
            let [reset_state, update_state, new_state] = parts(&gates)?;
            let reset = reset.f_add(&reset_state)?.f_sigmoid()?;
            let update = update.f_add(&update_state)?.f_sigmoid()?;
            let new = new.f_add(&reset.f_mul(&new_state)?)?.f_tanh()?;
            state = new.f_add(&update.f_mul(&state.f_sub(&new)?)?)?;
            states.push(state.shallow_clone());
        }
        Tensor::f_stack(&states, 1)
    }
}

/// Equal parts along the last dimension.
fn parts<const N: usize>(gates: &Tensor) -> Result<[Tensor; N], TchError> {
    let parts = gates.f_chunk(N as i64, -1)?;
    Ok(parts.try_into().expect("a layer has so many gates"))
}

impl Module for Recurrent {
    fn forward(&self, pass: &mut Pass<'_>, x: &Tensor) -> Result<Tensor, TchError> {
        let (x, last) = match self.embedding {
            Some(embedding) => {
                let places = Tensor::f_arange(x.size()[1], (Kind::Int64, x.device()))?;
                let last = tokens_present(x)?.f_to_kind(Kind::Int64)?.f_mul(&places)?.f_argmax(1, false)?;
                (pass.embedding(x, embedding)?, Some(last))
            }
            None => (x.shallow_clone(), None),
        };
        let parameters = self.layers.iter().flat_map(|l| [l.input, l.state, l.input_bias, l.state_bias]);
        let states = match pass.unrecorded(parameters) {
            Some(parameters) => self.fused(pass, &x, &parameters)?,
            None => self.unrolled(pass, &x)?,
        };
        let state = match last {
            Some(last) => {
                let places = last.f_view([-1, 1, 1])?.f_expand([-1, 1, self.hidden], false)?;
                states.f_gather(1, &places, false)?.f_squeeze_dim(1)?
            }
            None => states.f_select(1, -1)?,
        };
        pass.linear(&state, self.head.0, Some(self.head.1))
    }
}
