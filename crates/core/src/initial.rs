//! Values that a job begins with, where they are not drawn from a seed: a safetensors file, mapped onto the model by name.
//!
//! An operator names a file of PyTorch's or Hugging Face's; what travels and is stored is a file in the model's own layout,
//! known by its digest. In between stands a [`Mapping`]: for each tensor of the model where its values come from.

use crate::digest::Digest;
use crate::layout::{ModelLayout, TensorSpec};
use crate::limits::{MAX_TENSOR_NAME_BYTES, MAX_TENSOR_PATTERNS};
use crate::part::{check_patterns, matches, nearest_names};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// A file that belongs to a job, by what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRef {
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Its length.
    pub bytes: u64,
}

/// The values that a job begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
pub enum Initial {
    /// As an operator writes it in a job file.
    Written(Source),
    /// As a job travels and is stored: a safetensors file in the order of the model's layout.
    File(FileRef),
}

/// A file of somebody else's, and how its names become the model's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The safetensors file; a relative path starts at the job file's folder.
    pub weights: String,
    /// The beginning of a name in the file, and what stands there in the model. Of several that fit the longest counts.
    pub rename: BTreeMap<String, String>,
    /// Tensors of the file that are not wanted, by the model's names for them, with `*` at the beginning or the end.
    pub ignore: Vec<String>,
    /// Tensors of the model that the file need not have: their values come from the model's seed. With `*` as above.
    pub seeded: Vec<String>,
}

/// Either form as it is written.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    #[serde(skip_serializing_if = "Option::is_none")]
    weights: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    rename: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ignore: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    seeded: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
}

impl TryFrom<Raw> for Initial {
    type Error = String;

    fn try_from(raw: Raw) -> Result<Self, String> {
        let Raw { weights, rename, ignore, seeded, digest, bytes } = raw;
        match (weights, digest, bytes) {
            (Some(weights), None, None) => {
                for (key, patterns) in [("ignore", &ignore), ("seeded", &seeded)] {
                    if !patterns.is_empty() {
                        check_patterns(patterns).map_err(|e| format!("{key}: {e}"))?;
                    }
                }
                if rename.len() > MAX_TENSOR_PATTERNS {
                    return Err(format!("rename: {} names, at most {MAX_TENSOR_PATTERNS}", rename.len()));
                }
                if let Some(long) =
                    rename.iter().flat_map(|(a, b)| [a, b]).find(|name| name.len() > MAX_TENSOR_NAME_BYTES)
                {
                    return Err(format!("rename: \"{long:.64}…\" is over {MAX_TENSOR_NAME_BYTES} bytes"));
                }
                Ok(Self::Written(Source { weights, rename, ignore, seeded }))
            }
            (None, Some(digest), Some(bytes))
                if rename.is_empty() && ignore.is_empty() && seeded.is_empty() =>
            {
                Ok(Self::File(FileRef { digest, bytes }))
            }
            _ => {
                Err("[initial] takes weights = \"file.safetensors\", and beside it rename, ignore and seeded"
                    .into())
            }
        }
    }
}

impl From<Initial> for Raw {
    fn from(initial: Initial) -> Self {
        match initial {
            Initial::Written(Source { weights, rename, ignore, seeded }) => {
                Self { weights: Some(weights), rename, ignore, seeded, ..Self::default() }
            }
            Initial::File(FileRef { digest, bytes }) => {
                Self { digest: Some(digest), bytes: Some(bytes), ..Self::default() }
            }
        }
    }
}

/// Why a file does not hold a model's values.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InitialError {
    /// The file is not safetensors.
    #[error("it is no safetensors file: {0}")]
    NotSafetensors(String),
    /// Tensors that are not in it, are of another shape or kind, or are left over: a clause for each of these.
    #[error("{}", .0.join("; and "))]
    Unfit(Vec<String>),
    /// Two tensors of the file have one name in the model.
    #[error(
        "\"{first}\" and \"{second}\" of the file both become \"{name}\" of the model: mend rename, or ignore one"
    )]
    Twice {
        /// One of them.
        first: String,
        /// The other.
        second: String,
        /// The model's name.
        name: String,
    },
    /// A value that is no number.
    #[error("value {index} of \"{name}\" is {value}: nothing can be trained from it")]
    NotFinite {
        /// The tensor.
        name: String,
        /// The place in it.
        index: usize,
        /// What stands there.
        value: f32,
    },
}

/// Most names that an error tells.
const MOST_NAMES: usize = 5;

/// Where the values of each tensor of a model come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    origins: Vec<Origin>,
}

/// Where the values of one tensor come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// From the model's seed.
    Seed,
    /// From these bytes of the file.
    File(Piece),
}

/// A tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Its bytes in the whole file.
    pub bytes: Range<u64>,
    numbers: Numbers,
    name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Numbers {
    F16,
    Bf16,
    F32,
    F64,
}

impl Source {
    /// Maps the tensors of a file of `bytes` bytes, of which `start` holds the whole header
    /// ([`ModelLayout::header_len`] says how long it is), onto a model's.
    ///
    /// # Errors
    /// [`InitialError`]; what is missing, of another shape or left over is told at once, five names of each and how many more.
    pub fn map(&self, layout: &ModelLayout, start: &[u8], bytes: u64) -> Result<Mapping, InitialError> {
        let no = |e: &dyn std::fmt::Display| InitialError::NotSafetensors(e.to_string());
        let json = start.get(8..).ok_or_else(|| no(&"it is cut off"))?;
        let metadata: Metadata = serde_json::from_slice(json).map_err(|e| no(&e))?;
        let data = start.len() as u64;
        if bytes != data + metadata.data_len() as u64 {
            return Err(no(&format!(
                "{bytes} bytes, its header speaks of {}",
                data + metadata.data_len() as u64
            )));
        }
        let mut found: BTreeMap<String, String> = BTreeMap::new();
        let tensors = metadata.tensors();
        let mut of_file: Vec<&String> = tensors.keys().collect();
        of_file.sort();
        for name in of_file {
            let renamed = self.renamed(name);
            if self.ignore.iter().any(|pattern| matches(pattern, &renamed)) {
                continue;
            }
            if let Some(first) = found.insert(renamed.clone(), name.clone()) {
                return Err(InitialError::Twice { first, second: name.clone(), name: renamed });
            }
        }
        let (mut missing, mut misshaped, mut origins) = (vec![], vec![], vec![]);
        for t in layout.tensors() {
            let Some(name) = found.remove(&t.name) else {
                if !self.seeded.iter().any(|pattern| matches(pattern, &t.name)) {
                    missing.push(t);
                }
                origins.push(Origin::Seed);
                continue;
            };
            let info = tensors[&name];
            match Numbers::of(info.dtype).filter(|_| info.shape == t.shape) {
                Some(numbers) => {
                    let (from, to) = info.data_offsets;
                    let bytes = data + from as u64..data + to as u64;
                    origins.push(Origin::File(Piece { bytes, numbers, name }));
                }
                None => misshaped.push(format!(
                    "\"{}\" is {:?} {:?}, the model wants {:?}",
                    t.name, info.dtype, info.shape, t.shape
                )),
            }
        }
        let mut wrong = vec![];
        if !missing.is_empty() {
            let left: Vec<&str> = found.keys().map(String::as_str).collect();
            wrong.push(format!(
                "{} of the model's {} tensors are not in it: {}; name them in seeded to draw them from the model's seed, or say in \
                 rename how the file calls them",
                missing.len(),
                layout.tensors().len(),
                near(&missing, &left)
            ));
        }
        if !misshaped.is_empty() {
            wrong.push(format!(
                "{} tensors are of another shape or kind than the model's: {}",
                misshaped.len(),
                first_of(misshaped)
            ));
        }
        if !found.is_empty() {
            let names = found.keys().map(|name| format!("\"{name}\"")).collect();
            wrong.push(format!(
                "it holds {} tensors that the model does not have: {}; name them in ignore, or rename them",
                found.len(),
                first_of(names)
            ));
        }
        if wrong.is_empty() { Ok(Mapping { origins }) } else { Err(InitialError::Unfit(wrong)) }
    }

    fn renamed(&self, name: &str) -> String {
        let longest =
            self.rename.iter().filter(|(from, _)| name.starts_with(*from)).max_by_key(|(from, _)| from.len());
        match longest {
            Some((from, to)) => format!("{to}{}", &name[from.len()..]),
            None => name.to_owned(),
        }
    }
}

impl Mapping {
    /// Where the values come from, in the order of the layout's tensors.
    pub fn origins(&self) -> &[Origin] {
        &self.origins
    }

    /// Whether a value is drawn from the seed.
    pub fn needs_seed(&self) -> bool {
        self.origins.contains(&Origin::Seed)
    }
}

impl Piece {
    /// The tensor's values as the model has them: f32, rounded to nearest where the file has f64.
    ///
    /// # Errors
    /// [`InitialError::NotFinite`].
    ///
    /// # Panics
    /// If `bytes` is not as long as [`bytes`](Self::bytes).
    pub fn values(&self, bytes: &[u8]) -> Result<Vec<f32>, InitialError> {
        assert_eq!(bytes.len() as u64, self.bytes.end - self.bytes.start, "another tensor's bytes");
        let values: Vec<f32> = match self.numbers {
            Numbers::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Numbers::Bf16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            Numbers::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Numbers::F64 => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        };
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(values),
            Some(index) => {
                Err(InitialError::NotFinite { name: self.name.clone(), index, value: values[index] })
            }
        }
    }
}

impl Numbers {
    fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::Bf16),
            Dtype::F32 => Some(Self::F32),
            Dtype::F64 => Some(Self::F64),
            _ => None,
        }
    }
}

/// The first of some names, and how many more there are.
fn first_of(mut names: Vec<String>) -> String {
    let more = names.len().saturating_sub(MOST_NAMES);
    names.truncate(MOST_NAMES);
    let text = names.join(", ");
    if more > 0 { format!("{text} and {more} more") } else { text }
}

/// The missing tensors, each with what comes nearest among those that are left in the file.
fn near(missing: &[&TensorSpec], left: &[&str]) -> String {
    let mut told = BTreeSet::new();
    first_of(
        missing
            .iter()
            .map(|t| {
                let nearest = nearest_names(&t.name, left.iter().copied()).into_iter().next();
                match nearest.filter(|name| told.insert(name.clone())) {
                    Some(nearest) => format!("\"{}\" (\"{nearest}\"?)", t.name),
                    None => format!("\"{}\"", t.name),
                }
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests;
