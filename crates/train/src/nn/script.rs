//! A model that is a TorchScript file: libtorch's interpreter runs it, without Python.
//!
//! Its parameters are windows on the flat values, as a built-in model's are, so optimisers, parts and checkpoints know no
//! difference. What it gives is losses, not outputs: model and loss are its author's.

use crate::failure::{Failure, first_line};
use crate::memory;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Cursor, Read as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use tch::{CModule, Device, IValue, Kind, Reduction, TchError, Tensor};
use undertone_core::digest::Digest;
use undertone_core::layout::ModelLayout;
use undertone_core::shape::{Input, Shape, Target};
use undertone_core::torchscript::archive::rewritten;
use undertone_core::torchscript::{
    Archive, BUFFERS, EVAL_STEP, EXPORT, Exported, ModuleError, TRAINING_STEP,
};
use undertone_core::trainer::TrainerError;

/// Examples of the trial: more than one, and not as many as anybody's batch.
const TRIAL: [i64; 2] = [3, 1];
/// Most names that an error tells.
const MOST_NAMES: usize = 5;

/// A TorchScript module.
#[derive(Debug)]
pub(crate) struct Script {
    module: Mutex<CModule>,
    /// In the layout's order; the module computes with whatever values they are windows on.
    parameters: Vec<Tensor>,
    buffers: Vec<Buffer>,
}

/// Values of a module that are not trained.
#[derive(Debug)]
struct Buffer {
    name: String,
    /// As the module has it.
    value: Tensor,
    /// As it was.
    was: Tensor,
}

/// Sums over examples.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Sums {
    pub(crate) loss: f64,
    /// Examples whose class was found.
    pub(crate) right: Option<u64>,
    /// Of the distances between predicted and true numbers, as they are scaled.
    pub(crate) error: Option<f64>,
}

impl Sums {
    /// Of these examples and some more.
    pub(crate) fn and(self, more: Self) -> Self {
        Self {
            loss: self.loss + more.loss,
            right: more.right.map(|n| n + self.right.unwrap_or(0)),
            error: more.error.map(|sum| sum + self.error.unwrap_or(0.0)),
        }
    }
}

/// A reason that is the file's own, not the data's.
fn wrong(text: String) -> Failure {
    TrainerError::Module(text).into()
}

/// A failure that the trial did not show: it may follow the data, so it is told to the data owner alone. To try again in another
/// process would come to the same.
pub(crate) fn on_data(e: Failure) -> Failure {
    match e {
        Failure::Task(e @ TrainerError::Module(_)) => TrainerError::Unsupported(e.to_string()).into(),
        Failure::Torch(e) if !memory::ran_out(&e) => {
            let text = format!("the job's TorchScript file fails on this data: {}", reason(&e));
            // After an error of CUDA's a process is of no more use: it is to be ended.
            match text.contains("CUDA error") {
                true => TrainerError::Broken(text).into(),
                false => TrainerError::Unsupported(text).into(),
            }
        }
        other => other,
    }
}

/// Runs on libtorch's plain interpreter, on this thread: what it computes does not change as it is called again, so batches of
/// any size compute alike, and a checkpoint leads to the same bits.
fn plain_interpreter() -> Result<(), TchError> {
    tch::jit::f_set_graph_executor_optimize(false)
}

impl Script {
    /// Loads a job's file and tries it on made-up examples.
    ///
    /// # Errors
    /// [`TrainerError::Module`] with the reason if it cannot be trained with; [`TrainerError::Broken`] if it is not here as it
    /// was sent; [`TrainerError::Memory`].
    pub(crate) fn load(
        exported: &Exported,
        layout: &ModelLayout,
        path: &Path,
        shape: &Shape,
        device: Device,
    ) -> Result<Self, Failure> {
        let (module, buffers) = read(exported, path, device)?;
        let parameters = parameters(&module, layout)?;
        let mut script = Self { module: Mutex::new(module), parameters, buffers: vec![] };
        script.buffers = script.find_buffers(&buffers)?;
        script.try_out(layout, shape, device)?;
        Ok(script)
    }

    /// The parameters, in the layout's order.
    pub(crate) fn parameters(&self) -> &[Tensor] {
        &self.parameters
    }

    /// Each example's loss in training, shape (examples).
    pub(crate) fn losses(&self, x: &Tensor, y: &Tensor) -> Result<Tensor, Failure> {
        let before = self.versions()?;
        let losses = match self.call(TRAINING_STEP, x, y)? {
            IValue::Tensor(losses) => losses,
            _ => return Err(wrong(format!("{TRAINING_STEP} gives no tensor of losses"))),
        };
        if losses.size() != [y.size()[0]] {
            // What the shape is may follow the data.
            return Err(wrong(format!(
                "{TRAINING_STEP} must give one loss for each example, shape (examples): a loss function with reduction=\"none\""
            )));
        }
        if losses.kind() != Kind::Float {
            return Err(wrong(format!(
                "{TRAINING_STEP} gives losses that are {:?}, not float32",
                losses.kind()
            )));
        }
        self.check_unchanged(TRAINING_STEP, &before)?;
        Ok(losses)
    }

    /// The same put together.
    pub(crate) fn loss(&self, x: &Tensor, y: &Tensor, reduction: Reduction) -> Result<Tensor, Failure> {
        let losses = self.losses(x, y)?;
        Ok(match reduction {
            Reduction::Mean => losses.f_mean(None::<Kind>)?,
            Reduction::Sum => losses.f_sum(None::<Kind>)?,
            Reduction::None | Reduction::Other(_) => losses,
        })
    }

    /// What the finished model comes to on some examples.
    pub(crate) fn measure(&self, x: &Tensor, y: &Tensor) -> Result<Sums, Failure> {
        let before = self.versions()?;
        let IValue::GenericDict(entries) = self.call(EVAL_STEP, x, y)? else {
            return Err(wrong(format!("{EVAL_STEP} gives no Dict[str, Tensor]")));
        };
        self.check_unchanged(EVAL_STEP, &before)?;
        let mut sums = BTreeMap::new();
        for (name, value) in entries {
            match (name, value) {
                (IValue::String(name), IValue::Tensor(value)) if value.numel() == 1 => {
                    let value = value.f_to_kind(Kind::Double)?.f_reshape(-1)?.f_double_value(&[0])?;
                    sums.insert(name, value);
                }
                _ => {
                    return Err(wrong(format!(
                        "{EVAL_STEP} gives something else than sums by name, one number each"
                    )));
                }
            }
        }
        let loss = sums.remove("loss");
        let count = sums.remove("count");
        let (right, error) = (sums.remove("correct"), sums.remove("absolute_error"));
        let examples = y.size()[0];
        let counts = |n: f64| (0.0..=examples as f64).contains(&n) && n.fract() == 0.0;
        match loss {
            _ if !sums.is_empty() => {
                let names: Vec<String> = sums.into_keys().map(|name| format!("\"{name:.64}\"")).collect();
                Err(wrong(format!(
                    "{EVAL_STEP} gives {}: known are \"loss\", \"count\", \"correct\" and \"absolute_error\", sums over examples",
                    first(names)
                )))
            }
            Some(loss) if count == Some(examples as f64) && right.is_none_or(counts) => {
                Ok(Sums { loss, right: right.map(|n| n as u64), error })
            }
            _ => Err(wrong(format!(
                "{EVAL_STEP} must give the sum of losses as \"loss\", the number of examples as \"count\", and may give those whose \
                 class was found as \"correct\""
            ))),
        }
    }

    fn call(&self, method: &str, x: &Tensor, y: &Tensor) -> Result<IValue, Failure> {
        // A panic while it is held ends the process.
        let mut module = self.module.lock().unwrap_or_else(PoisonError::into_inner);
        match method {
            TRAINING_STEP => module.f_set_train()?,
            _ => module.f_set_eval()?,
        }
        plain_interpreter()?;
        Ok(module
            .method_is(method, &[IValue::Tensor(x.shallow_clone()), IValue::Tensor(y.shallow_clone())])?)
    }

    /// Counts of the changes in place that each parameter has seen.
    fn versions(&self) -> Result<Vec<i64>, TchError> {
        self.parameters.iter().map(Tensor::f_internal_version).collect()
    }

    /// One example's call must leave nothing for the next one's.
    fn check_unchanged(&self, method: &str, before: &[i64]) -> Result<(), Failure> {
        if self.versions()? != before {
            return Err(wrong(format!("{method} changes a parameter by itself: only the optimiser may")));
        }
        for buffer in &self.buffers {
            let same = buffer.value.size() == buffer.was.size() && buffer.value.f_equal(&buffer.was)?;
            if !same {
                return Err(wrong(format!(
                    "{method} changes the buffer \"{}\": what one example leaves there would be in the next one's gradient; compute \
                     it anew in each call (in place of running statistics take nn.GroupNorm or nn.LayerNorm)",
                    buffer.name
                )));
            }
        }
        Ok(())
    }

    /// The buffers, all that the code declares.
    fn find_buffers(&self, declared: &[String]) -> Result<Vec<Buffer>, Failure> {
        let module = self.module.lock().unwrap_or_else(PoisonError::into_inner);
        plain_interpreter()?;
        let entries = match module.method_is::<IValue>(BUFFERS, &[]) {
            Ok(IValue::GenericDict(entries)) => entries,
            _ => return Err(wrong(format!("{BUFFERS} gives no Dict[str, Tensor] of buffers: {EXPORT}"))),
        };
        drop(module);
        let mut buffers = Vec::new();
        for entry in entries {
            let (IValue::String(name), IValue::Tensor(value)) = entry else {
                return Err(wrong(format!("{BUFFERS} gives something else than buffers by name: {EXPORT}")));
            };
            // A copy: `value` is the module's own.
            let was = value.f_detach_copy()?;
            buffers.push(Buffer { name, value, was });
        }
        let known: BTreeSet<&str> = buffers.iter().map(|buffer| buffer.name.as_str()).collect();
        match declared.iter().find(|name| !known.contains(name.as_str())) {
            Some(missing) => Err(wrong(format!("{BUFFERS} leaves out the buffer \"{missing}\": {EXPORT}"))),
            None => Ok(buffers),
        }
    }

    /// Trains and measures made-up examples: so what is refused here tells nothing of anybody's data.
    fn try_out(&self, layout: &ModelLayout, shape: &Shape, device: Device) -> Result<(), Failure> {
        for examples in TRIAL {
            let (x, y) = made_up(shape, examples, device)?;
            let tried = |e: Failure, method: &str| match e {
                Failure::Torch(e) if !memory::ran_out(&e) => wrong(format!(
                    "{method} fails on {examples} made-up examples of shape {:?} ({}) with labels of shape [{examples}] ({}): {}",
                    x.size(),
                    match shape.input {
                        Input::Tokens { vocabulary, .. } => format!("tokens 0 to {}", vocabulary - 1),
                        Input::Features { .. } | Input::Image { .. } | Input::Series { .. } =>
                            "all zeros".into(),
                    },
                    match shape.target {
                        Target::Class { classes } => format!("classes 0 to {}", classes - 1),
                        Target::Number => "all zeros".into(),
                    },
                    reason(&e)
                )),
                other => other,
            };
            let losses = self.losses(&x, &y).map_err(|e| tried(e, TRAINING_STEP))?;
            let _ = tch::no_grad(|| self.measure(&x, &y)).map_err(|e| tried(e, EVAL_STEP))?;
            if !losses.requires_grad() {
                return Err(wrong(
                    "the loss does not depend on any parameter: nothing would be trained".into(),
                ));
            }
            let loss = losses.f_sum(None::<Kind>)?;
            let followed: Vec<&Tensor> = self.parameters.iter().collect();
            let gradients = Tensor::f_run_backward(&[loss], &followed, false, false)
                .map_err(|e| tried(e.into(), "the gradient"))?;
            let without = layout.tensors().iter().zip(gradients).filter(|(_, gradient)| !gradient.defined());
            let without: Vec<String> = without.map(|(t, _)| format!("\"{}\"", t.name)).collect();
            if !without.is_empty() {
                return Err(wrong(format!(
                    "the loss does not depend on {} of {} parameters, which would never be trained: {}; use them, make them buffers, or \
                     take them out",
                    without.len(),
                    layout.tensors().len(),
                    first(without)
                )));
            }
        }
        Ok(())
    }
}

/// The module, and its buffers as the code declares them.
fn read(exported: &Exported, path: &Path, device: Device) -> Result<(CModule, Vec<String>), Failure> {
    let bytes = bytes_of(exported, path)?;
    let archive = Archive::read(Cursor::new(&bytes)).map_err(|e| wrong(e.to_string()))?;
    if archive.tensors() != exported.tensors {
        return Err(wrong(format!(
            "its parameters are not those that the job names: hand the job in anew, or {EXPORT}"
        )));
    }
    let clean = rewritten(Cursor::new(&bytes), exported.file.bytes).map_err(|e| match e {
        ModuleError::Memory => Failure::from(memory::too_big()),
        other => wrong(other.to_string()),
    })?;
    drop(bytes);
    plain_interpreter()?;
    let module =
        CModule::load_data_on_device(&mut &clean[..], device).map_err(|e| match memory::ran_out(&e) {
            true => Failure::Torch(e),
            false => wrong(format!("libtorch {} cannot load it: {}", crate::LIBTORCH_VERSION, reason(&e))),
        })?;
    Ok((module, archive.buffers().to_vec()))
}

/// The file as it was sent.
fn bytes_of(exported: &Exported, path: &Path) -> Result<Vec<u8>, Failure> {
    let broken = |e: io::Error| {
        TrainerError::Broken(format!("cannot read the job's TorchScript file {}: {e}", path.display()))
    };
    let mut file = File::open(path).map_err(broken)?;
    let length = usize::try_from(exported.file.bytes).unwrap_or(usize::MAX);
    let mut bytes = Vec::new();
    if bytes.try_reserve_exact(length).is_err() {
        return Err(memory::too_big().into());
    }
    (&mut file).take(exported.file.bytes).read_to_end(&mut bytes).map_err(broken)?;
    if Digest::of(&bytes) != exported.file.digest {
        let text = format!("the job's TorchScript file was altered on this disk: remove {}", path.display());
        return Err(TrainerError::Broken(text).into());
    }
    Ok(bytes)
}

/// The module's own parameters, in the layout's order.
fn parameters(module: &CModule, layout: &ModelLayout) -> Result<Vec<Tensor>, Failure> {
    let mut found: BTreeMap<String, Tensor> = module.named_parameters()?.into_iter().collect();
    let mut parameters = Vec::new();
    for wanted in layout.tensors() {
        let Some(mut parameter) = found.remove(&wanted.name) else {
            return Err(wrong(format!(
                "it has no parameter \"{}\", which the job names: {EXPORT}",
                wanted.name
            )));
        };
        let shape: Vec<i64> = wanted.shape.iter().map(|&n| n as i64).collect();
        if parameter.size() != shape || parameter.kind() != Kind::Float {
            return Err(wrong(format!(
                "its parameter \"{}\" is {:?} {:?}, the job names Float {shape:?}: parameters are float32 ({EXPORT})",
                wanted.name,
                parameter.kind(),
                parameter.size()
            )));
        }
        parameters.push(parameter.f_requires_grad_(true)?);
    }
    match found.into_keys().next() {
        Some(name) => {
            Err(wrong(format!("it has the parameter \"{name}\", which the job does not name: {EXPORT}")))
        }
        None => Ok(parameters),
    }
}

/// Examples that are nobody's, and their labels. The last and every second before it has the highest token and class that there
/// is, so that what is too small for them shows; the others have the lowest. Other features, and numbers, are zero.
fn made_up(shape: &Shape, examples: i64, device: Device) -> Result<(Tensor, Tensor), TchError> {
    let highest: Vec<i64> = (0..examples).map(|i| (examples - i) % 2).collect();
    let highest = Tensor::f_from_slice(&highest)?.f_to_device(device)?;
    let features = match shape.input {
        Input::Tokens { length, vocabulary } => {
            let tokens = highest.f_mul_scalar(vocabulary as i64 - 1)?;
            tokens.f_unsqueeze(1)?.f_repeat([1, length as i64])?
        }
        Input::Features { .. } | Input::Image { .. } | Input::Series { .. } => {
            let dimensions = shape.input.dimensions().into_iter().map(|n| n as i64);
            let dimensions: Vec<i64> = std::iter::once(examples).chain(dimensions).collect();
            Tensor::f_zeros(&dimensions[..], (Kind::Float, device))?
        }
    };
    let labels = match shape.target {
        Target::Class { classes } => highest.f_mul_scalar(classes as i64 - 1)?,
        Target::Number => Tensor::f_zeros([examples], (Kind::Float, device))?,
    };
    Ok((features, labels))
}

/// The line of libtorch's message that says what is wrong: of what the interpreter reports, the last.
fn reason(e: &TchError) -> String {
    let text = e.to_string();
    let last = text.lines().rev().map(str::trim).find(|line| line.starts_with("RuntimeError:"));
    last.map_or_else(|| first_line(&text), str::to_owned)
}

fn first(mut names: Vec<String>) -> String {
    let more = names.len().saturating_sub(MOST_NAMES);
    names.truncate(MOST_NAMES);
    let text = names.join(", ");
    if more > 0 { format!("{text} and {more} more") } else { text }
}

#[cfg(test)]
pub(crate) mod tests;
