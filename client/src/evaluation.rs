//! Measuring models for a job: what an evaluator does, and nobody else.

use crate::answers::Answered;
use crate::arrival;
use crate::models::{ModelError, Models};
use crate::work::{Tools, apart};
use std::sync::Arc;
use std::time::Duration;
use undertone::v1::{self, BlobRef, evaluation};
use undertone_core::id::{JobId, Round};
use undertone_core::trainer::{EvaluationTask, Metrics, TrainerError};
use undertone_privacy::noise::NoiseRng;
use undertone_round::job::Job;
use undertone_round::participant::{DATA_UNFIT, Failure, ModelRef, OfferedModel, Refusal, told};

/// A request that could be read.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) job_id: JobId,
    pub(crate) round: Round,
    pub(crate) job: Arc<Job>,
    pub(crate) model: ModelRef,
}

/// What came of one.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) job_id: JobId,
    pub(crate) round: Round,
    pub(crate) model: ModelRef,
    pub(crate) result: Result<Metrics, Refusal>,
}

impl Outcome {
    /// The message for the coordinator.
    pub(crate) fn message(&self) -> v1::Evaluation {
        let outcome = match &self.result {
            Ok(metrics) => evaluation::Outcome::Metrics((*metrics).into()),
            Err(refusal) => evaluation::Outcome::Failure(refusal.told.clone()),
        };
        v1::Evaluation {
            job: self.job_id.to_string(),
            round: self.round.0,
            model: Some(BlobRef::new(self.model.digest, self.model.bytes)),
            outcome: Some(outcome),
        }
    }
}

/// Checks the data, fetches the model and measures it.
pub(crate) async fn evaluate(mut tools: Tools, request: Request) -> Outcome {
    let Request { job_id, round, job, model } = request;
    let result = measure(&mut tools, &job_id, round, job, model).await;
    Outcome { job_id, round, model, result }
}

async fn measure(
    tools: &mut Tools,
    job_id: &JobId,
    round: Round,
    job: Arc<Job>,
    model: ModelRef,
) -> Result<Metrics, Refusal> {
    tools.policy.check_model(&job)?;
    let unit = job.contract().unit();
    let of_trainer = |e: TrainerError| Refusal { told: told(&e, unit), details: vec![e.to_string()] };
    let contract = job.spec().data.clone();
    let report = tools.trainer.call(move |t| t.inspect(&contract)).await.map_err(of_trainer)?;
    if !report.is_fit() {
        return Err(Refusal { told: DATA_UNFIT.into(), details: report.problems });
    }
    // One at a time: the cache keeps one model of a job, and another fetch could push this one out before it is read.
    let turn = Arc::clone(&tools.measuring);
    let _turn = turn.lock().await;
    let answered = match private_answer(tools, job_id, round, &job)? {
        Asked::Exactly => None,
        Asked::Again(metrics) => return Ok(metrics),
        Asked::Privately(answered) => Some(answered),
    };
    let offered = OfferedModel { whole: model, version: None, delta: None, frozen: None };
    let runs_modules = tools.runs_modules();
    arrival::fetch(&mut tools.line, &tools.models, offered, (job_id, &job), runs_modules).await.map_err(
        |e| {
            let (Failure::Transient(told) | Failure::Closed(told) | Failure::Final(told)) = e.failure();
            Refusal { told, details: vec![e.to_string()] }
        },
    )?;
    let models = tools.models.clone();
    let task = EvaluationTask { module: tools.module(&job), ..job.evaluation_task() };
    let declared = tools.policy.declared_rows;
    if let (Some(answered), Some(privacy)) = (answered, job.spec().privacy.metrics()) {
        let of_job = Arc::clone(&job);
        let sums = tools.trainer.call(move |trainer| {
            let weights = weights(&models, model, &of_job)?;
            trainer.evaluate_bounded(&task, privacy.max_loss(), &weights)
        });
        let sums = sums.await.map_err(of_trainer)?;
        let kept_back = |e: &dyn std::fmt::Display| Refusal {
            told: "the client keeps its measurement back: see the client's log".into(),
            details: vec![e.to_string()],
        };
        let mut rng = NoiseRng::from_os().map_err(|e| kept_back(&e))?;
        let metrics = privacy.noised(job.contract().unit(), &sums, declared, &mut rng);
        let metrics = metrics.map_err(|e| kept_back(&e))?;
        // Durable before it leaves: it is drawn once.
        let terms = (job.digest(), privacy.epsilon());
        let given = answered.epsilon + privacy.epsilon();
        tracing::info!(
            epsilon = privacy.epsilon(),
            given,
            limit = tools.policy.max_epsilon,
            "measured with noise"
        );
        tools.answers.keep(job_id, answered, terms, round, metrics).map_err(|e| kept_back(&e))?;
        return Ok(metrics);
    }
    let limit = task.module.is_some().then_some(LONGEST);
    let measured = tools.trainer.call(move |trainer| {
        let weights = weights(&models, model, &job)?;
        let measured = apart(trainer, task.module.is_some(), |trainer| trainer.evaluate(&task, &weights))?;
        // The real number of rows stays.
        Ok(Metrics { rows: declared.unwrap_or(1), ..measured })
    });
    within(limit, measured)
        .await
        .and_then(|m| {
            // NaN or infinity would be refused over there; the reason is here.
            if m.is_finite() {
                Ok(m)
            } else {
                Err(TrainerError::Numerical(format!("a measurement is no number: {m:?}")))
            }
        })
        .map_err(of_trainer)
}

/// How long a job's module may take to be measured, with all that it waits for: as long as a program of the owner's by default. Training
/// has the round's deadline; a measurement is waited for by nobody, and one that never ended would keep this evaluator from every
/// other job.
const LONGEST: Duration = Duration::from_secs(3600);

/// What comes of `work` if it ends within the limit; else it is dropped, which ends the trainer's process.
async fn within<T>(
    limit: Option<Duration>,
    work: impl Future<Output = Result<T, TrainerError>>,
) -> Result<T, TrainerError> {
    let Some(limit) = limit else { return work.await };
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        let text = format!(
            "measuring the job's TorchScript file did not come to an end within {limit:?} and was ended"
        );
        Err(TrainerError::Unsupported(text))
    })
}

fn weights(models: &Models, model: ModelRef, job: &Job) -> Result<Vec<f32>, TrainerError> {
    models.read(model.digest, job.layout()).map_err(|e| match e {
        ModelError::Memory(_) => TrainerError::Memory(e.to_string()),
        _ => TrainerError::Numerical(format!("the model cannot be used: {e}")),
    })
}

/// How a measurement may leave.
enum Asked {
    /// As it is: the job promises evaluators nothing, and this client is one.
    Exactly,
    /// The answer that was given before.
    Again(Metrics),
    /// With noise, after these.
    Privately(Answered),
}

/// Whether this client may measure for a contract that puts noise on it: once for a round, in rounds that are charged, and
/// within its owner's limit.
fn private_answer(tools: &Tools, job_id: &JobId, round: Round, job: &Job) -> Result<Asked, Refusal> {
    let answered = tools.answers.of(job_id).map_err(|e| Refusal {
        told: "the client cannot read what it has answered before: see the client's log".into(),
        details: vec![e.to_string()],
    })?;
    if answered.is_of_another(job.digest()) {
        return Err(Refusal::open("this client answered another job of this name, under another contract"));
    }
    let Some(privacy) = job.spec().privacy.metrics() else {
        if tools.policy.allow_exact_measurements {
            return Ok(Asked::Exactly);
        }
        return Err(Refusal::open(
            "the job puts no noise on measurements ([privacy] metrics), and this client's owner asks for it: they would have \
             to set [limits] allow_exact_measurements = true",
        ));
    };
    if job.contract().measured_epsilon(round.0).is_none() || round.0 > job.spec().rounds {
        return Err(Refusal::open(format!("the job's contract pays for no measurement of round {round}")));
    }
    if let Some(metrics) = answered.given(round) {
        return Ok(Asked::Again(metrics));
    }
    if answered.is_past(round) {
        return Err(Refusal::open("a newer model of this job was measured here already"));
    }
    let epsilon = answered.epsilon + privacy.epsilon();
    if let Some(limit) = tools.policy.max_epsilon.filter(|limit| epsilon > *limit) {
        return Err(Refusal::open(format!(
            "this client would have given ε = {epsilon:.3} in measurements, its limit is {limit}"
        )));
    }
    Ok(Asked::Privately(answered))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trainer_thread::tests::Idle;
    use crate::trainer_thread::{Interrupt, TrainerThread};
    use std::sync::mpsc::channel;

    #[tokio::test]
    async fn a_measurement_that_never_ends_is_ended_and_the_next_one_has_its_turn() {
        let (end, ended) = channel();
        let interrupt = Interrupt::new(move || end.send(()).unwrap());
        let thread =
            TrainerThread::start(Box::new(Idle::default()), Some(interrupt), Duration::from_secs(600));
        let endless = thread.call(move |_| {
            ended.recv().unwrap();
            Ok(())
        });
        let e = within(Some(Duration::from_millis(50)), endless).await.unwrap_err();
        assert!(matches!(&e, TrainerError::Unsupported(text) if text.contains("within 50ms")), "{e}");
        let limit = Some(Duration::from_secs(600));
        assert_eq!(within(limit, thread.call(|_| Ok(7))).await, Ok(7));
        assert_eq!(within(None, thread.call(|_| Ok(8))).await, Ok(8));
    }
}
