//! The privacy ledger when the coordinator is killed between every two of its states.

use crate::csv;
use undertone_core::digest::Digest;
use undertone_harness::{Processes, SAMPLE_JOB};
use undertone_privacy::ledger::EntryState;
use undertone_privacy::ledger::chain::Line;
use undertone_round::event::Outcome;
use undertone_round::job::JobSpec;

/// Two planned rounds, and room for a few attempts more.
const CENTRAL: &str = "unit = \"client\"\ntrust = \"central\"\nclip_norm = 1.0\nnoise_multiplier = 4.0\n\
                       delta = 1e-5\nbudget_epsilon = 9.0";

fn lines(d: &Processes) -> Vec<Line> {
    let output = d.undertone(&["ledger", "export"]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_any_two_states_it_neither_undercounts_nor_pays_twice() {
    let mut d = Processes::start();
    let mut clients = vec![];
    for name in ["a", "b"] {
        assert!(d.enrol(name, "trainer", &csv(60, 0.0), 60).status.success());
        clients.push(d.run_client(name));
    }
    let plain =
        SAMPLE_JOB.replace("unit = \"none\"", CENTRAL).replace("reconnect = \"2s\"", "reconnect = \"15s\"");
    // Correlated noise: one charge, and buffers that must go on from what was committed and from nothing else.
    let correlated = plain
        .replace("budget_epsilon", "mechanism = \"blt\"\nbudget_epsilon")
        .replace("min_clients = 1", "min_clients = 1\nparticipations = 2\nseparation = 1");
    // Reserved and sampled become durable together. To be burnt, an attempt must have been cut while it was released.
    for (text, points) in [
        (&plain, &["before:reserved"][..]),
        (&plain, &["after:sampled"]),
        (&plain, &["before:committed"]),
        (&plain, &["after:committed"]),
        (&plain, &["before:published"]),
        (&plain, &["after:published"]),
        (&plain, &["before:committed", "before:burnt"]),
        (&plain, &["before:committed", "after:burnt"]),
        (&correlated, &["before:committed"]),
        (&correlated, &["after:committed"]),
        (&correlated, &["after:published"]),
    ] {
        let contract = JobSpec::from_toml(text, "job.toml").unwrap().resolve().unwrap().contract().clone();
        d.server().kill();
        d.start_server_that_dies(points[0]);
        let mut operator = d.operator().await;
        let id = operator.submit(text).await.unwrap();
        drop(operator);
        assert!(!d.server().wait().success(), "{points:?}: it did not die");
        for point in &points[1..] {
            d.start_server_that_dies(point);
            assert!(!d.server().wait().success(), "{points:?}: it did not die at {point}");
        }
        d.start_server();
        let mut operator = d.operator().await;
        let events = operator.watch_to_end(&id).await;
        assert_eq!(*events.outcome(), Outcome::Completed, "{points:?}: {}", events.text());

        let verified = d.undertone(&["ledger", "verify", "--json"]);
        assert!(verified.status.success(), "{points:?}: {verified:?}");
        let own: Vec<Line> = lines(&d).into_iter().filter(|l| l.entry.key.job.as_str() == id).collect();
        let count = |wanted: &str| own.iter().filter(|l| l.entry.state.word() == wanted).count() as u32;
        // Every attempt is charged once, each has one cohort and at most one result, each round has one release.
        let privacy = operator.privacy(&id).await;
        assert_eq!((count("reserved"), count("published")), (count("sampled"), 2), "{points:?}");
        assert_eq!(count("committed"), 2, "{points:?}");
        assert_eq!(privacy["attempts"], count("reserved"), "{points:?}");
        assert_eq!(
            count("reserved"),
            2 + count("burnt"),
            "{points:?}: nothing is burnt twice or for nothing"
        );
        assert_eq!(privacy["epsilon"].as_f64(), contract.epsilon_after(count("reserved")), "{points:?}");
        // A crash while noise may have been drawn costs one attempt; elsewhere the attempt goes on.
        let expected = u32::from(points[0] == "before:committed");
        assert_eq!(count("burnt"), expected, "{points:?}: {}", events.text());
        // What was committed is what was published, byte by byte.
        let results: Vec<_> = own
            .iter()
            .filter_map(|l| match l.entry.state {
                EntryState::Committed { output } | EntryState::Published { output } => {
                    Some((l.entry.seq, output))
                }
                _ => None,
            })
            .collect();
        for (seq, output) in &results {
            assert!(
                results.iter().all(|(s, o)| s != seq || o == output),
                "{points:?}: two results of one attempt"
            );
        }
        // And what anybody can fetch is those bytes.
        for line in &own {
            if let EntryState::Published { output } = line.entry.state {
                let file = operator.release(&id, line.entry.key.round.0).await;
                assert_eq!(Digest::of(&file), output, "{points:?}: round {}", line.entry.key.round);
            }
        }
    }
    // The whole history of eleven jobs and thirteen kills is one chain.
    let head = String::from_utf8(d.undertone(&["ledger", "verify", "--json"]).stdout).unwrap();
    let head: serde_json::Value = serde_json::from_str(&head).unwrap();
    assert_eq!(head["jobs"], 11);
}

#[test]
fn a_ledger_that_was_kept_is_checked_offline() {
    let d = Processes::start();
    let file = d.path().join("ledger.jsonl");
    let path = file.to_str().unwrap();
    assert!(d.undertone(&["ledger", "export", "--out", path]).status.success());
    let output = d.undertone(&["ledger", "verify", path]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("0 lines of 0 jobs"), "{output:?}");
    std::fs::write(&file, "{}\n").unwrap();
    let output = d.undertone(&["ledger", "verify", path]);
    assert!(!output.status.success());
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("line 1 of the ledger makes no sense"),
        "{output:?}"
    );
    let shown = d.undertone(&["ledger", "show"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("no job has reserved anything yet"), "{shown:?}");
}
