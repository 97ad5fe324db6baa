//! The coordinator's machine against whole rounds, faults and random input sequences.

use super::*;
use crate::job::{Job, JobSpec};
use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng as _;
use std::collections::BTreeMap;
use undertone_core::digest::Digest;
use undertone_core::trainer::Metrics;
use undertone_privacy::ledger::population::Totals;
use undertone_privacy::ledger::{EntryState, Ledger, LedgerEntry};

mod broadcasts;
mod buffered;
mod random;
mod refusals;
mod restarts;
mod rounds;

const JOB: &str = r#"
name = "t"
rounds = 2
[model]
kind = "logistic"
[training]
learning_rate = 0.1
local_steps = 1
[cohort]
rule = "all"
size = 3
min_clients = 2
[privacy]
PRIVACY
[deadlines]
round = "100s"
reconnect = "10s"
gather = "50s"
evaluation = "5s"
max_attempts = 2
[data]
[data.label]
column = "y"
classes = [{ name = "no", values = ["0"] }, { name = "yes", values = ["1"] }]
[[data.columns]]
name = "x"
kind = "number"
range = [0, 1]
"#;

const NONE: &str = "unit = \"none\"";
const CENTRAL: &str = "unit = \"client\"\ntrust = \"central\"\nclip_norm = 1.0\nnoise_multiplier = 1.0\ndelta = 1e-5\nbudget_epsilon = BUDGET";

fn job(privacy: &str) -> Job {
    JobSpec::from_toml(&JOB.replace("PRIVACY", privacy), "t.toml").unwrap().resolve().unwrap()
}

fn name(n: &str) -> ClientId {
    ClientId::new(n).unwrap()
}

/// An update that was received, and claimed to be what it is.
fn arrival(key: AttemptKey, update: Update) -> Input {
    let claim = Digest::of(update.blob.as_bytes());
    Input::Update { key, update, claim }
}

fn model(n: u8) -> ModelRef {
    ModelRef { digest: Digest::of(&[n]), bytes: 9 }
}

/// A driver in miniature: persists in memory, remembers effects.
struct World {
    id: JobId,
    job: Job,
    state: JobState,
    ledger: Ledger,
    population: Totals,
    trainers: Vec<ClientId>,
    evaluators: Vec<ClientId>,
    enrolled: Vec<ClientId>,
    now_ms: u64,
    rng: ChaCha20Rng,
    events: Vec<JobEvent>,
    effects: Vec<Effect>,
}

impl World {
    fn new(privacy: &str) -> Self {
        Self::of(job(privacy))
    }

    /// A job of its own cohort table.
    fn with_cohort(cohort: &str, privacy: &str) -> Self {
        let text =
            JOB.replace("rule = \"all\"\nsize = 3\nmin_clients = 2\n", cohort).replace("PRIVACY", privacy);
        assert!(text.contains(cohort));
        Self::of(JobSpec::from_toml(&text, "t.toml").unwrap().resolve().unwrap())
    }

    fn of(job: Job) -> Self {
        Self {
            id: JobId::new("t-1").unwrap(),
            job,
            state: JobState::new(model(0), 0),
            ledger: Ledger::default(),
            population: Totals::new(Default::default()),
            trainers: ["a", "b", "c"].map(name).to_vec(),
            evaluators: vec![],
            enrolled: vec![],
            now_ms: 0,
            rng: ChaCha20Rng::seed_from_u64(7),
            events: vec![],
            effects: vec![],
        }
    }

    /// Every step of every test is held against the invariants.
    fn feed(&mut self, input: Input) -> Result<(), Refusal> {
        self.trainers.sort();
        let mut ctx = Context {
            id: &self.id,
            job: &self.job,
            ledger: &self.ledger,
            population: &self.population,
            trainers: &self.trainers,
            evaluators: &self.evaluators,
            enrolled_evaluators: &self.enrolled,
            now_ms: self.now_ms,
            rng: &mut self.rng,
        };
        if let Some(step) = step(&self.state, input, &mut ctx)? {
            invariants::check(&self.state, &step, &ctx).unwrap();
            // What is durable can be read back.
            let json = serde_json::to_string(&step.next).unwrap();
            self.state = serde_json::from_str(&json).unwrap();
            step.ledger.into_iter().for_each(|e| self.ledger.apply(e).unwrap());
            self.events.extend(step.events);
            self.effects = step.effects;
        } else {
            self.effects = vec![];
        }
        Ok(())
    }

    fn key(&self, round: u32, attempt: u32) -> AttemptKey {
        AttemptKey { job: self.id.clone(), round: Round(round), attempt: Attempt(attempt) }
    }

    fn update(&self, client: &str, round: u32, attempt: u32) -> Input {
        let update = Update {
            client: name(client),
            blob: Digest::of(client.as_bytes()),
            bytes: 8,
            weight: 1,
            origin: None,
        };
        arrival(self.key(round, attempt), update)
    }

    fn deliver(&mut self, clients: &[&str], round: u32, attempt: u32) {
        for c in clients {
            let update = self.update(c, round, attempt);
            self.feed(update).unwrap();
        }
    }

    fn release(&mut self, round: u32, attempt: u32) {
        let key = self.key(round, attempt);
        self.feed(Input::Released {
            key: key.clone(),
            model: model(round as u8),
            carried: Carried::default(),
        })
        .unwrap();
        assert!(matches!(self.effects[..], [Effect::Publish { .. }]), "{:?}", self.effects);
        self.feed(Input::Published { key, sent_bytes: 640 }).unwrap();
    }

    /// One evaluator, connected.
    fn enrol_evaluator(&mut self) {
        self.evaluators = vec![name("e")];
        self.enrolled = vec![name("e")];
    }

    /// A whole round.
    fn round(&mut self, round: u32) {
        self.feed(Input::Sessions).unwrap();
        self.deliver(&["a", "b", "c"], round, 1);
        self.release(round, 1);
    }

    fn measured(&mut self, round: u32) {
        let metrics = Metrics::of_classes(0.5, 0.8, 10);
        self.feed(Input::Evaluation { evaluator: name("e"), round: Round(round), outcome: Ok(metrics) })
            .unwrap();
    }

    fn outcome(&self) -> Option<&Outcome> {
        match &self.state.phase {
            Phase::Ended { outcome } => Some(outcome),
            _ => None,
        }
    }
}
