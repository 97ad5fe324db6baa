//! TorchScript files: models, with their loss, that data scientists bring from PyTorch.
//!
//! A job names such a file by its digest ([`TorchScript`]). Everybody who has a use for it looks into it before libtorch
//! does, and without libtorch: [`archive`] reads the zip archive that it is, `code` the code that is in it. What would not
//! train, or would not train each example by itself, is refused with the reason; docs/decisions/0022 says why so.

pub mod archive;
mod code;
mod text;

pub use archive::Archive;

use crate::initial::FileRef;
use crate::layout::{LayoutError, ModelLayout, TensorSpec};
use crate::limits::{MAX_PARAMETERS, MAX_RANK, MAX_TENSOR_NAME_BYTES, MAX_TENSORS};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Largest file: the largest model, and as much again for whatever else stands in it.
pub const MAX_MODULE_BYTES: u64 = 8 * MAX_PARAMETERS;
/// The method that gives each example's loss, shape (examples), of features and labels.
pub const TRAINING_STEP: &str = "training_step";
/// The method that gives sums over examples by name, of features and labels.
pub const EVAL_STEP: &str = "eval_step";
/// The method that gives the module's buffers by name.
pub const BUFFERS: &str = "undertone_buffers";
/// The libtorch that modules run on.
pub const LIBTORCH: &str = "2.11";
/// The first and the last version of files that it reads (`kMinSupportedFileFormatVersion` and
/// `kMaxSupportedFileFormatVersion` of its caffe2/serialize/versions.h).
pub const FILE_VERSIONS: (u64, u64) = (1, 10);
/// The way out of most trouble.
pub const EXPORT: &str = "export it with export.py (examples/bring-your-own)";

/// A TorchScript file of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
pub enum TorchScript {
    /// As an operator writes it in a job file: a path; a relative one starts at the job file's folder.
    Written(String),
    /// As a job travels and is stored.
    Exported(Exported),
}

/// A file that was looked into, and the tensors that it trains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The file.
    pub file: FileRef,
    /// Its parameters, as PyTorch names and orders them.
    pub tensors: Vec<TensorSpec>,
}

/// Either form as it is written.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<crate::digest::Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tensors: Vec<TensorSpec>,
}

impl TryFrom<Raw> for TorchScript {
    type Error = String;

    fn try_from(raw: Raw) -> Result<Self, String> {
        match raw {
            Raw { file: Some(file), digest: None, bytes: None, tensors } if tensors.is_empty() => {
                Ok(Self::Written(file))
            }
            Raw { file: None, digest: Some(digest), bytes: Some(bytes), tensors } => {
                Ok(Self::Exported(Exported { file: FileRef { digest, bytes }, tensors }))
            }
            _ => Err("kind = \"torchscript\" takes file = \"model.pt\" and nothing else".into()),
        }
    }
}

impl From<TorchScript> for Raw {
    fn from(module: TorchScript) -> Self {
        match module {
            TorchScript::Written(file) => Self { file: Some(file), ..Self::default() },
            TorchScript::Exported(Exported { file, tensors }) => {
                Self { digest: Some(file.digest), bytes: Some(file.bytes), tensors, ..Self::default() }
            }
        }
    }
}

impl TorchScript {
    /// Checks what can be said without the file.
    ///
    /// # Errors
    /// A sentence that says what is wrong, and the way out.
    pub fn validate(&self) -> Result<(), String> {
        match self {
            Self::Written(file) => Err(format!(
                "file = \"{file:.256}\" is a file beside the job file: hand the job in with `undertone job submit`, which sends \
                 the file and names it by its digest"
            )),
            Self::Exported(exported) => exported.validate(),
        }
    }

    /// The file, once it is known by its digest.
    pub fn exported(&self) -> Option<&Exported> {
        match self {
            Self::Written(_) => None,
            Self::Exported(exported) => Some(exported),
        }
    }

    /// The tensors that are trained.
    ///
    /// # Errors
    /// [`LayoutError`].
    pub fn layout(&self) -> Result<ModelLayout, LayoutError> {
        self.validate().map_err(LayoutError::Unfit)?;
        let exported = self.exported().expect("it is valid");
        ModelLayout::new(exported.tensors.clone())
    }
}

impl Exported {
    fn validate(&self) -> Result<(), String> {
        if self.file.bytes > MAX_MODULE_BYTES {
            return Err(format!(
                "a TorchScript file has at most {MAX_MODULE_BYTES} bytes, not {}",
                self.file.bytes
            ));
        }
        check_tensors(&self.tensors)
    }
}

/// Checks what a file says of its parameters.
fn check_tensors(tensors: &[TensorSpec]) -> Result<(), String> {
    if tensors.is_empty() || tensors.len() > MAX_TENSORS {
        return Err(format!(
            "a TorchScript module needs 1 to {MAX_TENSORS} parameters to train, not {}",
            tensors.len()
        ));
    }
    let odd = |t: &&TensorSpec| {
        let named = (1..=MAX_TENSOR_NAME_BYTES).contains(&t.name.len()) && t.name != "__metadata__";
        !named || t.shape.len() > MAX_RANK || t.shape.contains(&0)
    };
    match tensors.iter().find(odd) {
        None => Ok(()),
        Some(t) => Err(format!(
            "\"{:.64}\" of shape {:.64} is no parameter that can be trained: a name has 1 to {MAX_TENSOR_NAME_BYTES} bytes, a \
             shape at most {MAX_RANK} dimensions, each at least 1",
            t.name,
            format!("{:?}", t.shape)
        )),
    }
}

/// In words, for people.
impl fmt::Display for TorchScript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Written(file) => write!(f, "TorchScript module {file}"),
            Self::Exported(Exported { file, tensors }) => {
                write!(f, "TorchScript module {} of {} tensors", file.digest.short(), tensors.len())
            }
        }
    }
}

/// Why a TorchScript file is not trained with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModuleError {
    /// It is cut off, or something else.
    #[error("it is no TorchScript file, or a part of one: {0}; {EXPORT} and hand it in again")]
    NotAnArchive(String),
    /// libtorch does not read such files.
    #[error(
        "it is of file version {0}, and libtorch {LIBTORCH} reads versions {first} to {last}: {EXPORT} and PyTorch {LIBTORCH}",
        first = FILE_VERSIONS.0,
        last = FILE_VERSIONS.1
    )]
    Version(u64),
    /// It holds more than is looked at.
    #[error("it is too large: {0}")]
    TooLarge(String),
    /// There is no memory to write it anew in.
    #[error("there is no memory for it")]
    Memory,
    /// It lacks what export.py adds.
    #[error(
        "it has no {0}: {EXPORT}, which adds it; a file that torch.jit.trace or torch.jit.script wrote by itself has none"
    )]
    NotExported(String),
    /// It was traced.
    #[error(
        "{0}: the module was traced, and tracing freezes dropout and normalisation as they were while it was traced; give export.py \
         the nn.Module itself, which torch.jit.script then compiles"
    )]
    Traced(String),
    /// It has batch normalisation.
    #[error(
        "{0} is batch normalisation: with it no example has a gradient of its own, and running statistics averaged over clients fit \
         nobody's data; take nn.GroupNorm"
    )]
    BatchNorm(String),
    /// Something outlives a call.
    #[error(
        "{0}: what outlives one call would carry one example into the next one's gradient; compute it anew in each call, or, if it \
         never changes, make it a tuple or a buffer (register_buffer)"
    )]
    Keeps(String),
    /// It reaches beyond arithmetic.
    #[error(
        "{0} is not allowed in a job's module: a model computes, it does not touch files or what autograd counts on"
    )]
    Forbidden(String),
    /// What it says of itself does not hold.
    #[error("{0}")]
    Inconsistent(String),
}

#[cfg(test)]
mod tests;
