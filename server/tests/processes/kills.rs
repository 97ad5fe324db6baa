//! Coordinators, clients and the database are killed again and again while jobs run to their end.
//!
//! A few dozen kills by default; `cargo xtask test --long` makes it hundreds.

use crate::fleet::{TRAINERS, borrowed, job, storage, trainer, undisturbed};
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use undertone::v1::GetJobRequest;
use undertone_harness::{Events, Fleet, Operator, Process, Processes};
use undertone_privacy::ledger::EntryState;
use undertone_privacy::ledger::chain::Line;
use undertone_round::event::{JobEvent, Outcome};
use undertone_test_servers::{PostgresServer, S3Server};

const COORDINATORS: usize = 3;

/// What can be killed, and what was.
struct Victims {
    fleet: Fleet,
    postgres: PostgresServer,
    clients: Vec<Process>,
    rng: ChaCha8Rng,
    /// What is to be killed next, the last one first.
    deck: Vec<&'static str>,
    /// How often, by what it was.
    killed: BTreeMap<&'static str, u32>,
}

impl Victims {
    fn kills(&self) -> u32 {
        self.killed.values().sum()
    }

    /// Kills one of them in the middle of what it does, and starts it again after a while.
    async fn kill_one(&mut self) {
        let after = self.rng.random_range(100..1500);
        tokio::time::sleep(Duration::from_millis(after)).await;
        let dead_for = Duration::from_millis(self.rng.random_range(0..400));
        if self.deck.is_empty() {
            self.deck = [["coordinator"; 5].as_slice(), &["client"; 3], &["database"; 2]].concat();
            self.deck.shuffle(&mut self.rng);
        }
        let what = self.deck.pop().expect("it was filled");
        match what {
            "coordinator" => {
                let n = self.rng.random_range(0..COORDINATORS);
                self.fleet.coordinator(n).kill();
                tokio::time::sleep(dead_for).await;
                self.fleet.start_again(n);
            }
            "client" => {
                let n = self.rng.random_range(0..self.clients.len());
                self.clients[n].kill();
                tokio::time::sleep(dead_for).await;
                self.clients[n] = self.fleet.deployment.run_client(TRAINERS[n].0);
            }
            _ => {
                self.postgres.kill();
                tokio::time::sleep(dead_for).await;
                self.postgres.resume();
            }
        }
        *self.killed.entry(what).or_default() += 1;
    }

    /// Runs a job to its end, and again, until so many kills fell into the time of one. Gives each with its events.
    async fn run(&mut self, job: &str, kills: u32) -> Vec<(String, Events)> {
        let (before, mut runs) = (self.kills(), vec![]);
        while self.kills() - before < kills {
            let id = self.fleet.deployment.operator().await.submit(job).await.unwrap();
            while self.kills() - before < kills && !has_ended(&self.fleet.deployment, &id).await {
                self.kill_one().await;
            }
            let events = self.fleet.deployment.watch_to_end(&id).await;
            assert_eq!(*events.outcome(), Outcome::Completed, "{}\n{}", events.text(), self.fleet.logs());
            runs.push((id, events));
        }
        runs
    }
}

/// Whether a job is over, as far as anybody can tell just now.
async fn has_ended(d: &Processes, id: &str) -> bool {
    let profile = d.path().join("deployment/operator");
    let Ok(mut operator) = Operator::try_connect(d.url(), &profile).await else { return false };
    let found = operator.client.get_job(GetJobRequest { job: id.into() }).await;
    let status = found.ok().and_then(|found| found.into_inner().summary).map(|summary| summary.status);
    status.is_some_and(|status| status == "completed")
}

/// Each round released once, from all clients.
fn released(events: &Events) -> BTreeSet<u32> {
    let mut rounds = BTreeSet::new();
    for event in &events.0 {
        if let JobEvent::Released { round, clients, .. } = event {
            assert!(rounds.insert(round.0), "round {round} is released twice: {}", events.text());
            assert_eq!(*clients as usize, TRAINERS.len(), "round {round}");
        }
    }
    rounds
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_killed_loses_nothing_and_counts_nothing_twice() {
    // The rounds must last longer than the kills.
    let (kills, rounds) = if std::env::var_os("UNDERTONE_LONG").is_some() { (200, 150) } else { (20, 16) };
    let expected = undisturbed(rounds).await;
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).unwrap();
    let seed = u64::from_le_bytes(seed);
    println!("seed {seed}");

    let postgres = PostgresServer::start();
    let s3 = S3Server::start().await;
    let (storage, environment) = storage(&postgres, &s3.bucket("kills"));
    let environment = borrowed(&environment);
    let fleet = Fleet::start(COORDINATORS, &storage, &environment).await;
    let clients = TRAINERS.iter().map(|(name, rows, shift)| trainer(&fleet.deployment, name, *rows, *shift));
    let clients = clients.collect();
    let rng = ChaCha8Rng::seed_from_u64(seed);
    let mut victims = Victims { fleet, postgres, clients, rng, deck: vec![], killed: BTreeMap::new() };

    // Without noise: the bits of a run that nothing happened to.
    let patient = |rounds| job(rounds).replace("\"60s\"", "\"600s\"").replace("\"40s\"", "\"300s\"");
    for (id, events) in victims.run(&patient(rounds), kills * 7 / 10).await {
        assert_eq!(released(&events).len(), rounds as usize, "{}", events.text());
        let model = victims.fleet.deployment.operator().await.model(&id).await;
        assert_eq!(model, expected, "not the bits of a run without faults");
    }

    // With noise: the ledger has each attempt once, and each round's model was paid for by one of them.
    let private = patient(rounds / 2).replace(
        "unit = \"none\"",
        "unit = \"client\"\ntrust = \"central\"\nclip_norm = 1.0\nnoise_multiplier = 40.0\ndelta = 1e-5\nbudget_epsilon = 9.0",
    );
    for (id, events) in victims.run(&private, kills * 3 / 10).await {
        let output = victims.fleet.deployment.undertone(&["ledger", "export"]);
        assert!(output.status.success(), "{output:?}");
        let mut states = BTreeMap::new();
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let line: Line = serde_json::from_str(line).unwrap();
            if line.entry.key.job.as_str() == id {
                states.insert((line.entry.key.round.0, line.entry.key.attempt.0), line.entry.state);
            }
        }
        let offered: BTreeSet<_> = events
            .0
            .iter()
            .filter_map(|event| match event {
                JobEvent::Offered { round, attempt, .. } => Some((round.0, attempt.0)),
                _ => None,
            })
            .collect();
        assert_eq!(states.keys().copied().collect::<BTreeSet<_>>(), offered, "{}", events.text());
        let published: BTreeSet<_> = states
            .iter()
            .filter(|(_, state)| matches!(state, EntryState::Published { .. }))
            .map(|(k, _)| *k)
            .collect();
        let of_events: BTreeSet<_> = events
            .0
            .iter()
            .filter_map(|event| match event {
                JobEvent::Released { round, attempt, .. } => Some((round.0, attempt.0)),
                _ => None,
            })
            .collect();
        assert_eq!(published, of_events, "{}", events.text());
        assert_eq!(released(&events).len(), rounds as usize / 2);
    }
    println!("killed: {:?}", victims.killed);
    assert!(victims.kills() >= kills && victims.killed.len() == 3, "{:?}", victims.killed);
}
