//! Measuring: which released models evaluators were asked to measure and have not yet. Training does not wait for it.

use super::{Context, Effect, JobState, ModelRef, Phase, Step};
use crate::event::{JobEvent, Outcome};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use undertone_core::id::{ClientId, Round};
use undertone_core::trainer::Metrics;

/// Rounds whose measurements may be open at once; past it the oldest is given up.
const MAX_OPEN: usize = 16;

/// The open requests. An evaluator has one answer to each; what nobody asked for is not listened to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Measuring {
    open: BTreeMap<Round, Asked>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Asked {
    model: ModelRef,
    evaluators: BTreeSet<ClientId>,
}

impl Measuring {
    /// Opens a request; gives back what is given up for it.
    pub(super) fn ask(
        &mut self,
        round: Round,
        model: ModelRef,
        evaluators: BTreeSet<ClientId>,
    ) -> Vec<(Round, ClientId)> {
        if evaluators.is_empty() {
            return vec![];
        }
        self.open.insert(round, Asked { model, evaluators });
        let mut given_up = vec![];
        while self.open.len() > MAX_OPEN
            && let Some((round, asked)) = self.open.pop_first()
        {
            given_up.extend(asked.evaluators.into_iter().map(|e| (round, e)));
        }
        given_up
    }

    /// Closes a request. `false`: it was not open.
    fn close(&mut self, round: Round, evaluator: &ClientId) -> bool {
        let Some(asked) = self.open.get_mut(&round) else { return false };
        let was_open = asked.evaluators.remove(evaluator);
        if asked.evaluators.is_empty() {
            self.open.remove(&round);
        }
        was_open
    }

    /// Whether anybody's answer about this round's model is still to come.
    pub(super) fn awaits(&self, round: Round) -> bool {
        self.open.contains_key(&round)
    }

    /// Everything open.
    pub(super) fn take(&mut self) -> impl Iterator<Item = (Round, ClientId)> + use<> {
        let open = std::mem::take(&mut self.open);
        open.into_iter().flat_map(|(round, asked)| asked.evaluators.into_iter().map(move |e| (round, e)))
    }

    /// What to tell this evaluator (again).
    pub(super) fn offers(&self, evaluator: &ClientId) -> impl Iterator<Item = Effect> {
        let open = self.open.iter().filter(|(_, asked)| asked.evaluators.contains(evaluator));
        open.map(|(round, asked)| Effect::Evaluate {
            evaluator: evaluator.clone(),
            round: *round,
            model: asked.model,
        })
    }

    /// The models that are needed for all answers.
    pub(super) fn all_models(&self) -> impl Iterator<Item = ModelRef> {
        self.open.values().map(|asked| asked.model)
    }

    /// The models that this evaluator needs for its answers.
    pub(super) fn models(&self, evaluator: &ClientId) -> impl Iterator<Item = ModelRef> {
        self.open.values().filter(|asked| asked.evaluators.contains(evaluator)).map(|asked| asked.model)
    }
}

/// An evaluator's answer, in whatever phase the job is.
pub(super) fn evaluation(
    state: &JobState,
    evaluator: ClientId,
    round: Round,
    outcome: Result<Metrics, String>,
) -> Option<Step> {
    let mut step = Step::stay(state);
    if !step.next.measuring.close(round, &evaluator) {
        return None;
    }
    step.events.push(match outcome {
        Ok(metrics) => JobEvent::Evaluated { round, evaluator, metrics },
        Err(reason) => JobEvent::NotEvaluated { round, evaluator, reason },
    });
    if let Phase::Closing(p) = &state.phase
        && !step.next.measuring.awaits(p.round)
    {
        step.end(Outcome::Completed);
    }
    Some(step)
}

/// Asks for the measurement of a model that was just released: those who are connected; of the last model all who are
/// enrolled, for one that comes back in time still counts.
pub(super) fn ask(step: &mut Step, round: Round, model: ModelRef, is_last: bool, ctx: &Context<'_>) {
    let whom = if is_last { ctx.enrolled_evaluators } else { ctx.evaluators };
    let given_up = step.next.measuring.ask(round, model, whom.iter().cloned().collect());
    step.events.extend(given_up.into_iter().map(|(round, evaluator)| JobEvent::NotEvaluated {
        round,
        evaluator,
        reason: "it did not answer before newer models came".into(),
    }));
    step.effects.extend(ctx.evaluators.iter().map(|evaluator| Effect::Evaluate {
        evaluator: evaluator.clone(),
        round,
        model,
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use undertone_core::digest::Digest;

    fn model(n: u32) -> ModelRef {
        ModelRef { digest: Digest::of(&n.to_le_bytes()), bytes: 1 }
    }

    fn who(names: &[&str]) -> BTreeSet<ClientId> {
        names.iter().map(|n| ClientId::new(*n).unwrap()).collect()
    }

    #[test]
    fn one_answer_to_each_question() {
        let mut m = Measuring::default();
        let (a, b) = (ClientId::new("a").unwrap(), ClientId::new("b").unwrap());
        assert!(m.ask(Round(1), model(1), who(&["a", "b"])).is_empty());
        assert!(m.ask(Round(2), model(2), who(&["a"])).is_empty());
        assert_eq!(m.models(&a).collect::<Vec<_>>(), [model(1), model(2)]);
        assert!(m.close(Round(1), &a) && !m.close(Round(1), &a) && !m.close(Round(3), &a));
        assert!(m.awaits(Round(1)) && m.close(Round(1), &b) && !m.awaits(Round(1)));
        assert!(!m.close(Round(2), &b), "it was not asked");
        let json = serde_json::to_string(&m).unwrap();
        assert_eq!(serde_json::from_str::<Measuring>(&json).unwrap(), m);
    }

    #[test]
    fn open_questions_are_bounded() {
        let mut m = Measuring::default();
        for n in 1..=MAX_OPEN as u32 {
            assert!(m.ask(Round(n), model(n), who(&["a", "b"])).is_empty());
        }
        let given_up = m.ask(Round(99), model(99), who(&["a"]));
        assert_eq!(given_up.iter().map(|(r, e)| (r.0, e.as_str())).collect::<Vec<_>>(), [(1, "a"), (1, "b")]);
        assert_eq!(m.take().count(), 2 * (MAX_OPEN - 1) + 1);
    }
}
