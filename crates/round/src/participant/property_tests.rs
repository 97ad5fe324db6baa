//! Random lives of a participant: the rules hold whatever comes, in whatever order, through restarts.

use super::sample::{RECORD, fit, job, key, offer, unfit};
use super::*;
use crate::job::Job;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use undertone_core::digest::Digest;
use undertone_core::fixed::FixedVector;

/// What may come next. Results of steps are for the step that the shell was last told to do, or, with `Stale`, for
/// one that it was told to do earlier.
#[derive(Debug, Clone)]
enum Op {
    Up,
    Lost,
    Offer {
        job: u8,
        round: u32,
        attempt: u32,
    },
    Withdraw {
        job: u8,
        round: u32,
        attempt: u32,
    },
    /// The step under way succeeds, or does not.
    Finish(u8),
    /// An old result arrives late.
    Stale(usize),
    /// The process is killed: only what was durable remains.
    Crash,
}

fn op() -> impl Strategy<Value = Op> {
    let attempt = || (0u8..3, 1u32..4, 1u32..3);
    prop_oneof![
        1 => Just(Op::Up),
        1 => Just(Op::Lost),
        4 => attempt().prop_map(|(job, round, attempt)| Op::Offer { job, round, attempt }),
        1 => attempt().prop_map(|(job, round, attempt)| Op::Withdraw { job, round, attempt }),
        10 => (0u8..12).prop_map(Op::Finish),
        1 => (0usize..50).prop_map(Op::Stale),
        1 => Just(Op::Crash),
    ]
}

/// A shell that does what it is told, with a disk, and watches the rules.
struct World {
    job: Arc<Job>,
    participant: Participant,
    disk: BTreeMap<JobId, Account>,
    /// The step under way.
    step: Option<Effect>,
    /// Results of steps that were replaced before they ended.
    old: Vec<Input>,
    accepted: BTreeSet<AttemptKey>,
    uploaded: BTreeMap<AttemptKey, Sealed>,
    /// The updates that the coordinator counts, with or without the client's knowledge.
    counted: BTreeSet<AttemptKey>,
    /// Makes each trained update another: a second draw of noise would show.
    draws: u32,
}

fn policy() -> Policy {
    Policy { declared_rows: Some(100), ..Policy::default() }
}

impl World {
    fn new(job: Arc<Job>) -> Self {
        Self {
            job,
            participant: Participant::new(policy(), []),
            disk: BTreeMap::new(),
            step: None,
            old: Vec::new(),
            accepted: BTreeSet::new(),
            uploaded: BTreeMap::new(),
            counted: BTreeSet::new(),
            draws: 0,
        }
    }

    fn play(&mut self, op: &Op) {
        let name = |job: u8| format!("job-{job}");
        match op {
            Op::Up => self.feed(Input::SessionUp),
            Op::Lost => self.feed(Input::SessionLost),
            Op::Offer { job, round, attempt } => {
                let offer = offer(key(&name(*job), *round, *attempt), &self.job);
                self.feed(Input::Offered(Box::new(offer)));
            }
            Op::Withdraw { job, round, attempt } => {
                let key = key(&name(*job), *round, *attempt);
                // No coordinator withdraws an attempt from who has delivered.
                if !self.counted.contains(&key) {
                    self.feed(Input::Withdrawn(key));
                }
            }
            Op::Finish(how) => {
                if let Some(step) = self.step.take() {
                    let result = self.finish(step, *how);
                    self.feed(result);
                }
            }
            Op::Stale(i) => {
                if !self.old.is_empty() {
                    let old = self.old.swap_remove(i % self.old.len());
                    self.feed(old);
                }
            }
            Op::Crash => {
                self.participant = Participant::new(policy(), self.disk.values().cloned());
                self.step = None;
                self.old.clear();
                // What was accepted in an earlier life must be accepted anew before it is trained.
                self.accepted.clear();
            }
        }
    }

    /// How a step ends; failures of all kinds among the successes.
    fn finish(&mut self, step: Effect, how: u8) -> Input {
        let failure = match how {
            0 => Some(Failure::Transient("t".into())),
            1 => Some(Failure::Final("f".into())),
            2 => Some(Failure::Closed("c".into())),
            _ => None,
        };
        match (step, failure) {
            (Effect::Inspect(key, _), failure) => {
                Input::Inspected(key, Ok(if failure.is_some() { unfit() } else { fit() }))
            }
            (Effect::Store { account, parcel, weight, .. }, failure) => {
                let key = account.last();
                let bytes = parcel.update.to_bytes();
                let sealed = Sealed {
                    update: Digest::of(&bytes),
                    bytes: bytes.len() as u64,
                    weight,
                    within: None,
                    number: None,
                };
                match failure {
                    // The disk may have taken it and the system still have reported an error.
                    Some(failure) => {
                        if how == 0 {
                            self.disk.insert(key.job.clone(), account.with_sealed(sealed));
                        }
                        Input::Failed(key, failure)
                    }
                    None => {
                        self.disk.insert(key.job.clone(), account.with_sealed(sealed.clone()));
                        Input::Stored(key, sealed)
                    }
                }
            }
            (Effect::Fetch(key, ..), Some(f)) => Input::Failed(key, f),
            // Taken in, and the receipt is lost.
            (Effect::Upload { key, .. }, Some(Failure::Transient(_))) => {
                self.counted.insert(key.clone());
                Input::Failed(key, Failure::Transient("t".into()))
            }
            (Effect::Upload { key, .. }, Some(f)) if !self.counted.contains(&key) => Input::Failed(key, f),
            (Effect::Settle { key, .. }, Some(f @ Failure::Transient(_))) => Input::Failed(key, f),
            (Effect::Settle { key, .. }, _) if !self.counted.contains(&key) => {
                Input::Failed(key, Failure::Closed("c".into()))
            }
            (Effect::Settle { key, .. }, _) => Input::Uploaded(key),
            (Effect::Train(a), Some(f)) => Input::Failed(a.key().clone(), f),
            (Effect::Fetch(key, ..), None) => Input::ModelReady(key),
            (Effect::Upload { key, .. }, _) => {
                self.counted.insert(key.clone());
                Input::Uploaded(key)
            }
            (Effect::Train(a), None) => {
                self.draws += 1;
                let units = vec![self.draws as i32; self.job.part().len()];
                Input::Trained(
                    a.key().clone(),
                    Parcel::of(&self.job, FixedVector::from_units(self.job.grid(), units).unwrap()),
                )
            }
            (other, _) => panic!("not a step: {other:?}"),
        }
    }

    fn feed(&mut self, input: Input) {
        for effect in self.participant.step(input) {
            self.watch(effect);
        }
        // Whoever has work in hand has told the shell to do something for it, and the other way round.
        let step = self.step.as_ref().map(step_key);
        assert_eq!(self.participant.in_hand(), step.as_ref());
    }

    fn watch(&mut self, effect: Effect) {
        match effect {
            Effect::Record(_) | Effect::Decline(..) => {}
            Effect::ReportFailure(key, _) => self.leave(&key),
            Effect::Accept(key) => {
                self.accepted.insert(key);
            }
            Effect::Abandon(key) => self.leave(&key),
            Effect::Discard { account, delivered } => {
                assert!(account.sealed().is_none());
                let key = account.last();
                assert!(delivered || !self.counted.contains(&key), "an update that counts was taken back");
                let there = self.disk.insert(account.job().clone(), account);
                assert!(there.is_some_and(|a| a.last() == key), "discarded what is not there");
                self.leave(&key);
            }
            Effect::Fetch(ref key, ..) => {
                assert!(self.accepted.contains(key), "fetched without acceptance");
                self.begin(effect);
            }
            Effect::Train(ref acceptance) => {
                assert!(self.accepted.contains(acceptance.key()), "trained without acceptance");
                self.begin(effect);
            }
            Effect::Inspect(..) => self.begin(effect),
            Effect::Store { ref account, .. } => {
                let before = self.disk.get(account.job());
                assert!(before.is_none_or(|a| a.last() < account.last()), "an attempt was stored twice");
                assert!(account.updates() > before.map_or(0, Account::updates));
                self.begin(effect);
            }
            Effect::Upload { ref key, ref sealed, .. } => {
                // Durable first, and the very bytes that the disk holds.
                let on_disk = self.disk.get(&key.job).filter(|a| a.last() == *key).and_then(Account::sealed);
                assert_eq!(on_disk, Some(sealed), "sent what is not in the outbox");
                let first = self.uploaded.entry(key.clone()).or_insert_with(|| sealed.clone());
                assert_eq!(first, sealed, "two updates for one attempt");
                self.begin(effect);
            }
            Effect::Settle { .. } => self.begin(effect),
        }
    }

    fn begin(&mut self, effect: Effect) {
        if let Some(replaced) = self.step.take() {
            // Storing is never left: two writers in one place of the outbox.
            assert!(!matches!(replaced, Effect::Store { .. }), "storing was interrupted");
            self.leave_behind(replaced);
        }
        self.step = Some(effect);
    }

    fn leave(&mut self, key: &AttemptKey) {
        if let Some(step) = self.step.take_if(|s| step_key(s) == *key) {
            self.leave_behind(step);
        }
    }

    /// Its result may still arrive.
    fn leave_behind(&mut self, step: Effect) {
        if let Effect::Upload { key, .. } = step {
            // Withdrawn before it was taken in.
            return self.old.push(Input::Uploaded(key));
        }
        if !matches!(step, Effect::Store { .. }) {
            let result = self.finish(step, 9);
            self.old.push(result);
        }
    }
}

fn step_key(step: &Effect) -> AttemptKey {
    match step {
        Effect::Inspect(key, _)
        | Effect::Fetch(key, ..)
        | Effect::Upload { key, .. }
        | Effect::Settle { key, .. } => key.clone(),
        Effect::Train(acceptance) => acceptance.key().clone(),
        Effect::Store { account, .. } => account.last(),
        other => panic!("not a step: {other:?}"),
    }
}

/// Ends what is under way without trouble: whatever happened, the client comes to rest and takes part again.
fn settle(world: &mut World) {
    for _ in 0..200 {
        if world.step.is_none() {
            break;
        }
        world.play(&Op::Finish(9));
    }
    assert!(world.participant.is_idle(), "it hangs");
}

#[test]
fn random_lives_keep_the_rules() {
    let job = job(RECORD);
    let config = ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    runner
        .run(&prop::collection::vec(op(), 0..120), |ops| {
            let mut world = World::new(Arc::clone(&job));
            for op in &ops {
                world.play(op);
            }
            settle(&mut world);
            let before = world.uploaded.len();
            world.play(&Op::Offer { job: 0, round: 4, attempt: 1 });
            settle(&mut world);
            // Within the budget a new round is always served.
            let account = &world.disk.get(&key("job-0", 1, 1).job);
            let paid = account.is_some_and(|a| a.last() == key("job-0", 4, 1));
            let spent = job.contract().epsilon_after(account.map_or(0, Account::updates) + 1);
            prop_assert!(paid && world.uploaded.len() == before + 1 || spent > Some(6.0));
            Ok(())
        })
        .unwrap();
}

/// The world above notices a client that breaks the rule: a test that cannot fail proves nothing.
#[test]
#[should_panic(expected = "two updates for one attempt")]
fn a_second_draw_would_be_noticed() {
    let mut world = World::new(job(RECORD));
    let k = key("job-0", 1, 1);
    for text in ["one", "two"] {
        let sealed =
            Sealed { update: Digest::of(text.as_bytes()), bytes: 3, weight: 1, within: None, number: None };
        let account =
            Account::charge(None, &k, world.job.digest(), None).unwrap().with_sealed(sealed.clone());
        world.disk.insert(k.job.clone(), account);
        world.watch(Effect::Upload { key: k.clone(), sealed, tries: 0 });
    }
}
