//! The process's end of [`undertone_core::trainer_protocol`]: reads requests, answers each.

use crate::device::{device_name, why_no_cuda};
use crate::failure::Stop;
use crate::memory;
use crate::torch_trainer::TorchTrainer;
use std::io::{Read, Write};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use undertone_core::limits::MAX_PARAMETERS;
use undertone_core::trainer::{Progress, Trainer, TrainerError};
use undertone_core::trainer_protocol::{
    PROTOCOL_VERSION, ProtocolError, Request, Response, read_frame, write_frame,
};

/// The client hears of progress at most this often.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// Why serving ended other than by [`Request::Quit`] or the end of the requests.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// What came is not the protocol, or the pipe broke.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The client is of another build.
    #[error(
        "the client speaks version {0} of the protocol, this trainer version {PROTOCOL_VERSION}: install both from \
         the same build"
    )]
    Version(u32),
}

/// Answers requests until [`Request::Quit`] or the end of `requests`.
///
/// Requests are read ahead on a thread of its own. So the end of `requests`, which is how a client that was killed
/// looks from here, also ends training that is under way, by `trainer`'s [`Stop`].
///
/// # Errors
/// [`ServeError`]; the client has been told if it could be.
pub fn serve(
    mut requests: impl Read + Send + 'static,
    answers: impl Write + Send + 'static,
    trainer: TorchTrainer,
) -> Result<(), ServeError> {
    let stop = Stop::default();
    let answers = Arc::new(Mutex::new(answers));
    let mut trainer = trainer.stopped_by(stop.clone().telling(progress_to(Arc::clone(&answers))));
    let (sender, receiver) = sync_channel(1);
    thread::spawn(move || {
        loop {
            let read = read_frame::<Request>(&mut requests, MAX_PARAMETERS);
            let last = match &read {
                Ok(Some((request, _))) => *request == Request::Quit,
                // What it said is lost, and more may follow.
                Err(ProtocolError::Memory(_)) => false,
                Ok(None) | Err(_) => {
                    stop.stop();
                    true
                }
            };
            if sender.send(read).is_err() || last {
                return;
            }
        }
    });
    for read in receiver {
        match read {
            Ok(None) | Ok(Some((Request::Quit, _))) => return Ok(()),
            Ok(Some((Request::Hello { version }, _))) if version != PROTOCOL_VERSION => {
                write_frame(&mut *lock(&answers), &hello(&trainer), &[])?;
                return Err(ServeError::Version(version));
            }
            Ok(Some((request, values))) => {
                let (response, values) = answer(&mut trainer, request, &values);
                write_answer(&mut *lock(&answers), &response, &values)?;
            }
            Err(ProtocolError::Memory(_)) => refuse(&mut *lock(&answers), memory::too_big())?,
            Err(e) => {
                // Nothing can be read any more; the client may still be there to hear why.
                let _ = refuse(&mut *lock(&answers), TrainerError::Broken(e.to_string()));
                return Err(e.into());
            }
        }
    }
    Ok(())
}

/// Writes progress between answers; a client that has gone is noticed elsewhere.
fn progress_to<W: Write + Send + 'static>(answers: Arc<Mutex<W>>) -> Arc<dyn Fn(Progress) + Send + Sync> {
    let told = Mutex::new(Instant::now());
    Arc::new(move |progress| {
        let mut told = lock(&told);
        if told.elapsed() >= TELL_EVERY {
            *told = Instant::now();
            let _ = write_frame(&mut *lock(&answers), &Response::Progress(progress), &[]);
        }
    })
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in the middle of an answer ends the process anyway.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells the client, instead of an answer to its first request, why there will be no trainer.
///
/// # Errors
/// [`ProtocolError`] if it could not be told.
pub fn refuse(answers: &mut impl Write, why: TrainerError) -> Result<(), ProtocolError> {
    write_frame(answers, &Response::Failed(why), &[])
}

fn hello(trainer: &TorchTrainer) -> Response {
    Response::Hello {
        version: PROTOCOL_VERSION,
        device: device_name(trainer.device()),
        libtorch: crate::LIBTORCH_VERSION.to_owned(),
        // One that was told to compute on the CPU has no reason to give.
        why_no_cuda: if trainer.chose_device() { why_no_cuda() } else { None },
    }
}

fn answer(trainer: &mut TorchTrainer, request: Request, weights: &[f32]) -> (Response, Vec<f32>) {
    let result = match request {
        Request::Hello { .. } => Ok((hello(trainer), vec![])),
        Request::Inspect { data } => trainer.inspect(&data).map(|report| (Response::Report(report), vec![])),
        Request::Train { task } => trainer.train(&task, weights).map(|update| {
            (Response::Trained { steps: update.steps, first_loss: update.first_loss }, update.delta)
        }),
        Request::Evaluate { task } => {
            trainer.evaluate(&task, weights).map(|metrics| (Response::Metrics(metrics), vec![]))
        }
        Request::EvaluateBounded { task, max_loss } => trainer
            .evaluate_bounded(&task, max_loss, weights)
            .map(|sums| (Response::BoundedSums(sums), vec![])),
        Request::Baseline { task } => trainer
            .baseline(&task)
            .map(|b| (Response::Baseline { metrics: b.metrics, rows: b.rows, steps: b.steps }, b.weights)),
        Request::Quit => unreachable!("serve() leaves at this one"),
    };
    result.unwrap_or_else(|e| (Response::Failed(e), vec![]))
}

/// Writes an answer; one that is too long to be sent turns into a failure that says so.
fn write_answer(answers: &mut impl Write, response: &Response, values: &[f32]) -> Result<(), ProtocolError> {
    match write_frame(answers, response, values) {
        Err(e @ ProtocolError::HeaderTooLong { .. }) => {
            refuse(answers, TrainerError::Broken(format!("the answer cannot be sent: {e}")))
        }
        other => other,
    }
}
