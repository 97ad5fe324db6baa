//! The world: who is there, what happens next, and what comes over it.

use crate::chance::Chance;
use crate::client::{AtClient, Client};
use crate::coverage::Coverage;
use crate::faults::{Fault, Trouble};
use crate::message::{ToClient, ToServer};
use crate::mutant::Mutant;
use crate::network::Conn;
use crate::queue::Queue;
use crate::replica::{AtReplica, Replica};
use crate::scenario::Scenario;
use crate::storage::{LateWrite, Storage};
use crate::trace::Trace;
use crate::watch::{Predicate, Watch};
use undertone_round::coordinator::Input;

/// Virtual time after which a world without faults must have come to its end, in milliseconds.
const PATIENCE_MS: u64 = 7_200_000;
/// How long a world goes on after its last job has ended: what is late then must do no harm.
const AFTERMATH_MS: u64 = 60_000;
/// More events than any run has that goes on.
const MOST_EVENTS: u64 = 400_000;
/// What a clock of this world shows at its beginning, in milliseconds of Unix time.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// Something that happens.
pub(crate) enum Event {
    /// Something goes wrong that comes by time.
    Trouble,
    /// From here on nothing does.
    Calm,
    AtReplica {
        r: usize,
        life: u32,
        what: AtReplica,
    },
    AtClient {
        c: usize,
        life: u32,
        what: AtClient,
    },
    ToServer {
        conn: usize,
        message: ToServer,
    },
    ToClient {
        conn: usize,
        message: ToClient,
    },
    /// A coordinator hears that a connection is broken.
    ServerNotices {
        conn: usize,
    },
    /// A client does.
    ClientNotices {
        conn: usize,
    },
    /// What a coordinator sent to the database before it died arrives there.
    LateWrite(Box<LateWrite>),
}

/// Everything.
pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) mutant: Option<Mutant>,
    pub(crate) queue: Queue<Event>,
    pub(crate) chance: Chance,
    pub(crate) storage: Storage,
    pub(crate) conns: Vec<Conn>,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) clients: Vec<Client>,
    pub(crate) watch: Watch,
    pub(crate) trace: Trace,
    pub(crate) coverage: Coverage,
    pub(crate) events: u64,
    calm: bool,
}

impl World {
    pub(crate) fn new(scenario: Scenario, chance: Chance, mutant: Option<Mutant>, trace: Trace) -> Self {
        let storage = Storage::new();
        let clients = scenario.names().enumerate().map(|(n, (id, is_evaluator))| {
            // Other rows for each, so that weights differ.
            Client::new(id, is_evaluator, 10 + 7 * n as u64)
        });
        let mut world = Self {
            clients: clients.collect(),
            replicas: (0..scenario.replicas).map(|_| Replica::default()).collect(),
            calm: scenario.calm_at_ms == 0,
            scenario,
            mutant,
            queue: Queue::new(),
            chance,
            watch: Watch::new(),
            storage,
            conns: vec![],
            trace,
            coverage: Coverage::default(),
            events: 0,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        self.coverage.note("seeds");
        if self.scenario.wild {
            self.coverage.note("seeds with wild messages");
        }
        for job in self.scenario.jobs.clone() {
            self.coverage.note(job.kind.name());
            self.storage.submit(&job, self.wall_ms(0));
            self.watch.expect_job(&job);
        }
        for r in 0..self.replicas.len() {
            let after = self.chance.below(500);
            self.later_at_replica(after, r, AtReplica::Boot);
        }
        for c in 0..self.clients.len() {
            let after = self.chance.below(3_000);
            self.later_at_client(after, c, AtClient::Start);
        }
        if !self.calm {
            let after = self.chance.below(self.scenario.trouble_ms);
            self.queue.after(after, Event::Trouble);
            self.queue.at(self.scenario.calm_at_ms, Event::Calm);
        }
    }

    /// Runs to its end.
    pub(crate) fn run(&mut self) {
        let mut until_ms = self.scenario.calm_at_ms + PATIENCE_MS;
        let mut over = false;
        while let Some(event) = self.queue.next(until_ms) {
            self.storage.set_time(self.queue.now_ms());
            self.events += 1;
            self.happen(event);
            self.watch.look(&self.storage);
            if self.watch.failure().is_some() {
                return;
            }
            if !over && self.watch.all_over() {
                over = true;
                self.coverage.note("worlds that came to their end");
                until_ms = until_ms.min(self.queue.now_ms() + AFTERMATH_MS);
            }
            if self.events > MOST_EVENTS {
                let text = format!("{MOST_EVENTS} events and no end: something spins");
                return self.watch.fail(Predicate::Liveness, text);
            }
        }
        self.watch.end(&self.storage, &self.scenario, &mut self.coverage);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Trouble => self.trouble(),
            Event::Calm => self.become_calm(),
            Event::AtReplica { r, life, what } => {
                let replica = &self.replicas[r];
                if replica.life != life {
                    return;
                }
                if replica.paused_until_ms > self.queue.now_ms() {
                    let until = replica.paused_until_ms;
                    return self.queue.at(until, Event::AtReplica { r, life, what });
                }
                self.at_replica(r, what);
            }
            Event::AtClient { c, life, what } => {
                if self.clients[c].life == life {
                    self.at_client(c, what);
                }
            }
            Event::ToServer { conn, message } => self.arrive_at_server(conn, message),
            Event::ToClient { conn, message } => self.arrive_at_client(conn, message),
            Event::ServerNotices { conn } => self.server_notices(conn),
            Event::ClientNotices { conn } => self.client_notices(conn),
            Event::LateWrite(write) => self.write_late(*write),
        }
    }

    /// What a coordinator's clock shows.
    pub(crate) fn wall_ms(&self, r: usize) -> u64 {
        let skew = self.replicas.get(r).map_or(0, |replica| replica.skew_ms);
        (EPOCH_MS + self.queue.now_ms()).saturating_add_signed(skew)
    }

    pub(crate) fn later_at_replica(&mut self, ms: u64, r: usize, what: AtReplica) {
        let life = self.replicas[r].life;
        self.queue.after(ms, Event::AtReplica { r, life, what });
    }

    pub(crate) fn later_at_client(&mut self, ms: u64, c: usize, what: AtClient) {
        let life = self.clients[c].life;
        self.queue.after(ms, Event::AtClient { c, life, what });
    }

    /// A line of the story.
    pub(crate) fn note(&mut self, text: impl AsRef<str>) {
        self.trace.line(self.queue.now_ms(), text.as_ref());
    }

    /// Whether a fault strikes here and now.
    pub(crate) fn strikes(&mut self, fault: Fault) -> bool {
        let rate = self.scenario.rate(fault);
        if self.calm || rate == 0 || !self.chance.hits(rate) {
            return false;
        }
        self.coverage.note(fault.name());
        self.note(fault.name());
        true
    }

    fn trouble(&mut self) {
        if self.calm {
            return;
        }
        let after = self.chance.between(1, 2 * self.scenario.trouble_ms);
        self.queue.after(after, Event::Trouble);
        if self.scenario.troubles.is_empty() {
            return;
        }
        let trouble = self.chance.pick(&self.scenario.troubles.clone());
        let (r, c) =
            (self.chance.below(self.replicas.len() as u64), self.chance.below(self.clients.len() as u64));
        let (r, c) = (r as usize, c as usize);
        let now = self.queue.now_ms();
        match trouble {
            Trouble::Kill => {
                if self.chance.hits(3_000) {
                    self.give_up_lease(r);
                }
                self.kill_replica(r, false);
            }
            Trouble::PowerLoss => self.kill_replica(r, true),
            Trouble::Pause => {
                let ms = self.chance.pick(&[500, 3_000, 9_000, 12_000, 25_000, 70_000]);
                self.pause_replica(r, ms);
            }
            Trouble::ClockJump => {
                let jump = self.chance.pick(&[-600_000, -30_000, -1_000, 1_000, 30_000, 130_000, 600_000]);
                self.replicas[r].skew_ms += jump;
                self.note(format!("the clock of replica {r} jumps by {jump} ms"));
            }
            Trouble::ClientKill => self.kill_client(c, false),
            Trouble::ClientPowerLoss => self.kill_client(c, true),
            Trouble::Partition => {
                let ms = self.chance.pick(&[1_000, 10_000, 25_000, 90_000]);
                let some = self.chance.pick(&[1, 2, 4, 20]);
                for _ in 0..some {
                    let c = self.chance.below(self.clients.len() as u64) as usize;
                    self.clients[c].cut_off_until_ms = now + ms;
                    self.note(format!("client {c} is cut off for {ms} ms"));
                    if let Some(conn) = self.clients[c].conn() {
                        self.break_conn(conn, 30_000);
                    }
                }
            }
            Trouble::StoreAway => {
                let ms = self.chance.pick(&[1_000, 5_000, 9_000, 15_000, 70_000]);
                self.replicas[r].store_away_until_ms = now + ms;
                self.note(format!("replica {r} does not reach the store for {ms} ms"));
            }
            Trouble::Break => match self.clients[c].conn() {
                Some(conn) => self.break_conn(conn, 5_000),
                None => return,
            },
            Trouble::Cancel => {
                // Rarely: nothing much happens in a job that is over.
                if !self.chance.hits(300) {
                    return;
                }
                let job = self.chance.below(self.scenario.jobs.len() as u64) as usize;
                let (by, reason) = ("operator".into(), "no longer wanted".into());
                self.feed_job(r, job, Input::Cancel { by, reason }, None);
            }
        }
        self.coverage.note(trouble.name());
    }

    fn become_calm(&mut self) {
        self.calm = true;
        self.note("from here on nothing goes wrong");
        // Whoever stands still wakes when it would have: what waits for it must not be overtaken.
        for replica in &mut self.replicas {
            replica.store_away_until_ms = 0;
        }
        for client in &mut self.clients {
            client.cut_off_until_ms = 0;
        }
    }
}
