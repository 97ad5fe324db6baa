//! Jobs over real processes: libtorch trains in `undertone-trainer`.

use crate::csv;
use undertone_harness::{Process, Processes, SAMPLE_JOB};
use undertone_round::event::{JobEvent, Outcome};

const RECORD: &str = "unit = \"record\"\ntrust = \"local\"\nclip_norm = 1.0\nsampling_rate = 0.5\n\
                      target_epsilon = 4.0\ndelta = 1e-3\nbudget_epsilon = 8.0";

fn private_job(rounds: u32) -> String {
    SAMPLE_JOB
        .replace("unit = \"none\"", RECORD)
        .replace("rounds = 2", &format!("rounds = {rounds}"))
        .replace("learning_rate = 0.1", "learning_rate = 1.0")
}

/// Two trainers and an evaluator, enrolled and running.
fn deployment() -> (Processes, Vec<Process>) {
    let d = Processes::start();
    let mut processes = vec![];
    for (name, role, rows, shift) in
        [("a", "trainer", 200, 0.0), ("b", "trainer", 160, 0.05), ("e", "evaluator", 100, 0.0)]
    {
        let output = d.enrol(name, role, &csv(rows, shift), rows as u64);
        assert!(output.status.success(), "{output:?}");
        processes.push(d.run_client(name));
    }
    (d, processes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_job_learns_and_every_process_stops_when_told() {
    let (mut d, mut processes) = deployment();
    let mut operator = d.operator().await;
    let id = operator.submit(&private_job(8)).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}\n{}", events.text(), processes[0].log());
    let last = events.0.iter().rev().find_map(|e| match e {
        JobEvent::Evaluated { metrics, .. } => Some(*metrics),
        _ => None,
    });
    let last = last.expect("a measurement");
    assert!(last.accuracy.unwrap() > 0.85 && last.rows == 100, "{last:?}");
    let privacy = operator.privacy(&id).await;
    let epsilon = privacy["epsilon"].as_f64().unwrap();
    assert!(epsilon > 3.9 && epsilon <= 4.0, "{privacy}");
    drop(operator);
    for process in &mut processes {
        assert!(process.terminate().success(), "{}", process.log());
    }
    assert!(d.server().terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_killed_in_mid_job_costs_only_itself() {
    let (d, mut processes) = deployment();
    let mut operator = d.operator().await;
    let id = operator.submit(&private_job(12)).await.unwrap();
    operator.watch_until(&id, |e| matches!(e, JobEvent::Released { .. })).await;
    processes[1].kill();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert_eq!(events.released(), 12);
    let alone = |e: &JobEvent| matches!(e, JobEvent::Released { clients: 1, .. });
    assert!(events.0.iter().any(alone), "it was killed too late: {}", events.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_killed_in_mid_job_goes_on_and_spends_nothing_twice() {
    let (mut d, _processes) = deployment();
    let mut operator = d.operator().await;
    let id = operator.submit(&private_job(5)).await.unwrap();
    operator.watch_until(&id, |e| matches!(e, JobEvent::Received { .. })).await;
    drop(operator);
    d.server().kill();
    d.start_server();
    let mut operator = d.operator().await;
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    let epsilon = operator.privacy(&id).await["epsilon"].as_f64().unwrap();
    assert!(epsilon <= 4.0, "no attempt was paid for twice: {epsilon}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_hospital_with_bad_data_does_not_stop_the_others() {
    let d = Processes::start();
    let mut clients = vec![];
    for (name, csv) in [
        ("good", csv(200, 0.0)),
        ("text", csv(100, 0.0).replacen("0.8", "high", 1)),
        ("column", csv(100, 0.0).replace("x,y", "z,y")),
        ("empty", String::new()),
        ("labels", csv(100, 0.0).replacen(",1\n", ",9\n", 1)),
    ] {
        assert!(d.enrol(name, "trainer", &csv, 100).status.success());
        clients.push((name, d.run_client(name)));
    }
    let mut operator = d.operator().await;
    let job = private_job(1).replace("size = 2", "size = 5");
    let id = operator.submit(&job).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    let declined: Vec<String> = events
        .0
        .iter()
        .filter_map(|e| match e {
            JobEvent::Declined { client, .. } => Some(client.to_string()),
            _ => None,
        })
        .collect();
    assert_eq!(declined.len(), 4, "{}", events.text());
    assert!(!events.text().contains("high"), "a value of the data left the client");
    // The data owner reads the place and the way out in its own log.
    for (name, words) in [("text", "high"), ("column", "\"x\""), ("empty", "empty"), ("labels", "9")] {
        let (_, process) = clients.iter().find(|(n, _)| *n == name).unwrap();
        assert!(process.log().contains(words), "{name}: {}", process.log());
    }
}

#[test]
fn the_daemon_does_not_load_libtorch() {
    for name in ["undertone-server", "undertone-client", "undertone"] {
        let path = undertone_harness::binary(name);
        let bytes = std::fs::read(&path).unwrap();
        let needle = b"libtorch_cpu";
        assert!(!bytes.windows(needle.len()).any(|w| w == needle), "{name} names libtorch");
    }
}
