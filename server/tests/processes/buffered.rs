//! An asynchronous job whose coordinator is killed again and again, and a client with it.

use crate::csv;
use std::collections::{BTreeMap, BTreeSet};
use undertone_core::digest::Digest;
use undertone_harness::{Events, Processes, SAMPLE_JOB};
use undertone_privacy::ledger::EntryState;
use undertone_privacy::ledger::chain::Line;
use undertone_round::event::{JobEvent, Outcome};
use undertone_store::{Durability, SqlStore, Store as _};

const ROUNDS: u32 = 12;

/// Buffers of two, from up to three at work.
fn job(privacy: &str) -> String {
    SAMPLE_JOB
        .replace(
            "rule = \"all\"\nsize = 2\nmin_clients = 1",
            "rule = \"buffered\"\nconcurrency = 3\nbuffer = 2\nmax_staleness = 10",
        )
        .replace("unit = \"none\"", privacy)
        .replace("rounds = 2", &format!("rounds = {ROUNDS}"))
        .replace("reconnect = \"2s\"", "reconnect = \"20s\"")
        // So that training takes longer than it takes to kill somebody.
        .replace("local_steps = 1", "local_steps = 5000")
}

const CENTRAL: &str = "unit = \"client\"\ntrust = \"central\"\nclip_norm = 1.0\nnoise_multiplier = 4.0\n\
                       delta = 1e-5\nbudget_epsilon = 20.0";

/// The updates that counted in each round, by what their events say.
fn counted(events: &Events) -> BTreeMap<u32, Vec<String>> {
    let mut rounds = BTreeMap::<u32, Vec<String>>::new();
    for event in &events.0 {
        if let JobEvent::Received { round, client, .. } = event {
            rounds.entry(round.0).or_default().push(client.to_string());
        }
    }
    rounds
}

/// Lets the coordinator die at each of these points, one after the other; or, for none, as soon as an update is in.
async fn kill_at(d: &mut Processes, id: &str, points: &[Option<&str>]) {
    for point in points {
        d.server().kill();
        match point {
            Some(point) => {
                d.start_server_that_dies(point);
                assert!(!d.server().wait().success(), "{point}: it did not die");
                d.start_server();
            }
            None => {
                d.start_server();
                let before = d.operator().await.detail(id).await.summary.map_or(0, |s| s.rounds_released);
                let later =
                    |e: &JobEvent| matches!(e, JobEvent::Received { round, .. } if round.0 > before + 1);
                d.operator().await.watch_until(id, later).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_a_buffered_job_counts_every_update_once() {
    let mut d = Processes::start();
    let mut clients = BTreeMap::new();
    for name in ["a", "b", "c"] {
        assert!(d.enrol(name, "trainer", &csv(60, 0.0), 60).status.success());
        let settings = d.client_folder(name).join("client.toml");
        let text = std::fs::read_to_string(&settings).unwrap();
        let allowed = text.replace("allow_no_privacy = false", "allow_no_privacy = true");
        assert_ne!(text, allowed);
        std::fs::write(&settings, allowed).unwrap();
        clients.insert(name, d.run_client(name));
    }
    for (privacy, points) in [
        (
            "unit = \"none\"",
            &[Some("after:sampled"), None, Some("before:committed"), Some("after:published")][..],
        ),
        (CENTRAL, &[Some("before:committed"), None, Some("after:committed")]),
    ] {
        let id = d.operator().await.submit(&job(privacy)).await.unwrap();
        d.operator().await.watch_until(&id, |e| matches!(e, JobEvent::Offered { .. })).await;
        kill_at(&mut d, &id, points).await;
        // A client with whatever it has in hand: it comes back with its outbox.
        clients.get_mut("b").unwrap().kill();
        clients.insert("b", d.run_client("b"));
        let mut operator = d.operator().await;
        let events = operator.watch_to_end(&id).await;
        assert_eq!(*events.outcome(), Outcome::Completed, "{privacy}: {}", events.text());
        assert_eq!(events.released(), ROUNDS as usize, "{privacy}");

        // The ledger: one chain; each attempt is charged once and has one end; what was committed is what was published, and
        // what anybody can fetch.
        let verified = d.undertone(&["ledger", "verify", "--json"]);
        assert!(verified.status.success(), "{privacy}: {verified:?}");
        let output = d.undertone(&["ledger", "export"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Line>(line).unwrap());
        let own: Vec<Line> = lines.filter(|l| l.entry.key.job.as_str() == id).collect();
        let count = |word: &str| own.iter().filter(|l| l.entry.state.word() == word).count() as u32;
        let (published, burnt) = (count("published"), count("burnt"));
        assert_eq!(
            (count("reserved"), published),
            (published + burnt, ROUNDS),
            "{privacy}: {}",
            events.text()
        );
        assert_eq!(count("committed"), ROUNDS, "{privacy}");
        let mut models = BTreeSet::new();
        for line in &own {
            let (EntryState::Committed { output } | EntryState::Published { output }) = line.entry.state
            else {
                continue;
            };
            let file = operator.release(&id, line.entry.key.round.0).await;
            assert_eq!(Digest::of(&file), output, "{privacy}: round {}", line.entry.key.round);
            models.insert(output);
        }
        let announced = events.0.iter().filter_map(|e| match e {
            JobEvent::Released { model, clients, .. } => Some((*model, *clients)),
            _ => None,
        });
        let announced: Vec<_> = announced.collect();
        assert!(
            announced.iter().all(|(model, clients)| models.contains(model) && *clients == 2),
            "{privacy}"
        );

        // Every update that was accepted has one record and one event, and is in one sum.
        let counted = counted(&events);
        let received: usize = counted.values().map(Vec::len).sum();
        drop(operator);
        d.server().kill();
        let file = d.path().join("deployment/state/undertone.sqlite");
        let store = SqlStore::sqlite(&file, Durability::Process).await.unwrap();
        let mut records = 0;
        for line in own.iter().filter(|l| l.entry.state.word() == "reserved") {
            records += store.uploads(&line.entry.key).await.unwrap().len();
        }
        store.close().await;
        d.start_server();
        assert_eq!(records, received, "{privacy}: {}", events.text());
        let summed = 2 * (ROUNDS + burnt) as usize;
        // What came in while the last round was being released had no round to count in any more.
        assert!(
            (summed..=summed + 3).contains(&received),
            "{privacy}: {received} of {summed}: {}",
            events.text()
        );
        if burnt == 0 {
            for round in 1..=ROUNDS {
                let of_round = &counted[&round];
                let each: BTreeSet<_> = of_round.iter().collect();
                assert_eq!(
                    (of_round.len(), each.len()),
                    (2, 2),
                    "{privacy}: round {round}: {}",
                    events.text()
                );
            }
        }
        // Only noise that was cut off costs an attempt, and a kill costs one at most.
        let most = if privacy == CENTRAL { points.len() as u32 } else { 0 };
        assert!((most.min(1)..=most).contains(&burnt), "{privacy}: {burnt} burnt: {}", events.text());
    }
    for process in clients.values_mut() {
        assert!(process.terminate().success(), "{}", process.log());
    }
}
