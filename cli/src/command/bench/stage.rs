//! The stage of a benchmark: a deployment as `undertone-server init` makes it, its coordinator running, its clients enrolled
//! and in their sessions.

use super::client::Fetched;
use super::crowd::{Plan, Ready};
use super::process::Crowds;
use super::update::Recipe;
use super::usage::{Watch, allow_files};
use crate::command::token::{self, Invitation};
use crate::demo::deployment::{make, start_server};
use crate::demo::folder::Folder;
use crate::demo::process::{Fleet, Programs, interrupted};
use crate::failure::bad_input;
use crate::output::{Screen, size};
use crate::profile::Connection;
use anyhow::{Context as _, Result, anyhow};
use clap::ValueEnum;
use std::path::{Path, PathBuf};
use undertone_core::duration::Span;
use undertone_core::id::ClientRole;
use undertone_round::job::Job;

/// Sessions that a coordinator allows as it is configured by `init`; loopback has ports for few more.
pub(super) const MOST_CLIENTS: u32 = 20_000;
/// Most processes that are started unless more are asked for.
const PROCESSES: u32 = 32;
/// Files that a process has open besides its connections and transfers.
const OTHER_FILES: u64 = 256;

/// How the parts of the benchmark are set up.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Setting {
    /// Work in this new or empty folder and leave it, with the server's log; else in a temporary one that is removed
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// What the clients do with what they fetch
    #[arg(long, value_enum, default_value_t = Fetched::File)]
    pub(super) fetched: Fetched,

    /// What the coordinator's acknowledgements survive ([storage] durability in server.toml)
    #[arg(long, value_enum, default_value_t = Durability::Disk)]
    durability: Durability,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Durability {
    /// A power loss, as deployed
    Disk,
    /// A crash of the process alone: shows what syncing costs
    Process,
}

/// Where the clients run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In this process.
    Here,
    /// In so many processes of their own.
    Processes(u32),
}

impl Place {
    /// A process for each client, but not too many.
    pub(super) fn of_their_own(clients: u32) -> Self {
        Self::Processes(clients.min(PROCESSES))
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Clients in a session.
    pub(super) clients: u32,
    /// Clients asked in a round.
    pub(super) cohort: u32,
    /// Where they run.
    pub(super) place: Place,
    /// Rounds in all.
    pub(super) rounds: u32,
    /// The round that begins what is counted.
    pub(super) count_from: u32,
}

/// Everything that runs.
#[derive(Debug)]
pub(super) struct Stage {
    fleet: Fleet,
    pub(super) connection: Connection,
    pub(super) crowds: Crowds,
    /// How long it took to get ready.
    pub(super) ready: Ready,
    pub(super) watch: Watch,
}

impl Setting {
    /// The same for one of several runs, in a folder of its own below the user's.
    pub(super) fn of_run(&self, name: &str) -> Self {
        Self { dir: self.dir.as_ref().map(|dir| dir.join(name)), ..self.clone() }
    }

    /// Sets the stage, lets `work` play on it, and clears it whatever comes: nothing is left running.
    ///
    /// # Errors
    /// If the load is too much for this machine, the stage cannot be set, the work fails, or somebody interrupts it.
    pub(super) async fn play<T>(
        &self,
        job: &Job,
        load: Load,
        screen: Screen,
        work: impl AsyncFnOnce(Stage) -> Result<T>,
    ) -> Result<T> {
        if load.clients == 0 || load.clients > MOST_CLIENTS {
            return Err(bad_input(format!(
                "--clients must be 1 to {MOST_CLIENTS} (what a coordinator lets in as `init` sets it up), not {}",
                load.clients
            )));
        }
        let remedy = "it is built and installed together with this program (`cargo build --release --workspace --bins`)";
        let programs = Programs::find("the benchmark", &["undertone-server"], remedy, false)?;
        // A connection for each client; two ends of one in the copy that gives the ceiling; a file for each transfer.
        allow_files(u64::from(load.clients) + 2 * u64::from(load.cohort) + OTHER_FILES)?;
        let folder = Folder::new(self.dir.as_deref(), "bench")?;
        self.check_disk(folder.path(), job, &load)?;
        let play = async {
            let stage = self.set(folder.path(), &programs, job, &load, screen).await?;
            work(stage).await
        };
        let end = tokio::select! {
            end = play => end,
            caught = interrupted() => match caught {
                // Nothing went wrong that a log would explain.
                Ok(()) => return Err(anyhow!("interrupted; everything is stopped")),
                Err(e) => Err(e),
            },
        };
        end.map_err(|e| folder.with_logs("benchmark", e))
    }

    /// Refuses what would fill the disk half-way.
    fn check_disk(&self, folder: &Path, job: &Job, load: &Load) -> Result<()> {
        let kept_by_clients = if self.fetched == Fetched::File { 2 * load.cohort } else { 0 };
        // All released models. Updates of a round and of the one before that are being removed, and one to begin with.
        // And what they are sent as: this round's and the one's before.
        let versions = if job.spec().transport.down().is_plain(job.part()) { 0 } else { 4 };
        let models = u64::from(kept_by_clients) + u64::from(load.rounds) + 2 + versions;
        let updates = 2 * u64::from(load.cohort) + 1;
        let needed = 4 * job.layout().len() as u64 * models + job.update_bytes() * updates;
        let disk =
            rustix::fs::statvfs(folder).with_context(|| format!("cannot look at {}", folder.display()))?;
        let free = disk.f_bavail * disk.f_frsize;
        if needed > free {
            return Err(bad_input(format!(
                "this needs up to {} of disk, {} has {} free: take fewer --clients, --rounds or --params, add --fetched \
                 memory, or name a folder on a larger disk with --dir",
                size(needed),
                folder.display(),
                size(free)
            )));
        }
        Ok(())
    }

    async fn set(
        &self,
        root: &Path,
        programs: &Programs,
        job: &Job,
        load: &Load,
        screen: Screen,
    ) -> Result<Stage> {
        let dir = root.join("deployment");
        make(&dir, "bench", programs).await?;
        if self.durability == Durability::Process {
            set_durability(&dir)?;
        }
        let mut fleet = Fleet::new(programs.clone());
        let mut connection = start_server(&dir, &mut fleet).await?;
        let server = fleet.ids().first().map(|(_, pid)| *pid).context("the server has ended")?;
        let invitation = Invitation {
            role: ClientRole::Trainer,
            name: None,
            uses: load.clients,
            lifetime: Span::seconds(3600),
        };
        let token = token::create(&mut connection, &invitation).await?.token;
        let ca = dir.join("operator/ca.crt");
        let ca = std::fs::read_to_string(&ca).with_context(|| format!("cannot read {}", ca.display()))?;
        let folder = root.join("models");
        std::fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let update = Recipe::new(job, root)?;
        let plan = |first, clients| Plan {
            token: token.clone(),
            ca: ca.clone(),
            first,
            clients,
            folder: folder.clone(),
            fetched: self.fetched,
            update: update.clone(),
            count_from: load.count_from,
        };
        let mut crowds = match load.place {
            Place::Here => Crowds::here(plan(1, load.clients)),
            Place::Processes(n) => {
                let plans = shares(load.clients, n).map(|(first, clients)| plan(first, clients)).collect();
                Crowds::processes(plans, programs).await?
            }
        };
        let ready = tokio::select! {
            ready = crowds.ready() => ready?,
            gone = fleet.first_gone() => return Err(gone),
        };
        screen.progress(&screen.paint.dim(&format!(
            "{} clients enrolled in {:.1} s, connected in {:.1} s",
            load.clients, ready.enrol_s, ready.connect_s
        )))?;
        let watch = Watch::new(server, crowds.pids().to_vec());
        Ok(Stage { fleet, connection, crowds, ready, watch })
    }
}

impl Stage {
    /// Does something, unless the coordinator or the clients end before.
    ///
    /// # Errors
    /// What the work returns; what ended.
    pub(super) async fn unless_broken<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = work => done,
            gone = self.fleet.first_gone() => Err(gone),
            broke = self.crowds.broke() => Err(broke),
        }
    }

    /// Clears the stage; gives the bytes that went over the clients' connections since the count began.
    ///
    /// # Errors
    /// If the clients cannot say.
    pub(super) async fn clear(self) -> Result<u64> {
        let bytes = self.crowds.stop().await;
        self.fleet.stop().await;
        bytes
    }
}

/// `clients` numbered from 1 in `n` runs that differ by one at most.
fn shares(clients: u32, n: u32) -> impl Iterator<Item = (u32, u32)> {
    let n = n.clamp(1, clients);
    (0..n).map(move |i| {
        let begin = |i: u32| (u64::from(clients) * u64::from(i) / u64::from(n)) as u32;
        (begin(i) + 1, begin(i + 1) - begin(i))
    })
}

/// Sets `[storage] durability` in a deployment's `server.toml`.
fn set_durability(dir: &Path) -> Result<()> {
    let file = dir.join("server.toml");
    let cannot = || format!("cannot change {}", file.display());
    let mut config: toml::Table = toml::from_str(&std::fs::read_to_string(&file).with_context(cannot)?)?;
    let storage = config.entry("storage").or_insert_with(|| toml::Table::new().into());
    let storage = storage.as_table_mut().with_context(cannot)?;
    storage.insert("durability".into(), "process".into());
    std::fs::write(&file, toml::to_string(&config)?).with_context(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_a_place() {
        let all = |clients, n| shares(clients, n).collect::<Vec<_>>();
        assert_eq!(all(5, 2), [(1, 2), (3, 3)]);
        assert_eq!(all(2, 9), [(1, 1), (2, 1)]);
        assert_eq!(all(7, 0), [(1, 7)]);
        assert_eq!(all(20_000, 32).iter().map(|(_, n)| n).sum::<u32>(), 20_000);
    }
}
