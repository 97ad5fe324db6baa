//! When local training ends before its time.

use serde::{Deserialize, Serialize};

/// Some local rows are held out and measured once a pass over the others. Training ends when so many measurements in a
/// row brought nothing, and the update is what it was at the best of them.
///
/// Not with a record-level contract: each measurement would answer a question on held-out records that nobody
/// accounts for, and the number of noisy steps would follow the data.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStop {
    /// Measurements without progress after which training ends.
    pub patience: u32,
    /// How much lower than the best so far a loss must be to count as progress.
    #[serde(default)]
    pub min_delta: f64,
    /// The share of local rows that is held out, drawn anew in each round; above 0, at most a half. At least one row.
    #[serde(default = "tenth")]
    pub held_out: f64,
}

fn tenth() -> f64 {
    0.1
}

impl EarlyStop {
    /// Checks the numbers.
    ///
    /// # Errors
    /// A sentence that says which number is wrong.
    pub fn validate(&self) -> Result<(), String> {
        if self.patience == 0 {
            return Err("patience of early_stop must be at least 1".into());
        }
        if !(self.min_delta.is_finite() && self.min_delta >= 0.0) {
            return Err(format!(
                "min_delta of early_stop must be a number of at least 0, not {}",
                self.min_delta
            ));
        }
        if !(self.held_out > 0.0 && self.held_out <= 0.5) {
            return Err(format!(
                "held_out of early_stop must be above 0 and at most 0.5, not {}",
                self.held_out
            ));
        }
        Ok(())
    }
}
