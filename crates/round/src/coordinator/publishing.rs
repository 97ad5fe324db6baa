//! Publishing: the noised model is durable and committed in the ledger; from here on it is a fact.

use super::{Closing, Context, Effect, Input, JobState, ModelRef, Offering, Phase, Refusal, Step, key};
use crate::event::{JobEvent, Outcome};
use serde::{Deserialize, Serialize};
use undertone_core::id::{Attempt, Round};

/// A committed model on its way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publishing {
    /// The round.
    pub round: Round,
    /// The attempt.
    pub attempt: Attempt,
    /// Clients asked.
    pub asked: u32,
    /// Updates in it.
    pub clients: u32,
    /// The new model.
    pub model: ModelRef,
}

impl Publishing {
    pub(super) fn step(
        &self,
        state: &JobState,
        input: Input,
        ctx: &mut Context<'_>,
    ) -> Result<Option<Step>, Refusal> {
        let current = key(ctx.id, self.round, self.attempt);
        match input {
            // Publishing again sends the same bytes: the model is named by its digest.
            Input::Recovered => {
                let mut step = Step::stay(state);
                step.effects.push(Effect::Publish { key: current, model: self.model });
                Ok(Some(step))
            }
            Input::Published { key } if key == current => self.published(state, ctx),
            Input::Answer { key, .. }
            | Input::Failure { key, .. }
            | Input::Update { key, .. }
            | Input::BadUpdate { key, .. } => Err(Refusal(format!("{key} is over"))),
            _ => Ok(None),
        }
    }

    fn published(&self, state: &JobState, ctx: &Context<'_>) -> Result<Option<Step>, Refusal> {
        let spec = ctx.job.spec();
        let current = key(ctx.id, self.round, self.attempt);
        let mut step = Step::stay(state);
        let entry = ctx.ledger.publish(&current, self.model.digest).map_err(|e| Refusal(e.to_string()))?;
        step.events.push(JobEvent::Released {
            round: self.round,
            attempt: self.attempt,
            model: self.model.digest,
            clients: self.clients,
            asked: self.asked,
            epsilon: entry.epsilon_after,
        });
        step.ledger.push(entry);
        step.next.model = self.model;
        step.next.released = self.round.0;
        let evaluators: &[_] =
            if spec.evaluation.wants(self.round.0, spec.rounds) { ctx.evaluators } else { &[] };
        for evaluator in evaluators {
            step.effects.push(Effect::Evaluate {
                evaluator: evaluator.clone(),
                round: self.round,
                model: self.model,
            });
        }
        step.effects.push(Effect::Forget { key: current });
        if self.round.0 < spec.rounds {
            step.next.phase = Phase::Offering(Offering::next(self.round.next(), ctx.now_ms));
        } else if evaluators.is_empty() {
            step.end(Outcome::Completed);
        } else {
            step.next.phase = Phase::Closing(Closing {
                round: self.round,
                deadline_ms: ctx.now_ms + spec.deadlines.evaluation.0.as_millis() as u64,
                awaiting: evaluators.iter().cloned().collect(),
            });
        }
        Ok(Some(step))
    }
}
