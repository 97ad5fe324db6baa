//! Measuring: which released models evaluators were asked to measure and have not yet. Training does not wait for it.

use super::{Context, Effect, JobState, ModelRef, Phase, Step};
use crate::event::{JobEvent, Outcome};
use crate::job::Evaluation;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use undertone_core::id::{ClientId, Round};
use undertone_core::trainer::Metrics;

/// Rounds whose measurements may be open at once; past it the oldest is given up.
const MAX_OPEN: usize = 16;

/// The open requests. An evaluator has one answer to each; what nobody asked for is not listened to.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Measuring {
    open: BTreeMap<Round, Asked>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Asked {
    model: ModelRef,
    evaluators: BTreeSet<ClientId>,
    /// Loss times rows, and rows, of the answers so far.
    #[serde(default)]
    sums: (f64, f64),
}

/// How losses went, where a job stops early.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// The best round and its loss.
    best: Option<(Round, f64)>,
    /// Measurements since then.
    worse: u32,
}

impl Progress {
    pub(super) fn is_unknown(&self) -> bool {
        *self == Self::default()
    }

    /// Why there is nothing to be had from further rounds, if so.
    pub(super) fn stop(&self, evaluation: &Evaluation) -> Option<Outcome> {
        let (best_round, loss) = self.best?;
        if evaluation.patience == 0 || self.worse < evaluation.patience {
            return None;
        }
        let reason = format!(
            "{} measurements in a row were no better than round {best_round} with a loss of {loss:.4}",
            self.worse
        );
        Some(Outcome::StoppedEarly { best_round, reason })
    }

    /// Takes in the mean loss of a round.
    fn note(&mut self, round: Round, loss: f64, min_improvement: f64) {
        if self.best.is_none_or(|(_, best)| loss < best - min_improvement) {
            *self = Self { best: Some((round, loss)), worse: 0 };
        } else {
            self.worse += 1;
        }
    }
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
        self.open.insert(round, Asked { model, evaluators, sums: (0.0, 0.0) });
        let mut given_up = vec![];
        while self.open.len() > MAX_OPEN
            && let Some((round, asked)) = self.open.pop_first()
        {
            given_up.extend(asked.evaluators.into_iter().map(|e| (round, e)));
        }
        given_up
    }

    /// Closes a request. `None`: it was not open. The mean loss comes with the last answer to a round.
    fn close(&mut self, round: Round, evaluator: &ClientId, metrics: Option<Metrics>) -> Option<Option<f64>> {
        let asked = self.open.get_mut(&round)?;
        if !asked.evaluators.remove(evaluator) {
            return None;
        }
        if let Some(m) = metrics {
            let rows = m.rows.max(1) as f64;
            asked.sums = (asked.sums.0 + m.loss * rows, asked.sums.1 + rows);
        }
        if !asked.evaluators.is_empty() {
            return Some(None);
        }
        let (losses, rows) = asked.sums;
        self.open.remove(&round);
        Some((rows > 0.0).then(|| losses / rows))
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
    ctx: &Context<'_>,
) -> Option<Step> {
    let mut step = Step::stay(state);
    let mean_loss = step.next.measuring.close(round, &evaluator, outcome.as_ref().ok().copied())?;
    let rule = &ctx.job.spec().evaluation;
    if let Some(loss) = mean_loss.filter(|_| rule.patience > 0) {
        step.next.progress.note(round, loss, rule.min_improvement);
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
    // Nobody is at work: the round that would begin next is spared.
    if let (Phase::Offering(_), Some(outcome)) = (&state.phase, step.next.progress.stop(rule)) {
        step.end(outcome);
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
        let answer = |loss, rows| Some(Metrics::of_classes(loss, 0.5, rows));
        assert_eq!(m.close(Round(1), &a, answer(1.0, 30)), Some(None));
        assert_eq!((m.close(Round(1), &a, None), m.close(Round(3), &a, None)), (None, None));
        assert!(m.awaits(Round(1)));
        assert_eq!(m.close(Round(1), &b, answer(2.0, 10)), Some(Some(1.25)), "weighed by rows");
        assert!(!m.awaits(Round(1)));
        assert_eq!(m.close(Round(2), &b, None), None, "it was not asked");
        let json = serde_json::to_string(&m).unwrap();
        assert_eq!(serde_json::from_str::<Measuring>(&json).unwrap(), m);
    }

    #[test]
    fn a_job_stops_when_it_gets_no_better() {
        let rule = Evaluation { every: 1, patience: 2, min_improvement: 0.1 };
        let mut progress = Progress::default();
        for (round, loss, stops) in [
            (1, 2.0, false),
            (2, 1.5, false),
            (3, 1.45, false),
            (4, 1.3, false),
            (5, 1.25, false),
            (6, 1.9, true),
        ] {
            progress.note(Round(round), loss, rule.min_improvement);
            assert_eq!(progress.stop(&rule).is_some(), stops, "round {round}");
        }
        let Some(Outcome::StoppedEarly { best_round, reason }) = progress.stop(&rule) else { panic!() };
        assert_eq!(best_round, Round(4));
        assert!(reason.contains("2 measurements") && reason.contains("1.3"), "{reason}");
        assert_eq!(progress.stop(&Evaluation { patience: 0, ..rule }), None);
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
