//! Why a computation ended early, and how it is told to end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tch::TchError;
use undertone_core::trainer::TrainerError;

/// Asks running work to end: training and evaluation look at it before each batch. Clones share one flag.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Ends the work; it stays ended.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether work is to go on.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.0.load(Ordering::Relaxed) { Err(Failure::Stopped) } else { Ok(()) }
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
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

impl From<Failure> for TrainerError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Task(e) => e,
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
