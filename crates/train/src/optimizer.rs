//! How a gradient becomes a step, over all that is trained as one flat vector.

use crate::nn::to_vec;
use tch::{TchError, Tensor, no_grad_guard};
use undertone_core::plan::{Optimizer as Rule, Over, Schedule, TrainPlan};
use undertone_core::trainer::RoundOf;

/// The learning rate of each step of a round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LearningRate {
    base: f64,
    schedule: Option<Schedule>,
    round: RoundOf,
    steps: u64,
}

impl LearningRate {
    /// Of a round with so many steps.
    pub(crate) fn new(plan: &TrainPlan, round: RoundOf, steps: u64) -> Self {
        Self { base: plan.learning_rate, schedule: plan.schedule, round, steps }
    }

    /// At a step, counted from 0.
    pub(crate) fn at(&self, step: u64) -> f64 {
        let factor = match &self.schedule {
            None => 1.0,
            Some(schedule) => match schedule.over() {
                Over::Round => schedule.factor(step, self.steps),
                Over::Job => {
                    schedule.factor(self.round.round.saturating_sub(1).into(), self.round.rounds.into())
                }
            },
        };
        self.base * factor
    }
}

/// A plan's optimiser and its state. The formulas are PyTorch's (torch.optim.SGD, Adam, AdamW), FedProx's term a part of
/// the gradient. With a record-level contract the gradient was noised before: all of this is post-processing.
#[derive(Debug)]
pub(crate) struct Optimizer {
    rule: Rule,
    momentum: f64,
    weight_decay: f64,
    clip_norm: Option<f64>,
    /// FedProx's coefficient and where it pulls to.
    pull: Option<(f64, Tensor)>,
    /// Velocity, or the mean of gradients.
    first: Option<Tensor>,
    /// The mean of squared gradients.
    second: Option<Tensor>,
    steps: u64,
}

impl Optimizer {
    /// For weights that begin as `start`, flat.
    pub(crate) fn new(plan: &TrainPlan, start: &Tensor) -> Result<Self, TchError> {
        let adaptive = !matches!(plan.optimizer, Rule::Sgd {});
        let zeros = |wanted: bool| wanted.then(|| start.f_zeros_like()).transpose();
        Ok(Self {
            rule: plan.optimizer,
            momentum: plan.momentum,
            weight_decay: plan.weight_decay(),
            clip_norm: plan.clip_gradient_norm,
            pull: match plan.proximal > 0.0 {
                true => Some((plan.proximal, start.f_detach_copy()?)),
                false => None,
            },
            first: zeros(adaptive || plan.momentum > 0.0)?,
            second: zeros(adaptive)?,
            steps: 0,
        })
    }

    /// One step of `weights`, in place, against a gradient, which is used up.
    pub(crate) fn step(
        &mut self,
        weights: &mut Tensor,
        mut gradient: Tensor,
        learning_rate: f64,
    ) -> Result<(), TchError> {
        let _no_graph = no_grad_guard();
        self.steps += 1;
        if let Some((proximal, start)) = &self.pull {
            let _ = gradient.f_add_(&weights.f_sub(start)?.f_mul_scalar_(*proximal)?)?;
        }
        if let Some(most) = self.clip_norm {
            clip(&mut gradient, most)?;
        }
        match self.rule {
            Rule::AdamW { .. } if self.weight_decay > 0.0 => {
                let _ = weights.f_mul_scalar_(1.0 - learning_rate * self.weight_decay)?;
            }
            _ if self.weight_decay > 0.0 => {
                let _ = gradient.f_add_(&weights.f_mul_scalar(self.weight_decay)?)?;
            }
            _ => {}
        }
        let (Rule::Adam { beta1, beta2, epsilon } | Rule::AdamW { beta1, beta2, epsilon }) = self.rule else {
            // Two passes over the values: velocity = gradient + momentum·velocity, weights += -rate·velocity.
            if let Some(velocity) = &mut self.first {
                let _ = gradient.f_addcmul_(velocity, &number(self.momentum))?;
                std::mem::swap(velocity, &mut gradient);
            }
            let _ = weights.f_addcmul_(self.first.as_ref().unwrap_or(&gradient), &number(-learning_rate))?;
            return Ok(());
        };
        let (Some(mean), Some(square)) = (&mut self.first, &mut self.second) else {
            unreachable!("new() gives Adam both");
        };
        let _ = mean.f_lerp_(&gradient, 1.0 - beta1)?;
        let _ = square.f_lerp_(&gradient.f_square_()?, 1.0 - beta2)?;
        let corrected = |beta: f64| 1.0 - beta.powf(self.steps as f64);
        let size = learning_rate / corrected(beta1);
        // A rate of nothing (the end of a cosine) moves nothing; it must not be divided by.
        if size > 0.0 {
            // weights += mean / -((√(square / correction) + ε) / size)
            let scale = -1.0 / (corrected(beta2).sqrt() * size);
            let divisor = square.f_sqrt()?.f_mul_scalar_(scale)?.f_add_scalar_(-epsilon / size)?;
            let _ = weights.f_addcdiv_(mean, &divisor)?;
        }
        Ok(())
    }

    /// Its vectors one behind the other; with [`steps`](Self::steps), all that it remembers.
    pub(crate) fn state(&self) -> Result<Vec<f32>, TchError> {
        let mut values = Vec::new();
        for vector in [&self.first, &self.second].into_iter().flatten() {
            values.extend(to_vec(vector)?);
        }
        Ok(values)
    }

    /// How many values [`state`](Self::state) has.
    pub(crate) fn state_len(&self) -> usize {
        [&self.first, &self.second].into_iter().flatten().map(Tensor::numel).sum()
    }

    /// Steps taken.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    /// Goes on from a state of the same plan.
    ///
    /// # Panics
    /// If it is not [`state_len`](Self::state_len) values long.
    pub(crate) fn restore(&mut self, steps: u64, state: &[f32]) -> Result<(), TchError> {
        assert_eq!(state.len(), self.state_len(), "the state is another optimiser's");
        self.steps = steps;
        let mut rest = state;
        for vector in [&mut self.first, &mut self.second].into_iter().flatten() {
            let (own, others) = rest.split_at(vector.numel());
            vector.f_copy_(&Tensor::f_from_slice(own)?)?;
            rest = others;
        }
        Ok(())
    }
}

/// A number for tensors to be multiplied with, on whatever device they are and in their precision.
fn number(value: f64) -> Tensor {
    // Without dimensions, it makes no f32 an f64.
    Tensor::from(value)
}

/// Scales a gradient down to an L2 norm, as torch.nn.utils.clip_grad_norm_ does. Nothing is read back from the device.
fn clip(gradient: &mut Tensor, most: f64) -> Result<(), TchError> {
    let norm = gradient.f_norm()?;
    let factor = norm.f_add_scalar(1e-6)?.f_reciprocal()?.f_mul_scalar(most)?.f_clamp_max(1.0)?;
    let _ = gradient.f_mul_(&factor)?;
    Ok(())
}

#[cfg(test)]
mod tests;
