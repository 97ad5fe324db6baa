//! Closing: every round is released; evaluators measure the last model.

use super::{Context, Effect, Input, JobState, Phase, Step};
use crate::event::{JobEvent, Outcome};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use undertone_core::id::{ClientId, Round};
use undertone_core::trainer::Metrics;

/// Evaluators have their say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closing {
    /// The last round.
    pub round: Round,
    /// The job ends then at the latest.
    pub deadline_ms: u64,
    /// Who has not answered.
    pub awaiting: BTreeSet<ClientId>,
}

impl Closing {
    pub(super) fn step(&self, state: &JobState, input: &Input, ctx: &mut Context<'_>) -> Option<Step> {
        let mut step = Step::stay(state);
        match input {
            Input::Tick if ctx.now_ms >= self.deadline_ms => {
                for evaluator in &self.awaiting {
                    step.events.push(JobEvent::NotEvaluated {
                        round: self.round,
                        evaluator: evaluator.clone(),
                        reason: "no answer by the evaluation deadline".into(),
                    });
                }
                step.end(Outcome::Completed);
                Some(step)
            }
            // An evaluator that came back is asked again; measuring twice does no harm.
            Input::Sessions | Input::Connected { .. } => {
                let here = ctx.evaluators.iter().filter(|e| self.awaiting.contains(*e));
                step.effects = here
                    .map(|e| Effect::Evaluate { evaluator: e.clone(), round: self.round, model: state.model })
                    .collect();
                (!step.effects.is_empty()).then_some(step)
            }
            _ => None,
        }
    }
}

/// Evaluations may come in any phase: training does not wait for them.
pub(super) fn evaluation(
    state: &JobState,
    evaluator: ClientId,
    round: Round,
    outcome: Result<Metrics, String>,
) -> Option<Step> {
    if state.is_over() || round.0 == 0 || round.0 > state.released {
        return None;
    }
    let mut step = Step::stay(state);
    step.events.push(match outcome {
        Ok(metrics) => JobEvent::Evaluated { round, evaluator: evaluator.clone(), metrics },
        Err(reason) => JobEvent::NotEvaluated { round, evaluator: evaluator.clone(), reason },
    });
    if let Phase::Closing(p) = &state.phase
        && p.round == round
    {
        let mut closing = p.clone();
        closing.awaiting.remove(&evaluator);
        if closing.awaiting.is_empty() {
            step.end(Outcome::Completed);
        } else {
            step.next.phase = Phase::Closing(closing);
        }
    }
    Some(step)
}
