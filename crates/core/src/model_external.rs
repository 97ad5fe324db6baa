//! Models that only the data owners' own training programs know: a list of tensors, whatever they compute.
//!
//! The coordinator averages values by name and shape; it never needs to know what a model does with them. So a job may
//! name a model's tensors ([`ModelSpec::External`](crate::model::ModelSpec::External)) and leave training and measuring
//! to `[trainer] command` of the clients, in any framework.

use crate::layout::{LayoutError, ModelLayout, TensorSpec};
use crate::limits::{MAX_RANK, MAX_TENSOR_NAME_BYTES, MAX_TENSORS};
use rand::RngExt as _;
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use serde::{Deserialize, Serialize};

/// One tensor of such a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalTensor {
    /// The name under which programs and saved models hold it.
    pub name: String,
    /// Its shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// What it starts from. Absent: `uniform` with two dimensions or more, else `zeros`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
}

/// What a tensor starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// Zeros.
    Zeros,
    /// Ones: the scale of a normalisation.
    Ones,
    /// Uniform within ±1/√n, where n is the product of all dimensions but the first (LeCun et al. 1998): what PyTorch's
    /// `Linear` and `Conv2d` do by default.
    Uniform,
}

impl ExternalTensor {
    fn start(&self) -> Start {
        self.start.unwrap_or(if self.shape.len() >= 2 { Start::Uniform } else { Start::Zeros })
    }

    fn bound(&self) -> f32 {
        let inputs: usize = self.shape.iter().skip(1).product();
        1.0 / (inputs.max(1) as f32).sqrt()
    }
}

/// Checks the parts that a type cannot.
///
/// # Errors
/// A sentence that says which tensor is wrong, and how.
pub(crate) fn validate(tensors: &[ExternalTensor]) -> Result<(), String> {
    if tensors.is_empty() || tensors.len() > MAX_TENSORS {
        return Err(format!("an external model needs 1 to {MAX_TENSORS} tensors, not {}", tensors.len()));
    }
    for t in tensors {
        if t.name.is_empty() || t.name.len() > MAX_TENSOR_NAME_BYTES || t.name == "__metadata__" {
            return Err(format!(
                "\"{:.64}\" cannot be a tensor's name: it must have 1 to {MAX_TENSOR_NAME_BYTES} bytes and not be \
                 __metadata__, which safetensors files keep for themselves",
                t.name
            ));
        }
        if t.shape.len() > MAX_RANK || t.shape.contains(&0) {
            return Err(format!(
                "tensor \"{:.64}\" has the shape {:.64}: at most {MAX_RANK} dimensions, each at least 1",
                t.name,
                format!("{:?}", t.shape)
            ));
        }
    }
    Ok(())
}

/// The layout: the tensors in the job's order, whatever the data looks like.
pub(crate) fn layout(tensors: &[ExternalTensor]) -> Result<ModelLayout, LayoutError> {
    let spec = |t: &ExternalTensor| TensorSpec { name: t.name.clone(), shape: t.shape.clone() };
    ModelLayout::new(tensors.iter().map(spec).collect())
}

/// The values to start from, one by one: the same bits on every machine for the same seed.
pub(crate) fn initial_stream(
    tensors: &[ExternalTensor],
    seed: u64,
) -> Box<dyn Iterator<Item = f32> + Send + 'static> {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let runs: Vec<(Start, f32, usize)> =
        tensors.iter().map(|t| (t.start(), t.bound(), t.shape.iter().product())).collect();
    let runs = runs.into_iter().flat_map(|(start, bound, len)| std::iter::repeat_n((start, bound), len));
    Box::new(runs.map(move |(start, bound)| match start {
        Start::Zeros => 0.0,
        Start::Ones => 1.0,
        Start::Uniform => rng.random_range(-bound..=bound),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelSpec;
    use crate::shape::Shape;

    fn spec(json: &str) -> ModelSpec {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_list_of_tensors_is_a_model() {
        let model = spec(
            r#"{"kind": "external", "seed": 7, "tensors": [{"name": "w", "shape": [3, 4]}, {"name": "b", "shape": [3]},
                {"name": "norm", "shape": [3], "start": "ones"}, {"name": "t", "shape": []},
                {"name": "z", "shape": [2, 2], "start": "zeros"}]}"#,
        );
        model.validate().unwrap();
        let shape = Shape::table(9, 2);
        let layout = model.layout(&shape).unwrap();
        assert_eq!(layout.len(), 12 + 3 + 3 + 1 + 4);
        let values = model.initial_values(&shape);
        assert_eq!(values.len(), layout.len());
        assert_eq!(values, model.initial_values(&Shape::table(1, 5)), "the data plays no part");
        assert!(values[..12].iter().all(|v| v.abs() <= 0.5) && values[..12].iter().any(|v| *v != 0.0));
        assert_eq!(values[12..], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        let json = serde_json::to_string(&model).unwrap();
        assert_eq!(spec(&json), model);
        assert_ne!(values, spec(&json.replace("\"seed\":7", "\"seed\":8")).initial_values(&shape));
    }

    #[test]
    fn what_is_no_model_is_refused_with_the_tensor() {
        for (tensors, says) in [
            ("", "1 to"),
            (r#"{"name": "", "shape": [1]}"#, "name"),
            (r#"{"name": "__metadata__", "shape": [1]}"#, "__metadata__"),
            (r#"{"name": "w", "shape": [2, 0]}"#, "\"w\""),
            (r#"{"name": "w", "shape": [1, 1, 1, 1, 1, 1, 1, 1, 1]}"#, "\"w\""),
        ] {
            let e =
                spec(&format!(r#"{{"kind": "external", "tensors": [{tensors}]}}"#)).validate().unwrap_err();
            assert!(e.contains(says), "{e}");
        }
        let twice = spec(
            r#"{"kind": "external", "tensors": [{"name": "w", "shape": [1]}, {"name": "w", "shape": [1]}]}"#,
        );
        assert_eq!(twice.layout(&Shape::table(1, 2)), Err(LayoutError::DuplicateName("w".into())));
        assert!(serde_json::from_str::<ModelSpec>(r#"{"kind": "external", "tensors": [], "x": 1}"#).is_err());
    }
}
