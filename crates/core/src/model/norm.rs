//! Normalisation between layers of models for pictures.

use serde::{Deserialize, Serialize};

/// How channels are normalised. In TOML `norm = "group"`; `"batch"` is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Norm {
    /// Group normalisation (Wu and He 2018): each example by itself.
    #[default]
    Group,
}

/// The number of groups unless the job says otherwise: what De et al. 2022 (arXiv 2204.13650) train with under
/// per-example clipping.
pub(super) const DEFAULT_GROUPS: usize = 16;

impl TryFrom<String> for Norm {
    type Error = String;

    fn try_from(word: String) -> Result<Self, String> {
        match word.to_lowercase().trim_end_matches("norm") {
            "group" => Ok(Self::Group),
            "batch" => Err("norm = \"batch\" is refused: batch normalisation computes with the statistics of a batch, so no \
                            example has a gradient of its own to clip, and its running statistics, averaged over clients, fit \
                            nobody's data: use norm = \"group\", which normalises each example by itself"
                .into()),
            _ => Err(format!("norm = \"{word}\": the known one is \"group\" (leave it out for none)")),
        }
    }
}

impl From<Norm> for String {
    fn from(norm: Norm) -> Self {
        match norm {
            Norm::Group => "group".into(),
        }
    }
}

/// Checks that the groups of channels come out even.
pub(super) fn check_groups(groups: usize, channels: usize) -> Result<(), String> {
    if groups == 0 || !channels.is_multiple_of(groups) {
        return Err(format!(
            "groups = {groups} does not divide {channels} channels: choose a number that does"
        ));
    }
    Ok(())
}
