//! The thread that owns the trainer.
//!
//! Trainers block; this thread gives them a place. It serves one request at a time, in order, and lets the trainer
//! rest after some time without work, so that an idle client stays small.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use undertone_core::trainer::{Trainer, TrainerError};

/// Stops the work that a trainer is at, from another thread: its call then returns an error. Clones share it.
///
/// A request is more than the trainer's own call: a model is read before it, for example. What is given up meanwhile hits
/// no process yet, hence it is remembered until the next request [begins](Interrupt::begin), and a trainer looks before it
/// starts something and once that can be ended.
#[derive(Clone)]
pub struct Interrupt(Arc<Inner>);

struct Inner {
    given_up: AtomicBool,
    end: Box<dyn Fn() + Send + Sync>,
}

impl Interrupt {
    /// `end` ends what the trainer has started, if anything.
    pub fn new(end: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner { given_up: AtomicBool::new(false), end: Box::new(end) }))
    }

    /// A request begins: what was given up before is over.
    pub fn begin(&self) {
        self.0.given_up.store(false, Ordering::SeqCst);
    }

    /// Nobody waits for the request any more.
    pub fn give_up(&self) {
        self.0.given_up.store(true, Ordering::SeqCst);
        (self.0.end)();
    }

    /// Whether nobody waits for the request any more.
    pub fn is_given_up(&self) -> bool {
        self.0.given_up.load(Ordering::SeqCst)
    }
}

/// A handle to the thread. When the last one is gone, the trainer is dropped.
#[derive(Clone)]
pub(crate) struct TrainerThread {
    requests: Sender<Request>,
    at_work: Arc<Mutex<AtWork>>,
    interrupt: Option<Interrupt>,
    ended: watch::Receiver<()>,
}

type Job = Box<dyn FnOnce(&mut dyn Trainer) + Send>;

struct Request {
    ticket: u64,
    job: Job,
}

/// Which request is being served. The interrupt is called under this lock, so it cannot hit the next request.
#[derive(Default)]
struct AtWork {
    next_ticket: u64,
    serving: Option<u64>,
    /// Requests whose askers went away before their turn.
    given_up: Vec<u64>,
}

impl TrainerThread {
    pub(crate) fn start(trainer: Box<dyn Trainer>, interrupt: Option<Interrupt>, idle: Duration) -> Self {
        let (requests, inbox) = channel();
        let at_work = Arc::new(Mutex::new(AtWork::default()));
        let (shared, given_up) = (Arc::clone(&at_work), interrupt.clone());
        let (end, ended) = watch::channel(());
        std::thread::Builder::new()
            .name("trainer".into())
            .spawn(move || {
                serve(trainer, &inbox, &shared, given_up.as_ref(), idle);
                drop(end);
            })
            .expect("the system can start a thread");
        Self { requests, at_work, interrupt, ended }
    }

    /// Lets the thread end, and with it the trainer, and waits for that; not longer than `patience`, since a trainer
    /// without an interrupt may be in the middle of something.
    pub(crate) async fn close(self, patience: Duration) {
        let Self { requests, mut ended, .. } = self;
        drop(requests);
        if tokio::time::timeout(patience, ended.changed()).await.is_err() {
            tracing::warn!("the trainer is still at work; leaving it");
        }
    }

    /// Runs `work` on the trainer's thread, within the caller's span. If the future is dropped first, the work is
    /// interrupted, or never begun.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Trainer) -> Result<T, TrainerError> + Send + 'static,
    ) -> Result<T, TrainerError> {
        let (answer, result) = oneshot::channel();
        let ticket = {
            let mut at_work = lock(&self.at_work);
            at_work.next_ticket += 1;
            at_work.next_ticket
        };
        let span = tracing::Span::current();
        let job: Job = Box::new(move |trainer| {
            let outcome = span
                .in_scope(|| catch_unwind(AssertUnwindSafe(|| work(trainer))))
                .unwrap_or_else(|_| Err(TrainerError::Broken("the trainer panicked".into())));
            // Nobody listens any more: the attempt was dropped.
            let _ = answer.send(outcome);
        });
        let gone = || TrainerError::Broken("the trainer's thread is gone".into());
        self.requests.send(Request { ticket, job }).map_err(|_| gone())?;
        let mut guard = GiveUp { thread: self, ticket, done: false };
        let outcome = result.await.unwrap_or_else(|_| Err(gone()));
        guard.done = true;
        outcome
    }
}

struct GiveUp<'a> {
    thread: &'a TrainerThread,
    ticket: u64,
    done: bool,
}

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut at_work = lock(&self.thread.at_work);
        match at_work.serving {
            Some(serving) if serving > self.ticket => {}
            Some(serving) if serving == self.ticket => {
                if let Some(interrupt) = &self.thread.interrupt {
                    interrupt.give_up();
                }
            }
            _ => at_work.given_up.push(self.ticket),
        }
    }
}

fn serve(
    mut trainer: Box<dyn Trainer>,
    inbox: &Receiver<Request>,
    at_work: &Mutex<AtWork>,
    interrupt: Option<&Interrupt>,
    idle: Duration,
) {
    let mut awake = false;
    loop {
        let request = if awake {
            match inbox.recv_timeout(idle) {
                Ok(request) => request,
                Err(RecvTimeoutError::Timeout) => {
                    trainer.rest();
                    awake = false;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        } else {
            match inbox.recv() {
                Ok(request) => request,
                Err(_) => return,
            }
        };
        if begin(at_work, interrupt, request.ticket) {
            awake = true;
            (request.job)(trainer.as_mut());
            lock(at_work).serving = None;
            // Nobody can give this request up any more. What was killed for it is not to be found dying by the next one.
            if interrupt.is_some_and(Interrupt::is_given_up) {
                trainer.rest();
            }
        }
    }
}

/// Whether somebody still waits for this request; from then on it can be interrupted.
fn begin(at_work: &Mutex<AtWork>, interrupt: Option<&Interrupt>, ticket: u64) -> bool {
    let mut at_work = lock(at_work);
    let wanted = !at_work.given_up.contains(&ticket);
    // Requests are served in order: an earlier ticket never comes back.
    at_work.given_up.retain(|&t| t > ticket);
    if wanted {
        if let Some(interrupt) = interrupt {
            interrupt.begin();
        }
        at_work.serving = Some(ticket);
    }
    wanted
}

fn lock(at_work: &Mutex<AtWork>) -> std::sync::MutexGuard<'_, AtWork> {
    // Nothing is done under the lock that could leave it half-changed.
    at_work.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Condvar;
    use undertone_core::schema::DataContract;
    use undertone_core::trainer::{BoundedSums, DataReport, EvaluationTask, LocalUpdate, Metrics, TrainTask};

    /// Computes nothing, and remembers when it saw data and when it rested. Clones remember together.
    #[derive(Default, Clone)]
    pub(crate) struct Idle(Arc<Mutex<Vec<&'static str>>>);

    impl Idle {
        pub(crate) fn asked(&self) -> Vec<&'static str> {
            self.0.lock().unwrap().clone()
        }
    }

    impl Trainer for Idle {
        fn inspect(&mut self, _: &DataContract) -> Result<DataReport, TrainerError> {
            self.0.lock().unwrap().push("data");
            Ok(DataReport::default())
        }
        fn train(&mut self, _: &TrainTask, _: &[f32]) -> Result<LocalUpdate, TrainerError> {
            unreachable!()
        }
        fn evaluate(&mut self, _: &EvaluationTask, _: &[f32]) -> Result<Metrics, TrainerError> {
            unreachable!()
        }
        fn evaluate_bounded(
            &mut self,
            _: &EvaluationTask,
            _: f64,
            _: &[f32],
        ) -> Result<BoundedSums, TrainerError> {
            unreachable!()
        }
        fn rest(&mut self) {
            self.0.lock().unwrap().push("rest");
        }
    }

    #[tokio::test]
    async fn it_rests_once_after_work_and_survives_a_panic() {
        let trainer = Idle::default();
        let thread = TrainerThread::start(Box::new(trainer.clone()), None, Duration::from_millis(20));
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert!(trainer.asked().is_empty());
        let e = thread.call::<()>(|_| panic!("on purpose")).await.unwrap_err();
        assert!(matches!(e, TrainerError::Broken(_)));
        assert_eq!(thread.call(|_| Ok(3)).await, Ok(3));
        for _ in 0..500 {
            if trainer.asked().len() == 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert_eq!(trainer.asked(), ["rest"]);
    }

    #[tokio::test]
    async fn dropped_work_is_interrupted_and_waiting_work_is_never_begun() {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let stopper = stop.clone();
        let interrupt = Interrupt::new(move || {
            *stopper.0.lock().unwrap() = true;
            stopper.1.notify_all();
        });
        let thread =
            TrainerThread::start(Box::new(Idle::default()), Some(interrupt), Duration::from_secs(60));
        let (begun, has_begun) = oneshot::channel();
        let (first, second) = (thread.clone(), thread.clone());
        let long = tokio::spawn(async move {
            first
                .call(move |_| {
                    begun.send(()).unwrap();
                    let guard = stop.0.lock().unwrap();
                    drop(stop.1.wait_while(guard, |stopped| !*stopped).unwrap());
                    Ok(())
                })
                .await
        });
        has_begun.await.unwrap();
        let waiting = tokio::spawn(async move { second.call::<()>(|_| panic!("must not begin")).await });
        while lock(&thread.at_work).next_ticket < 2 {
            tokio::task::yield_now().await;
        }
        waiting.abort();
        assert!(waiting.await.unwrap_err().is_cancelled());
        long.abort();
        assert!(long.await.unwrap_err().is_cancelled());
        // The thread is free again, and nothing else was interrupted.
        assert_eq!(thread.call(|_| Ok(7)).await, Ok(7));
    }

    #[tokio::test]
    async fn what_is_given_up_before_the_trainer_is_asked_is_known_when_it_is() {
        let interrupt = Interrupt::new(|| {});
        let (seen, token) = (interrupt.clone(), interrupt.clone());
        let thread =
            TrainerThread::start(Box::new(Idle::default()), Some(interrupt), Duration::from_secs(60));
        let (begun, has_begun) = oneshot::channel();
        let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
        let (tell, told) = oneshot::channel();
        let caller = thread.clone();
        let work = tokio::spawn(async move {
            caller
                .call(move |_| {
                    begun.send(()).unwrap();
                    // A model is read, say; the trainer has started nothing.
                    goes_on.recv().unwrap();
                    tell.send(seen.is_given_up()).unwrap();
                    Ok(())
                })
                .await
        });
        has_begun.await.unwrap();
        work.abort();
        assert!(work.await.unwrap_err().is_cancelled());
        go_on.send(()).unwrap();
        assert!(told.await.unwrap());
        // The next request is another.
        assert_eq!(thread.call(move |_| Ok(token.is_given_up())).await, Ok(false));
    }
}
