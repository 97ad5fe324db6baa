//! `[trainer]`: how training runs, and with whose program.

use crate::pause::PauseSettings;
use crate::sandbox::Network;
use crate::usage;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;
use undertone_core::device::DeviceChoice;
use undertone_core::duration::Span;

/// How training runs.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainerSettings {
    /// CPU threads.
    pub threads: u32,
    /// Where to compute.
    pub device: DeviceChoice,
    /// The trainer program; `None`: `undertone-trainer` beside this program, else on the search path.
    pub program: Option<PathBuf>,
    /// How long the trainer's process stays without work.
    pub idle: Duration,
    /// How often training keeps its state on the disk, against a kill.
    pub checkpoint_every: Duration,
    /// How much the trainer's process gives way to others: 0 (not at all) to 19.
    pub niceness: i32,
    /// Most memory of the trainer, in bytes. `None`: three quarters of the machine's.
    pub max_memory_bytes: Option<u64>,
    /// When training waits.
    pub pause: PauseSettings,
    /// The owner's own training program, in place of the built-in trainer.
    pub command: Option<CommandSettings>,
}

/// A training program of the owner's.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandSettings {
    /// The program and its arguments. A program without `/` is looked for in the client's folder, then on the search path;
    /// arguments that name a file in the client's folder are made absolute.
    pub command: Vec<String>,
    /// What it can do.
    pub does: Vec<Mode>,
    /// Whether it may use the network.
    pub network: Network,
    /// Variables of the client's environment that it gets, besides the usual ones.
    pub environment: Vec<String>,
    /// How long one call may take, pauses left out.
    pub max_time: Duration,
    /// Bytes that it may write in one call, besides model and update.
    pub max_disk_bytes: u64,
}

/// One thing that a training program can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Train a round.
    Train,
    /// Measure a model.
    Evaluate,
    /// Look at the data.
    Inspect,
}

const MAX_THREADS: u32 = 1024;
const MAX_NICENESS: i32 = 19;
/// A trainer cannot even load in less.
const MIN_MEMORY_MIB: u64 = 64;
const MAX_MIB: u64 = 1 << 30;
const MAX_TIME: Duration = Duration::from_secs(3600);
const MAX_DISK_MIB: u64 = 4096;

impl Default for TrainerSettings {
    fn default() -> Self {
        Self {
            threads: 1,
            device: DeviceChoice::default(),
            program: None,
            idle: Duration::from_secs(30),
            checkpoint_every: Duration::from_secs(60),
            niceness: 0,
            max_memory_bytes: None,
            pause: PauseSettings::default(),
            command: None,
        }
    }
}

impl CommandSettings {
    /// This command with defaults for the rest: it only trains, without network, for at most an hour.
    pub fn new(command: Vec<String>) -> Self {
        Self {
            command,
            does: vec![Mode::Train],
            network: Network::Cut,
            environment: vec![],
            max_time: MAX_TIME,
            max_disk_bytes: MAX_DISK_MIB << 20,
        }
    }
}

/// The table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TrainerTable {
    threads: Option<u32>,
    device: Option<String>,
    program: Option<PathBuf>,
    checkpoint_every: Option<Span>,
    niceness: Option<i32>,
    max_memory_mib: Option<u64>,
    pause: Option<PauseTable>,
    command: Option<Vec<String>>,
    does: Option<Vec<Mode>>,
    network: Option<Network>,
    environment: Option<Vec<String>>,
    max_time: Option<Span>,
    max_disk_mib: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PauseTable {
    #[serde(default)]
    on_battery: bool,
    load_above: Option<f64>,
    typed_within: Option<Span>,
    command: Option<Vec<String>>,
    check_every: Option<Span>,
    give_up_after: Option<Span>,
}

impl TrainerTable {
    /// Checks the table; `absolute` makes paths absolute.
    ///
    /// # Errors
    /// A sentence that names the key.
    pub(super) fn settings(self, absolute: impl Fn(PathBuf) -> PathBuf) -> Result<TrainerSettings, String> {
        let command = self.command_settings()?;
        let defaults = TrainerSettings::default();
        let threads = self.threads.unwrap_or(defaults.threads);
        if threads == 0 || threads > MAX_THREADS {
            return Err(format!("[trainer] threads must be 1 to {MAX_THREADS}, not {threads}"));
        }
        let device = match &self.device {
            Some(text) => text.parse::<DeviceChoice>().map_err(|e| format!("[trainer] device: {e}"))?,
            None => defaults.device,
        };
        let checkpoint_every = self.checkpoint_every.unwrap_or(Span(defaults.checkpoint_every));
        if checkpoint_every < Span::seconds(1) {
            return Err("[trainer] checkpoint_every must be at least \"1s\"".into());
        }
        Ok(TrainerSettings {
            threads,
            device,
            program: self.program.map(absolute),
            idle: defaults.idle,
            checkpoint_every: checkpoint_every.0,
            niceness: niceness(self.niceness.unwrap_or(0))?,
            max_memory_bytes: self.max_memory_mib.map(memory).transpose()?,
            pause: self.pause.unwrap_or_default().settings()?,
            command,
        })
    }

    fn command_settings(&self) -> Result<Option<CommandSettings>, String> {
        let Some(command) = &self.command else {
            let without = [
                ("does", self.does.is_some()),
                ("network", self.network.is_some()),
                ("environment", self.environment.is_some()),
                ("max_time", self.max_time.is_some()),
                ("max_disk_mib", self.max_disk_mib.is_some()),
            ];
            return match without.iter().find(|(_, given)| *given) {
                Some((key, _)) => Err(format!(
                    "[trainer] {key} is for a training program of your own: give [trainer] command, or remove it"
                )),
                None => Ok(None),
            };
        };
        if command.first().is_none_or(String::is_empty) {
            return Err(
                "[trainer] command must name a program, for example [\"python3\", \"train.py\"]".into()
            );
        }
        if self.program.is_some() {
            return Err(
                "[trainer] has program (the built-in trainer's) and command (your own): remove one".into()
            );
        }
        let defaults = CommandSettings::new(command.clone());
        let does = self.does.clone().unwrap_or(defaults.does);
        if does.is_empty() {
            return Err(
                "[trainer] does must name one of \"train\", \"evaluate\" and \"inspect\" at least".into()
            );
        }
        let environment = self.environment.clone().unwrap_or_default();
        if let Some(name) = environment.iter().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
            return Err(format!("[trainer] environment lists names of variables, and \"{name}\" is none"));
        }
        let disk = match self.max_disk_mib {
            Some(mib) if (1..=MAX_MIB).contains(&mib) => mib << 20,
            Some(mib) => return Err(format!("[trainer] max_disk_mib must be 1 to {MAX_MIB}, not {mib}")),
            None => defaults.max_disk_bytes,
        };
        Ok(Some(CommandSettings {
            command: defaults.command,
            does,
            network: self.network.unwrap_or_default(),
            environment,
            max_time: self.max_time.map_or(defaults.max_time, |span| span.0),
            max_disk_bytes: disk,
        }))
    }
}

impl PauseTable {
    fn settings(self) -> Result<PauseSettings, String> {
        if let Some(load) = self.load_above.filter(|l| !(l.is_finite() && *l >= 0.0)) {
            return Err(format!("[trainer] pause: load_above must be a number of at least 0, not {load}"));
        }
        if self.command.as_ref().is_some_and(|c| c.first().is_none_or(String::is_empty)) {
            return Err("[trainer] pause: command must name a program".into());
        }
        let defaults = PauseSettings::default();
        Ok(PauseSettings {
            on_battery: self.on_battery,
            load_above: self.load_above,
            typed_within: self.typed_within.map(|span| span.0),
            command: self.command,
            check_every: self.check_every.map_or(defaults.check_every, |span| span.0),
            give_up_after: self.give_up_after.map_or(defaults.give_up_after, |span| span.0),
        })
    }
}

impl TrainerSettings {
    /// Most memory of the trainer, in bytes; `None` where the system does not tell how much there is.
    pub(crate) fn memory_bound(&self) -> Option<u64> {
        self.max_memory_bytes.or_else(usage::memory_share)
    }

    /// Takes what the command line says in place of the file.
    ///
    /// # Errors
    /// A sentence that names the value.
    pub fn override_with(
        &mut self,
        threads: Option<u32>,
        niceness_: Option<i32>,
        max_memory_mib: Option<u64>,
    ) -> Result<(), String> {
        if let Some(threads) = threads {
            self.threads = threads;
        }
        if let Some(n) = niceness_ {
            self.niceness = niceness(n)?;
        }
        if let Some(mib) = max_memory_mib {
            self.max_memory_bytes = Some(memory(mib)?);
        }
        Ok(())
    }
}

fn niceness(n: i32) -> Result<i32, String> {
    match n {
        0..=MAX_NICENESS => Ok(n),
        _ => {
            Err(format!("[trainer] niceness must be 0 (as other programs) to {MAX_NICENESS} (last), not {n}"))
        }
    }
}

fn memory(mib: u64) -> Result<u64, String> {
    match mib {
        MIN_MEMORY_MIB..=MAX_MIB => Ok(mib << 20),
        _ => Err(format!("[trainer] max_memory_mib must be {MIN_MEMORY_MIB} to {MAX_MIB}, not {mib}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<TrainerSettings, String> {
        let table: TrainerTable = undertone_core::config::parse_toml(text, "t").map_err(|e| e.to_string())?;
        table.settings(|path| std::path::Path::new("/c").join(path))
    }

    #[test]
    fn a_command_has_defaults_and_all_can_be_set() {
        let bare = parse("command = [\"python3\", \"train.py\"]").unwrap().command.unwrap();
        assert_eq!(bare, CommandSettings::new(vec!["python3".into(), "train.py".into()]));
        let all = parse(
            "command = [\"./t\"]\ndoes = [\"train\", \"evaluate\", \"inspect\"]\nnetwork = \"cut-or-refuse\"\n\
             environment = [\"LD_LIBRARY_PATH\"]\nmax_time = \"90s\"\nmax_disk_mib = 5\nmax_memory_mib = 512\nniceness = 10\n\
             pause = { on_battery = true, load_above = 1.5, typed_within = \"5m\", command = [\"busy\"], check_every = \"1s\", \
             give_up_after = \"1h\" }",
        )
        .unwrap();
        let command = all.command.unwrap();
        assert_eq!(command.does, [Mode::Train, Mode::Evaluate, Mode::Inspect]);
        assert_eq!((command.network, command.max_disk_bytes), (Network::CutOrRefuse, 5 << 20));
        assert_eq!(command.max_time, Duration::from_secs(90));
        assert_eq!((all.max_memory_bytes, all.niceness), (Some(512 << 20), 10));
        assert_eq!(all.pause.conditions(1).len(), 4);
        assert_eq!(all.pause.give_up_after, Duration::from_secs(3600));
        assert_eq!(parse("").unwrap(), TrainerSettings::default());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, says) in [
            ("threads = 0", "threads"),
            ("device = \"gpu\"", "cuda:0"),
            // What the trainer would not take.
            ("device = \"cuda:300\"", "cuda:300"),
            ("device = \"cuda:+1\"", "cuda:+1"),
            ("niceness = -5", "niceness"),
            ("niceness = 20", "niceness"),
            ("max_memory_mib = 3", "max_memory_mib"),
            ("command = []", "python3"),
            ("command = [\"\"]", "python3"),
            ("command = [\"t\"]\nprogram = \"p\"", "remove one"),
            ("command = [\"t\"]\ndoes = []", "\"evaluate\""),
            ("command = [\"t\"]\ndoes = [\"dance\"]", "dance"),
            ("command = [\"t\"]\nenvironment = [\"A=B\"]", "A=B"),
            ("command = [\"t\"]\nmax_time = \"90\"", "90s"),
            ("command = [\"t\"]\nmax_disk_mib = 0", "max_disk_mib"),
            ("network = \"open\"", "[trainer] network is for a training program of your own"),
            ("max_time = \"1h\"", "max_time"),
            ("pause = { load_above = -1.0 }", "load_above"),
            ("pause = { command = [] }", "pause"),
            ("pause = { on_batery = true }", "on_battery"),
        ] {
            let e = parse(text).unwrap_err();
            assert!(e.contains(says), "{text}: {e}");
        }
    }

    #[test]
    fn the_command_line_is_checked_like_the_file() {
        let mut settings = TrainerSettings::default();
        settings.override_with(Some(3), Some(5), Some(100)).unwrap();
        assert_eq!((settings.threads, settings.niceness), (3, 5));
        assert_eq!(settings.max_memory_bytes, Some(100 << 20));
        assert!(settings.override_with(None, Some(-1), None).is_err());
        settings.override_with(None, None, None).unwrap();
        assert_eq!(settings.threads, 3);
    }
}
