//! How an encoding is written in a job: a `kind` and the keys that this kind has, each with a default.

use super::{Encoding, SparseValues};
use serde::{Deserialize, Serialize};

/// All keys of all kinds. Not a tagged enum: serde lets a unit variant of one pass with keys that it does not have.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEncoding {
    kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bits: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fraction: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    values: Option<SparseValues>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    block: Option<u16>,
}

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Fixed32,
    F32,
    Bf16,
    Fixed,
    TopK,
    Block,
    /// Of differences only.
    Exact,
}

impl RawEncoding {
    /// A difference without loss.
    pub(super) fn exact() -> Self {
        Self { kind: Kind::Exact, bits: None, fraction: None, values: None, block: None }
    }

    /// Whether it is [`RawEncoding::exact`], without keys that it does not have.
    pub(super) fn is_exact(&self) -> bool {
        let no_key = self.bits.is_none() && self.fraction.is_none();
        self.kind == Kind::Exact && no_key && self.values.is_none() && self.block.is_none()
    }
}

impl Kind {
    /// Its name, and the keys that it has.
    fn described(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Fixed32 => ("fixed32", &[]),
            Self::F32 => ("f32", &[]),
            Self::Bf16 => ("bf16", &[]),
            Self::Fixed => ("fixed", &["bits"]),
            Self::TopK => ("top-k", &["fraction", "values"]),
            Self::Block => ("block", &["bits", "block"]),
            Self::Exact => ("exact", &[]),
        }
    }
}

impl TryFrom<RawEncoding> for Encoding {
    type Error = String;

    fn try_from(raw: RawEncoding) -> Result<Self, String> {
        let (name, known) = raw.kind.described();
        let given = [
            ("bits", raw.bits.is_some()),
            ("fraction", raw.fraction.is_some()),
            ("values", raw.values.is_some()),
            ("block", raw.block.is_some()),
        ];
        for (key, is_given) in given {
            if is_given && !known.contains(&key) {
                let has = if known.is_empty() { "none".to_owned() } else { known.join(" and ") };
                return Err(format!("an encoding of kind \"{name}\" has no key {key}; its keys are: {has}"));
            }
        }
        let encoding = match raw.kind {
            Kind::Fixed32 => Self::Fixed32,
            Kind::F32 => Self::F32,
            Kind::Bf16 => Self::Bf16,
            Kind::Fixed => Self::Fixed { bits: raw.bits.unwrap_or(8) },
            Kind::TopK => Self::TopK {
                fraction: raw.fraction.unwrap_or(0.01),
                values: raw.values.unwrap_or(SparseValues::Bf16),
            },
            Kind::Block => Self::Block { bits: raw.bits.unwrap_or(8), block: raw.block.unwrap_or(64) },
            Kind::Exact => return Err("exact is a kind of deltas: of a whole vector, take f32".into()),
        };
        encoding.validate()?;
        Ok(encoding)
    }
}

impl From<Encoding> for RawEncoding {
    fn from(encoding: Encoding) -> Self {
        let raw = |kind| Self { kind, bits: None, fraction: None, values: None, block: None };
        match encoding {
            Encoding::Fixed32 => raw(Kind::Fixed32),
            Encoding::F32 => raw(Kind::F32),
            Encoding::Bf16 => raw(Kind::Bf16),
            Encoding::Fixed { bits } => Self { bits: Some(bits), ..raw(Kind::Fixed) },
            Encoding::TopK { fraction, values } => {
                Self { fraction: Some(fraction), values: Some(values), ..raw(Kind::TopK) }
            }
            Encoding::Block { bits, block } => {
                Self { bits: Some(bits), block: Some(block), ..raw(Kind::Block) }
            }
        }
    }
}
