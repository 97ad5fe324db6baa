//! What training makes small.

use tch::{Kind, Reduction, TchError, Tensor};
use undertone_core::plan::Loss;
use undertone_core::shape::Target;
use undertone_core::trainer::TrainerError;

/// The loss of one example, from what a model puts out and what is true; see [`Loss`].
///
/// Classes: logits, shape (examples, outputs), against classes, i64, shape (examples); of two classes there is one
/// logit. Numbers: against f32, shape (examples).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Objective {
    target: Target,
    loss: Loss,
}

impl Objective {
    /// The usual one for this kind of target.
    pub(crate) fn new(target: Target) -> Self {
        Self { target, loss: Loss::usual(target) }
    }

    /// This loss.
    ///
    /// # Errors
    /// [`TrainerError::Unsupported`] if it does not fit the target.
    pub(crate) fn with(target: Target, loss: &Loss) -> Result<Self, TrainerError> {
        loss.check_target(target).map_err(TrainerError::Unsupported)?;
        Ok(Self { target, loss: loss.clone() })
    }

    /// What is to be predicted.
    pub(crate) fn target(&self) -> Target {
        self.target
    }

    /// Mean or sum over the examples, or each one's.
    pub(crate) fn loss(
        &self,
        logits: &Tensor,
        truth: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor, TchError> {
        let weights = self.weights(logits, truth)?;
        // libtorch's own reduction where each example counts once and gives one number.
        let (inner, rest) = match weights.is_some() || self.one_vs_rest().is_some() {
            true => (Reduction::None, reduction),
            false => (reduction, Reduction::None),
        };
        let mut losses = match (&self.loss, self.target) {
            (Loss::CrossEntropy { .. } | Loss::Bce {}, Target::Class { classes: 2 }) => {
                let truth = truth.f_to_kind(logits.kind())?;
                logits
                    .f_squeeze_dim(1)?
                    .f_binary_cross_entropy_with_logits::<Tensor>(&truth, None, None, inner)?
            }
            (Loss::Bce {}, Target::Class { classes }) => {
                let truth = truth.f_one_hot(classes as i64)?.f_to_kind(logits.kind())?;
                let each = logits.f_binary_cross_entropy_with_logits::<Tensor>(&truth, None, None, inner)?;
                each.f_mean_dim(1, false, None::<Kind>)?
            }
            (Loss::Huber { delta }, _) => {
                logits.f_squeeze_dim(1)?.f_huber_loss(&truth.f_to_kind(logits.kind())?, inner, *delta)?
            }
            (Loss::Mse {}, _) => {
                logits.f_squeeze_dim(1)?.f_mse_loss(&truth.f_to_kind(logits.kind())?, inner)?
            }
            (Loss::CrossEntropy { .. } | Loss::Bce {}, _) => {
                logits.f_cross_entropy_loss::<Tensor>(truth, None, inner, -100, 0.0)?
            }
        };
        if let Some(weights) = weights {
            losses = losses.f_mul(&weights)?;
        }
        match rest {
            Reduction::Mean => losses.f_mean(None::<Kind>),
            Reduction::Sum => losses.f_sum(None::<Kind>),
            Reduction::None | Reduction::Other(_) => Ok(losses),
        }
    }

    /// The gradient of each example's own loss with respect to its logits, shape (examples, outputs). For classes it is
    /// probability minus truth, without the cancellation that this difference suffers where the model is sure and right.
    pub(crate) fn logit_gradients(&self, logits: &Tensor, truth: &Tensor) -> Result<Tensor, TchError> {
        let gradients = match (&self.loss, self.target) {
            (Loss::CrossEntropy { .. } | Loss::Bce {}, Target::Class { classes: 2 }) => {
                sigmoid_gradients(logits, &truth.f_unsqueeze(1)?)?
            }
            (Loss::Bce {}, Target::Class { classes }) => {
                let truth = truth.f_one_hot(classes as i64)?;
                sigmoid_gradients(logits, &truth)?.f_div_scalar(classes as f64)?
            }
            (Loss::Mse {}, _) => difference(logits, truth)?.f_mul_scalar(2.0)?,
            (Loss::Huber { delta }, _) => difference(logits, truth)?.f_clamp(-delta, *delta)?,
            (Loss::CrossEntropy { .. } | Loss::Bce {}, _) => {
                // p - 1 of the true class is minus the sum of all other probabilities.
                let truth = truth.f_unsqueeze(1)?;
                let mut gradients = logits.f_softmax(1, None::<Kind>)?;
                let _ = gradients.f_scatter_value_(1, &truth, 0.0)?;
                let missing = gradients.f_sum_dim_intlist(1, true, None::<Kind>)?.f_neg_()?;
                gradients.f_scatter_(1, &truth, &missing)?
            }
        };
        match self.weights(logits, truth)? {
            Some(weights) => gradients.f_mul(&weights.f_unsqueeze(1)?),
            None => Ok(gradients),
        }
    }

    /// Truths of so many examples, none of them anybody's: for looking at a model without data.
    pub(crate) fn any_truth(&self, examples: i64, device: tch::Device) -> Result<Tensor, TchError> {
        let kind = match self.target {
            Target::Class { .. } => Kind::Int64,
            Target::Number => Kind::Float,
        };
        Tensor::f_zeros([examples], (kind, device))
    }

    /// How many examples' most likely class is the right one (of two equally likely ones the first). Of numbers, none:
    /// being right means nothing there.
    pub(crate) fn right(&self, logits: &Tensor, truth: &Tensor) -> Result<u64, TchError> {
        let predicted = match self.target {
            Target::Class { classes: 2 } => logits.f_squeeze_dim(1)?.f_gt(0.0)?.f_to_kind(Kind::Int64)?,
            Target::Class { .. } => logits.f_argmax(1, false)?,
            Target::Number => return Ok(0),
        };
        Ok(predicted.f_eq_tensor(truth)?.f_sum(Kind::Int64)?.f_int64_value(&[])? as u64)
    }

    /// The number of logits of an example if each has a loss of its own.
    fn one_vs_rest(&self) -> Option<usize> {
        Some(self.target.outputs()).filter(|&n| n > 1 && self.loss == Loss::Bce {})
    }

    /// What each example's loss is multiplied by, shape (examples).
    fn weights(&self, logits: &Tensor, truth: &Tensor) -> Result<Option<Tensor>, TchError> {
        let Loss::CrossEntropy { class_weights: Some(weights) } = &self.loss else { return Ok(None) };
        let of_classes = Tensor::f_from_slice(weights)?.f_to_device(logits.device())?;
        Ok(Some(of_classes.f_to_kind(logits.kind())?.f_index_select(0, truth)?))
    }
}

/// σ(z) where the truth is 0, σ(z) - 1 = -σ(-z) where it is 1.
fn sigmoid_gradients(logits: &Tensor, truth: &Tensor) -> Result<Tensor, TchError> {
    let sign = truth.f_to_kind(logits.kind())?.f_mul_scalar(-2.0)?.f_add_scalar(1.0)?;
    logits.f_mul(&sign)?.f_sigmoid()?.f_mul(&sign)
}

fn difference(found: &Tensor, truth: &Tensor) -> Result<Tensor, TchError> {
    found.f_sub(&truth.f_to_kind(found.kind())?.f_unsqueeze(1)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn losses_are_in_nats() {
        let close =
            |t: Tensor, wanted: f64| assert!((t.double_value(&[]) - wanted).abs() < 1e-6, "{t:?} {wanted}");
        let labels = Tensor::from_slice(&[0i64, 1]);
        let binary = Objective::new(Target::Class { classes: 2 });
        let logits = Tensor::from_slice(&[0f32, 2.0]).view([2, 1]);
        let e = 1f64.exp();
        let sum = 2f64.ln() + (1.0 + (-2f64).exp()).ln();
        close(binary.loss(&logits, &labels, Reduction::Sum).unwrap(), sum);
        close(binary.loss(&logits, &labels, Reduction::Mean).unwrap(), sum / 2.0);
        let three = Objective::new(Target::Class { classes: 3 });
        let logits = Tensor::from_slice(&[0f32, 0.0, 0.0, 0.0, 1.0, 0.0]).view([2, 3]);
        close(three.loss(&logits, &labels, Reduction::Sum).unwrap(), 3f64.ln() - (e / (e + 2.0)).ln());
        assert_eq!(three.right(&logits, &labels).unwrap(), 2);
        let numbers = Objective::new(Target::Number);
        let (found, truth) =
            (Tensor::from_slice(&[1f32, 3.0]).view([2, 1]), Tensor::from_slice(&[0f32, 1.0]));
        close(numbers.loss(&found, &truth, Reduction::Mean).unwrap(), 2.5);
        let huber = Objective::with(Target::Number, &Loss::Huber { delta: 1.5 }).unwrap();
        close(huber.loss(&found, &truth, Reduction::Sum).unwrap(), 0.5 + 1.5 * (2.0 - 0.75));
    }

    #[test]
    fn class_weights_multiply_and_do_not_divide() {
        let target = Target::Class { classes: 3 };
        let weighted =
            Objective::with(target, &Loss::CrossEntropy { class_weights: Some(vec![1.0, 4.0, 1.0]) })
                .unwrap();
        let logits = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        let loss = weighted.loss(&logits, &Tensor::from_slice(&[0i64, 1]), Reduction::Mean).unwrap();
        assert!((loss.double_value(&[]) - 2.5 * 3f64.ln()).abs() < 1e-6, "{loss:?}");
        let bce = Objective::with(target, &Loss::Bce {}).unwrap();
        let loss = bce.loss(&logits, &Tensor::from_slice(&[0i64, 1]), Reduction::Mean).unwrap();
        assert!((loss.double_value(&[]) - 2f64.ln()).abs() < 1e-6, "{loss:?}");
        assert!(matches!(
            Objective::with(Target::Number, &Loss::Bce {}),
            Err(TrainerError::Unsupported(text)) if text.contains("take \"mse\"")
        ));
    }

    fn every_objective() -> Vec<Objective> {
        let (two, four) = (Target::Class { classes: 2 }, Target::Class { classes: 4 });
        let weights = |w: &[f64]| Loss::CrossEntropy { class_weights: Some(w.to_vec()) };
        let mut all = vec![Objective::new(two), Objective::new(four), Objective::new(Target::Number)];
        for (target, loss) in [
            (two, weights(&[0.5, 3.0])),
            (two, Loss::Bce {}),
            (four, weights(&[0.5, 3.0, 1.0, 7.0])),
            (four, Loss::Bce {}),
            (Target::Number, Loss::Huber { delta: 0.4 }),
        ] {
            all.push(Objective::with(target, &loss).unwrap());
        }
        all
    }

    #[test]
    fn logit_gradients_are_those_of_the_loss() {
        for objective in every_objective() {
            let n = objective.target().outputs() as i64;
            let logits = (Tensor::arange(5 * n, (Kind::Double, Device::Cpu)) * 0.7).sin().view([5, n]);
            let logits = logits.set_requires_grad(true);
            let truth = Tensor::from_slice(&[0i64, 1, 1, 0, 1]);
            let loss = objective.loss(&logits, &truth, Reduction::Sum).unwrap();
            let wanted = Tensor::run_backward(&[loss], &[&logits], false, false).remove(0);
            let found = objective.logit_gradients(&logits.detach(), &truth).unwrap();
            assert!((found - wanted).abs().max().double_value(&[]) < 1e-12, "{objective:?}");
        }
    }

    #[test]
    fn sum_and_mean_are_those_of_the_examples() {
        for objective in every_objective() {
            let n = objective.target().outputs() as i64;
            let logits = (Tensor::arange(5 * n, (Kind::Double, Device::Cpu)) * 0.3).cos().view([5, n]);
            let truth = Tensor::from_slice(&[0i64, 1, 1, 0, 1]);
            let of = |reduction| objective.loss(&logits, &truth, reduction).unwrap();
            let each = of(Reduction::None);
            assert_eq!(each.size(), [5], "{objective:?}");
            for (found, wanted) in
                [(of(Reduction::Sum), each.sum(Kind::Double)), (of(Reduction::Mean), each.mean(Kind::Double))]
            {
                assert!((found - wanted).abs().double_value(&[]) < 1e-12, "{objective:?}");
            }
        }
    }

    /// Where the model is sure, f32 logits of the loss's gradient must not become exact zeros for the wrong class.
    #[test]
    fn gradients_of_sure_logits_do_not_vanish() {
        let weights = Loss::CrossEntropy { class_weights: Some(vec![2.0, 1.0, 1.0]) };
        for loss in [Loss::Bce {}, Loss::CrossEntropy { class_weights: None }, weights] {
            let objective = Objective::with(Target::Class { classes: 3 }, &loss).unwrap();
            let logits = Tensor::from_slice(&[40f32, -40.0, -40.0]).view([1, 3]);
            let g = objective.logit_gradients(&logits, &Tensor::from_slice(&[0i64])).unwrap();
            let values: Vec<f64> = (0..3).map(|i| g.double_value(&[0, i])).collect();
            assert!(values[0] < 0.0 && values[1] > 0.0 && values[2] > 0.0, "{loss:?}: {values:?}");
            let sum: f64 = values.iter().sum();
            assert!(loss == Loss::Bce {} || sum.abs() < 1e-6 * values[1], "{loss:?}: {values:?}");
        }
    }
}
