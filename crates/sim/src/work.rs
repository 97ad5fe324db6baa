//! The steps of an attempt at a client: each ends in one input for its machine.

use crate::chance::Chance;
use crate::client::{AtClient, backoff_ms};
use crate::faults::Fault;
use crate::jobs::trained;
use crate::message::{Claim, Refused, ToClient, ToServer};
use crate::mutant::Mutant;
use crate::outbox;
use crate::world::World;
use std::sync::Arc;
use undertone_core::digest::Digest;
use undertone_core::fixed::FixedVector;
use undertone_core::id::AttemptKey;
use undertone_core::trainer::DataReport;
use undertone_privacy::contract::Unit;
use undertone_round::job::Job;
use undertone_round::participant::{Acceptance, Account, Failure, Input, ModelRef, Parcel, Sealed};

/// Tries without a model before a download is given up.
const FRUITLESS_TRIES: u32 = 5;
/// Bytes of an update that travel at once.
const CHUNK: usize = 8;

/// What a client is at.
pub(crate) struct Step {
    /// Tells it from other steps.
    pub(crate) no: u64,
    pub(crate) key: AttemptKey,
    pub(crate) work: Work,
}

/// The kinds of steps. A `call` is the one under way.
pub(crate) enum Work {
    Inspect,
    Fetch { model: ModelRef, tries: u32, call: Option<u64> },
    Train(Box<Acceptance>),
    Store { account: Account, parcel: Parcel, weight: u32, job: Arc<Job> },
    Upload { sealed: Sealed, tries: u32, call: Option<u64> },
    Settle { sealed: Sealed, tries: u32, call: Option<u64> },
}

impl Work {
    /// How long it takes until something is to be done.
    pub(crate) fn takes_ms(&self, chance: &mut Chance) -> u64 {
        match self {
            Self::Inspect => chance.between(5, 300),
            Self::Train(_) => chance.pick(&[300, 2_000, 10_000, 40_000]) + chance.below(3_000),
            Self::Store { .. } => chance.between(2, 60),
            Self::Upload { tries: 0, .. } | Self::Settle { tries: 0, .. } | Self::Fetch { .. } => 0,
            Self::Upload { tries, .. } | Self::Settle { tries, .. } => backoff_ms(*tries, chance.word()),
        }
    }

    fn call(&self) -> Option<u64> {
        match self {
            Self::Fetch { call, .. } | Self::Upload { call, .. } | Self::Settle { call, .. } => *call,
            _ => None,
        }
    }
}

fn broken() -> Failure {
    Failure::Transient("the line broke".into())
}

/// Whose turn it is after a refusal.
fn failure(refused: Refused) -> Failure {
    match refused {
        Refused::Unavailable => broken(),
        Refused::NotNow => Failure::Closed("it is over".into()),
        Refused::Bad => Failure::Final("the coordinator refused the update".into()),
    }
}

impl World {
    /// The step has come to where something is to be done.
    pub(crate) fn step_on(&mut self, c: usize, no: u64) {
        let Some(Step { key, work, .. }) = self.clients[c].take_step(no) else { return };
        let input = match work {
            Work::Inspect => {
                let mut report = DataReport { rows: 100, class_rows: vec![50, 50], ..DataReport::default() };
                if self.strikes(Fault::DataUnfit) {
                    report.problems.push("line 3: no number".into());
                }
                Input::Inspected(key, Ok(report))
            }
            Work::Train(acceptance) => self.train(c, key, &acceptance),
            Work::Store { account, parcel, weight, job } => {
                match self.store_update(c, account, &parcel, weight, &job) {
                    Some(sealed) => Input::Stored(key, sealed),
                    None => return,
                }
            }
            calling => {
                let step = Step { no, key, work: calling };
                // A wait that ends when the call is under way already ends in nothing.
                return match step.work.call() {
                    Some(_) => self.clients[c].put_step(step),
                    None => self.call(c, step),
                };
            }
        };
        self.feed_client(c, input);
    }

    fn train(&mut self, c: usize, key: AttemptKey, acceptance: &Acceptance) -> Input {
        let job = Arc::clone(acceptance.job());
        // Under a client-level contract a failure is hidden by what is sent in its place: that is arithmetic of its own.
        if job.contract().unit() != Unit::Client && self.strikes(Fault::TrainingFailed) {
            return Input::Failed(key, Failure::Final("training failed".into()));
        }
        let draws = self.scenario.jobs.iter().any(|j| j.id == key.job && j.kind.draws_in_clients());
        let draw = draws.then(|| self.chance.word());
        let client = &self.clients[c].id;
        let mut units = trained(&job, client, key.round, &acceptance.model().digest(), draw);
        if self.strikes(Fault::UpdateTooLong) {
            units.fill(undertone_core::fixed::MAX_FIXED);
        }
        if self.mutant == Some(Mutant::SendsBeforeStoring)
            && let Some(conn) = self.clients[c].line()
        {
            let sealed = outbox::seal(&bytes_of(&units), acceptance.weight());
            let call = self.clients[c].next_call();
            self.send_header(c, conn, call, &key, &sealed);
        }
        let update = FixedVector::from_units(job.grid(), units).expect("within the wire's range");
        Input::Trained(key, Parcel::of(&job, update))
    }

    /// `None`: it was killed on the way.
    fn store_update(
        &mut self,
        c: usize,
        account: Account,
        parcel: &Parcel,
        weight: u32,
        job: &Job,
    ) -> Option<Sealed> {
        let bytes = parcel.encoded(job, &mut None, self.chance.generator()).expect("plain values");
        let hit = self.strikes(Fault::ClientTornWrite);
        let at = self.chance.below(6);
        let mut place = 0;
        let mut fate = || {
            place += 1;
            hit && place > at
        };
        let key = account.last();
        let client = &mut self.clients[c];
        match outbox::store(&mut client.disk, account, &bytes, weight, &mut fate) {
            Ok(sealed) => {
                self.watch.sealed(&self.clients[c].id, &key, parcel.update.units(), &sealed);
                Some(sealed)
            }
            Err(outbox::Killed) => {
                // What became durable may be sent after the next start.
                if let Some(sealed) = outbox::sealed(&self.clients[c].disk, &key) {
                    self.watch.sealed(&self.clients[c].id, &key, parcel.update.units(), &sealed);
                }
                let power = self.chance.hits(5_000);
                self.kill_client(c, power);
                None
            }
        }
    }

    /// Begins a call, if there is a line; else it waits for one.
    fn call(&mut self, c: usize, step: Step) {
        let Some(conn) = self.clients[c].line() else { return self.clients[c].put_step(step) };
        let call = self.clients[c].next_call();
        let Step { no, key, work } = step;
        let under_way = Some(call);
        let work = match work {
            Work::Fetch { model, tries, .. } => {
                self.send_up(conn, ToServer::Fetch { call, digest: model.digest });
                Work::Fetch { model, tries, call: under_way }
            }
            Work::Upload { sealed, tries, .. } => {
                if tries > 0 {
                    self.coverage.note("uploads tried again");
                }
                self.send_header(c, conn, call, &key, &sealed);
                Work::Upload { sealed, tries, call: under_way }
            }
            Work::Settle { sealed, tries, .. } => {
                self.coverage.note("questions whether an update counts");
                let claim = self.claim(c, &key, &sealed);
                self.send_up(conn, ToServer::Settle { call, claim, asked: 0 });
                Work::Settle { sealed, tries, call: under_way }
            }
            other => other,
        };
        self.clients[c].put_step(Step { no, key, work });
    }

    fn send_header(&mut self, c: usize, conn: usize, call: u64, key: &AttemptKey, sealed: &Sealed) {
        let claim = self.claim(c, key, sealed);
        self.watch.sends(&self.clients[c].disk, &claim);
        self.send_up(conn, ToServer::Upload { call, claim });
    }

    fn claim(&self, c: usize, key: &AttemptKey, sealed: &Sealed) -> Claim {
        Claim {
            key: key.clone(),
            client: self.clients[c].id.clone(),
            digest: sealed.update,
            bytes: sealed.bytes,
            weight: sealed.weight,
        }
    }

    /// There is a line again: a step that waited for one goes on.
    pub(crate) fn line_found(&mut self, c: usize) {
        if let Some(step) = self.clients[c].step()
            && matches!(
                step.work,
                Work::Fetch { call: None, .. }
                    | Work::Upload { call: None, .. }
                    | Work::Settle { call: None, .. }
            )
        {
            let no = step.no;
            // One that waits before its next try is at it when that comes.
            self.later_at_client(0, c, AtClient::Step { no });
        }
    }

    /// The line broke under a call, if there was one.
    pub(crate) fn call_broke(&mut self, c: usize) {
        let Some(step) = self.clients[c].step().filter(|step| step.work.call().is_some()) else { return };
        let no = step.no;
        let Some(step) = self.clients[c].take_step(no) else { return };
        self.call_failed(c, step, broken());
    }

    fn call_failed(&mut self, c: usize, step: Step, failure: Failure) {
        let Step { no, key, work } = step;
        match (work, failure) {
            // A download tries by itself.
            (Work::Fetch { model, tries, .. }, Failure::Transient(_)) if tries + 1 < FRUITLESS_TRIES => {
                let tries = tries + 1;
                self.clients[c].put_step(Step { no, key, work: Work::Fetch { model, tries, call: None } });
                let after = backoff_ms(tries, self.chance.word());
                self.later_at_client(after, c, AtClient::Step { no });
            }
            (Work::Fetch { .. }, Failure::Transient(why) | Failure::Closed(why) | Failure::Final(why)) => {
                self.feed_client(c, Input::Failed(key, Failure::Final(why)));
            }
            (_, failure) => self.feed_client(c, Input::Failed(key, failure)),
        }
    }

    /// An answer to a call, perhaps to one that nobody waits for any more.
    pub(crate) fn call_answered(&mut self, c: usize, message: ToClient) {
        let (ToClient::Model { call, .. }
        | ToClient::Go { call, .. }
        | ToClient::Receipt { call, .. }
        | ToClient::Settled { call, .. }) = message
        else {
            return;
        };
        let Some(step) = self.clients[c].step().filter(|step| step.work.call() == Some(call)) else { return };
        let no = step.no;
        if let ToClient::Go { offset, .. } = message {
            return self.send_chunks(c, call, offset);
        }
        let Some(step) = self.clients[c].take_step(no) else { return };
        let key = step.key.clone();
        match message {
            ToClient::Model { outcome: Ok(bytes), .. } => match &step.work {
                Work::Fetch { model, .. } if Digest::of(&bytes) == model.digest => {
                    self.feed_client(c, Input::ModelReady(key));
                }
                _ => self.watch.wrong_model(&key),
            },
            ToClient::Receipt { outcome: Ok(()), .. } | ToClient::Settled { outcome: Ok(true), .. } => {
                self.feed_client(c, Input::Uploaded(key));
            }
            ToClient::Settled { outcome: Ok(false), .. } => {
                let failure = Failure::Closed("the coordinator does not have it".into());
                self.feed_client(c, Input::Failed(key, failure));
            }
            ToClient::Model { outcome: Err(refused), .. }
            | ToClient::Receipt { outcome: Err(refused), .. }
            | ToClient::Settled { outcome: Err(refused), .. } => self.call_failed(c, step, failure(refused)),
            _ => {}
        }
    }

    fn send_chunks(&mut self, c: usize, call: u64, from: u64) {
        let client = &mut self.clients[c];
        let (Some(conn), Some(job)) = (client.line(), client.step().map(|step| step.key.job.clone())) else {
            return;
        };
        let bytes = outbox::update(&self.clients[c].disk, &job).unwrap_or_default().to_vec();
        let rest = bytes.get(from as usize..).unwrap_or_default();
        let mut offset = from;
        if from > 0 {
            self.coverage.note("uploads that went on where they were");
        }
        for chunk in rest.chunks(CHUNK) {
            self.send_up(conn, ToServer::Chunk { call, offset, bytes: chunk.to_vec() });
            offset += chunk.len() as u64;
        }
    }
}

/// The bytes that travel.
fn bytes_of(units: &[i32]) -> Vec<u8> {
    units.iter().flat_map(|unit| unit.to_le_bytes()).collect()
}
