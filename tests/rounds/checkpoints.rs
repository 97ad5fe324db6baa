//! Local training that is killed within a round.

use crate::job;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use undertone_core::id::ClientRole;
use undertone_core::trainer::TrainerError;
use undertone_harness::{Deployment, FnTrainer};
use undertone_round::event::{JobEvent, Outcome};

fn one_round() -> String {
    job("size = 2", "size = 1").replace("rounds = 2", "rounds = 1")
}

/// Dies as a process does the first time, after it kept its state, and goes on from it the second.
fn dying(killed: u32, seen: Arc<Mutex<Vec<PathBuf>>>) -> FnTrainer {
    FnTrainer::new(move |task, weights| {
        let place = task.checkpoint.as_ref().expect("a client names a place");
        let mut seen = seen.lock().unwrap();
        seen.push(place.path.clone());
        if seen.len() as u32 <= killed {
            std::fs::write(&place.path, format!("{} calls", seen.len())).unwrap();
            return Err(TrainerError::Broken("killed".into()));
        }
        Ok(vec![1.0; weights.len()])
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_trainer_goes_on_within_the_attempt() {
    let seen = Arc::new(Mutex::new(vec![]));
    let mut d = Deployment::start().await;
    d.trainer("a", dying(2, seen.clone())).await;
    d.wait_connected(1).await;
    let mut operator = d.operator().await;
    let id = operator.submit(&one_round()).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert!(!events.text().contains("\"lost\"") && !events.text().contains("aborted"), "{}", events.text());
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|path| *path == seen[0]));
    assert!(!seen[0].exists(), "a checkpoint goes with its round");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_dies_again_and_again_is_given_up() {
    let seen = Arc::new(Mutex::new(vec![]));
    let mut d = Deployment::start().await;
    d.trainer("a", dying(u32::MAX, seen.clone())).await;
    d.wait_connected(1).await;
    let mut operator = d.operator().await;
    let id = operator.submit(&one_round()).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert!(matches!(events.outcome(), Outcome::Failed { .. }), "{}", events.text());
    let seen = seen.lock().unwrap();
    // Four times in each attempt.
    assert!(seen.len().is_multiple_of(4) && !seen.is_empty(), "{seen:?}");
    assert!(!seen[0].exists());
}

/// A client that stops in the middle keeps the state, and its next process is offered the same attempt and goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_was_killed_too_goes_on() {
    let mut d = Deployment::start().await;
    let config = d.enrol("a", ClientRole::Trainer).await;
    let (begun, has_begun) = std::sync::mpsc::channel();
    let first = FnTrainer::new(move |task, _| {
        let place = task.checkpoint.as_ref().unwrap();
        std::fs::write(&place.path, "state").unwrap();
        begun.send(place.clone()).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        Err(TrainerError::Broken("killed with its client".into()))
    });
    let number = d.run(config.clone(), first);
    d.wait_connected(1).await;
    let mut operator = d.operator().await;
    let id =
        operator.submit(&one_round().replace("reconnect = \"2s\"", "reconnect = \"20s\"")).await.unwrap();
    let place = tokio::task::spawn_blocking(move || has_begun.recv().unwrap()).await.unwrap();
    d.take(number).stop().await.unwrap();
    let (again, goes_on) = std::sync::mpsc::channel();
    let second = FnTrainer::new(move |task, weights| {
        let place = task.checkpoint.as_ref().unwrap();
        again.send((place.clone(), std::fs::read_to_string(&place.path).ok())).unwrap();
        Ok(vec![1.0; weights.len()])
    });
    d.run(config, second);
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    let (found, state) = goes_on.recv().unwrap();
    assert_eq!((found, state.as_deref()), (place.clone(), Some("state")), "the same attempt, the same place");
    assert!(!place.path.exists());
}

/// Also where the job's own file is at fault.
#[tokio::test(flavor = "multi_thread")]
async fn training_that_failed_leaves_no_checkpoint() {
    for error in [TrainerError::Module("it changes a buffer".into()), TrainerError::Memory("no room".into())]
    {
        let (kept, was_kept) = std::sync::mpsc::channel();
        let mut d = Deployment::start().await;
        let trainer = FnTrainer::new(move |task, _| {
            let place = task.checkpoint.as_ref().unwrap();
            std::fs::write(&place.path, "state").unwrap();
            kept.send(place.path.clone()).unwrap();
            Err(error.clone())
        });
        d.trainer("a", trainer).await;
        d.wait_connected(1).await;
        let mut operator = d.operator().await;
        let job = one_round().replace("[deadlines]\n", "[deadlines]\nmax_attempts = 1\n");
        let id = operator.submit(&job).await.unwrap();
        operator.watch_to_end(&id).await;
        assert!(!was_kept.recv().unwrap().exists());
    }
}

/// Where nothing is promised the operator is told the step; what to change is told in any case.
#[tokio::test(flavor = "multi_thread")]
async fn divergence_and_want_of_memory_are_told() {
    let diverged = TrainerError::Diverged { step: 7, of: 9, what: "the loss is NaN".into() };
    let memory = TrainerError::Memory("out of memory with one example at a time".into());
    for (error, says) in [(diverged, "step 7 of 9"), (memory, "take a smaller model")] {
        let mut d = Deployment::start().await;
        d.trainer("a", FnTrainer::failing(error)).await;
        d.wait_connected(1).await;
        let mut operator = d.operator().await;
        let id = operator.submit(&one_round()).await.unwrap();
        let lost = |e: &JobEvent| matches!(e, JobEvent::Lost { .. });
        let events = operator.watch_until(&id, lost).await;
        assert!(events.text().contains(says), "{}", events.text());
    }
}
