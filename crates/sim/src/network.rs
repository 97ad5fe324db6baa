//! Connections: in order until they break, and noticed to be broken some time later at each end. What belongs to a session may be
//! lost, doubled and overtaken besides, where the scenario is wild; what belongs to a transfer comes in order or breaks it.

use crate::faults::Fault;
use crate::message::{ToClient, ToServer};
use crate::world::{Event, World};

/// A client's connection to a coordinator.
pub(crate) struct Conn {
    pub(crate) client: usize,
    client_life: u32,
    pub(crate) replica: usize,
    replica_life: u32,
    is_broken: bool,
    /// Whether the coordinator reads from it still.
    server_open: bool,
    /// When the last message arrives at the coordinator, and at the client.
    last_ms: [u64; 2],
}

impl Conn {
    /// Whether it is of this process of a client.
    pub(crate) fn is_of_client(&self, c: usize, life: u32) -> bool {
        (self.client, self.client_life) == (c, life)
    }

    /// Whether it is of this process of a coordinator.
    pub(crate) fn is_of_replica(&self, r: usize, life: u32) -> bool {
        (self.replica, self.replica_life) == (r, life)
    }
}

/// How a message travels.
enum Travel {
    Lost,
    Arrives(Vec<u64>),
}

impl World {
    /// Connects a client to a coordinator that takes calls: a paused one takes them, too. `None`: there is none.
    pub(crate) fn connect(&mut self, c: usize) -> Option<usize> {
        if self.clients[c].cut_off_until_ms > self.queue.now_ms() {
            return None;
        }
        let serving = self.replicas.iter().enumerate();
        let serving = serving.filter(|(_, replica)| replica.process.as_ref().is_some_and(|p| p.serving));
        let serving: Vec<usize> = serving.map(|(r, _)| r).collect();
        if serving.is_empty() {
            return None;
        }
        if serving.len() > 1 {
            self.coverage.note("connections with two coordinators that take calls");
        }
        let r = self.chance.pick(&serving);
        self.conns.push(Conn {
            client: c,
            client_life: self.clients[c].life,
            replica: r,
            replica_life: self.replicas[r].life,
            is_broken: false,
            server_open: true,
            last_ms: [0, 0],
        });
        Some(self.conns.len() - 1)
    }

    /// Breaks a connection; each end notices within `most_ms`.
    pub(crate) fn break_conn(&mut self, conn: usize, most_ms: u64) {
        if std::mem::replace(&mut self.conns[conn].is_broken, true) {
            return;
        }
        self.note(format!("connection {conn} breaks"));
        for notices in [Event::ServerNotices { conn }, Event::ClientNotices { conn }] {
            let after = self.chance.between(1, most_ms);
            self.queue.after(after, notices);
        }
    }

    /// Breaks every connection of a coordinator, or of a client.
    pub(crate) fn break_all(&mut self, most_ms: u64, of: impl Fn(&Conn) -> bool) {
        let open: Vec<usize> =
            (0..self.conns.len()).filter(|&n| !self.conns[n].is_broken && of(&self.conns[n])).collect();
        for conn in open {
            self.break_conn(conn, most_ms);
        }
    }

    pub(crate) fn send_up(&mut self, conn: usize, message: ToServer) {
        self.note(format!("client {} says: {}", self.conns[conn].client, message.short()));
        let travel = self.travel(conn, 0, message.is_said());
        if let Travel::Arrives(times) = travel {
            for at in times {
                self.queue.at(at, Event::ToServer { conn, message: message.clone() });
            }
        }
    }

    pub(crate) fn send_down(&mut self, conn: usize, message: ToClient) {
        self.note(format!("client {} is told: {}", self.conns[conn].client, message.short()));
        let travel = self.travel(conn, 1, message.is_said());
        if let Travel::Arrives(times) = travel {
            for at in times {
                self.queue.at(at, Event::ToClient { conn, message: message.clone() });
            }
        }
    }

    fn travel(&mut self, conn: usize, way: usize, is_said: bool) -> Travel {
        if self.conns[conn].is_broken {
            return Travel::Lost;
        }
        if self.strikes(Fault::ConnectionBroken) {
            self.break_conn(conn, 10_000);
            // The last message may have come through.
            if self.chance.hits(5_000) {
                return Travel::Lost;
            }
        }
        let now = self.queue.now_ms();
        let mut at = now + self.chance.between(1, 40);
        if is_said && self.strikes(Fault::MessageDropped) {
            return Travel::Lost;
        }
        if is_said && self.strikes(Fault::MessageOvertaken) {
            return Travel::Arrives(vec![at + self.chance.between(100, 60_000)]);
        }
        at = at.max(self.conns[conn].last_ms[way]);
        self.conns[conn].last_ms[way] = at;
        if is_said && self.strikes(Fault::MessageDoubled) {
            return Travel::Arrives(vec![at, at + self.chance.between(0, 60_000)]);
        }
        Travel::Arrives(vec![at])
    }

    pub(crate) fn arrive_at_server(&mut self, conn: usize, message: ToServer) {
        let Conn { replica: r, replica_life, server_open, .. } = self.conns[conn];
        if self.replicas[r].life != replica_life || !server_open {
            return;
        }
        let until = self.replicas[r].paused_until_ms;
        if until > self.queue.now_ms() {
            return self.queue.at(until, Event::ToServer { conn, message });
        }
        if self.replicas[r].process.is_some() {
            self.hear_client(r, conn, message);
        }
    }

    pub(crate) fn arrive_at_client(&mut self, conn: usize, message: ToClient) {
        let Conn { client: c, client_life, .. } = self.conns[conn];
        let client = &self.clients[c];
        // What comes on a connection that was given up goes nowhere.
        if client.life == client_life && client.conn() == Some(conn) {
            self.hear_server(c, message);
        }
    }

    pub(crate) fn server_notices(&mut self, conn: usize) {
        let Conn { replica: r, replica_life, .. } = self.conns[conn];
        if self.replicas[r].life != replica_life {
            return;
        }
        let until = self.replicas[r].paused_until_ms;
        if until > self.queue.now_ms() {
            return self.queue.at(until, Event::ServerNotices { conn });
        }
        self.conns[conn].server_open = false;
        self.hung_up(r, conn);
    }

    pub(crate) fn client_notices(&mut self, conn: usize) {
        let Conn { client: c, client_life, .. } = self.conns[conn];
        if self.clients[c].life == client_life && self.clients[c].conn() == Some(conn) {
            self.line_lost(c);
        }
    }
}
