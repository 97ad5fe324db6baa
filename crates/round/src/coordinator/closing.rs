//! Closing: every round is released; evaluators measure the last model.

use super::{Context, Input, JobState, Phase, Step};
use crate::event::{JobEvent, Outcome};
use serde::{Deserialize, Serialize};
use undertone_core::id::Round;

/// Evaluators have their say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closing {
    /// The last round.
    pub round: Round,
    /// The job ends then at the latest.
    pub deadline_ms: u64,
}

impl Closing {
    pub(super) fn step(&self, state: &JobState, input: &Input, ctx: &Context<'_>) -> Option<Step> {
        let mut step = Step::stay(state);
        if matches!(input, Input::Recovered) {
            // Time that the coordinator was away was nobody's to answer in.
            let deadline_ms = self.deadline_ms.max(ctx.now_ms + ctx.job.spec().deadlines.reconnect_ms());
            step.next.phase = Phase::Closing(Self { deadline_ms, ..self.clone() });
            return Some(step);
        }
        if !matches!(input, Input::Tick) || ctx.now_ms < self.deadline_ms {
            return None;
        }
        step.events = step
            .next
            .measuring
            .take()
            .map(|(round, evaluator)| JobEvent::NotEvaluated {
                round,
                evaluator,
                reason: "no answer by the evaluation deadline".into(),
            })
            .collect();
        step.end(Outcome::Completed);
        Some(step)
    }
}
