//! The built-in models over one flat vector of parameters, or over the part of it that is trained and the rest.

use crate::failure::Failure;
use tch::{Device, Kind, Reduction, TchError, Tensor};
use undertone_core::layout::ModelLayout;
use undertone_core::model::{Activation, ModelSpec};
use undertone_core::part::Part;
use undertone_core::plan::TrainPlan;
use undertone_core::trainer::TrainerError;

/// A model as arithmetic: it holds shapes, not values. Parameters come in as flat tensors in the order of
/// [`ModelSpec::layout`], of which each layer sees views.
#[derive(Debug)]
pub(crate) struct Network {
    layers: Vec<Layer>,
    activation: Activation,
    outputs: usize,
    layout: ModelLayout,
}

/// Where the values of a model's tensors are: all in one tensor, or those that are trained in one, as long as the part,
/// and the others in one as long as the model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parameters<'a> {
    values: &'a Tensor,
    frozen: Option<(&'a Tensor, &'a Part)>,
}

impl<'a> Parameters<'a> {
    /// `trained` over `part`; what is not in it is in `whole`, which no gradient follows.
    pub(crate) fn of(trained: &'a Tensor, whole: &'a Tensor, part: &'a Part) -> Self {
        Self { values: trained, frozen: (!part.is_whole()).then_some((whole, part)) }
    }

    /// Whether the tensor that begins at `start` is trained.
    fn trains(&self, start: i64) -> bool {
        self.frozen.is_none_or(|(_, part)| part.place(start as usize).is_some())
    }

    /// A view of one tensor's values.
    fn view(&self, start: i64, len: i64) -> Result<Tensor, TchError> {
        match self.frozen {
            None => self.values.f_narrow(0, start, len),
            Some((whole, part)) => match part.place(start as usize) {
                Some(place) => self.values.f_narrow(0, place as i64, len),
                None => whole.f_narrow(0, start, len),
            },
        }
    }
}

impl<'a> From<&'a Tensor> for Parameters<'a> {
    fn from(values: &'a Tensor) -> Self {
        Self { values, frozen: None }
    }
}

/// One linear layer: y = x·Wᵀ + b.
#[derive(Debug)]
pub(crate) struct Layer {
    /// Place of W in the flat vector, shape (outputs, inputs); b follows.
    start: i64,
    inputs: i64,
    outputs: i64,
}

impl Layer {
    /// The number of weights, without the bias.
    pub(crate) fn weights(&self) -> i64 {
        self.outputs * self.inputs
    }

    /// Views of W, shape (outputs, inputs), and b, shape (outputs).
    pub(crate) fn parameters(&self, from: Parameters<'_>) -> Result<(Tensor, Tensor), TchError> {
        let weight = from.view(self.start, self.weights())?.f_view([self.outputs, self.inputs])?;
        Ok((weight, from.view(self.start + self.weights(), self.outputs)?))
    }

    /// Whether W and b are trained.
    pub(crate) fn trained(&self, from: Parameters<'_>) -> (bool, bool) {
        (from.trains(self.start), from.trains(self.start + self.weights()))
    }
}

impl Network {
    /// The model for this many inputs and outputs (one output: a logit for class 1 of two).
    ///
    /// # Errors
    /// [`TrainerError::Unsupported`] if the spec makes no sense or is too large.
    pub(crate) fn new(spec: &ModelSpec, inputs: usize, outputs: usize) -> Result<Self, TrainerError> {
        spec.validate().map_err(TrainerError::Unsupported)?;
        let layout = spec.layout(inputs, outputs).map_err(|e| TrainerError::Unsupported(e.to_string()))?;
        let mut start = 0;
        let layers = spec
            .layers(inputs, outputs)
            .into_iter()
            .map(|l| {
                let layer = Layer { start, inputs: l.inputs as i64, outputs: l.outputs as i64 };
                start += layer.weights() + layer.outputs;
                layer
            })
            .collect();
        let activation = match spec {
            ModelSpec::Logistic {} => Activation::default(),
            ModelSpec::Mlp { activation, .. } => *activation,
        };
        Ok(Self { layers, activation, outputs, layout })
    }

    /// The number of parameters.
    pub(crate) fn len(&self) -> usize {
        self.layout.len()
    }

    /// The part of the model that a plan trains.
    ///
    /// # Errors
    /// [`TrainerError::Unsupported`] if the plan names what the model does not have.
    pub(crate) fn part(&self, plan: &TrainPlan) -> Result<Part, TrainerError> {
        plan.part(&self.layout).map_err(|e| TrainerError::Unsupported(e.to_string()))
    }

    /// The layers from input to output.
    pub(crate) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Values that came from elsewhere, on the device.
    ///
    /// # Errors
    /// [`TrainerError::Numerical`] if they do not fit the model or are not all finite.
    pub(crate) fn load(&self, weights: &[f32], device: Device) -> Result<Tensor, Failure> {
        if weights.len() != self.len() {
            return Err(TrainerError::Numerical(format!(
                "the weights hold {} values, the model has {}: job and model do not belong together",
                weights.len(),
                self.len()
            ))
            .into());
        }
        if let Some(i) = weights.iter().position(|w| !w.is_finite()) {
            return Err(TrainerError::Numerical(format!(
                "value {i} of the weights is {}: the model is spoilt, nothing can be trained from it",
                weights[i]
            ))
            .into());
        }
        Ok(Tensor::f_from_slice(weights)?.f_to_device(device)?)
    }

    /// The input of each layer, shape (rows, its inputs), and behind them the logits, shape (rows, outputs).
    pub(crate) fn forward<'a>(
        &self,
        parameters: impl Into<Parameters<'a>>,
        features: &Tensor,
    ) -> Result<(Vec<Tensor>, Tensor), TchError> {
        let parameters = parameters.into();
        let mut inputs = Vec::with_capacity(self.layers.len());
        let mut x = features.shallow_clone();
        for (i, layer) in self.layers.iter().enumerate() {
            if i > 0 {
                x = match self.activation {
                    Activation::Relu => x.f_relu()?,
                    Activation::Tanh => x.f_tanh()?,
                };
            }
            let (weight, bias) = layer.parameters(parameters)?;
            let y = x.f_linear(&weight, Some(&bias))?;
            inputs.push(std::mem::replace(&mut x, y));
        }
        Ok((inputs, x))
    }

    /// The derivative of the activation, given what came out of it.
    pub(crate) fn activation_slope(&self, output: &Tensor) -> Result<Tensor, TchError> {
        match self.activation {
            // max(0, x) is above 0 exactly where x is; at 0 libtorch's own derivative is 0 as well.
            Activation::Relu => output.f_gt(0.0)?.f_to_kind(output.kind()),
            Activation::Tanh => output.f_square()?.f_neg()?.f_add_scalar(1.0),
        }
    }

    /// Cross-entropy in nats of logits, shape (rows, outputs), to classes, shape (rows): mean or sum over rows.
    pub(crate) fn loss(
        &self,
        logits: &Tensor,
        labels: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor, TchError> {
        if self.outputs == 1 {
            let target = labels.f_to_kind(logits.kind())?.f_unsqueeze(1)?;
            logits.f_binary_cross_entropy_with_logits::<Tensor>(&target, None, None, reduction)
        } else {
            logits.f_cross_entropy_loss::<Tensor>(labels, None, reduction, -100, 0.0)
        }
    }

    /// The gradient of each row's own loss with respect to its logits, shape (rows, outputs): probability minus
    /// truth, without the cancellation that this difference suffers where the model is sure and right.
    pub(crate) fn logit_gradients(&self, logits: &Tensor, labels: &Tensor) -> Result<Tensor, TchError> {
        if self.outputs == 1 {
            // σ(z) for class 0, σ(z) - 1 = -σ(-z) for class 1.
            let sign =
                labels.f_to_kind(logits.kind())?.f_unsqueeze(1)?.f_mul_scalar(-2.0)?.f_add_scalar(1.0)?;
            logits.f_mul(&sign)?.f_sigmoid()?.f_mul(&sign)
        } else {
            // p - 1 of the true class is minus the sum of all other probabilities.
            let truth = labels.f_one_hot(self.outputs as i64)?.f_to_kind(logits.kind())?;
            let p = logits.f_softmax(1, None::<Kind>)?;
            let others = p.f_sub(&p.f_mul(&truth)?)?;
            let missing = others.f_sum_dim_intlist(1, true, None::<Kind>)?;
            others.f_sub(&truth.f_mul(&missing)?)
        }
    }

    /// The most likely class of each row; of two equally likely ones the first.
    pub(crate) fn predictions(&self, logits: &Tensor) -> Result<Tensor, TchError> {
        if self.outputs == 1 {
            logits.f_squeeze_dim(1)?.f_gt(0.0)?.f_to_kind(Kind::Int64)
        } else {
            logits.f_argmax(1, false)
        }
    }
}

/// The values of a tensor, row-major, in main memory.
pub(crate) fn to_vec(tensor: &Tensor) -> Result<Vec<f32>, TchError> {
    let flat = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?.f_view(-1)?;
    let mut values = vec![0f32; flat.numel()];
    flat.f_copy_data(&mut values, flat.numel())?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(spec: &ModelSpec, inputs: usize, outputs: usize) -> Network {
        Network::new(spec, inputs, outputs).unwrap()
    }

    #[test]
    fn a_perceptron_computes_what_its_layout_says() {
        let spec = ModelSpec::Mlp { hidden: vec![2], activation: Activation::Relu, seed: 0 };
        let net = network(&spec, 2, 1);
        // Hidden units x0 - x1 and x1 - x0 (+0.5); output 2·h0 - 3·h1 + 1.
        let weights = [1.0, -1.0, -1.0, 1.0, 0.0, 0.5, 2.0, -3.0, 1.0];
        let flat = net.load(&weights, Device::Cpu).unwrap();
        let x = Tensor::from_slice(&[3f32, 1.0, 1.0, 3.0]).view([2, 2]);
        let (inputs, logits) = net.forward(&flat, &x).unwrap();
        assert_eq!(to_vec(&inputs[1]).unwrap(), [2.0, 0.0, 0.0, 2.5]);
        assert_eq!(to_vec(&logits).unwrap(), [5.0, -6.5]);
    }

    #[test]
    fn losses_are_in_nats() {
        let close =
            |t: Tensor, wanted: f64| assert!((t.double_value(&[]) - wanted).abs() < 1e-6, "{t:?} {wanted}");
        let labels = Tensor::from_slice(&[0i64, 1]);
        let binary = network(&ModelSpec::Logistic {}, 1, 1);
        let logits = Tensor::from_slice(&[0f32, 2.0]).view([2, 1]);
        let e = 1f64.exp();
        let sum = 2f64.ln() + (1.0 + (-2f64).exp()).ln();
        close(binary.loss(&logits, &labels, Reduction::Sum).unwrap(), sum);
        close(binary.loss(&logits, &labels, Reduction::Mean).unwrap(), sum / 2.0);
        let three = network(&ModelSpec::Logistic {}, 1, 3);
        let logits = Tensor::from_slice(&[0f32, 0.0, 0.0, 0.0, 1.0, 0.0]).view([2, 3]);
        close(three.loss(&logits, &labels, Reduction::Sum).unwrap(), 3f64.ln() - (e / (e + 2.0)).ln());
        assert_eq!(Vec::<i64>::try_from(three.predictions(&logits).unwrap()).unwrap(), [0, 1]);
    }

    #[test]
    fn weights_that_do_not_fit_or_are_spoilt_are_refused() {
        let net = network(&ModelSpec::Logistic {}, 2, 1);
        for weights in [&[0.0; 2][..], &[0.0; 4], &[], &[0.0, f32::NAN, 0.0], &[0.0, 0.0, f32::INFINITY]] {
            let e = TrainerError::from(net.load(weights, Device::Cpu).unwrap_err());
            assert!(matches!(e, TrainerError::Numerical(_)), "{e}");
        }
        let no_layer = ModelSpec::Mlp { hidden: vec![], activation: Activation::Relu, seed: 0 };
        assert!(matches!(Network::new(&no_layer, 2, 1), Err(TrainerError::Unsupported(_))));
        let vast = ModelSpec::Mlp { hidden: vec![65_536; 64], activation: Activation::Relu, seed: 0 };
        assert!(matches!(Network::new(&vast, 2, 1), Err(TrainerError::Unsupported(_))));
    }
}
