//! How much a "saved" is worth.

use serde::{Deserialize, Serialize};

/// What an acknowledged write survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// The death of the machine: every write waits until the disk has it.
    #[default]
    Disk,
    /// The death of the process. A power cut may undo the last seconds, but damages nothing. Faster.
    Process,
}
