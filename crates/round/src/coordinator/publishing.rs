//! Publishing: the noised model is durable and committed in the ledger; from here on it is a fact.

use super::{
    Closing, Context, Effect, Input, JobState, ModelRef, Offering, Phase, Refusal, Step, key, measuring,
};
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
    /// Bytes of these updates as they travelled; absent in a state from before it was counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received_bytes: Option<u64>,
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
            Input::Published { key, sent_bytes } if key == current => {
                Ok(Some(self.published(state, sent_bytes, ctx)))
            }
            Input::Answer { key, .. }
            | Input::Failure { key, .. }
            | Input::Update { key, .. }
            | Input::BadUpdate { key, .. } => Err(Refusal(format!("{key} is over"))),
            _ => Ok(None),
        }
    }

    fn published(&self, state: &JobState, sent_bytes: u64, ctx: &Context<'_>) -> Step {
        let spec = ctx.job.spec();
        let current = key(ctx.id, self.round, self.attempt);
        let mut step = Step::stay(state);
        let entry = match ctx.ledger.publish(&current, self.model.digest) {
            Ok(entry) => entry,
            // As in releasing: a ledger that knows better ends the job.
            Err(e) => {
                step.end(Outcome::Failed { reason: e.to_string() });
                step.effects.push(Effect::Forget { key: current });
                return step;
            }
        };
        step.events.push(JobEvent::Released {
            round: self.round,
            attempt: self.attempt,
            model: self.model.digest,
            clients: self.clients,
            asked: self.asked,
            epsilon: entry.epsilon_after,
            received_bytes: self.received_bytes,
            sent_bytes: Some(sent_bytes),
        });
        step.ledger.push(entry);
        step.next.model = self.model;
        step.next.released = self.round.0;
        let is_last = self.round.0 >= spec.rounds;
        let stops = state.progress.stop(&spec.evaluation).filter(|_| !is_last);
        if stops.is_none() && spec.evaluation.wants(self.round.0, spec.rounds) {
            measuring::ask(&mut step, self.round, self.model, is_last, ctx);
        }
        step.effects.push(Effect::Forget { key: current });
        if let Some(outcome) = stops {
            step.end(outcome);
        } else if !is_last {
            step.next.phase = Phase::Offering(Offering::next(self.round.next(), ctx.now_ms));
        } else if step.next.measuring.awaits(self.round) {
            step.next.phase = Phase::Closing(Closing {
                round: self.round,
                deadline_ms: ctx.now_ms + spec.deadlines.evaluation.0.as_millis() as u64,
            });
        } else {
            step.end(Outcome::Completed);
        }
        step
    }
}
