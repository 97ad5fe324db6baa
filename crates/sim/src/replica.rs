//! A coordinator's process: its lease, how it takes up what is stored, who is connected to it, and how it dies.

use crate::disk::Disk;
use crate::driver::Driver;
use crate::faults::Fault;
use crate::message::{Refused, ToClient, ToServer};
use crate::mutant::Mutant;
use crate::release::Order;
use crate::storage::ready;
use crate::uploads::Upload;
use crate::world::World;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use undertone_core::digest::Digest;
use undertone_core::id::{AttemptKey, ClientId};
use undertone_privacy::ledger::chain::{Chain, Line};
use undertone_privacy::ledger::population::Budgets;
use undertone_round::coordinator::{Input, JobState};
use undertone_store::{Lease, MemoryStore, Store as _};

/// As the daemon has them: how long a lease lasts, and how often it is renewed and asked for.
const LEASE: Duration = Duration::from_secs(10);
const RENEWAL_MS: u64 = 2_000;
const NAME: &str = "coordinator";

/// What a coordinator's process does next.
pub(crate) enum AtReplica {
    /// It starts.
    Boot,
    /// It asks for the lease, or renews it.
    Lease,
    /// It has found what nobody needs, deletes it, and takes calls from then on.
    Sweep { gone: Vec<Digest> },
    /// A driver takes the inputs that wait.
    Work { job: usize },
    /// A driver tries to save its step.
    Save { job: usize },
    /// A driver carries out the next effect.
    Effect { job: usize },
    /// A driver begins again from what is stored.
    Reload { job: usize },
    /// A deadline is due.
    Tick { job: usize, no: u64 },
    /// A release comes to where it is made.
    Release { job: usize, order: Box<Order> },
    /// Something comes to a driver from its own daemon.
    Feed { job: usize, input: Box<Input> },
    /// The spooled updates of an attempt are deleted.
    Forget { key: AttemptKey },
    /// A client asks once more whether its update counts: it was just being taken in.
    Again { conn: usize, message: ToServer },
}

/// A coordinator's place, which outlives its processes.
#[derive(Default)]
pub(crate) struct Replica {
    /// Counts the processes.
    pub(crate) life: u32,
    /// Uploads that are not whole yet.
    pub(crate) spool: Disk,
    pub(crate) paused_until_ms: u64,
    pub(crate) store_away_until_ms: u64,
    /// By how much its clock is wrong.
    pub(crate) skew_ms: i64,
    pub(crate) process: Option<Process>,
}

/// What is gone with a process.
pub(crate) struct Process {
    name: String,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) lease: Option<Lease>,
    /// When its lease was renewed last.
    heard_ms: u64,
    /// Whether it takes calls.
    pub(crate) serving: bool,
    pub(crate) chain: Chain,
    /// The job whose step spends just now.
    pub(crate) spending: Option<usize>,
    /// None: the job is over, or was before this process began.
    pub(crate) drivers: Vec<Option<Driver>>,
    /// Connections by client: clients are numbered in the order of their names.
    pub(crate) sessions: BTreeMap<usize, usize>,
    /// Uploads under way, by connection and call.
    pub(crate) uploads: BTreeMap<(usize, u64), Upload>,
}

impl World {
    pub(crate) fn at_replica(&mut self, r: usize, what: AtReplica) {
        match what {
            AtReplica::Boot => self.boot(r),
            _ if self.replicas[r].process.is_none() => {}
            AtReplica::Lease => self.turn_lease(r),
            AtReplica::Sweep { gone } => self.sweep(r, gone),
            AtReplica::Work { job } => self.work(r, job),
            AtReplica::Save { job } => self.save(r, job),
            AtReplica::Effect { job } => self.next_effect(r, job),
            AtReplica::Reload { job } => self.reload(r, job),
            AtReplica::Tick { job, no } => self.tick(r, job, no),
            AtReplica::Release { job, order } => self.release(r, job, *order),
            AtReplica::Feed { job, input } => self.feed_job(r, job, *input, None),
            AtReplica::Forget { key } => self.forget(r, &key),
            AtReplica::Again { conn, message } => self.hear_client(r, conn, message),
        }
    }

    fn boot(&mut self, r: usize) {
        let replica = &mut self.replicas[r];
        replica.process = Some(Process {
            name: format!("coordinator-{r}-{}", replica.life),
            store: Arc::new(self.storage.store.another()),
            lease: None,
            heard_ms: 0,
            serving: false,
            chain: Chain::new(Budgets::default()),
            spending: None,
            drivers: self.scenario.jobs.iter().map(|_| None).collect(),
            sessions: BTreeMap::new(),
            uploads: BTreeMap::new(),
        });
        self.note(format!("replica {r} starts"));
        if self.scenario.replicas == 1 { self.take_up(r) } else { self.turn_lease(r) }
    }

    fn turn_lease(&mut self, r: usize) {
        self.later_at_replica(RENEWAL_MS, r, AtReplica::Lease);
        let now = self.queue.now_ms();
        let reached = self.store_answers(r) && !self.strikes(Fault::LeaseUnheard);
        let Some(process) = &mut self.replicas[r].process else { return };
        match process.lease.clone() {
            None if reached => {
                let taken = ready(process.store.take_lease(NAME, &process.name, LEASE));
                let Some(lease) = taken.ok().filter(|lease| lease.holder == process.name) else { return };
                if self.mutant != Some(Mutant::NoFence) {
                    process.store.fence(NAME, &lease);
                }
                process.heard_ms = now;
                let number = lease.number;
                process.lease = Some(lease);
                self.watch.lease_taken(number);
                self.coverage.note("leases taken");
                if number > 1 {
                    self.coverage.note("leases taken over");
                }
                self.note(format!("replica {r} has the lease, number {number}"));
                self.take_up(r);
            }
            None => {}
            Some(lease) if reached => match ready(process.store.renew_lease(NAME, &lease, LEASE)) {
                Ok(true) => process.heard_ms = now,
                _ => {
                    self.coverage.note("coordinators that found their place taken");
                    self.kill_replica(r, false);
                }
            },
            Some(_) if now - process.heard_ms >= LEASE.as_millis() as u64 => {
                self.coverage.note("coordinators that were not heard for too long");
                self.kill_replica(r, false);
            }
            Some(_) => {}
        }
    }

    /// Ends the lease before its time, as a daemon does that is told to stop.
    pub(crate) fn give_up_lease(&mut self, r: usize) {
        let Some(process) = &mut self.replicas[r].process else { return };
        if let Some(lease) = &process.lease {
            let ended = ready(process.store.end_lease(NAME, lease)).is_ok();
            self.coverage.note("leases given up");
            self.note(format!("replica {r} gives up its lease: {ended}"));
        }
    }

    /// Reads what is stored. Where it cannot, the process ends.
    fn take_up(&mut self, r: usize) {
        if !self.store_answers(r) {
            return self.kill_replica(r, false);
        }
        let wall_ms = self.wall_ms(r);
        let jobs = self.scenario.jobs.clone();
        let Some(process) = &mut self.replicas[r].process else { return };
        if let Err(problem) = catch_up(&mut process.chain, &process.store) {
            return self.watch.ledger_damaged(&problem);
        }
        let open = ready(process.store.open_jobs()).unwrap_or_default();
        process.chain.close_others(&|id| open.iter().any(|record| record.id == *id));
        let mut needed: BTreeSet<Digest> =
            ready(process.store.released_models()).unwrap_or_default().into_iter().collect();
        for record in open {
            let Some(job) = jobs.iter().position(|job| job.id == record.id) else { continue };
            let state: JobState = serde_json::from_str(&record.state).expect("a state that was stored");
            needed.extend(state.blobs());
            let driver = Driver::new(state, record.version, process.chain.job(&record.id));
            self.coverage.note(driver.phase());
            process.drivers[job] = Some(driver);
        }
        let gone = self.storage.list().into_iter().filter(|blob| !needed.contains(blob)).collect();
        let after = self.chance.between(5, 300);
        self.note(format!("replica {r} takes up its jobs at {wall_ms}"));
        self.later_at_replica(after, r, AtReplica::Sweep { gone });
        if self.strikes(Fault::PausedInSweep) {
            let ms = self.chance.pick(&[1_000, 20_000, 40_000]);
            self.pause_replica(r, ms);
        }
    }

    fn sweep(&mut self, r: usize, gone: Vec<Digest>) {
        if !gone.is_empty() {
            self.coverage.note("sweeps that found something");
        }
        self.delete(r, gone);
        let Some(process) = &mut self.replicas[r].process else { return };
        process.serving = true;
        let open: Vec<usize> =
            (0..process.drivers.len()).filter(|&job| process.drivers[job].is_some()).collect();
        for job in open {
            self.feed_recovered(r, job);
        }
    }

    /// Ends a coordinator's process; it comes again.
    pub(crate) fn kill_replica(&mut self, r: usize, power: bool) {
        let replica = &mut self.replicas[r];
        if replica.process.take().is_none() {
            return;
        }
        let life = replica.life;
        replica.life += 1;
        replica.paused_until_ms = 0;
        if power && replica.spool.lose_power(&mut self.chance) {
            self.coverage.note("torn spools");
        }
        self.note(format!("replica {r} ends{}", if power { ", and its machine with it" } else { "" }));
        self.break_all(if power { 30_000 } else { 1_500 }, |conn| conn.is_of_replica(r, life));
        let after = self.chance.pick(&[200, 1_500, 6_000, 20_000]);
        self.later_at_replica(after, r, AtReplica::Boot);
    }

    /// Stops a coordinator where it is. It knows nothing of it.
    pub(crate) fn pause_replica(&mut self, r: usize, ms: u64) {
        if self.replicas[r].process.is_some() {
            let until = self.queue.now_ms() + ms;
            // Never shorter than it is: what waits for it must not be overtaken.
            self.replicas[r].paused_until_ms = self.replicas[r].paused_until_ms.max(until);
            self.note(format!("replica {r} stands still for {ms} ms"));
        }
    }

    /// Who is connected, by role, sorted.
    pub(crate) fn roster(&self, r: usize) -> [Vec<ClientId>; 2] {
        let sessions = self.replicas[r].process.iter().flat_map(|process| process.sessions.keys().copied());
        let (evaluators, trainers): (Vec<usize>, Vec<usize>) =
            sessions.partition(|&c| self.clients[c].is_evaluator);
        [trainers, evaluators].map(|some| some.into_iter().map(|c| self.clients[c].id.clone()).collect())
    }

    /// Something that a client says arrives.
    pub(crate) fn hear_client(&mut self, r: usize, conn: usize, message: ToServer) {
        let c = self.conns[conn].client;
        let client = self.clients[c].id.clone();
        match message {
            ToServer::Hello => {
                if let Some(process) = &mut self.replicas[r].process {
                    process.sessions.insert(c, conn);
                }
                self.send_down(conn, ToClient::Welcome);
                // A driver that lags behind too far hears only that it missed something.
                let missed = self.chance.hits(300);
                self.feed_all(r, &if missed { Input::Missed } else { Input::Connected { client } });
            }
            ToServer::Answer { key, answer } => {
                self.feed_about(r, &key.clone(), Input::Answer { client, key, answer });
            }
            ToServer::Failure { key, reason } => {
                self.feed_about(r, &key.clone(), Input::Failure { client, key, reason });
            }
            ToServer::Measured { job, round, outcome } => {
                self.feed_job(r, job, Input::Evaluation { evaluator: client, round, outcome }, None);
            }
            ToServer::Fetch { call, digest } => self.send_model(r, conn, call, &client, &digest),
            ToServer::Upload { call, claim } => self.begin_upload(r, conn, call, claim),
            ToServer::Chunk { call, offset, bytes } => self.take_chunk(r, conn, call, offset, &bytes),
            ToServer::Settle { call, claim, asked } => self.settle(r, conn, call, claim, asked),
        }
    }

    /// A connection is known to be broken.
    pub(crate) fn hung_up(&mut self, r: usize, conn: usize) {
        let Some(process) = &mut self.replicas[r].process else { return };
        // What came of an upload stays; one that is whole is judged all the same.
        process.uploads.retain(|(of, _), upload| *of != conn || upload.is_judged());
        let c = self.conns[conn].client;
        if process.sessions.get(&c) == Some(&conn) {
            process.sessions.remove(&c);
            self.feed_all(r, &Input::Sessions);
        }
    }

    fn send_model(&mut self, r: usize, conn: usize, call: u64, client: &ClientId, digest: &Digest) {
        let Some(process) = &self.replicas[r].process else { return };
        let needs = |driver: &Driver| driver.state.readable(client, digest).is_some();
        let outcome = if process.drivers.iter().flatten().any(needs) {
            self.storage.get(digest).ok_or(Refused::Unavailable)
        } else {
            Err(Refused::NotNow)
        };
        self.send_down(conn, ToClient::Model { call, outcome });
    }

    fn feed_about(&mut self, r: usize, key: &AttemptKey, input: Input) {
        if let Some(job) = self.scenario.jobs.iter().position(|job| job.id == key.job) {
            self.feed_job(r, job, input, None);
        }
    }

    fn feed_all(&mut self, r: usize, input: &Input) {
        for job in 0..self.scenario.jobs.len() {
            self.feed_job(r, job, input.clone(), None);
        }
    }

    /// The driver of a job that goes on.
    pub(crate) fn driver(&mut self, r: usize, job: usize) -> Option<&mut Driver> {
        self.replicas[r].process.as_mut()?.drivers.get_mut(job)?.as_mut()
    }

    /// Reads the job again, and the ledger, whatever the driver believed.
    fn reload(&mut self, r: usize, job: usize) {
        if !self.store_answers(r) {
            return self.later_at_replica(1_000, r, AtReplica::Reload { job });
        }
        let id = self.scenario.jobs[job].id.clone();
        let Some(process) = &mut self.replicas[r].process else { return };
        if let Err(problem) = catch_up(&mut process.chain, &process.store) {
            return self.watch.ledger_damaged(&problem);
        }
        let Some(record) = ready(process.store.job(&id)).ok().flatten() else { return };
        let state: JobState = serde_json::from_str(&record.state).expect("a state that was stored");
        let ledger = process.chain.job(&id);
        let Some(driver) = process.drivers[job].as_mut() else { return };
        driver.take_over(state, record.version, ledger);
        self.coverage.note("drivers that began again");
        let late = self.let_go(r, job);
        self.rest(r, job, late, 0);
        self.feed_recovered(r, job);
    }
}

/// Reads the lines of the ledger that others added.
fn catch_up(chain: &mut Chain, store: &MemoryStore) -> Result<(), String> {
    let rows = ready(store.ledger(chain.len(), u32::MAX)).map_err(|e| e.to_string())?;
    for row in rows {
        let line: Line = serde_json::from_str(&row.document).map_err(|e| e.to_string())?;
        chain.apply(line).map_err(|e| e.to_string())?;
    }
    Ok(())
}
