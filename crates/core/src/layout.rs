//! What a model looks like as one flat vector.

use crate::digest::{Digest, Digester};
use crate::limits::{MAX_PARAMETERS, MAX_RANK, MAX_TENSOR_NAME_BYTES, MAX_TENSORS};
use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest header of a safetensors file, as the format has it.
pub const MAX_HEADER_BYTES: usize = 100_000_000;

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
    /// A model of a kind that cannot read the job's data.
    #[error("{0}")]
    Unfit(String),
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

    /// The values as a safetensors file that PyTorch opens under the same names: [`header`](Self::header), then the values.
    ///
    /// # Panics
    /// If `values` does not have [`ModelLayout::len`] values.
    pub fn to_safetensors(&self, values: &[f32], metadata: BTreeMap<String, String>) -> Vec<u8> {
        assert_eq!(values.len(), self.len, "values do not fit the layout");
        let mut file = self.header(&metadata);
        file.reserve_exact(4 * values.len());
        file.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        file
    }

    /// What stands before the values in a safetensors file of this layout: its length, then JSON that gives each tensor's
    /// place, padded to a multiple of eight bytes. The values follow as little-endian f32 in the layout's own order, so
    /// that such a file can be written and read as a stream.
    pub fn header(&self, metadata: &BTreeMap<String, String>) -> Vec<u8> {
        let mut header = serde_json::Map::new();
        if !metadata.is_empty() {
            header.insert("__metadata__".into(), serde_json::json!(metadata));
        }
        for (t, r) in self.ranges() {
            let about = serde_json::json!({
                "dtype": "F32", "shape": t.shape, "data_offsets": [4 * r.start, 4 * r.end],
            });
            header.insert(t.name.clone(), about);
        }
        let mut json = serde_json::to_vec(&header).expect("names and numbers");
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json);
        bytes
    }

    /// Where the values begin in a file of `bytes` bytes that begins with `start`: right behind a header that
    /// [`header`](Self::header) wrote, whatever its metadata. `start` must hold the whole header;
    /// [`header_len`](Self::header_len) says how long it is.
    ///
    /// # Errors
    /// [`LayoutError`] if it is no safetensors file, or its tensors are others, or lie in another order.
    pub fn check_header(&self, start: &[u8], bytes: u64) -> Result<u64, LayoutError> {
        let no = |e: &dyn std::fmt::Display| LayoutError::NotSafetensors(e.to_string());
        let (first, json) = start.split_first_chunk().ok_or_else(|| no(&"it is cut off"))?;
        let len = Self::header_len(*first)?;
        let json = json.get(..len - 8).ok_or_else(|| no(&"its header is cut off"))?;
        let metadata: Metadata = serde_json::from_slice(json).map_err(|e| no(&e))?;
        for (t, r) in self.ranges() {
            let found = metadata.info(&t.name).ok_or_else(|| LayoutError::Missing(t.name.clone()))?;
            if found.dtype != Dtype::F32
                || found.shape != t.shape
                || found.data_offsets != (4 * r.start, 4 * r.end)
            {
                let (from, to) = found.data_offsets;
                return Err(LayoutError::Misshaped {
                    name: t.name.clone(),
                    found: format!("{:?} {:?} at bytes {from} to {to}", found.dtype, found.shape),
                    wanted: format!("F32 {:?} at bytes {} to {}", t.shape, 4 * r.start, 4 * r.end),
                });
            }
        }
        let tensors = metadata.tensors();
        if let Some(extra) = tensors.keys().find(|n| !self.tensors.iter().any(|t| t.name == **n)) {
            return Err(LayoutError::Extra(extra.clone()));
        }
        let data = len as u64;
        if bytes != data + 4 * self.len as u64 {
            return Err(no(&format!("{bytes} bytes, {} were expected", data + 4 * self.len as u64)));
        }
        Ok(data)
    }

    /// The length of the header of a safetensors file, from its first eight bytes.
    ///
    /// # Errors
    /// [`LayoutError::NotSafetensors`] if it is beyond what any layout needs.
    pub fn header_len(first: [u8; 8]) -> Result<usize, LayoutError> {
        let len = u64::from_le_bytes(first);
        usize::try_from(len).ok().filter(|len| *len <= MAX_HEADER_BYTES).map(|len| 8 + len).ok_or_else(|| {
            LayoutError::NotSafetensors(format!("a header of {len} bytes, at most {MAX_HEADER_BYTES}"))
        })
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

    /// Also where the names are not in the order of the alphabet.
    #[test]
    fn a_file_is_a_header_and_the_values_in_order() {
        let values: Vec<f32> = (0..8).map(|i| i as f32).collect();
        for metadata in [BTreeMap::new(), BTreeMap::from([("undertone".into(), "{\"round\": 3}".into())])] {
            let file = layout().to_safetensors(&values, metadata);
            let len = ModelLayout::header_len(file[..8].try_into().unwrap()).unwrap();
            assert_eq!(len % 8, 0);
            let data = layout().check_header(&file[..len], file.len() as u64).unwrap();
            assert_eq!(data, len as u64);
            let read: Vec<f32> =
                file[len..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            assert_eq!(read, values);
            assert!(layout().check_header(&file[..len], file.len() as u64 - 1).is_err());
            assert!(layout().check_header(&file[..len - 1], file.len() as u64).is_err());
        }
        let t = |name: &str, shape: &[usize]| TensorSpec { name: name.into(), shape: shape.into() };
        let turned = ModelLayout::new(vec![t("0.bias", &[2]), t("0.weight", &[2, 3])]).unwrap();
        let file = turned.to_safetensors(&values, BTreeMap::new());
        let e = layout().check_header(&file, file.len() as u64).unwrap_err();
        assert!(matches!(e, LayoutError::Misshaped { .. }), "{e}");
        assert_eq!(turned.from_safetensors(&file).unwrap(), values);
        assert!(ModelLayout::header_len([255; 8]).is_err());
    }

    #[test]
    fn too_large_and_twice_named_are_refused() {
        let t = |name: &str, shape: &[usize]| TensorSpec { name: name.into(), shape: shape.into() };
        assert!(ModelLayout::new(vec![t("a", &[usize::MAX, 2])]).is_err());
        assert!(ModelLayout::new(vec![t("a", &[1]), t("a", &[1])]).is_err());
    }
}
