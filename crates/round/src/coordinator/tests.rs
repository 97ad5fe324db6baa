//! The coordinator's machine against whole rounds, faults and random input sequences.

use super::*;
use crate::job::JobSpec;
use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng as _;
use undertone_privacy::ledger::EntryState;

mod buffered;

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

#[test]
fn two_rounds_and_the_end() {
    let mut w = World::new(NONE);
    w.feed(Input::Sessions).unwrap();
    assert_eq!(w.effects.iter().filter(|e| matches!(e, Effect::Offer { .. })).count(), 3);
    w.deliver(&["a", "b"], 1, 1);
    assert_eq!(w.state.status(), "collecting");
    w.deliver(&["c"], 1, 1);
    assert!(matches!(&w.effects[..], [Effect::Release { updates, .. }] if updates.len() == 3));
    w.release(1, 1);
    assert_eq!((w.state.released, w.state.model), (1, model(1)));
    w.feed(Input::Sessions).unwrap();
    w.deliver(&["a", "b", "c"], 2, 1);
    w.release(2, 1);
    assert_eq!(w.outcome(), Some(&Outcome::Completed));
    let bytes = w.events.iter().filter_map(|e| match e {
        JobEvent::Released { received_bytes, sent_bytes, .. } => Some((*received_bytes, *sent_bytes)),
        _ => None,
    });
    assert_eq!(bytes.collect::<Vec<_>>(), [(Some(24), Some(640)); 2], "three updates of 8 bytes");
}

#[test]
fn nobody_is_asked_more_often_than_the_rule_allows() {
    let limited = "rule = \"all\"\nsize = 3\nmin_clients = 2\nparticipations = 1\nseparation = 1\n";
    let mut w = World::with_cohort(limited, NONE);
    w.feed(Input::Sessions).unwrap();
    w.deliver(&["a", "b"], 1, 1);
    let (client, key) = (name("c"), w.key(1, 1));
    w.feed(Input::Failure { client, key, reason: "no torch".into() }).unwrap();
    // The attempt is lost with all that was sent; in the same round the same clients may try again.
    w.feed(Input::ReleaseFailed { key: w.key(1, 1), reason: "disk".into(), is_final: false }).unwrap();
    w.now_ms += 1_000;
    w.feed(Input::Sessions).unwrap();
    let asked = |w: &World| -> Vec<String> {
        let offers = w.effects.iter().filter_map(|e| match e {
            Effect::Offer { client, .. } => Some(client.to_string()),
            _ => None,
        });
        offers.collect()
    };
    assert_eq!(asked(&w), ["a", "b", "c"]);
    w.deliver(&["a", "b"], 1, 2);
    let (client, key) = (name("c"), w.key(1, 2));
    w.feed(Input::Failure { client, key, reason: "no torch".into() }).unwrap();
    w.release(1, 2);
    // Only c, whose update never came, may take part in round 2.
    w.feed(Input::Sessions).unwrap();
    assert_eq!(w.state.status(), "waiting");
    w.trainers.push(name("d"));
    w.feed(Input::Connected { client: name("d") }).unwrap();
    assert_eq!(asked(&w), ["c", "d"]);
    let taken: Vec<_> = w.state.taken_part.iter().map(|(c, h)| (c.as_str(), h.joined())).collect();
    assert_eq!(taken, [("a", 1), ("b", 1)]);
    // A step that asks one of the others all the same is not made.
    let ctx = Context {
        id: &w.id,
        job: &w.job,
        ledger: &w.ledger,
        population: &w.population,
        trainers: &w.trainers,
        evaluators: &[],
        enrolled_evaluators: &[],
        now_ms: w.now_ms,
        rng: &mut w.rng,
    };
    let mut wrong = Step::stay(&w.state);
    let key = AttemptKey { job: w.id.clone(), round: Round(2), attempt: Attempt(1) };
    for (client, holds) in [("c", true), ("a", false)] {
        wrong.effects = vec![Effect::Offer {
            client: name(client),
            key: key.clone(),
            model: model(1),
            broadcast: None,
            clip_norm: None,
            deadline_ms: 1,
        }];
        assert_eq!(invariants::check(&w.state, &wrong, &ctx).is_ok(), holds, "{client}");
    }
}

const POISSON: &str = "rule = \"poisson\"\nrate = RATE\npopulation = 3\ncap = 3\nmin_clients = 2\n";

#[test]
fn a_draw_that_comes_out_empty_is_released_all_the_same() {
    let central = CENTRAL.replace("BUDGET", "10.0");
    let mut w = World::with_cohort(&POISSON.replace("RATE", "0.000001"), &central);
    for round in 1..=2 {
        w.feed(Input::Sessions).unwrap();
        assert!(
            matches!(&w.effects[..], [Effect::Release { updates, .. }] if updates.is_empty()),
            "{:?}",
            w.effects
        );
        assert!(matches!(w.ledger.entries().last().unwrap().state, EntryState::Sampled { .. }));
        w.release(round, 1);
    }
    assert_eq!(w.outcome(), Some(&Outcome::Completed));
    let spent = w.ledger.spent(w.job.contract()).unwrap();
    assert!(spent < 1.0, "a millionth of a chance is not the price of everyone: {spent}");
}

#[test]
fn the_number_that_was_drawn_or_came_in_ends_no_round() {
    let central = CENTRAL.replace("BUDGET", "10.0");
    let mut w = World::with_cohort(&POISSON.replace("RATE", "1.0"), &central);
    w.trainers.truncate(1);
    w.feed(Input::Sessions).unwrap();
    assert_eq!(w.state.status(), "waiting", "min_clients counts who is there before the draw");
    w.trainers = ["a", "b", "c"].map(name).to_vec();
    w.feed(Input::Sessions).unwrap();
    for c in ["a", "b", "c"] {
        let (client, key) = (name(c), w.key(1, 1));
        w.feed(Input::Failure { client, key, reason: "no torch".into() }).unwrap();
    }
    assert!(
        matches!(&w.effects[..], [Effect::Release { updates, .. }] if updates.is_empty()),
        "{:?}",
        w.effects
    );
    w.release(1, 1);
    // More people than ε was computed for.
    w.trainers.push(name("d"));
    w.feed(Input::Sessions).unwrap();
    let Some(Outcome::Failed { reason }) = w.outcome() else { panic!("{:?}", w.state) };
    assert!(reason.contains("4 trainers") && reason.contains("population = 3"), "{reason}");
}

#[test]
fn a_job_that_used_up_its_participations_says_so() {
    let limited = "rule = \"all\"\nsize = 3\nmin_clients = 2\nparticipations = 1\nseparation = 1\n";
    let mut w = World::with_cohort(limited, NONE);
    w.round(1);
    w.feed(Input::Sessions).unwrap();
    w.now_ms += 50_000;
    w.feed(Input::Tick).unwrap();
    let Some(Outcome::Failed { reason }) = w.outcome() else { panic!("{:?}", w.state) };
    assert!(reason.contains("only 0 of the 2") && reason.contains("take part again"), "{reason}");
    assert!(reason.contains("participations and separation"), "{reason}");
}

#[test]
fn the_last_model_waits_for_its_evaluators_but_not_for_ever() {
    for answers in [true, false] {
        let mut w = World::new(NONE);
        w.enrol_evaluator();
        for round in 1..=2 {
            w.round(round);
            assert!(w.effects.iter().any(|e| matches!(e, Effect::Evaluate { .. })));
        }
        assert_eq!(w.state.status(), "closing");
        if answers {
            w.measured(2);
        } else {
            w.now_ms += 5_000;
            w.feed(Input::Tick).unwrap();
            assert!(w.events.iter().any(|e| matches!(e, JobEvent::NotEvaluated { .. })));
        }
        assert_eq!(w.outcome(), Some(&Outcome::Completed));
    }
}

#[test]
fn the_last_model_is_measured_by_an_evaluator_that_comes_back() {
    let mut w = World::new(NONE);
    w.enrol_evaluator();
    w.evaluators.clear();
    w.round(1);
    assert!(w.state.measuring == Measuring::default(), "nobody was there to be asked");
    w.round(2);
    assert_eq!(w.state.status(), "closing", "it may come back in time");
    w.feed(Input::Connected { client: name("e") }).unwrap();
    assert!(matches!(&w.effects[..], [Effect::Evaluate { round: Round(2), .. }]), "{:?}", w.effects);
    assert_eq!(w.state.readable(&name("e"), &model(2).digest), Some(9));
    assert_eq!(w.state.readable(&name("a"), &model(2).digest), None, "nothing to train from any more");
    w.measured(2);
    assert_eq!(w.outcome(), Some(&Outcome::Completed));
    assert_eq!(w.state.readable(&name("e"), &model(2).digest), None);
}

#[test]
fn a_measurement_nobody_asked_for_or_a_second_one_is_not_listened_to() {
    let mut w = World::new(NONE);
    w.enrol_evaluator();
    w.feed(Input::Sessions).unwrap();
    w.measured(1);
    w.deliver(&["a", "b", "c"], 1, 1);
    w.release(1, 1);
    for _ in 0..3 {
        w.measured(1);
        w.measured(2);
    }
    let strange = Input::Evaluation { evaluator: name("a"), round: Round(1), outcome: Err("x".into()) };
    w.feed(strange).unwrap();
    let told =
        w.events.iter().filter(|e| matches!(e, JobEvent::Evaluated { .. } | JobEvent::NotEvaluated { .. }));
    assert_eq!(told.count(), 1);
}

#[test]
fn a_model_is_for_those_who_need_it() {
    let mut w = World::new(NONE);
    assert_eq!(w.state.readable(&name("a"), &model(0).digest), None, "nobody is asked yet");
    w.feed(Input::Sessions).unwrap();
    assert_eq!(w.state.readable(&name("a"), &model(0).digest), Some(9));
    assert_eq!(w.state.readable(&name("z"), &model(0).digest), None, "it was not asked");
    assert_eq!(w.state.readable(&name("a"), &model(1).digest), None);
    w.feed(Input::Answer { client: name("a"), key: w.key(1, 1), answer: Err("no".into()) }).unwrap();
    assert_eq!(w.state.readable(&name("a"), &model(0).digest), None, "it takes no part");
}

#[test]
fn a_release_that_the_ledger_contradicts_ends_the_job() {
    let mut w = World::new(NONE);
    w.feed(Input::Sessions).unwrap();
    w.deliver(&["a", "b", "c"], 1, 1);
    let burnt = w.ledger.burn(&w.key(1, 1), "by a restored backup").unwrap();
    w.ledger.apply(burnt).unwrap();
    w.feed(Input::Released { key: w.key(1, 1), model: model(1), carried: Carried::default() }).unwrap();
    let Some(Outcome::Failed { reason }) = w.outcome() else { panic!("{:?}", w.state) };
    assert!(reason.contains("burnt"), "{reason}");
    assert_eq!(w.state.model, model(0));
}

/// The checks themselves: a step that breaks a promise is caught under its name.
#[test]
fn broken_steps_are_named() {
    use invariants::{Broken, Invariant, check};
    let mut w = World::new(&CENTRAL.replace("BUDGET", "8.0"));
    w.feed(Input::Sessions).unwrap();
    w.deliver(&["a", "b", "c"], 1, 1);
    let key = w.key(1, 1);
    let updates = match &w.effects[..] {
        [Effect::Release { updates, .. }] => updates.clone(),
        other => panic!("{other:?}"),
    };
    let entry = w.ledger.entries()[0].clone();
    assert!(matches!(entry.state, EntryState::Sampled { .. }), "{entry:?}");
    let breaks = |change: &dyn Fn(&mut Step)| {
        let mut rng = w.rng.clone();
        let ctx = Context {
            id: &w.id,
            job: &w.job,
            ledger: &w.ledger,
            population: &w.population,
            trainers: &w.trainers,
            evaluators: &[],
            enrolled_evaluators: &[],
            now_ms: 0,
            rng: &mut rng,
        };
        let mut step = Step::stay(&w.state);
        change(&mut step);
        check(&w.state, &step, &ctx).err().map(|Broken(name)| name)
    };
    let offer = |attempt| Effect::Offer {
        client: name("a"),
        key: w.key(1, attempt),
        model: model(0),
        broadcast: None,
        clip_norm: None,
        deadline_ms: 0,
    };
    let release = |updates: Vec<Update>| Effect::Release {
        key: key.clone(),
        model: model(0),
        updates,
        carried: Carried::default(),
    };
    assert_eq!(breaks(&|_| ()), None);
    assert_eq!(breaks(&|s| s.effects.push(offer(1))), None);
    assert_eq!(breaks(&|s| s.effects.push(offer(2))), Some(Invariant::BudgetBeforeOffers));
    let dear = LedgerEntry { seq: 2, key: w.key(1, 2), epsilon_after: Some(8.1), ..entry.clone() };
    assert_eq!(breaks(&|s| s.ledger.push(dear.clone())), Some(Invariant::WithinBudget));
    let missing = updates[1..].to_vec();
    assert_eq!(breaks(&|s| s.effects.push(release(missing.clone()))), Some(Invariant::CountsOnce));
    let twice = [updates.clone(), updates[..1].to_vec()].concat();
    assert_eq!(breaks(&|s| s.effects.push(release(twice.clone()))), Some(Invariant::CountsOnce));
    let foreign = Update { blob: Digest::of(b"other"), ..updates[0].clone() };
    assert_eq!(breaks(&|s| s.effects.push(release(vec![foreign.clone()]))), Some(Invariant::CountsOnce));
    assert_eq!(breaks(&|s| s.effects.push(release(updates.clone()))), Some(Invariant::OneDraw));
    let publish = Effect::Publish { key: key.clone(), model: model(1) };
    assert_eq!(breaks(&|s| s.effects.push(publish.clone())), Some(Invariant::CommittedBeforePublished));
    let cheaper = LedgerEntry { compositions: 0, ..entry.clone() };
    assert_eq!(breaks(&|s| s.ledger.push(cheaper.clone())), Some(Invariant::LedgerOnlyGrows));
    assert_eq!(breaks(&|s| s.next.model = model(1)), Some(Invariant::RoundsInOrder));
    assert_eq!(breaks(&|s| s.next.released = 1), Some(Invariant::RoundsInOrder));
    let (ended, mut rng) =
        (JobState { phase: Phase::Ended { outcome: Outcome::Completed }, ..w.state.clone() }, w.rng.clone());
    let ctx = Context {
        id: &w.id,
        job: &w.job,
        ledger: &w.ledger,
        population: &w.population,
        trainers: &[],
        evaluators: &[],
        enrolled_evaluators: &[],
        now_ms: 0,
        rng: &mut rng,
    };
    let revived = Step { next: w.state.clone(), ..Step::stay(&ended) };
    assert_eq!(check(&ended, &revived, &ctx), Err(Broken(Invariant::EndIsFinal)));
}

#[test]
fn an_update_counts_once_and_another_is_refused() {
    let mut w = World::new(NONE);
    w.feed(Input::Sessions).unwrap();
    w.deliver(&["a", "a"], 1, 1);
    assert_eq!(w.events.iter().filter(|e| matches!(e, JobEvent::Received { .. })).count(), 1);
    let other = Update { client: name("a"), blob: Digest::of(b"other"), bytes: 8, weight: 1, origin: None };
    let refused = w.feed(arrival(w.key(1, 1), other)).unwrap_err();
    assert!(refused.0.contains("counts in round 1 already"), "{refused}");
    let stranger = w.update("z", 1, 1);
    assert!(w.feed(stranger).unwrap_err().0.contains("was not asked"));
    let late = w.update("b", 1, 9);
    assert!(w.feed(late).unwrap_err().0.contains("is over"));
}

#[test]
fn between_rounds_no_update_is_acknowledged() {
    let mut w = World::new(NONE);
    w.enrol_evaluator();
    let early = w.update("a", 1, 1);
    assert!(w.feed(early).unwrap_err().0.contains("never asked"));
    w.round(1);
    assert_eq!(w.state.status(), "waiting");
    let late = w.update("a", 1, 1);
    assert!(w.feed(late.clone()).unwrap_err().0.contains("is over"));
    w.round(2);
    assert_eq!(w.state.status(), "closing");
    assert!(w.feed(late).unwrap_err().0.contains("is over"));
}

#[test]
fn the_round_goes_on_without_a_client_that_declines_fails_or_leaves() {
    let mut w = World::new(NONE);
    w.feed(Input::Sessions).unwrap();
    w.deliver(&["a", "b"], 1, 1);
    w.feed(Input::Answer { client: name("c"), key: w.key(1, 1), answer: Err("no".into()) }).unwrap();
    assert_eq!(w.state.status(), "releasing");

    let mut w = World::new(NONE);
    w.feed(Input::Sessions).unwrap();
    w.deliver(&["a", "b"], 1, 1);
    w.trainers.pop();
    w.feed(Input::Sessions).unwrap();
    assert_eq!(w.state.wake_at_ms(&w.job), Some(10_000));
    w.now_ms = 9_999;
    w.feed(Input::Tick).unwrap();
    assert_eq!(w.state.status(), "collecting");
    w.now_ms = 10_000;
    w.feed(Input::Tick).unwrap();
    assert_eq!(w.state.status(), "releasing");
}

#[test]
fn who_comes_back_is_asked_again_and_in_time() {
    let mut w = World::new(NONE);
    w.feed(Input::Sessions).unwrap();
    w.trainers.retain(|c| c.as_str() != "c");
    w.feed(Input::Sessions).unwrap();
    w.now_ms = 5_000;
    w.trainers.push(name("c"));
    w.feed(Input::Connected { client: name("c") }).unwrap();
    assert!(matches!(&w.effects[..], [Effect::Offer { client, .. }] if *client == name("c")));
    // Also if nobody noticed that it had left.
    w.feed(Input::Connected { client: name("c") }).unwrap();
    assert_eq!(w.effects.len(), 1);
    w.now_ms = 16_000;
    w.feed(Input::Tick).unwrap();
    assert_eq!(w.state.status(), "collecting");
}

#[test]
fn too_few_abort_and_the_last_attempt_fails_the_job() {
    let mut w = World::new(NONE);
    w.feed(Input::Sessions).unwrap();
    for (attempt, wait) in [(1, 1_000), (2, 0)] {
        for c in ["a", "b"] {
            let (client, key) = (name(c), w.key(1, attempt));
            w.feed(Input::Failure { client, key, reason: "no torch".into() }).unwrap();
        }
        w.now_ms += wait;
        w.feed(Input::Tick).unwrap();
    }
    let Some(Outcome::Failed { reason }) = w.outcome() else { panic!("{:?}", w.state) };
    assert!(reason.contains("failed 2 times") && reason.contains("2 needed"), "{reason}");
}

#[test]
fn waiting_is_announced_once_and_ends() {
    let mut w = World::new(NONE);
    w.trainers.truncate(1);
    for now_ms in [0, 10_000, 20_000] {
        w.now_ms = now_ms;
        w.feed(Input::Tick).unwrap();
    }
    assert_eq!(w.events, [JobEvent::Waiting { round: Round(1), present: 1, needed: 2 }]);
    assert_eq!(w.state.wake_at_ms(&w.job), Some(50_000));
    w.now_ms = 50_000;
    w.feed(Input::Tick).unwrap();
    assert!(matches!(w.outcome(), Some(Outcome::Failed { .. })));
}

#[test]
fn the_first_offer_waits_a_little_for_everyone() {
    let mut w = World::new(NONE);
    let c = w.trainers.pop().unwrap();
    w.feed(Input::Sessions).unwrap();
    assert_eq!(w.state.status(), "waiting");
    assert_eq!(w.state.wake_at_ms(&w.job), Some(10_000));
    w.trainers.push(c.clone());
    w.feed(Input::Connected { client: c }).unwrap();
    assert_eq!(w.state.status(), "collecting");
}

#[test]
fn a_spent_budget_ends_the_job_before_anyone_is_asked() {
    // Two central rounds at z = 1, delta = 1e-5 cost between 6 and 8: as planned, they fit. A failed attempt costs too.
    let mut w = World::new(&CENTRAL.replace("BUDGET", "8.0"));
    w.feed(Input::Sessions).unwrap();
    for c in ["a", "b"] {
        let (client, key) = (name(c), w.key(1, 1));
        w.feed(Input::Failure { client, key, reason: "no torch".into() }).unwrap();
    }
    w.now_ms += 1_000;
    w.feed(Input::Tick).unwrap();
    w.deliver(&["a", "b", "c"], 1, 2);
    w.release(1, 2);
    let spent = w.ledger.spent(w.job.contract()).unwrap();
    assert!((6.0..=8.0).contains(&spent), "{spent}");
    w.feed(Input::Sessions).unwrap();
    assert!(matches!(w.outcome(), Some(Outcome::BudgetSpent { .. })), "{:?}", w.state);
    assert!(w.effects.is_empty());
    assert_eq!(w.ledger.spent(w.job.contract()), Some(spent));
}

#[test]
fn a_restart_while_noise_is_drawn_is_a_spent_attempt() {
    let mut w = World::new(&CENTRAL.replace("BUDGET", "100.0"));
    w.feed(Input::Sessions).unwrap();
    w.deliver(&["a", "b", "c"], 1, 1);
    w.feed(Input::Recovered).unwrap();
    assert!(w.events.iter().any(|e| matches!(e, JobEvent::Aborted { .. })));
    let burnt = w.ledger.entries().iter().any(|e| matches!(e.state, EntryState::Burnt { .. }));
    assert!(burnt);
    let after_one = w.ledger.spent(w.job.contract()).unwrap();
    w.now_ms += 1_000;
    w.feed(Input::Sessions).unwrap();
    assert!(w.ledger.spent(w.job.contract()).unwrap() > after_one);
}

#[test]
fn a_restart_elsewhere_goes_on() {
    // While collecting: everyone is away until it comes back.
    let mut w = World::new(NONE);
    w.feed(Input::Sessions).unwrap();
    w.deliver(&["a"], 1, 1);
    let everyone = std::mem::take(&mut w.trainers);
    w.feed(Input::Recovered).unwrap();
    w.trainers = everyone;
    for c in ["a", "b", "c"] {
        w.feed(Input::Connected { client: name(c) }).unwrap();
    }
    // So much happened at once that nobody knows who came and left: all are asked again.
    w.feed(Input::Missed).unwrap();
    assert_eq!(w.effects.len(), 2, "{:?}", w.effects);
    w.deliver(&["b", "c"], 1, 1);
    // While releasing without noise of ours: the same sum again.
    w.feed(Input::Recovered).unwrap();
    assert!(matches!(w.effects[..], [Effect::Release { .. }]));
    w.feed(Input::Released { key: w.key(1, 1), model: model(1), carried: Carried::default() }).unwrap();
    // While publishing: the same bytes again.
    w.feed(Input::Recovered).unwrap();
    assert!(matches!(w.effects[..], [Effect::Publish { model: m, .. }] if m == model(1)));
}

#[test]
fn cancelling_ends_in_any_phase_and_burns_what_was_reserved() {
    let mut w = World::new(&CENTRAL.replace("BUDGET", "100.0"));
    w.feed(Input::Sessions).unwrap();
    w.feed(Input::Cancel { by: "op".into(), reason: "typo".into() }).unwrap();
    assert_eq!(w.outcome().unwrap().status(), "cancelled");
    assert_eq!(w.effects.iter().filter(|e| matches!(e, Effect::Withdraw { .. })).count(), 3);
    assert!(matches!(w.ledger.entries()[0].state, EntryState::Burnt { .. }));
    assert!(w.feed(Input::Cancel { by: "op".into(), reason: "again".into() }).is_err());
}

#[test]
fn cancelling_the_last_attempt_ends_the_job_once() {
    let mut w = World::new(NONE);
    w.feed(Input::Sessions).unwrap();
    for c in ["a", "b"] {
        let (client, key) = (name(c), w.key(1, 1));
        w.feed(Input::Failure { client, key, reason: "x".into() }).unwrap();
    }
    w.now_ms += 1_000;
    w.feed(Input::Tick).unwrap();
    assert_eq!(w.state.status(), "collecting");
    w.feed(Input::Cancel { by: "op".into(), reason: "enough".into() }).unwrap();
    assert_eq!(w.events.iter().filter(|e| matches!(e, JobEvent::Ended { .. })).count(), 1);
    assert_eq!(w.outcome().unwrap().status(), "cancelled");
}

#[test]
fn time_that_the_coordinator_was_away_is_held_against_nobody() {
    let mut w = World::new(NONE);
    let everyone = std::mem::take(&mut w.trainers);
    w.now_ms = 1_000_000;
    w.feed(Input::Recovered).unwrap();
    w.feed(Input::Sessions).unwrap();
    assert_eq!(w.state.status(), "waiting");
    w.trainers = everyone.clone();
    w.feed(Input::Sessions).unwrap();
    assert_eq!(w.state.status(), "collecting");
    w.trainers.clear();
    w.now_ms = 2_000_000;
    w.feed(Input::Recovered).unwrap();
    w.trainers = everyone;
    for c in ["a", "b", "c"] {
        w.feed(Input::Connected { client: name(c) }).unwrap();
    }
    w.deliver(&["a", "b", "c"], 1, 1);
    assert_eq!(w.state.status(), "releasing");

    // The evaluators' time for the last model, and the whole cohort's time to come back in any round.
    let mut w = World::new(NONE);
    w.enrol_evaluator();
    w.round(1);
    let everyone = std::mem::take(&mut w.trainers);
    w.feed(Input::Recovered).unwrap();
    w.trainers = everyone[..2].to_vec();
    w.feed(Input::Sessions).unwrap();
    assert_eq!(w.state.status(), "waiting", "the third may come back too");
    w.trainers = everyone;
    w.round(2);
    w.now_ms += 1_000_000;
    w.feed(Input::Recovered).unwrap();
    w.feed(Input::Tick).unwrap();
    assert_eq!(w.state.status(), "closing");
    w.measured(2);
    assert_eq!(w.outcome(), Some(&Outcome::Completed));
}

/// Neighbour replay: what a client sends decides nothing but the sum. The same history with other bytes from one client
/// (or from each) has the same events, charges, effects and times.
#[test]
fn what_an_update_holds_decides_nothing_but_the_sum() {
    for privacy in [NONE.to_owned(), CENTRAL.replace("BUDGET", "30.0")] {
        let history = |bytes: &dyn Fn(&str, u32) -> Vec<u8>| {
            let mut w = World::new(&privacy);
            w.enrol_evaluator();
            let mut told = vec![];
            w.feed(Input::Sessions).unwrap();
            for (round, attempt) in [(1, 1), (1, 2), (2, 1)] {
                w.now_ms += 2_000;
                w.feed(Input::Tick).unwrap();
                for c in ["a", "b", "c"] {
                    let update = Update {
                        client: name(c),
                        blob: Digest::of(&bytes(c, round)),
                        bytes: 8,
                        weight: 1,
                        origin: None,
                    };
                    w.feed(arrival(w.key(round, attempt), update)).unwrap();
                    // Which bytes are summed is the one thing that may differ.
                    let hidden = w.effects.iter().map(|e| match e {
                        Effect::Release { key, updates, .. } => format!("release {key} of {}", updates.len()),
                        other => format!("{other:?}"),
                    });
                    told.extend(hidden);
                    told.push(format!("{:?}", w.state.wake_at_ms(&w.job)));
                }
                let key = w.key(round, attempt);
                if (round, attempt) == (1, 1) {
                    w.feed(Input::ReleaseFailed { key, reason: "disk".into(), is_final: false }).unwrap();
                } else {
                    w.release(round, attempt);
                }
            }
            let blobs = w.state.blobs();
            (told, w.events, w.ledger, w.state.status(), blobs)
        };
        let one = history(&|c, round| format!("{c} {round}").into_bytes());
        for changed in ["a", "b", "c"] {
            let other = history(&|c, round| {
                let suffix = if c == changed { " of a neighbour" } else { "" };
                format!("{c} {round}{suffix}").into_bytes()
            });
            assert_eq!(one, other, "{changed}");
        }
    }
}

fn any_input() -> impl Strategy<Value = (u8, u8, u32, u32, u64)> {
    (0u8..16, 0u8..4, 1u32..3, 1u32..3, 0u64..30_000)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens in whatever order: an update counts at most once, only reserved attempts are released,
    /// rounds are released in order, the budget holds, and an ended job stays ended.
    #[test]
    fn any_sequence_keeps_the_promises(
        inputs in prop::collection::vec(any_input(), 0..80),
        budget in 8.0f64..20.0,
        central in any::<bool>(),
    ) {
        let mut w = World::new(&if central { CENTRAL.replace("BUDGET", &format!("{budget:.3}")) } else { NONE.into() });
        w.enrol_evaluator();
        let clients = ["a", "b", "c", "z"];
        for (kind, who, round, attempt, wait) in inputs {
            let client = name(clients[usize::from(who)]);
            let key = w.key(round, attempt);
            w.now_ms += wait;
            let ended = w.outcome().cloned();
            let input = match kind {
                0 => Input::Recovered,
                1 => Input::Sessions,
                2 => Input::Tick,
                3 => Input::Answer { client, key, answer: Ok(()) },
                4 => Input::Answer { client, key, answer: Err("no".into()) },
                5 => Input::Failure { client, key, reason: "x".into() },
                6 => w.update(clients[usize::from(who)], round, attempt),
                7 => Input::BadUpdate { client, key, reason: "x".into() },
                8 => Input::Released { key, model: model(round as u8), carried: Carried::default() },
                9 => Input::Published { key, sent_bytes: 0 },
                10 => Input::Connected { client },
                13 => Input::Missed,
                14 => Input::ReleaseFailed { key, reason: "x".into(), is_final: false },
                // Seldom, or no sequence would come far.
                15 if wait > 28_000 => Input::Cancel { by: "op".into(), reason: "x".into() },
                11 => Input::Evaluation { evaluator: name("e"), round: Round(round), outcome: Err("x".into()) },
                _ => {
                    let back = w.trainers.iter().position(|c| *c == client);
                    match back {
                        Some(place) => drop(w.trainers.remove(place)),
                        None => w.trainers.push(client),
                    }
                    Input::Sessions
                }
            };
            let _ = w.feed(input);
            if let Some(spent) = w.ledger.spent(w.job.contract()) {
                prop_assert!(spent <= budget);
            }
            if let Some(before) = ended {
                prop_assert_eq!(w.outcome(), Some(&before));
            }
        }
        let mut released = 0;
        for event in &w.events {
            match event {
                JobEvent::Released { round, .. } => { prop_assert_eq!(round.0, released + 1); released += 1; }
                JobEvent::Offered { cohort, .. } => { prop_assert!(cohort.len() <= 3); }
                _ => {}
            }
        }
        prop_assert_eq!(released, w.state.released);
        // Every release has a ledger entry that was committed and published.
        let published = w.ledger.entries().iter().filter(|e| matches!(e.state, EntryState::Published { .. })).count();
        prop_assert_eq!(published as u32, released);
    }
}

/// A version is offered, readable and kept as long as its model is the newest, and no longer.
#[test]
fn a_broadcast_goes_with_its_model() {
    let blob = |n: u8| BlobRef { digest: Digest::of(&[100, n]), bytes: 5 };
    let broadcast = |n: u8, delta: bool| Broadcast {
        version: Digest::of(&[200, n]),
        whole: Some(blob(n)),
        delta: delta.then(|| Delta { base: Digest::of(&[200, n - 1]), blob: blob(n + 50) }),
        frozen: None,
    };
    let mut w = World::new(NONE);
    w.state.carried.broadcast = Some(broadcast(0, false));
    w.feed(Input::Sessions).unwrap();
    let offers = |w: &World| -> Vec<Option<Broadcast>> {
        let sent = w.effects.iter().filter_map(|e| match e {
            Effect::Offer { broadcast, .. } => Some(*broadcast),
            _ => None,
        });
        sent.collect()
    };
    assert_eq!(offers(&w), [Some(broadcast(0, false)); 3]);
    let readable = |w: &World, digest| w.state.readable(&name("a"), &digest);
    assert_eq!(readable(&w, blob(0).digest), Some(5));
    assert_eq!(readable(&w, model(0).digest), None, "the model's own bits are not for those who train");
    w.feed(Input::Connected { client: name("a") }).unwrap();
    assert_eq!(offers(&w), [Some(broadcast(0, false))], "a repeated offer brings the same bytes");
    w.deliver(&["a", "b", "c"], 1, 1);
    let Some(Effect::Release { carried, .. }) = w.effects.last() else { panic!("{:?}", w.effects) };
    assert_eq!(carried.broadcast, Some(broadcast(0, false)), "what the next one starts from");
    let carried = Carried { broadcast: Some(broadcast(1, true)), ..Carried::default() };
    let key = w.key(1, 1);
    w.feed(Input::Released { key: key.clone(), model: model(1), carried }).unwrap();
    let old = Effect::Discard { blob: blob(0).digest };
    assert!(w.effects.contains(&old), "{:?}", w.effects);
    assert!(w.state.blobs().contains(&blob(1).digest) && w.state.blobs().contains(&blob(51).digest));
    w.feed(Input::Published { key, sent_bytes: 0 }).unwrap();
    w.feed(Input::Sessions).unwrap();
    assert_eq!(offers(&w), [Some(broadcast(1, true)); 3]);
    assert_eq!((readable(&w, blob(1).digest), readable(&w, blob(51).digest)), (Some(5), Some(5)));
    assert_eq!(readable(&w, blob(0).digest), None);
    // An attempt that fails and is made again goes on with it.
    w.now_ms += 100_000;
    w.feed(Input::Tick).unwrap();
    w.now_ms += 10_000;
    w.feed(Input::Sessions).unwrap();
    assert_eq!(offers(&w), [Some(broadcast(1, true)); 3]);
    w.feed(Input::Cancel { by: "op".into(), reason: "enough".into() }).unwrap();
    for n in [1, 51] {
        assert!(w.effects.contains(&Effect::Discard { blob: blob(n).digest }), "{:?}", w.effects);
    }
}

/// Where the whole version is the model's own file, that is what may be fetched, and it is never discarded.
#[test]
fn a_broadcast_of_the_models_own_file() {
    let delta = Delta { base: Digest::of(b"base"), blob: BlobRef { digest: Digest::of(b"delta"), bytes: 3 } };
    let mut w = World::new(NONE);
    w.state.carried.broadcast =
        Some(Broadcast { version: Digest::of(b"version"), whole: None, delta: Some(delta), frozen: None });
    w.feed(Input::Sessions).unwrap();
    assert_eq!(w.state.readable(&name("a"), &model(0).digest), Some(9));
    assert_eq!(w.state.readable(&name("a"), &delta.blob.digest), Some(3));
    w.feed(Input::Cancel { by: "op".into(), reason: "enough".into() }).unwrap();
    assert!(w.effects.contains(&Effect::Discard { blob: delta.blob.digest }));
    assert!(!w.effects.contains(&Effect::Discard { blob: model(0).digest }));
}

/// What is not trained is one blob for all versions: readable and kept as long as the job goes on, discarded with it.
#[test]
fn what_is_frozen_outlives_its_versions() {
    let blob = |n: u8| BlobRef { digest: Digest::of(&[100, n]), bytes: 5 };
    let frozen = Frozen { digest: Digest::of(b"values"), blob: blob(99) };
    let broadcast = |n: u8| {
        let version = Digest::of(&[200, n]);
        Some(Broadcast { version, whole: Some(blob(n)), delta: None, frozen: Some(frozen) })
    };
    let mut w = World::new(NONE);
    w.state.carried.broadcast = broadcast(0);
    for round in 1..=2 {
        w.feed(Input::Sessions).unwrap();
        let readable = |digest| w.state.readable(&name("a"), &digest);
        assert_eq!((readable(blob(99).digest), readable(blob(round - 1).digest)), (Some(5), Some(5)));
        assert_eq!(
            readable(model(round - 1).digest),
            Some(9),
            "a client that knows of no parts takes the file"
        );
        w.deliver(&["a", "b", "c"], round.into(), 1);
        let carried = Carried { broadcast: broadcast(round), ..Carried::default() };
        let key = w.key(round.into(), 1);
        w.feed(Input::Released { key: key.clone(), model: model(round), carried }).unwrap();
        assert!(w.effects.contains(&Effect::Discard { blob: blob(round - 1).digest }), "{:?}", w.effects);
        assert!(!w.effects.contains(&Effect::Discard { blob: blob(99).digest }), "{:?}", w.effects);
        assert!(w.state.blobs().contains(&blob(99).digest));
        w.feed(Input::Published { key, sent_bytes: 0 }).unwrap();
    }
    assert!(w.state.is_over());
    assert!(w.effects.contains(&Effect::Discard { blob: blob(99).digest }), "{:?}", w.effects);
}
