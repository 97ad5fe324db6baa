//! Why a computation ended early, and how it is told to end.

use crate::memory;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tch::TchError;
use undertone_core::trainer::{Progress, TrainerError};

/// Asks running work to end: training and evaluation look at it before each batch. Clones share one flag. It may also be
/// told how far training has come.
#[derive(Clone)]
pub struct Stop {
    looks: Arc<AtomicU64>,
    listener: Option<Arc<dyn Fn(Progress) + Send + Sync>>,
}

/// What a [`Stop`] holds while work is to go on; anything else is how many more looks at it find it so.
const GO_ON: u64 = u64::MAX;

impl Default for Stop {
    fn default() -> Self {
        Self { looks: Arc::new(AtomicU64::new(GO_ON)), listener: None }
    }
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stop").field("looks", &self.looks).finish_non_exhaustive()
    }
}

impl Stop {
    /// Ends the work; it stays ended.
    pub fn stop(&self) {
        self.looks.store(0, Ordering::Relaxed);
    }

    /// Ends the work at a look that is known beforehand: a kill that comes at the same step each time.
    #[cfg(test)]
    pub(crate) fn after(looks: u64) -> Self {
        Self { looks: Arc::new(AtomicU64::new(looks)), listener: None }
    }

    /// Lets `listener` hear of each step of training before it is taken.
    #[must_use]
    pub fn telling(mut self, listener: Arc<dyn Fn(Progress) + Send + Sync>) -> Self {
        self.listener = Some(listener);
        self
    }

    /// Before a step of training: whether work is to go on, and how many of how many steps are behind it.
    pub(crate) fn before_step(&self, step: u64, steps: u64) -> Result<(), Failure> {
        if let Some(listener) = &self.listener {
            listener(Progress { step, steps });
        }
        self.check()
    }

    /// Whether work is to go on.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        match self.looks.load(Ordering::Relaxed) {
            GO_ON => Ok(()),
            0 => Err(Failure::Stopped),
            _ => {
                self.looks.fetch_sub(1, Ordering::Relaxed);
                Ok(())
            }
        }
    }
}

/// Why a computation ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The task, the data or the weights are at fault.
    #[error(transparent)]
    Task(#[from] TrainerError),
    /// A libtorch operation failed.
    #[error("libtorch: {}", first_line(&.0.to_string()))]
    Torch(#[from] TchError),
    /// See [`Stop`].
    #[error("stopped, as nobody waits for the result any more")]
    Stopped,
}

/// libtorch appends a C++ stack trace.
pub(crate) fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

impl From<Failure> for TrainerError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Task(e) => e,
            Failure::Torch(e) if memory::ran_out(&e) => memory::too_big(),
            Failure::Torch(_) | Failure::Stopped => Self::Broken(failure.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Tensor;

    #[test]
    fn a_libtorch_error_is_one_line_that_names_it() {
        let e = Tensor::from_slice(&[1f32, 2.0]).f_matmul(&Tensor::from_slice(&[1f32; 3])).unwrap_err();
        let TrainerError::Broken(text) = TrainerError::from(Failure::from(e)) else { panic!() };
        assert!(text.starts_with("libtorch: ") && !text.contains('\n') && text.len() > 20, "{text}");
    }
}
