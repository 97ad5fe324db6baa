//! Privacy contracts end to end.

use crate::job;
use undertone_core::id::ClientRole;
use undertone_core::trainer::TrainerError;
use undertone_harness::{Deployment, Events, FnTrainer, SAMPLE_JOB};
use undertone_round::event::{JobEvent, Outcome};
use undertone_round::job::JobSpec;

const CENTRAL: &str = "unit = \"client\"\ntrust = \"central\"\nclip_norm = 0.5\nnoise_multiplier = 1.0\ndelta = 1e-5\nbudget_epsilon = 6.0";
const RECORD: &str = "unit = \"record\"\ntrust = \"local\"\nclip_norm = 1.0\nsampling_rate = 0.5\nnoise_multiplier = 2.0\ndelta = 1e-3\nbudget_epsilon = 10.0";

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_beyond_its_budget_is_refused_with_the_rounds_that_fit() {
    let d = Deployment::start().await;
    let job = job("unit = \"none\"", CENTRAL);
    let e = d.operator().await.submit(&job).await.unwrap_err();
    // One round at z = 1 costs between 4 and 5; two would pass 6.
    assert_eq!(e.fault, undertone::Fault::BadRequest);
    assert!(e.to_string().contains("1 rounds would fit"), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_failed_attempts_have_spent_ends_the_job_and_is_no_error() {
    let d = Deployment::start().await;
    let mut clients = vec![];
    for name in ["a", "b"] {
        let mut raw = d.raw(name, ClientRole::Trainer).await;
        raw.hello(1, 1).await.unwrap();
        clients.push(raw);
    }
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let text = job("unit = \"none\"", CENTRAL).replace("rounds = 2", "rounds = 1");
    let id = operator.submit(&text).await.unwrap();
    for client in &mut clients {
        let attempt = client.offer().await.attempt;
        let failure = undertone::v1::Failure { attempt, reason: "the machine is going down".into() };
        client.say(undertone::v1::client_message::Kind::Failure(failure)).await;
    }
    let events = operator.watch_to_end(&id).await;
    let Outcome::BudgetSpent { reason } = events.outcome() else { panic!("{}", events.text()) };
    assert!(reason.contains("the budget of 6"), "{reason}");
    assert_eq!(operator.privacy(&id).await["attempts"], 1);
}

/// A client whose data or training is bad must not show as one: what it sends is nothing, and the noise covers it.
#[tokio::test(flavor = "multi_thread")]
async fn under_a_central_contract_bad_data_does_not_decide_whether_a_model_is_released() {
    let mut d = Deployment::start().await;
    d.trainer("broken", FnTrainer::failing(TrainerError::Broken("no torch".into()))).await;
    d.trainer("diverges", FnTrainer::constant(f32::NAN)).await;
    d.trainer("unfit", FnTrainer::constant(1.0).unfit("row 7: age is 400")).await;
    d.wait_connected(3).await;
    let mut operator = d.operator().await;
    let text = job("unit = \"none\"", CENTRAL).replace("rounds = 2", "rounds = 1");
    let text = text.replace("size = 2", "size = 3").replace("min_clients = 1", "min_clients = 3");
    let id = operator.submit(&text).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert!(matches!(
        events.0.iter().find(|e| matches!(e, JobEvent::Released { .. })),
        Some(JobEvent::Released { clients: 3, .. })
    ));
    for word in ["declined", "lost", "refused", "age is 400"] {
        assert!(!events.text().contains(word), "{word}: {}", events.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_central_contract_clips_and_noises() {
    let mut d = Deployment::start().await;
    for name in ["a", "b"] {
        d.trainer(name, FnTrainer::constant(10.0)).await;
    }
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let text = job("unit = \"none\"", CENTRAL).replace("rounds = 2", "rounds = 1");
    let id = operator.submit(&text).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    let privacy = operator.privacy(&id).await;
    let epsilon = privacy["epsilon"].as_f64().unwrap();
    assert!((4.0..=6.0).contains(&epsilon), "{privacy}");
    assert_eq!((&privacy["unit"], &privacy["accountant"]), (&"client".into(), &"pld".into()));
    // Two updates of norm 0.5 each, noise of 0.5 on the sum, divided by 2: far from the 10 that was sent.
    let model = operator.model(&id).await;
    assert!(model.iter().all(|w| w.abs() < 4.0), "{model:?}");
    assert_ne!(model[0], model[1], "noise is drawn for each value");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_client_is_hidden_by_twice_the_noise() {
    let mut d = Deployment::start().await;
    for name in ["a", "b"] {
        d.trainer(name, FnTrainer::constant(0.0)).await;
    }
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    // Updates of zero: what the model moves by is noise alone, z · 2C / 2 on each value.
    let contract =
        CENTRAL.replace("noise_multiplier = 1.0", "noise_multiplier = 200.0\nadjacency = \"replace-one\"");
    let text = job("unit = \"none\"", &contract).replace("rounds = 2", "rounds = 1");
    let text = text.replace("kind = \"logistic\"", "kind = \"mlp\"\nhidden = [64]");
    let id = operator.submit(&text).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    let privacy = operator.privacy(&id).await;
    assert_eq!((&privacy["adjacency"], &privacy["noise_multiplier"]), (&"replace-one".into(), &200.0.into()));
    let model = operator.model(&id).await;
    let deviation = (model.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>() / model.len() as f64).sqrt();
    assert!((80.0..120.0).contains(&deviation), "{deviation} over {} values, not 100", model.len());
}

const LOCAL: &str = "unit = \"client\"\ntrust = \"local\"\nclip_norm = 0.5\nnoise_multiplier = 100.0\ndelta = 1e-5\nbudget_epsilon = 6.0";

/// What a client sends is noise first of all; one whose training fails, and one whose data is unfit, send it too, and
/// nobody is told.
#[tokio::test(flavor = "multi_thread")]
async fn with_local_trust_every_client_answers_with_noise() {
    let mut d = Deployment::start().await;
    d.trainer("trains", FnTrainer::constant(1e30)).await;
    d.trainer("fails", FnTrainer::failing(TrainerError::Broken("no torch".into()))).await;
    d.trainer("unfit", FnTrainer::constant(0.0).unfit("line 3 is \"young\"")).await;
    d.wait_connected(3).await;
    let mut operator = d.operator().await;
    let text =
        job("unit = \"none\"", LOCAL).replace("rounds = 2", "rounds = 1").replace("size = 2", "size = 3");
    let text = text.replace("min_clients = 1", "min_clients = 3");
    let text = text.replace("kind = \"logistic\"", "kind = \"mlp\"\nhidden = [64]");
    let id = operator.submit(&text).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    let received = events.0.iter().filter(|e| matches!(e, JobEvent::Received { .. })).count();
    assert_eq!(received, 3, "{}", events.text());
    for word in ["torch", "young", "data", "declined", "lost"] {
        assert!(!events.text().contains(word), "{word}: {}", events.text());
    }
    // Noise of 100 · 2 · 0.5 on each of three messages, averaged.
    let model = operator.model(&id).await;
    let deviation = (model.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>() / model.len() as f64).sqrt();
    let expected = 100.0 / 3f64.sqrt();
    assert!(
        (deviation / expected - 1.0).abs() < 0.2,
        "{deviation} over {} values, not {expected}",
        model.len()
    );
    let privacy = operator.privacy(&id).await;
    assert_eq!((&privacy["unit"], &privacy["trust"]), (&"client".into(), &"local".into()));
    assert_eq!((&privacy["adjacency"], &privacy["attempts"]), (&"replace-one".into(), &1.into()));
    let log = std::fs::read_to_string(d.path().join("clients/unfit/decisions.jsonl")).unwrap();
    assert!(log.contains("\"accept\"") && log.contains("young"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_differs_between_two_runs_of_the_same_job() {
    let mut d = Deployment::start().await;
    for name in ["a", "b"] {
        d.trainer(name, FnTrainer::constant(1.0)).await;
    }
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let text = job("unit = \"none\"", CENTRAL).replace("rounds = 2", "rounds = 1");
    let mut models = vec![];
    for _ in 0..2 {
        let id = operator.submit(&text).await.unwrap();
        operator.watch_to_end(&id).await;
        models.push(operator.model(&id).await);
    }
    assert_ne!(models[0], models[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_contract_reaches_the_trainer_with_public_numbers_only() {
    let mut d = Deployment::start().await;
    for name in ["a", "b"] {
        let mut config = d.enrol(name, ClientRole::Trainer).await;
        config.policy.declared_rows = Some(80);
        let trainer = FnTrainer::new(|task, weights| {
            let dp = task.record_privacy.expect("DP-SGD is asked for");
            assert_eq!((dp.clip_norm, dp.noise_multiplier, dp.sampling_rate), (1.0, 2.0, 0.5));
            assert_eq!(dp.expected_batch, 40.0, "declared rows, not the rows that are there");
            Ok(vec![0.25; weights.len()])
        });
        d.run(config, trainer);
    }
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let id = operator.submit(&job("unit = \"none\"", RECORD)).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    let spent: Vec<f64> = events
        .0
        .iter()
        .filter_map(|e| match e {
            JobEvent::Released { epsilon, .. } => *epsilon,
            _ => None,
        })
        .collect();
    assert!(spent.len() == 2 && 0.0 < spent[0] && spent[0] < spent[1], "{spent:?}");
    assert_eq!(operator.privacy(&id).await["unit"], "record");
    // Nothing that a client sends says how many rows it has, or how well it does.
    assert!(!events.text().contains("\"rows\""), "{}", events.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_refuse_what_their_owners_do_not_allow() {
    let mut d = Deployment::start().await;
    let mut strict = d.enrol("strict", ClientRole::Trainer).await;
    strict.policy.max_epsilon = Some(0.1);
    d.run(strict, FnTrainer::constant(1.0));
    let mut undeclared = d.enrol("undeclared", ClientRole::Trainer).await;
    undeclared.policy.declared_rows = None;
    d.run(undeclared, FnTrainer::constant(1.0));
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let id = operator.submit(&job("unit = \"none\"", RECORD)).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    let planned = JobSpec::from_toml(&job("unit = \"none\"", RECORD), "job.toml").unwrap().resolve().unwrap();
    let epsilon = planned.contract().epsilon_after(2).unwrap();
    let reason = declined(&events, "strict");
    assert!(reason.contains("limit is 0.1") && reason.contains(&format!("{epsilon:.3}")), "{reason}");
    assert!(declined(&events, "undeclared").contains("declared_rows"));
    // The decision and its numbers are in the client's own log.
    let log = std::fs::read_to_string(d.path().join("clients/strict/decisions.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert!(line.to_string().contains(&reason.replace('"', "\\\"")), "{line}");

    let mut careful = d.enrol("careful", ClientRole::Trainer).await;
    careful.policy.allow_no_privacy = false;
    d.run(careful, FnTrainer::constant(1.0));
    d.wait_connected(3).await;
    let id = operator.submit(&job("size = 2", "size = 3")).await.unwrap();
    let reason = declined(&operator.watch_to_end(&id).await, "careful").to_owned();
    assert!(reason.contains("allow_no_privacy"), "{reason}");
}

/// The reason with which a client said no, in its first answer.
fn declined<'a>(events: &'a Events, who: &str) -> &'a str {
    let found = events.0.iter().find_map(|e| match e {
        JobEvent::Declined { client, reason, .. } if client.as_str() == who => Some(reason.as_str()),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("{who} did not decline: {}", events.text()))
}

#[test]
fn impossible_jobs_are_refused_with_the_section() {
    for (from, to, words) in [
        ("size = 2", "size = 0", "[cohort]"),
        ("min_clients = 1", "min_clients = 3", "[cohort]"),
        ("rounds = 2", "rounds = 0", "[rounds]"),
        ("learning_rate = 0.1", "learning_rate = -1.0", "[training]"),
        ("unit = \"none\"", &RECORD.replace("sampling_rate = 0.5\n", ""), "sampling_rate"),
        (
            "unit = \"none\"",
            &CENTRAL.replace("budget_epsilon = 6.0", "budget_epsilon = nan"),
            "budget_epsilon",
        ),
        ("unit = \"none\"", "unit = \"record\"\ntrust = \"central\"", "central"),
        ("kind = \"logistic\"", "kind = \"resnet\"", "resnet"),
        ("kind = \"logistic\"", "kind = \"mlp\"\nhidden = [0]", "[model]"),
        ("rounds = 2", "roundz = 2", "did you mean \"rounds\"?"),
        ("round = \"30s\"", "round = 30", "line"),
    ] {
        let text = job(from, to);
        let e = JobSpec::from_toml(&text, "job.toml").and_then(JobSpec::resolve).unwrap_err();
        assert!(e.to_string().contains(words), "{to}: {e}");
    }
    let epochs = job("unit = \"none\"", RECORD).replace("local_steps = 1", "local_epochs = 1");
    let e = JobSpec::from_toml(&epochs, "job.toml").unwrap().resolve().unwrap_err();
    assert!(e.to_string().contains("private number of rows"), "{e}");
    let batch = job("unit = \"none\"", RECORD).replace("local_steps = 1", "local_steps = 1\nbatch_size = 4");
    assert!(JobSpec::from_toml(&batch, "job.toml").unwrap().resolve().is_err());
    assert!(JobSpec::from_toml(SAMPLE_JOB, "job.toml").unwrap().resolve().is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_coordinator_checks_a_job_itself() {
    let d = Deployment::start().await;
    let mut operator = d.operator().await;
    let good = String::from_utf8(JobSpec::from_toml(SAMPLE_JOB, "job.toml").unwrap().to_document()).unwrap();
    for (from, to, words) in [
        ("\"size\":2", "\"size\":0", "cohort size"),
        ("\"rounds\":2", "\"rounds\":2,\"extra\":1", "unknown key \"extra\""),
        ("{\"name\"", "{{\"name\"", "job"),
    ] {
        assert!(good.contains(from), "{from} in {good}");
        let document = good.replace(from, to).into_bytes().into();
        let request = undertone::v1::SubmitJobRequest { job_document: document };
        let e = operator.client.submit_job(request).await.unwrap_err();
        assert_eq!(e.code(), tonic::Code::InvalidArgument);
        assert!(e.message().contains(words), "{e}");
    }
}
