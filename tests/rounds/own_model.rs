//! Jobs that bring their model as a TorchScript file.

use crate::initial::{hand_in, reference};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use undertone::Fault;
use undertone_client::ClientConfig;
use undertone_core::digest::Digest;
use undertone_core::id::ClientRole;
use undertone_core::trainer::{Metrics, TrainerError};
use undertone_harness::{Deployment, FnTrainer, Operator, SAMPLE_JOB};
use undertone_round::event::{JobEvent, Outcome};
use undertone_round::job::JobSpec;
use undertone_round::participant::AllowedModules;

/// Any bytes: only the trainer looks into them.
const MODULE: &[u8] = b"not looked into by coordinators, nor by clients: that is the trainer's part";

fn document(rounds: u32) -> String {
    let model = format!(
        "[model]\nkind = \"torchscript\"\ndigest = \"{}\"\nbytes = {}\ntensors = [{{ name = \"fc.weight\", shape = [1, 2] }}]\n",
        Digest::of(MODULE),
        MODULE.len()
    );
    let initial = format!("[initial]\ndigest = \"{}\"\nbytes = {}\n", Digest::of(&values()), values().len());
    SAMPLE_JOB
        .replace("[model]\nkind = \"logistic\"\n", &format!("{model}\n{initial}"))
        .replace("rounds = 2", &format!("rounds = {rounds}"))
}

/// The values that the job begins with.
fn values() -> Vec<u8> {
    let layout = undertone_core::layout::ModelLayout::new(vec![undertone_core::layout::TensorSpec {
        name: "fc.weight".into(),
        shape: vec![1, 2],
    }]);
    layout.unwrap().to_safetensors(&[1.0, 2.0], Default::default())
}

/// Hands both files in, and the job.
async fn submit(operator: &mut Operator, rounds: u32) -> String {
    for file in [MODULE, &values()[..]] {
        hand_in(operator, reference(file), file, 0).await.unwrap();
    }
    operator.submit(&document(rounds)).await.unwrap()
}

/// Adds 0.5 after a look at the file that it was given; keeps the path.
fn looking(seen: Arc<Mutex<Vec<PathBuf>>>) -> FnTrainer {
    FnTrainer::new(move |task, weights| {
        let path = task.module.clone().expect("the client says where the file is");
        assert_eq!(std::fs::read(&path).unwrap(), MODULE);
        seen.lock().unwrap().push(path);
        Ok(vec![0.5; weights.len()])
    })
}

async fn allowed(d: &Deployment, name: &str, role: ClientRole, which: AllowedModules) -> ClientConfig {
    let mut config = d.enrol(name, role).await;
    config.policy.torchscript = which;
    config
}

fn modules(folder: &Path) -> usize {
    let files = std::fs::read_dir(folder.join("models")).map(|files| files.flatten().collect::<Vec<_>>());
    files.unwrap_or_default().iter().filter(|file| file.path().extension().is_some_and(|e| e == "pt")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_reaches_the_clients_that_let_it_run_and_the_others_say_why_not() {
    let seen = Arc::new(Mutex::new(vec![]));
    let mut d = Deployment::start().await;
    let digest = Digest::of(MODULE);
    let mut folders = vec![];
    for (name, which) in [
        ("any", AllowedModules::All),
        ("this", AllowedModules::Only([digest].into())),
        ("other", AllowedModules::Only([Digest::of(b"another")].into())),
        ("none", AllowedModules::None),
    ] {
        let config = allowed(&d, name, ClientRole::Trainer, which).await;
        folders.push((name, config.folder.dir().to_owned()));
        d.run(config, looking(seen.clone()));
    }
    d.wait_connected(4).await;
    let mut operator = d.operator().await;

    let e = operator.submit(&document(2)).await.unwrap_err();
    assert!(e.fault == Fault::BadRequest && e.message.contains("[model] the file"), "{e}");
    for file in [MODULE, &values()[..]] {
        hand_in(&mut operator, reference(file), file, 0).await.unwrap();
    }
    let id = operator.submit(&document(2).replace("size = 2", "size = 4")).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert_eq!(operator.model(&id).await, [2.0, 3.0]);
    let told = format!("allow_torchscript = [\\\"{digest}\\\"]");
    for name in ["other", "none"] {
        let declined = events.0.iter().filter(|e| matches!(e, JobEvent::Declined { .. }));
        let texts: Vec<String> = declined.map(|e| serde_json::to_string(e).unwrap()).collect();
        assert!(
            texts.iter().any(|text| text.contains(&format!("\"{name}\"")) && text.contains(&told)),
            "{name}: {texts:?}"
        );
    }
    // Fetched once, kept for the job, and never by those who refuse.
    assert_eq!(seen.lock().unwrap().len(), 4);
    for (name, folder) in folders {
        assert_eq!(modules(&folder), usize::from(name == "any" || name == "this"), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn evaluators_need_the_file_and_their_owners_leave_too() {
    let seen = Arc::new(Mutex::new(vec![]));
    for (which, measured) in [(AllowedModules::None, false), (AllowedModules::All, true)] {
        let mut d = Deployment::start().await;
        for name in ["a", "b"] {
            let config = allowed(&d, name, ClientRole::Trainer, AllowedModules::All).await;
            d.run(config, looking(seen.clone()));
        }
        let config = allowed(&d, "e", ClientRole::Evaluator, which).await;
        let folder = config.folder.dir().to_owned();
        d.run(config, FnTrainer::constant(0.0).loss(|weights| f64::from(weights[0])));
        d.wait_connected(3).await;
        let mut operator = d.operator().await;
        let id = submit(&mut operator, 1).await;
        let events = operator.watch_to_end(&id).await;
        assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
        let found = events.0.iter().any(|e| matches!(e, JobEvent::Evaluated { metrics: Metrics { .. }, .. }));
        assert_eq!(found, measured, "{}", events.text());
        assert_eq!(modules(&folder), usize::from(measured));
        assert!(measured || events.text().contains("allow_torchscript"), "{}", events.text());
    }
}

/// What the trainer finds wrong with the file is the operator's to mend: they read all of it, whatever the contract.
#[tokio::test(flavor = "multi_thread")]
async fn the_reason_of_a_refused_file_reaches_the_operator() {
    let mut d = Deployment::start().await;
    let seen = Arc::new(Mutex::new(vec![]));
    let config = allowed(&d, "good", ClientRole::Trainer, AllowedModules::All).await;
    d.run(config, looking(seen));
    let config = allowed(&d, "bad", ClientRole::Trainer, AllowedModules::All).await;
    d.run(
        config,
        FnTrainer::failing(TrainerError::Module("training_step changes the buffer \"seen\"".into())),
    );
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let id = submit(&mut operator, 1).await;
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert!(
        events.text().contains("the job's TorchScript file: training_step changes the buffer"),
        "{}",
        events.text()
    );
    assert_eq!(operator.model(&id).await, [1.5, 2.5], "the good one counts");
}

/// Also where noise would leave in place of an update that failed: the file is wrong whatever the data is.
#[tokio::test(flavor = "multi_thread")]
async fn noise_does_not_hide_that_a_file_is_wrong() {
    let mut d = Deployment::start().await;
    let config = allowed(&d, "bad", ClientRole::Trainer, AllowedModules::All).await;
    d.run(
        config,
        FnTrainer::failing(TrainerError::Module("the loss does not depend on any parameter".into())),
    );
    d.wait_connected(1).await;
    let mut operator = d.operator().await;
    for file in [MODULE, &values()[..]] {
        hand_in(&mut operator, reference(file), file, 0).await.unwrap();
    }
    let local = "unit = \"client\"\ntrust = \"local\"\nclip_norm = 0.5\nnoise_multiplier = 4.0\ndelta = 1e-5\n\
                 budget_epsilon = 10.0";
    let job = document(1).replace("unit = \"none\"", local).replace("size = 2", "size = 1");
    let id = operator.submit(&job.replace("[deadlines]\n", "[deadlines]\nmax_attempts = 1\n")).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    // The words are the module's, which may have seen the data.
    assert!(events.text().contains("TorchScript module does not train as it is"), "{}", events.text());
    assert!(!events.text().contains("does not depend on any parameter"), "{}", events.text());
    assert_eq!(events.released(), 0);
}

/// The file outlives a restart of the coordinator while its job is open.
#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_coordinator_still_has_the_file() {
    let mut d = Deployment::start().await;
    let mut operator = d.operator().await;
    let id = submit(&mut operator, 1).await;
    drop(operator);
    d.restart().await;
    let seen = Arc::new(Mutex::new(vec![]));
    for name in ["a", "b"] {
        let config = allowed(&d, name, ClientRole::Trainer, AllowedModules::All).await;
        d.run(config, looking(seen.clone()));
    }
    let mut operator = d.operator().await;
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert!(!seen.lock().unwrap().is_empty());
    // It is nobody's who is not asked.
    let mut raw = d.raw("c", ClientRole::Trainer).await;
    let request =
        undertone::v1::DownloadRequest { digest: Digest::of(MODULE).as_bytes().to_vec().into(), offset: 0 };
    assert!(raw.client.download_model(request).await.is_err());
}

#[test]
fn the_job_is_one() {
    let spec = JobSpec::from_toml(&document(1), "job.toml").unwrap();
    assert_eq!(spec.resolve().unwrap().module_file().unwrap().bytes, MODULE.len() as u64);
}
