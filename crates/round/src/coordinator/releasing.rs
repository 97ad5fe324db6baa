//! Releasing: the updates are complete; sum, noise, new model.

use super::{
    Carried, Context, Effect, Input, JobState, ModelRef, Phase, Publishing, Refusal, Running, Step, Update,
    key,
};
use crate::event::Outcome;
use serde::{Deserialize, Serialize};
use undertone_core::id::{Attempt, Round};

/// The sum is being released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Releasing {
    /// The round.
    pub round: Round,
    /// The attempt.
    pub attempt: Attempt,
    /// Clients asked.
    pub asked: u32,
    /// What is summed.
    pub updates: Vec<Update>,
}

impl Releasing {
    pub(super) fn step(
        &self,
        state: &JobState,
        input: Input,
        ctx: &mut Context<'_>,
    ) -> Result<Option<Step>, Refusal> {
        let current = key(ctx.id, self.round, self.attempt);
        match input {
            Input::Recovered if ctx.job.contract().is_noised_by_the_coordinator() => {
                // Noise may have been drawn over these inputs before the restart. A second draw over the same
                // inputs would be a second release: the attempt stays spent and a new one is paid for.
                let reason = "the coordinator restarted while it drew noise";
                Ok(Some(self.attempt().abort(state, reason, ctx)))
            }
            Input::Recovered => {
                let mut step = Step::stay(state);
                step.effects.push(Effect::Release {
                    key: current,
                    model: state.model,
                    updates: self.updates.clone(),
                    carried: state.carried,
                });
                Ok(Some(step))
            }
            Input::Released { key, model, carried } if key == current => {
                Ok(Some(self.released(state, model, carried, ctx)))
            }
            Input::ReleaseFailed { key, reason, is_final: false } if key == current => {
                Ok(Some(self.attempt().abort(state, &reason, ctx)))
            }
            Input::ReleaseFailed { key, reason, is_final: true } if key == current => {
                let mut step = self.attempt().give_up(state, &reason, ctx);
                step.end(Outcome::Failed { reason });
                Ok(Some(step))
            }
            Input::Update { key, update, .. } if key == current && self.updates.contains(&update) => Ok(None),
            Input::Answer { key, .. }
            | Input::Failure { key, .. }
            | Input::Update { key, .. }
            | Input::BadUpdate { key, .. } => Err(Refusal(format!("{key} takes no more updates"))),
            _ => Ok(None),
        }
    }

    fn released(&self, state: &JobState, model: ModelRef, carried: Carried, ctx: &Context<'_>) -> Step {
        let current = key(ctx.id, self.round, self.attempt);
        let mut step = Step::stay(state);
        match ctx.ledger.commit(&current, model.digest) {
            Ok(entry) => step.ledger.push(entry),
            // The ledger knows another end of this attempt: nobody may see the model, and no retry mends it.
            Err(e) => {
                step.end(Outcome::Failed { reason: e.to_string() });
                step.effects.push(Effect::Forget { key: current });
                return step;
            }
        }
        // In the step that commits: noise goes on from a release exactly if there is one.
        let before = std::mem::replace(&mut step.next.carried, carried);
        // Equal bytes are one blob: a state that did not change stays. So does a version that somebody works from.
        let at_work = step.next.pool.broadcasts().flat_map(|b| b.blobs().collect::<Vec<_>>());
        let kept: Vec<_> = carried.blobs().chain(at_work).collect();
        let old = before.blobs().filter(|blob| !kept.contains(blob));
        step.effects.extend(old.map(|blob| Effect::Discard { blob }));
        step.next.phase = Phase::Publishing(Publishing {
            round: self.round,
            attempt: self.attempt,
            asked: self.asked,
            clients: self.updates.len() as u32,
            model,
            received_bytes: Some(self.updates.iter().map(|u| u.bytes).sum()),
        });
        step.effects.push(Effect::Publish { key: current, model });
        step
    }

    pub(super) fn attempt(&self) -> Running {
        Running { round: self.round, attempt: self.attempt, open: vec![] }
    }
}
