//! A client: its participant machine (the product's), its session, and its folder, which survives it.
//!
//! It performs the machine's effects as `undertone-client` does: one step of an attempt at a time, in order, and what must be durable
//! first.

use crate::disk::Disk;
use crate::faults::Fault;
use crate::message::{ToClient, ToServer};
use crate::mutant::Mutant;
use crate::outbox;
use crate::work::{Step, Work};
use crate::world::World;
use undertone_core::id::{AttemptKey, ClientId};
use undertone_core::trainer::Metrics;
use undertone_round::participant::{Effect, Input, ModelRef, Offer, Participant, Policy};

/// How long a client waits to be welcomed, in milliseconds.
const WELCOME_MS: u64 = 60_000;

/// What happens to a client.
pub(crate) enum AtClient {
    /// Its process starts.
    Start,
    /// It tries to open a session.
    Connect,
    /// It has waited for a welcome for long enough.
    NoWelcome { conn: usize },
    /// Its step has come to where something is to be done.
    Step { no: u64 },
    /// It has measured a model.
    Measured { message: ToServer },
}

/// A client and its machine.
pub(crate) struct Client {
    pub(crate) id: ClientId,
    pub(crate) is_evaluator: bool,
    pub(crate) rows: u64,
    /// Counts its processes.
    pub(crate) life: u32,
    pub(crate) disk: Disk,
    pub(crate) cut_off_until_ms: u64,
    process: Option<Process>,
}

/// What is gone with the process.
struct Process {
    machine: Participant,
    conn: Option<usize>,
    welcomed: bool,
    tries: u32,
    step: Option<Step>,
    steps: u64,
    calls: u64,
    /// Measurements that no session has taken.
    unsent: Vec<ToServer>,
}

impl Client {
    pub(crate) fn new(id: ClientId, is_evaluator: bool, rows: u64) -> Self {
        let disk = Disk::default();
        Self { id, is_evaluator, rows, life: 0, disk, cut_off_until_ms: 0, process: None }
    }

    /// Its connection, if it believes that it has one.
    pub(crate) fn conn(&self) -> Option<usize> {
        self.process.as_ref()?.conn
    }

    /// Its connection, once it was welcomed.
    pub(crate) fn line(&self) -> Option<usize> {
        self.process.as_ref().filter(|process| process.welcomed)?.conn
    }

    pub(crate) fn step(&mut self) -> Option<&mut Step> {
        self.process.as_mut()?.step.as_mut()
    }

    /// Takes the step, if it is this one.
    pub(crate) fn take_step(&mut self, no: u64) -> Option<Step> {
        self.process.as_mut()?.step.take_if(|step| step.no == no)
    }

    pub(crate) fn put_step(&mut self, step: Step) {
        if let Some(process) = &mut self.process {
            process.step = Some(step);
        }
    }

    /// A number for the next call.
    pub(crate) fn next_call(&mut self) -> u64 {
        self.process.as_mut().map_or(0, |process| {
            process.calls += 1;
            process.calls
        })
    }

    fn policy(&self) -> Policy {
        Policy { allow_no_privacy: true, declared_rows: Some(self.rows), ..Policy::default() }
    }
}

/// The wait before try `tries`: as the client's back-off has it.
pub(crate) fn backoff_ms(tries: u32, chance: u64) -> u64 {
    let whole = (250u64 << tries.min(16)).min(20_000);
    whole / 2 + chance % (whole / 2 + 1)
}

impl World {
    pub(crate) fn at_client(&mut self, c: usize, what: AtClient) {
        match what {
            AtClient::Start => self.start_client(c),
            AtClient::Connect => self.try_session(c),
            AtClient::NoWelcome { conn } => {
                let client = &self.clients[c];
                if client.conn() == Some(conn) && client.line().is_none() {
                    self.break_conn(conn, 1_000);
                }
            }
            AtClient::Step { no } => self.step_on(c, no),
            AtClient::Measured { message } => match self.clients[c].line() {
                Some(conn) => self.send_up(conn, message),
                None => {
                    if let Some(process) = &mut self.clients[c].process {
                        process.unsent.push(message);
                    }
                }
            },
        }
    }

    fn start_client(&mut self, c: usize) {
        let client = &mut self.clients[c];
        let accounts = match outbox::load(&mut client.disk) {
            Ok(accounts) => accounts,
            Err(problem) => return self.watch.outbox_damaged(&problem),
        };
        let kept = if self.mutant == Some(Mutant::ForgetsAccounts) { vec![] } else { accounts };
        let client = &mut self.clients[c];
        client.process = Some(Process {
            machine: Participant::new(client.policy(), kept),
            conn: None,
            welcomed: false,
            tries: 0,
            step: None,
            steps: 0,
            calls: 0,
            unsent: vec![],
        });
        self.note(format!("client {c} starts"));
        self.later_at_client(0, c, AtClient::Connect);
    }

    /// Kills a client; it comes again.
    pub(crate) fn kill_client(&mut self, c: usize, power: bool) {
        if self.clients[c].process.take().is_none() {
            return;
        }
        self.note(format!("client {c} is killed{}", if power { ", and its machine with it" } else { "" }));
        let life = self.clients[c].life;
        if power && self.clients[c].disk.lose_power(&mut self.chance) {
            self.coverage.note("torn files of clients");
        }
        self.break_all(if power { 30_000 } else { 2_000 }, |conn| conn.is_of_client(c, life));
        self.clients[c].life += 1;
        let after = self.chance.between(100, 30_000);
        self.later_at_client(after, c, AtClient::Start);
    }

    fn try_session(&mut self, c: usize) {
        let conn = self.connect(c);
        let Some(process) = &mut self.clients[c].process else { return };
        let Some(conn) = conn else {
            process.tries += 1;
            let after = backoff_ms(process.tries, self.chance.word());
            return self.later_at_client(after, c, AtClient::Connect);
        };
        (process.conn, process.welcomed) = (Some(conn), false);
        self.send_up(conn, ToServer::Hello);
        self.later_at_client(WELCOME_MS, c, AtClient::NoWelcome { conn });
    }

    /// The connection is known to be broken.
    pub(crate) fn line_lost(&mut self, c: usize) {
        let Some(process) = &mut self.clients[c].process else { return };
        let was_up = std::mem::replace(&mut process.welcomed, false);
        process.conn = None;
        process.tries += 1;
        let after = backoff_ms(process.tries, self.chance.word());
        self.later_at_client(after, c, AtClient::Connect);
        self.call_broke(c);
        if was_up && self.clients[c].process.is_some() {
            self.feed_client(c, Input::SessionLost);
        }
    }

    /// Something that a coordinator said arrives.
    pub(crate) fn hear_server(&mut self, c: usize, message: ToClient) {
        match message {
            ToClient::Welcome => {
                let Some(process) = &mut self.clients[c].process else { return };
                (process.welcomed, process.tries) = (true, 0);
                let unsent = std::mem::take(&mut process.unsent);
                if !self.clients[c].is_evaluator {
                    self.feed_client(c, Input::SessionUp);
                }
                for message in unsent {
                    self.at_client(c, AtClient::Measured { message });
                }
                self.line_found(c);
            }
            ToClient::Offer { job, key, model, clip_norm } => {
                let sim = &self.scenario.jobs[job];
                let model = ModelRef { digest: model.digest, bytes: model.bytes };
                match Offer::of_job(key.clone(), sim.job.clone(), model, clip_norm) {
                    Ok(offer) => self.feed_client(c, Input::Offered(Box::new(offer))),
                    Err(problem) => self.watch.unreadable_offer(&key, &problem.to_string()),
                }
            }
            ToClient::Withdraw { key } => self.feed_client(c, Input::Withdrawn(key)),
            ToClient::Evaluate { job, round, model } => {
                let loss = 1.0 / f64::from(round.0) + f64::from(model.digest.as_bytes()[0]) / 1000.0;
                let outcome = Ok(Metrics::of_classes(loss, 0.5, self.clients[c].rows));
                let message = ToServer::Measured { job, round, outcome };
                let after = self.chance.between(50, 8_000);
                self.later_at_client(after, c, AtClient::Measured { message });
            }
            ToClient::Model { .. }
            | ToClient::Go { .. }
            | ToClient::Receipt { .. }
            | ToClient::Settled { .. } => {
                self.call_answered(c, message);
            }
        }
    }

    /// Feeds the machine, and does what it says. A kill may come before each effect.
    pub(crate) fn feed_client(&mut self, c: usize, input: Input) {
        let Some(process) = &mut self.clients[c].process else { return };
        for effect in process.machine.step(input) {
            if self.strikes(Fault::ClientKilled) {
                return self.kill_client(c, false);
            }
            self.act(c, effect);
            if self.clients[c].process.is_none() {
                return;
            }
        }
    }

    fn act(&mut self, c: usize, effect: Effect) {
        match effect {
            Effect::Record(_) if self.mutant == Some(Mutant::AcceptsBeforeDeciding) => {}
            Effect::Record(decision) => outbox::record(&mut self.clients[c].disk, &decision.key),
            Effect::Accept(key) => {
                let client = &self.clients[c];
                self.watch.accepts(&client.id, &client.disk, &key);
                self.say(c, ToServer::Answer { key, answer: Ok(()) });
            }
            Effect::Decline(key, refusal) => {
                self.coverage.note("offers declined");
                self.say(c, ToServer::Answer { key, answer: Err(refusal.told) });
            }
            Effect::ReportFailure(key, reason) => self.say(c, ToServer::Failure { key, reason }),
            Effect::Inspect(key, _) => self.begin_step(c, key, Work::Inspect),
            Effect::Fetch(key, model, _) => {
                self.begin_step(c, key, Work::Fetch { model: model.whole, tries: 0, call: None })
            }
            Effect::Train(acceptance) => {
                self.begin_step(c, acceptance.key().clone(), Work::Train(acceptance))
            }
            Effect::Store { account, parcel, weight, job } => {
                self.begin_step(c, account.last(), Work::Store { account, parcel, weight, job });
            }
            Effect::Upload { key, sealed, tries } => {
                self.begin_step(c, key, Work::Upload { sealed, tries, call: None })
            }
            Effect::Settle { key, sealed, tries } => {
                self.begin_step(c, key, Work::Settle { sealed, tries, call: None })
            }
            Effect::Abandon(key) => {
                if let Some(process) = &mut self.clients[c].process {
                    process.step.take_if(|step| step.key == key);
                }
            }
            Effect::Discard { account, delivered } => {
                let mut struck = false;
                let hit = self.strikes(Fault::ClientTornWrite);
                let mut left = self.chance.below(5);
                let mut fate = || {
                    struck |= hit && left == 0;
                    left = left.saturating_sub(1);
                    struck
                };
                let client = &mut self.clients[c];
                let done = outbox::discard(&mut client.disk, &account, &mut fate);
                if !delivered {
                    self.coverage.note("updates given up by their client");
                    self.watch.undelivered(&self.storage, &self.clients[c].id, &account.last());
                }
                if done.is_err() {
                    let power = self.chance.hits(5_000);
                    self.kill_client(c, power);
                }
            }
        }
    }

    fn begin_step(&mut self, c: usize, key: AttemptKey, work: Work) {
        let Some(process) = &mut self.clients[c].process else { return };
        process.steps += 1;
        let no = process.steps;
        let after = work.takes_ms(&mut self.chance);
        process.step = Some(Step { no, key, work });
        self.later_at_client(after, c, AtClient::Step { no });
    }

    /// Without a session the message is dropped: the coordinator asks again when there is one.
    fn say(&mut self, c: usize, message: ToServer) {
        if let Some(conn) = self.clients[c].line() {
            self.send_up(conn, message);
        }
    }
}
