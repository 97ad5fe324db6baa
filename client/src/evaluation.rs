//! Measuring models for a job: what an evaluator does, and nobody else.

use crate::transfer;
use crate::work::Tools;
use std::sync::Arc;
use undertone::v1::{self, BlobRef, evaluation};
use undertone_core::id::{JobId, Round};
use undertone_core::trainer::{Metrics, TrainerError};
use undertone_round::job::Job;
use undertone_round::participant::{DATA_UNFIT, Failure, ModelRef, Refusal, told};

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
    let result = measure(&mut tools, job, model).await;
    Outcome { job_id, round, model, result }
}

async fn measure(tools: &mut Tools, job: Arc<Job>, model: ModelRef) -> Result<Metrics, Refusal> {
    let of_trainer = |e: TrainerError| Refusal { told: told(&e).into(), details: vec![e.to_string()] };
    let contract = job.spec().data.clone();
    let report = tools.trainer.call(move |t| t.inspect(&contract)).await.map_err(of_trainer)?;
    if !report.is_fit() {
        return Err(Refusal { told: DATA_UNFIT.into(), details: report.problems });
    }
    let idle = job.spec().deadlines.transfer_idle.0;
    // One at a time: the cache keeps the newest few models, and another fetch could push this one out before it is
    // read.
    let turn = Arc::clone(&tools.measuring);
    let _turn = turn.lock().await;
    transfer::fetch(&mut tools.line, &tools.models, model, idle).await.map_err(|e| {
        let (Failure::Transient(told) | Failure::Closed(told) | Failure::Final(told)) = e.failure();
        Refusal { told, details: vec![e.to_string()] }
    })?;
    let models = tools.models.clone();
    tools
        .trainer
        .call(move |trainer| {
            let weights = models
                .read(model.digest, job.layout())
                .map_err(|e| TrainerError::Numerical(format!("the model cannot be used: {e}")))?;
            trainer.evaluate(&job.spec().model, &job.spec().data, &weights)
        })
        .await
        .and_then(|m| {
            // NaN or infinity would be refused over there; the reason is here.
            if m.loss.is_finite() && m.accuracy.is_finite() {
                Ok(m)
            } else {
                Err(TrainerError::Numerical(format!("the loss is {}, the accuracy {}", m.loss, m.accuracy)))
            }
        })
        .map_err(of_trainer)
}
