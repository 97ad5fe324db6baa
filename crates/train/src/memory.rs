//! When memory is too small for a batch: it is computed in smaller parts, with the same mathematics.

use crate::failure::Failure;
use tch::TchError;
use undertone_core::trainer::TrainerError;

/// What libtorch says when an allocation fails: its CPU allocator, its CUDA allocator, CUDA itself and its libraries,
/// and C++.
const SIGNS: [&str; 8] = [
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "HOST_ALLOCATION_FAILED",
    "std::bad_alloc",
];

/// Whether an operation failed for want of memory.
pub(crate) fn ran_out(error: &TchError) -> bool {
    let text = error.to_string();
    SIGNS.iter().any(|sign| text.contains(sign))
}

/// What is said when there is no smaller part.
pub(crate) fn too_big() -> TrainerError {
    TrainerError::Memory(
        "out of memory with one example at a time: the model, its gradient and its optimiser's state are bigger than the \
         memory of this device; take a smaller model, train a part of it ([training] tensors), or give the client a device \
         with more memory"
            .into(),
    )
}

/// An empty list with room for so many values. For want of memory it fails as libtorch's operations do, and ends nothing.
pub(crate) fn room(values: usize) -> Result<Vec<f32>, TchError> {
    let mut list = Vec::new();
    match list.try_reserve_exact(values) {
        Ok(()) => Ok(list),
        Err(_) => Err(TchError::Torch(format!("std::bad_alloc: no memory for {values} values"))),
    }
}

/// How many examples are computed at once. Once memory was too small, it stays at what fitted.
#[derive(Debug)]
pub(crate) struct MicroBatch {
    most: usize,
}

impl MicroBatch {
    /// As many as there are, or `most`.
    pub(crate) fn new(most: usize) -> Self {
        Self { most: most.max(1) }
    }

    /// Does work on `examples` examples, in parts of as many as it is told at most; if memory runs out, all of it is done
    /// anew in parts of half as many. The work must leave nothing behind when it fails.
    ///
    /// # Errors
    /// [`TrainerError::Memory`] where one example is too many; the work's own.
    pub(crate) fn run<T>(
        &mut self,
        examples: usize,
        mut work: impl FnMut(usize) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        loop {
            let size = self.most.min(examples).max(1);
            match work(size) {
                Err(Failure::Torch(e)) if ran_out(&e) => {
                    if size == 1 {
                        return Err(too_big().into());
                    }
                    self.most = size.div_ceil(2);
                    eprintln!(
                        "undertone-trainer: out of memory with {size} examples at once: going on with {} at once, by the same \
                         mathematics",
                        self.most
                    );
                }
                other => return other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out_of_memory() -> Failure {
        Failure::Torch(TchError::Torch(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to \
             allocate 8000000000000 bytes. Error code 12 (Cannot allocate memory)"
                .into(),
        ))
    }

    #[test]
    fn parts_are_halved_until_they_fit_and_stay_so() {
        let mut micro = MicroBatch::new(usize::MAX);
        let mut tried = Vec::new();
        let mut fits = |most: usize, micro: &mut MicroBatch, examples| {
            micro.run(examples, |size| {
                tried.push(size);
                if size > most { Err(out_of_memory()) } else { Ok(size) }
            })
        };
        assert_eq!(fits(9, &mut micro, 100).unwrap(), 7);
        assert_eq!(fits(9, &mut micro, 100).unwrap(), 7);
        assert_eq!(fits(9, &mut micro, 3).unwrap(), 3);
        let e = TrainerError::from(fits(0, &mut micro, 3).unwrap_err());
        assert!(matches!(&e, TrainerError::Memory(text) if text.contains("smaller model")), "{e}");
        assert_eq!(tried, [100, 50, 25, 13, 7, 7, 3, 3, 2, 1]);
    }

    #[test]
    fn another_failure_is_not_tried_again() {
        let mut micro = MicroBatch::new(8);
        let mut tries = 0;
        let failed = micro.run::<()>(8, |_| {
            tries += 1;
            Err(TchError::Torch("mat1 and mat2 shapes cannot be multiplied".into()).into())
        });
        assert!(matches!(failed, Err(Failure::Torch(_))) && tries == 1);
    }

    #[test]
    fn a_list_that_does_not_fit_is_a_want_of_memory() {
        assert!(room(9).unwrap().capacity() >= 9);
        assert!(ran_out(&room(1 << 60).unwrap_err()));
    }

    /// The sign is that of this libtorch, not of another one's source.
    #[test]
    fn what_libtorch_says_is_understood() {
        let e = tch::Tensor::f_zeros([1 << 50], (tch::Kind::Float, tch::Device::Cpu)).unwrap_err();
        assert!(ran_out(&e), "{e}");
        assert!(matches!(TrainerError::from(Failure::from(e)), TrainerError::Memory(_)));
        let other = tch::Tensor::from_slice(&[1f32, 2.0]).f_matmul(&tch::Tensor::from_slice(&[1f32; 3]));
        assert!(!ran_out(&other.unwrap_err()));
    }
}
