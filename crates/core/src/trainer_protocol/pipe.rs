//! The client's end: a [`Trainer`] behind two pipes.

use super::{
    Baseline, BaselineTask, PROTOCOL_VERSION, ProtocolError, Request, Response, read_frame, write_frame,
};
use crate::limits::MAX_PARAMETERS;
use crate::schema::DataContract;
use crate::trainer::{
    BoundedSums, DataReport, EvaluationTask, LocalUpdate, Metrics, Progress, TrainTask, Trainer, TrainerError,
};
use std::fmt;
use std::io::{Read, Write};
use std::sync::Arc;

/// A trainer process, seen through its standard output (`R`) and input (`W`).
///
/// Whoever spawns the process hands the pipes over and keeps the right to kill it: a call that waits for a killed
/// process ends with [`TrainerError::Broken`]. After such an error the pipes are of no use; make a new process.
/// Dropping this closes the pipes, at which the process ends by itself, also in the middle of training.
///
/// [`Trainer::rest`] does nothing here: to give memory back, drop this and spawn anew at the next call.
#[derive(Debug)]
pub struct PipeTrainer<R, W> {
    from_process: R,
    to_process: W,
    info: TrainerInfo,
    broken: Option<TrainerError>,
    listener: Listener,
}

/// Hears how far training has come.
pub type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;

#[derive(Default)]
struct Listener(Option<OnProgress>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "a listener" } else { "nobody" })
    }
}

/// What a trainer process says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TrainerInfo {
    /// Where it computes, for example `cpu` or `cuda:0`.
    pub device: String,
    /// The version of its libtorch.
    pub libtorch: String,
    /// Why it does not compute with CUDA, where it was left to choose.
    pub why_no_cuda: Option<String>,
}

impl<R: Read, W: Write> PipeTrainer<R, W> {
    /// Says hello to a process that has just been spawned and checks that it speaks our version.
    ///
    /// # Errors
    /// [`TrainerError::Broken`] if the process does not answer, answers nonsense, or speaks another version.
    pub fn connect(from_process: R, to_process: W) -> Result<Self, TrainerError> {
        let info = TrainerInfo::default();
        let mut trainer =
            Self { from_process, to_process, info, broken: None, listener: Listener::default() };
        match trainer.ask(&Request::Hello { version: PROTOCOL_VERSION }, &[], 0)? {
            (Response::Hello { version: PROTOCOL_VERSION, device, libtorch, why_no_cuda }, _) => {
                trainer.info = TrainerInfo { device, libtorch, why_no_cuda };
                Ok(trainer)
            }
            (Response::Hello { version, .. }, _) => Err(TrainerError::Broken(format!(
                "the trainer speaks version {version} of the protocol, this program version {PROTOCOL_VERSION}: \
                 install both from the same build"
            ))),
            (other, _) => Err(trainer.breaks(unexpected(&other))),
        }
    }

    /// Lets `listener` hear how far training has come.
    pub fn on_progress(&mut self, listener: OnProgress) {
        self.listener = Listener(Some(listener));
    }

    /// What the process said of itself.
    pub fn info(&self) -> &TrainerInfo {
        &self.info
    }

    /// Trains and measures the job's model without privacy.
    ///
    /// # Errors
    /// See [`TrainerError`].
    pub fn baseline(&mut self, task: &BaselineTask) -> Result<Baseline, TrainerError> {
        match self.ask(&Request::Baseline { task: task.clone() }, &[], MAX_PARAMETERS)? {
            (Response::Baseline { metrics, rows, steps }, weights) => {
                Ok(Baseline { metrics, rows, steps, weights })
            }
            (other, _) => Err(self.breaks(unexpected(&other))),
        }
    }

    /// Asks the process to leave. Wait for it (or kill it) afterwards.
    ///
    /// # Errors
    /// [`TrainerError::Broken`] if it could not be told, as it has gone already.
    pub fn quit(mut self) -> Result<(), TrainerError> {
        write_frame(&mut self.to_process, &Request::Quit, &[])
            .map_err(|e| TrainerError::Broken(format!("the trainer process: {e}")))
    }

    /// One request, one answer of at most `max_values` values. A failure that the trainer reports is an `Err`.
    fn ask(
        &mut self,
        request: &Request,
        values: &[f32],
        max_values: u64,
    ) -> Result<(Response, Vec<f32>), TrainerError> {
        if let Some(e) = &self.broken {
            return Err(e.clone());
        }
        let written = match write_frame(&mut self.to_process, request, values) {
            // Refused before a byte was written: the process is as well as before.
            Err(e @ (ProtocolError::HeaderTooLong { .. } | ProtocolError::BadHeader(_))) => {
                return Err(TrainerError::Unsupported(format!(
                    "the task cannot be sent to the trainer: {e}"
                )));
            }
            other => other,
        };
        // A process that dies may have said why before it stopped reading: so read in any case.
        let answer = loop {
            match read_frame(&mut self.from_process, max_values) {
                Ok(Some((Response::Progress(progress), _))) => {
                    if let Some(listener) = &self.listener.0 {
                        listener(progress);
                    }
                }
                other => break other,
            }
        };
        match (written, answer) {
            (_, Ok(Some((Response::Failed(e), _)))) => {
                if let TrainerError::Broken(_) = e {
                    self.broken = Some(e.clone());
                }
                Err(e)
            }
            (Ok(()), Ok(Some(answer))) => Ok(answer),
            (Ok(()), Ok(None)) => Err(self.breaks("it ended without an answer; its log says why".into())),
            (Ok(()), Err(e @ ProtocolError::Memory(_))) => Err(TrainerError::Memory(e.to_string())),
            (Err(e), _) | (_, Err(e)) => Err(self.breaks(e.to_string())),
        }
    }

    fn breaks(&mut self, why: String) -> TrainerError {
        let e = TrainerError::Broken(format!("the trainer process: {why}"));
        self.broken = Some(e.clone());
        e
    }
}

fn unexpected(response: &Response) -> String {
    let kind = match response {
        Response::Hello { .. } => "hello",
        Response::Report(_) => "a data report",
        Response::Progress(_) => "progress",
        Response::Trained { .. } => "a trained update",
        Response::Metrics(_) => "metrics",
        Response::BoundedSums(_) => "bounded sums",
        Response::Baseline { .. } => "a baseline",
        Response::Failed(_) => "a failure",
    };
    format!("it answered {kind} to another question")
}

impl<R: Read + Send, W: Write + Send> Trainer for PipeTrainer<R, W> {
    fn inspect(&mut self, data: &DataContract) -> Result<DataReport, TrainerError> {
        match self.ask(&Request::Inspect { data: data.clone() }, &[], 0)? {
            (Response::Report(report), _) => Ok(report),
            (other, _) => Err(self.breaks(unexpected(&other))),
        }
    }

    fn train(&mut self, task: &TrainTask, weights: &[f32]) -> Result<LocalUpdate, TrainerError> {
        let trained = if task.plan.tensors.is_some() { task.part()?.len() } else { weights.len() };
        match self.ask(&Request::Train { task: task.clone() }, weights, trained as u64)? {
            (Response::Trained { steps, first_loss }, delta) if delta.len() == trained => {
                Ok(LocalUpdate { delta, steps, first_loss })
            }
            (Response::Trained { .. }, delta) => {
                let found = delta.len();
                Err(self
                    .breaks(format!("it answered an update of {found} values where {trained} are trained")))
            }
            (other, _) => Err(self.breaks(unexpected(&other))),
        }
    }

    fn evaluate(&mut self, task: &EvaluationTask, weights: &[f32]) -> Result<Metrics, TrainerError> {
        match self.ask(&Request::Evaluate { task: task.clone() }, weights, 0)? {
            (Response::Metrics(metrics), _) => Ok(metrics),
            (other, _) => Err(self.breaks(unexpected(&other))),
        }
    }

    fn evaluate_bounded(
        &mut self,
        task: &EvaluationTask,
        max_loss: f64,
        weights: &[f32],
    ) -> Result<BoundedSums, TrainerError> {
        match self.ask(&Request::EvaluateBounded { task: task.clone(), max_loss }, weights, 0)? {
            (Response::BoundedSums(sums), _) => Ok(sums),
            (other, _) => Err(self.breaks(unexpected(&other))),
        }
    }
}
