//! What a model looks like as one flat vector.

use crate::digest::{Digest, Digester};
use crate::limits::{MAX_PARAMETERS, MAX_RANK, MAX_TENSOR_NAME_BYTES, MAX_TENSORS};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// One named tensor of f32 values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// PyTorch's name of the tensor, for example `0.weight`.
    pub name: String,
    /// Its shape; empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// The number of values, or `None` past `usize`.
    pub fn checked_len(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
    }
}

/// Ordered tensors; a model's values are these tensors one behind the other, row-major.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<TensorSpec>", into = "Vec<TensorSpec>")]
pub struct ModelLayout {
    tensors: Vec<TensorSpec>,
    len: usize,
}

/// Why a list of tensors is not a layout, or a file does not hold the layout's tensors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Too many tensors, dimensions or values, or a name that is too long.
    #[error("the model is too large: {0}")]
    TooLarge(String),
    /// Two tensors of one name.
    #[error("two tensors are named \"{0}\"")]
    DuplicateName(String),
    /// The file is not safetensors.
    #[error("not a safetensors file: {0}")]
    NotSafetensors(String),
    /// A tensor of the layout is not in the file.
    #[error("tensor \"{0}\" is missing from the file")]
    Missing(String),
    /// The file holds a tensor that the layout does not name.
    #[error("the file holds tensor \"{0}\", which the model does not have")]
    Extra(String),
    /// A tensor has another shape or dtype.
    #[error("tensor \"{name}\" is {found} in the file, the model wants {wanted}")]
    Misshaped {
        /// The tensor.
        name: String,
        /// What the file says.
        found: String,
        /// What the layout says.
        wanted: String,
    },
}

impl ModelLayout {
    /// Checks limits and names.
    ///
    /// # Errors
    /// [`LayoutError::TooLarge`] or [`LayoutError::DuplicateName`].
    pub fn new(tensors: Vec<TensorSpec>) -> Result<Self, LayoutError> {
        if tensors.len() > MAX_TENSORS {
            return Err(LayoutError::TooLarge(format!("{} tensors, at most {MAX_TENSORS}", tensors.len())));
        }
        let mut len = 0usize;
        let mut seen = std::collections::HashSet::new();
        for t in &tensors {
            if t.name.len() > MAX_TENSOR_NAME_BYTES || t.shape.len() > MAX_RANK {
                return Err(LayoutError::TooLarge(format!(
                    "tensor \"{:.64}\" has a name over {MAX_TENSOR_NAME_BYTES} bytes or more than {MAX_RANK} dimensions",
                    t.name
                )));
            }
            if !seen.insert(t.name.as_str()) {
                return Err(LayoutError::DuplicateName(t.name.clone()));
            }
            len = t
                .checked_len()
                .and_then(|n| len.checked_add(n))
                .filter(|&n| n as u64 <= MAX_PARAMETERS)
                .ok_or_else(|| LayoutError::TooLarge(format!("more than {MAX_PARAMETERS} parameters")))?;
        }
        Ok(Self { tensors, len })
    }

    /// The tensors in order.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// The number of values in all tensors together.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the layout holds no value.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Each tensor with the range of its values in the flat vector.
    pub fn ranges(&self) -> impl Iterator<Item = (&TensorSpec, std::ops::Range<usize>)> {
        let mut start = 0;
        self.tensors.iter().map(move |t| {
            let end = start + t.shape.iter().product::<usize>();
            let range = start..end;
            start = end;
            (t, range)
        })
    }

    /// A digest over names, shapes, dtype and order.
    pub fn digest(&self) -> Digest {
        let mut d = Digester::new();
        d.field(b"undertone layout v1 f32");
        for t in &self.tensors {
            d.field(t.name.as_bytes());
            for &n in &t.shape {
                d.field(&(n as u64).to_le_bytes());
            }
            d.field(b"/");
        }
        d.finish()
    }

    /// The values as a safetensors file that PyTorch opens under the same names.
    ///
    /// # Panics
    /// If `values` does not have [`ModelLayout::len`] values.
    pub fn to_safetensors(&self, values: &[f32], metadata: BTreeMap<String, String>) -> Vec<u8> {
        assert_eq!(values.len(), self.len, "values do not fit the layout");
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let views: Vec<(&str, TensorView<'_>)> = self
            .ranges()
            .map(|(t, r)| {
                let view = TensorView::new(Dtype::F32, t.shape.clone(), &bytes[r.start * 4..r.end * 4]);
                (t.name.as_str(), view.expect("a range is as long as its shape says"))
            })
            .collect();
        let metadata: Option<HashMap<String, String>> =
            (!metadata.is_empty()).then(|| metadata.into_iter().collect());
        safetensors::serialize(views, metadata).expect("a layout has valid names and shapes")
    }

    /// Reads a safetensors file that holds exactly this layout's tensors.
    ///
    /// # Errors
    /// If the bytes are no safetensors file, or a tensor is missing, extra, misshaped or not f32.
    pub fn from_safetensors(&self, bytes: &[u8]) -> Result<Vec<f32>, LayoutError> {
        let file = SafeTensors::deserialize(bytes).map_err(|e| LayoutError::NotSafetensors(e.to_string()))?;
        let mut values = Vec::with_capacity(self.len);
        for t in &self.tensors {
            let view = file.tensor(&t.name).map_err(|_| LayoutError::Missing(t.name.clone()))?;
            if view.dtype() != Dtype::F32 || view.shape() != t.shape {
                return Err(LayoutError::Misshaped {
                    name: t.name.clone(),
                    found: format!("{:?} {:?}", view.dtype(), view.shape()),
                    wanted: format!("F32 {:?}", t.shape),
                });
            }
            values.extend(view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        }
        if let Some(extra) = file.names().into_iter().find(|n| !self.tensors.iter().any(|t| t.name == **n)) {
            return Err(LayoutError::Extra(extra.to_owned()));
        }
        Ok(values)
    }
}

impl TryFrom<Vec<TensorSpec>> for ModelLayout {
    type Error = LayoutError;
    fn try_from(tensors: Vec<TensorSpec>) -> Result<Self, LayoutError> {
        Self::new(tensors)
    }
}

impl From<ModelLayout> for Vec<TensorSpec> {
    fn from(layout: ModelLayout) -> Self {
        layout.tensors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> ModelLayout {
        let t = |name: &str, shape: &[usize]| TensorSpec { name: name.into(), shape: shape.into() };
        ModelLayout::new(vec![t("0.weight", &[2, 3]), t("0.bias", &[2])]).unwrap()
    }

    #[test]
    fn a_model_survives_the_file() {
        let values: Vec<f32> = (0..8).map(|i| i as f32 / 3.0).collect();
        let file = layout().to_safetensors(&values, BTreeMap::from([("round".into(), "3".into())]));
        assert_eq!(layout().from_safetensors(&file).unwrap(), values);
    }

    #[test]
    fn a_wrong_file_is_named() {
        let t = |name: &str, shape: &[usize]| TensorSpec { name: name.into(), shape: shape.into() };
        let of = |l: &ModelLayout| l.to_safetensors(&vec![0.0; l.len()], BTreeMap::new());
        let other = ModelLayout::new(vec![t("0.weight", &[3, 2]), t("0.bias", &[2])]).unwrap();
        assert!(matches!(layout().from_safetensors(&of(&other)), Err(LayoutError::Misshaped { .. })));
        let fewer = ModelLayout::new(vec![t("0.weight", &[2, 3])]).unwrap();
        assert!(matches!(layout().from_safetensors(&of(&fewer)), Err(LayoutError::Missing(_))));
        assert!(matches!(fewer.from_safetensors(&of(&layout())), Err(LayoutError::Extra(_))));
        assert!(matches!(layout().from_safetensors(b"junk"), Err(LayoutError::NotSafetensors(_))));
    }

    #[test]
    fn too_large_and_twice_named_are_refused() {
        let t = |name: &str, shape: &[usize]| TensorSpec { name: name.into(), shape: shape.into() };
        assert!(ModelLayout::new(vec![t("a", &[usize::MAX, 2])]).is_err());
        assert!(ModelLayout::new(vec![t("a", &[1]), t("a", &[1])]).is_err());
    }
}
