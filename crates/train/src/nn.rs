//! Models: arithmetic over named parameters.
//!
//! Read in this order: [`weights`] holds a model's values as tensors, [`pass`] is one walk through a model with them (it
//! alone touches parameters, so it can keep the books that per-example gradients are computed from), `parameterless` is
//! what stands between them; `sequential`, `resnet`, `recurrent` and `transformer` are the built-in models, [`script`] runs those of a
//! TorchScript file. A [`Network`] puts a model, its layout and its input together.

#[cfg(test)]
pub(crate) mod made;
mod parameterless;
pub(crate) mod pass;
mod recurrent;
mod resnet;
pub(crate) mod script;
mod sequential;
mod transformer;
pub(crate) mod weights;

use crate::failure::Failure;
use crate::loss::Objective;
use crate::memory;
use pass::{Pass, Use};
use script::{Script, Sums};
use std::collections::HashMap;
use std::fmt::Debug;
use std::path::Path;
use tch::{Device, Kind, Reduction, TchError, Tensor};
use undertone_core::layout::ModelLayout;
use undertone_core::model::{Cell, ModelSpec};
use undertone_core::part::Part;
use undertone_core::plan::{Loss, TrainPlan};
use undertone_core::shape::{Input, Shape, Target};
use undertone_core::trainer::TrainerError;
use weights::Weights;

/// What PyTorch's normalisations add to a variance by default.
const NORM_EPSILON: f64 = 1e-5;

/// A model, or a piece of one, as arithmetic: it knows where its parameters stand in the layout, not their values.
///
/// Every parameter is reached through an operation of [`Pass`]; what a module does between them has none. No operation
/// is in place, and none mixes examples: the first dimension is the example's, from input to output.
pub(crate) trait Module: Debug + Send + Sync {
    /// What comes out for `x`, whose first dimension counts examples.
    fn forward(&self, pass: &mut Pass<'_>, x: &Tensor) -> Result<Tensor, TchError>;
}

/// Where one parameter stands among the layout's tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Parameter(pub(crate) usize);

/// The parameters of a layout by name.
#[derive(Debug)]
pub(crate) struct Names<'a>(HashMap<&'a str, Parameter>);

impl<'a> Names<'a> {
    fn of(layout: &'a ModelLayout) -> Self {
        Self(layout.tensors().iter().enumerate().map(|(i, t)| (t.name.as_str(), Parameter(i))).collect())
    }

    /// The parameter of this name.
    ///
    /// # Panics
    /// If the layout has none: a module asks for what its own spec puts into the layout.
    pub(crate) fn get(&self, name: &str) -> Parameter {
        *self.0.get(name).unwrap_or_else(|| panic!("the layout has no tensor \"{name}\""))
    }
}

/// A model for data of one shape.
#[derive(Debug)]
pub(crate) struct Network {
    computes: Computes,
    layout: ModelLayout,
    input: Input,
}

/// What computes.
#[derive(Debug)]
enum Computes {
    BuiltIn(BuiltIn),
    Script(Script),
}

/// A model that is known layer by layer.
#[derive(Debug)]
struct BuiltIn {
    root: Box<dyn Module>,
    objective: Objective,
    drops: bool,
}

impl Network {
    /// The model that `spec` describes, for data of this shape.
    ///
    /// # Errors
    /// [`TrainerError::Unsupported`] if the spec makes no sense, cannot read data of this shape, is too large, or is a file.
    pub(crate) fn new(spec: &ModelSpec, shape: &Shape) -> Result<Self, TrainerError> {
        spec.validate().map_err(TrainerError::Unsupported)?;
        if spec.is_external() {
            let text = "the built-in trainer does not know what an external model computes: it needs a client with a training \
                        program of its own ([trainer] command)";
            return Err(TrainerError::Unsupported(text.into()));
        }
        if spec.exported().is_some() {
            let text = "a TorchScript module is trained from its file, in rounds of a job";
            return Err(TrainerError::Unsupported(text.into()));
        }
        let layout = spec.layout(shape).map_err(|e| TrainerError::Unsupported(e.to_string()))?;
        let root = module(spec, shape, &Names::of(&layout));
        let objective = Objective::new(shape.target);
        let computes = Computes::BuiltIn(BuiltIn { root, objective, drops: spec.drops_out() });
        Ok(Self { computes, layout, input: shape.input.clone() })
    }

    /// The same, or the TorchScript file that the spec names, at `module`, on this device.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`Script::load`].
    pub(crate) fn of_task(
        spec: &ModelSpec,
        shape: &Shape,
        module: Option<&Path>,
        device: Device,
    ) -> Result<Self, Failure> {
        let Some(exported) = spec.exported() else { return Ok(Self::new(spec, shape)?) };
        let path =
            module.ok_or_else(|| TrainerError::Broken("the job's TorchScript file is not here".into()))?;
        let layout = spec.layout(shape).map_err(|e| TrainerError::Unsupported(e.to_string()))?;
        let script = Script::load(exported, &layout, path, shape, device)?;
        Ok(Self { computes: Computes::Script(script), layout, input: shape.input.clone() })
    }

    /// Any module, over a layout of its own.
    #[cfg(test)]
    pub(crate) fn of(root: Box<dyn Module>, layout: ModelLayout, shape: &Shape) -> Self {
        let objective = Objective::new(shape.target);
        let computes = Computes::BuiltIn(BuiltIn { root, objective, drops: false });
        Self { computes, layout, input: shape.input.clone() }
    }

    /// The same, taken for one that drops values in training.
    #[cfg(test)]
    pub(crate) fn dropping(mut self) -> Self {
        if let Computes::BuiltIn(model) = &mut self.computes {
            model.drops = true;
        }
        self
    }

    /// Whether training drops values, which libtorch's generator draws. Of a script nobody knows: it may.
    pub(crate) fn drops(&self) -> bool {
        match &self.computes {
            Computes::BuiltIn(model) => model.drops,
            Computes::Script(_) => true,
        }
    }

    /// Whether only losses are known, not what the model puts out, nor how each parameter is used.
    pub(crate) fn is_script(&self) -> bool {
        matches!(self.computes, Computes::Script(_))
    }

    fn built_in(&self) -> &BuiltIn {
        match &self.computes {
            Computes::BuiltIn(model) => model,
            Computes::Script(_) => panic!("a TorchScript module gives losses alone"),
        }
    }

    /// With another loss than the usual one.
    ///
    /// # Errors
    /// [`TrainerError::Unsupported`] if it does not fit what is to be predicted, or the model has its own.
    pub(crate) fn with_loss(mut self, loss: Option<&Loss>) -> Result<Self, TrainerError> {
        match (loss, &mut self.computes) {
            (None, _) => {}
            (Some(loss), Computes::BuiltIn(model)) => {
                model.objective = Objective::with(model.objective.target(), loss)?;
            }
            (Some(_), Computes::Script(_)) => {
                let text = "a TorchScript module has a loss of its own: leave out [training] loss";
                return Err(TrainerError::Unsupported(text.into()));
            }
        }
        Ok(self)
    }

    /// The number of parameters.
    pub(crate) fn len(&self) -> usize {
        self.layout.len()
    }

    /// The model's tensors.
    pub(crate) fn layout(&self) -> &ModelLayout {
        &self.layout
    }

    /// What one example holds.
    pub(crate) fn input(&self) -> &Input {
        &self.input
    }

    /// What training makes small.
    ///
    /// # Panics
    /// Of a [script](Self::is_script), as do all that speak of outputs.
    pub(crate) fn objective(&self) -> &Objective {
        &self.built_in().objective
    }

    /// The part of the model that a plan trains.
    ///
    /// # Errors
    /// [`TrainerError::Unsupported`] if the plan names what the model does not have.
    pub(crate) fn part(&self, plan: &TrainPlan) -> Result<Part, TrainerError> {
        plan.part(&self.layout).map_err(|e| TrainerError::Unsupported(e.to_string()))
    }

    /// Values that came from elsewhere, on the device: a flat tensor over the whole model.
    ///
    /// # Errors
    /// [`TrainerError::Numerical`] if they do not fit the model or are not all finite.
    pub(crate) fn load(&self, values: &[f32], device: Device) -> Result<Tensor, Failure> {
        if values.len() != self.len() {
            return Err(TrainerError::Numerical(format!(
                "the weights hold {} values, the model has {}: job and model do not belong together",
                values.len(),
                self.len()
            ))
            .into());
        }
        if let Some(i) = values.iter().position(|w| !w.is_finite()) {
            return Err(TrainerError::Numerical(format!(
                "value {i} of the weights is {}: the model is spoilt, nothing can be trained from it",
                values[i]
            ))
            .into());
        }
        Ok(Tensor::f_from_slice(values)?.f_to_device(device)?)
    }

    /// The model's tensors with these values: those of `part` in `trained`, the others in `whole`. A script computes with the
    /// ones that were made last.
    pub(crate) fn weights(&self, part: &Part, trained: &Tensor, whole: &Tensor) -> Result<Weights, TchError> {
        let weights = Weights::of(&self.layout, part, trained, whole)?;
        match &self.computes {
            Computes::BuiltIn(_) => Ok(weights),
            Computes::Script(script) => weights.of_module(script.parameters()),
        }
    }

    /// The loss of some examples in training, put together or one each.
    pub(crate) fn training_loss(
        &self,
        weights: &Weights,
        x: &Tensor,
        y: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor, Failure> {
        match &self.computes {
            Computes::BuiltIn(model) => {
                let logits = self.forward_training(weights, x)?;
                Ok(model.objective.loss(&logits, y, reduction)?)
            }
            Computes::Script(script) => script.loss(x, y, reduction).map_err(script::on_data),
        }
    }

    /// What the finished model comes to on some examples: the loss in double precision; classes that were found, or how far
    /// off numbers are.
    pub(crate) fn measure(&self, weights: &Weights, x: &Tensor, y: &Tensor) -> Result<Sums, Failure> {
        let model = match &self.computes {
            Computes::BuiltIn(model) => model,
            Computes::Script(script) => return script.measure(x, y).map_err(script::on_data),
        };
        let logits = self.forward(weights, x)?;
        let loss = model.objective.loss(&logits.f_to_kind(Kind::Double)?, y, Reduction::Sum)?;
        let (right, error) = match model.objective.target() {
            Target::Class { .. } => (Some(model.objective.right(&logits, y)?), None),
            Target::Number => (None, Some(absolute_error(&logits, y)?)),
        };
        Ok(Sums { loss: loss.f_double_value(&[])?, right, error })
    }

    /// Each example's loss, and how many classes were found, of the finished model. A script measures one example after the
    /// other: nobody knows whether it lets one move another's part.
    pub(crate) fn measure_each(
        &self,
        weights: &Weights,
        x: &Tensor,
        y: &Tensor,
    ) -> Result<(Tensor, Option<u64>), Failure> {
        let model = match &self.computes {
            Computes::BuiltIn(model) => model,
            Computes::Script(script) => {
                let (mut losses, mut right) = (Vec::new(), None);
                for i in 0..y.size()[0] {
                    let sums = script.measure(&x.f_narrow(0, i, 1)?, &y.f_narrow(0, i, 1)?);
                    let sums = sums.map_err(script::on_data)?;
                    losses.push(sums.loss);
                    right = sums.right.map(|n| n + right.unwrap_or(0));
                }
                return Ok((Tensor::f_from_slice(&losses)?, right));
            }
        };
        let logits = self.forward(weights, x)?;
        let losses = model.objective.loss(&logits.f_to_kind(Kind::Double)?, y, Reduction::None)?;
        let right = match model.objective.target() {
            Target::Class { .. } => Some(model.objective.right(&logits, y)?),
            Target::Number => None,
        };
        Ok((losses, right))
    }

    /// The logits (or predicted numbers) of each example, shape (examples, outputs), as the finished model gives them.
    pub(crate) fn forward(&self, weights: &Weights, x: &Tensor) -> Result<Tensor, TchError> {
        self.built_in().root.forward(&mut Pass::plain(weights), x)
    }

    /// The same while the model is trained: where it has dropout, libtorch's generator draws what is dropped.
    pub(crate) fn forward_training(&self, weights: &Weights, x: &Tensor) -> Result<Tensor, TchError> {
        self.built_in().root.forward(&mut Pass::training(weights), x)
    }

    /// The logits in training, and every use of a parameter that is trained, in the order they happened. Autograd follows the
    /// operations' outputs, not the parameters.
    pub(crate) fn record(&self, weights: &Weights, x: &Tensor) -> Result<(Tensor, Vec<Use>), TchError> {
        let mut pass = Pass::recording(weights);
        let logits = self.built_in().root.forward(&mut pass, x)?;
        Ok((logits, pass.uses()))
    }
}

/// The module of a spec that has a layout for this shape; `names` are that layout's.
fn module(spec: &ModelSpec, shape: &Shape, names: &Names<'_>) -> Box<dyn Module> {
    match spec {
        ModelSpec::Logistic {} | ModelSpec::Linear {} | ModelSpec::Mlp { .. } | ModelSpec::Cnn(_) => {
            let layers = spec.sequence(shape).expect("these are sequences");
            Box::new(sequential::Sequential::new(&layers.expect("it has a layout"), names))
        }
        ModelSpec::Resnet18(spec) => Box::new(resnet::Resnet::new(spec, names)),
        ModelSpec::Lstm(spec) => Box::new(recurrent::Recurrent::new(Cell::Lstm, spec, shape, names)),
        ModelSpec::Gru(spec) => Box::new(recurrent::Recurrent::new(Cell::Gru, spec, shape, names)),
        ModelSpec::Transformer(spec) => Box::new(transformer::Transformer::new(spec, shape, names)),
        ModelSpec::External { .. } | ModelSpec::Torchscript(_) => unreachable!("Network::new refuses it"),
    }
}

/// The sum of the distances between predicted and true numbers.
fn absolute_error(predicted: &Tensor, truth: &Tensor) -> Result<f64, TchError> {
    predicted.f_squeeze_dim(1)?.f_sub(truth)?.f_abs()?.f_sum(Kind::Double)?.f_double_value(&[])
}

/// The values of a tensor, row-major, in main memory.
pub(crate) fn to_vec(tensor: &Tensor) -> Result<Vec<f32>, TchError> {
    joined_values(std::slice::from_ref(tensor))
}

/// The values of tensors behind each other, each row-major, in main memory.
pub(crate) fn joined_values(tensors: &[Tensor]) -> Result<Vec<f32>, TchError> {
    if let [first, _, ..] = tensors
        && first.device() != Device::Cpu
    {
        // One journey from the device instead of many.
        let flat: Vec<_> = tensors.iter().map(|t| t.f_reshape(-1)).collect::<Result<_, _>>()?;
        return to_vec(&Tensor::f_cat(&flat, 0)?);
    }
    let count: usize = tensors.iter().map(Tensor::numel).sum();
    let mut values = memory::room(count)?;
    values.resize(count, 0.0);
    let mut rest = &mut values[..];
    for tensor in tensors {
        let flat = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?.f_view(-1)?;
        let own = rest.split_off_mut(..flat.numel()).expect("there is room for each");
        flat.f_copy_data(own, flat.numel())?;
    }
    Ok(values)
}

#[cfg(test)]
pub(crate) mod tests;
