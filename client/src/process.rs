//! The trainer's process: started when there is work, ended when there has been none for a while.
//!
//! libtorch lives there and not here, so an idle client stays small, and a crash in it costs one attempt.

use crate::config::TrainerSettings;
use crate::output::Output;
use crate::pause::Pauses;
use crate::process_group::Group;
use crate::sandbox::{give_way, limit};
use crate::trainer_thread::Interrupt;
use crate::watch::{Bounds, Watch};
use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use undertone_core::data_files::DataFiles;
use undertone_core::device::DeviceChoice;
use undertone_core::schema::DataContract;
use undertone_core::trainer::{
    BoundedSums, DataReport, EvaluationTask, LocalUpdate, Metrics, TrainTask, Trainer, TrainerError,
};
use undertone_core::trainer_protocol::{Baseline, BaselineTask, OnProgress, PipeTrainer};

/// The name of the trainer program.
const PROGRAM: &str = if cfg!(windows) { "undertone-trainer.exe" } else { "undertone-trainer" };
/// How long a trainer that was told to leave may take.
const LEAVE: Duration = Duration::from_secs(3);

/// A [`Trainer`] in a process of its own.
pub struct ProcessTrainer {
    settings: TrainerSettings,
    data: DataFiles,
    running: Option<Running>,
    group: Group,
    interrupt: Interrupt,
    pauses: Pauses,
    on_progress: Option<OnProgress>,
}

struct Running {
    trainer: PipeTrainer<ChildStdout, ChildStdin>,
    messages: Output,
}

impl ProcessTrainer {
    /// A trainer for these files (a path: one CSV file). Nothing is started yet.
    pub fn new(settings: TrainerSettings, data: impl Into<DataFiles>) -> Self {
        let group = Group::default();
        let ends = group.clone();
        Self {
            pauses: Pauses::new(&settings.pause, settings.threads),
            settings,
            data: data.into(),
            running: None,
            group,
            interrupt: Interrupt::new(move || ends.kill()),
            on_progress: None,
        }
    }

    /// Lets `listener` hear how far training has come.
    #[must_use]
    pub fn on_progress(mut self, listener: OnProgress) -> Self {
        self.on_progress = Some(listener);
        self
    }

    /// Kills the process; the call that waits for it then fails, and so do others until the next request begins, which
    /// starts it anew.
    pub fn interrupt(&self) -> Interrupt {
        self.interrupt.clone()
    }

    /// Trains and measures the job's model without privacy on local files.
    ///
    /// # Errors
    /// See [`TrainerError`].
    pub fn baseline(&mut self, task: &BaselineTask) -> Result<Baseline, TrainerError> {
        self.ask(|trainer| trainer.baseline(task))
    }

    fn ask<T>(
        &mut self,
        question: impl FnOnce(&mut PipeTrainer<ChildStdout, ChildStdin>) -> Result<T, TrainerError>,
    ) -> Result<T, TrainerError> {
        // It may have been killed while nothing was asked of it.
        if self.running.is_some() && !matches!(self.group.try_wait(), Ok(None)) {
            self.end();
        }
        if self.interrupt.is_given_up() {
            // It was killed and may not be gone yet: nothing is asked of it any more.
            self.end();
            return Err(TrainerError::Broken("it is not asked, as nobody waits for it any more".into()));
        }
        if self.running.is_none() {
            self.running = Some(self.start()?);
        }
        let Running { trainer, messages } = self.running.as_mut().expect("it was just started");
        messages.begin_call();
        let bounds = Bounds { memory_bytes: self.settings.memory_bound(), ..Bounds::default() };
        let watch = Watch::begin(self.group.clone(), bounds, self.pauses.clone());
        let mut answer = question(trainer);
        let verdict = watch.end();
        if matches!(answer, Err(TrainerError::Broken(_))) || verdict.is_some() {
            let last = self.end();
            if verdict.is_none() && !last.is_empty() && !self.interrupt.is_given_up() {
                tracing::warn!("the trainer's process broke; it wrote at the end: {}", last.join(" / "));
            }
        }
        if let (Err(_), Some(verdict)) = (&answer, verdict) {
            answer = Err(verdict);
        }
        answer
    }

    /// Ends the process at once. What it wrote is told before what came of it; the last lines are given back.
    fn end(&mut self) -> Vec<String> {
        let Some(Running { trainer, messages }) = self.running.take() else { return vec![] };
        drop(trainer);
        self.group.reap(Duration::ZERO);
        messages.end()
    }

    fn start(&self) -> Result<Running, TrainerError> {
        let program = find(self.settings.program.as_deref()).map_err(TrainerError::Broken)?;
        let mut child = Command::new(&program)
            .arg("--data")
            .arg(&self.data.path)
            .args(self.data.labels.iter().flat_map(|labels| [OsStr::new("--labels"), labels.as_os_str()]))
            .arg("--threads")
            .arg(self.settings.threads.to_string())
            .arg("--device")
            .arg(self.settings.device.to_string())
            .envs(KEPT_MEMORY.iter().filter(|(name, _)| std::env::var_os(name).is_none()).copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|e| TrainerError::Broken(format!("cannot start {}: {e}", program.display())))?;
        tracing::debug!(program = %program.display(), pid = child.id(), "the trainer's process has started");
        if let Err(e) = restrain(&child, &self.settings) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(e);
        }
        let pipes = child.stdout.take().zip(child.stdin.take());
        let messages = Output::of_trainer(child.stderr.take());
        // From here on it can be killed by others.
        self.group.hold(child);
        if self.interrupt.is_given_up() {
            self.group.kill();
        }
        let (from, to) = pipes.expect("both pipes were asked for");
        let mut trainer = match PipeTrainer::connect(from, to) {
            Ok(trainer) => trainer,
            Err(e) => {
                self.group.reap(Duration::ZERO);
                messages.end();
                return Err(e);
            }
        };
        let info = trainer.info();
        tracing::info!(
            device = info.device,
            libtorch = info.libtorch,
            why_no_cuda = info.why_no_cuda,
            "the trainer is ready"
        );
        if let Some(listener) = &self.on_progress {
            trainer.on_progress(Arc::clone(listener));
        }
        Ok(Running { trainer, messages })
    }
}

/// glibc's own variables, where nobody set them: what a step frees stays with the process for the next step, up to 64 MiB. The
/// system would clear every page of it anew, which is a third of what private steps over single gradients take. The process ends after the
/// round.
const KEPT_MEMORY: [(&str, &str); 2] =
    [("MALLOC_TRIM_THRESHOLD_", "67108864"), ("MALLOC_MMAP_THRESHOLD_", "33554432")];

impl Trainer for ProcessTrainer {
    fn inspect(&mut self, data: &DataContract) -> Result<DataReport, TrainerError> {
        // Each offer begins here: one that would have to wait is declined.
        self.pauses.may_begin()?;
        self.ask(|trainer| trainer.inspect(data))
    }

    fn train(&mut self, task: &TrainTask, weights: &[f32]) -> Result<LocalUpdate, TrainerError> {
        self.ask(|trainer| trainer.train(task, weights))
    }

    fn evaluate(&mut self, task: &EvaluationTask, weights: &[f32]) -> Result<Metrics, TrainerError> {
        self.ask(|trainer| trainer.evaluate(task, weights))
    }

    fn evaluate_bounded(
        &mut self,
        task: &EvaluationTask,
        max_loss: f64,
        weights: &[f32],
    ) -> Result<BoundedSums, TrainerError> {
        self.ask(|trainer| trainer.evaluate_bounded(task, max_loss, weights))
    }

    fn rest(&mut self) {
        if let Some(Running { trainer, messages }) = self.running.take() {
            // If it cannot be told, it is gone.
            let _ = trainer.quit();
            self.group.reap(LEAVE);
            messages.end();
            tracing::debug!("the trainer's process has ended");
        }
    }
}

impl Drop for ProcessTrainer {
    fn drop(&mut self) {
        self.rest();
        self.group.reap(Duration::ZERO);
    }
}

/// Sets what the owner has set on the trainer's process, before it has computed anything.
fn restrain(child: &std::process::Child, settings: &TrainerSettings) -> Result<(), TrainerError> {
    use rustix::process::{Pid, Resource};
    let pid = Some(Pid::from_child(child));
    let broken = |what: &str, e: rustix::io::Errno| {
        TrainerError::Broken(format!("cannot set the trainer's {what}: {e}"))
    };
    give_way(pid, settings.niceness).map_err(|e| broken("niceness", e))?;
    // A core file would hold rows and the keys of noise.
    limit(pid, Resource::Core, 0).map_err(|e| broken("limit on core files", e))?;
    // Allocations past it fail, which the trainer can answer; the watch ends what this limit does not hold.
    if let Some(bytes) = data_limit(settings, Path::new("/dev")) {
        limit(pid, Resource::Data, bytes).map_err(|e| broken("memory limit", e))?;
    }
    Ok(())
}

/// Most private memory of the process, as far as the system is to refuse more. What drivers map for themselves would count too, and how
/// much that is nobody says: where the process may use CUDA, only a limit that the owner set is kept so. (Devices of the usual driver, of
/// Windows' subsystem, and of boards with a GPU of their own.)
fn data_limit(settings: &TrainerSettings, devices: &Path) -> Option<u64> {
    let there = |name: &&str| devices.join(name).exists();
    let cuda = settings.device != DeviceChoice::Cpu && ["nvidiactl", "dxg", "nvmap"].iter().any(there);
    if cuda { settings.max_memory_bytes } else { settings.memory_bound() }
}

/// The trainer program: the one configured, else beside this program, else on the search path.
pub fn find(configured: Option<&Path>) -> Result<PathBuf, String> {
    if let Some(program) = configured {
        return if program.is_file() {
            Ok(program.to_owned())
        } else {
            Err(format!("there is no trainer program {}: correct [trainer] program", program.display()))
        };
    }
    let beside = beside(PROGRAM);
    let on_path = || {
        std::env::var_os("PATH")
            .and_then(|path| std::env::split_paths(&path).map(|dir| dir.join(PROGRAM)).find(|p| p.is_file()))
    };
    beside.or_else(on_path).ok_or_else(|| {
        format!(
            "{PROGRAM} is neither beside this program nor on the search path: install it there, or name it in \
             client.toml ([trainer] program = \"...\")"
        )
    })
}

/// The program of this name beside this one. Test binaries lie one folder below the programs that Cargo builds.
pub(crate) fn beside(name: &str) -> Option<PathBuf> {
    let exe = std::env::current_exe().ok()?;
    let real = exe.canonicalize().unwrap_or(exe);
    let dir = real.parent()?;
    let above = dir.parent().filter(|_| dir.ends_with("deps"));
    [Some(dir), above].into_iter().flatten().map(|d| d.join(name)).find(|p| p.is_file())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use undertone_core::trainer_protocol::{PROTOCOL_VERSION, Response, write_frame};

    const CONTRACT: &str = r#"{"label": {"column": "y", "classes": [{"name": "a", "values": ["0"]},
        {"name": "b", "values": ["1"]}]}, "columns": [{"name": "x", "kind": "number", "range": [0.0, 1.0]}]}"#;

    /// A trainer program that says hello, gives one report, and then does `then`; it counts its starts.
    fn fake(dir: &Path, then: &str) -> TrainerSettings {
        let mut bytes = Vec::new();
        let hello = Response::Hello {
            version: PROTOCOL_VERSION,
            device: "cpu".into(),
            libtorch: "0".into(),
            why_no_cuda: None,
        };
        write_frame(&mut bytes, &hello, &[]).unwrap();
        let report = DataReport { rows: 7, class_rows: vec![3, 4], ..DataReport::default() };
        write_frame(&mut bytes, &Response::Report(report), &[]).unwrap();
        std::fs::write(dir.join("answers"), bytes).unwrap();
        let program = dir.join("fake-trainer");
        let script =
            format!("#!/bin/sh\ncd '{}'\necho x >> starts\nenv > seen\ncat answers\n{then}\n", dir.display());
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        TrainerSettings { program: Some(program), ..TrainerSettings::default() }
    }

    fn starts(dir: &Path) -> usize {
        std::fs::read_to_string(dir.join("starts")).unwrap_or_default().lines().count()
    }

    #[test]
    fn it_starts_when_asked_and_leaves_when_resting() {
        let dir = tempfile::tempdir().unwrap();
        let mut trainer = ProcessTrainer::new(fake(dir.path(), "exec cat >/dev/null"), "d.csv");
        assert_eq!(starts(dir.path()), 0);
        let contract: DataContract = serde_json::from_str(CONTRACT).unwrap();
        assert_eq!(trainer.inspect(&contract).unwrap().rows, 7);
        assert!(trainer.group.id().is_some());
        trainer.rest();
        assert!(trainer.group.id().is_none());
        assert_eq!(trainer.inspect(&contract).unwrap().rows, 7);
        assert_eq!(starts(dir.path()), 2);
    }

    #[test]
    fn what_it_frees_stays_with_it_unless_the_owner_says_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let mut trainer = ProcessTrainer::new(fake(dir.path(), "exec cat >/dev/null"), "d.csv");
        trainer.inspect(&serde_json::from_str(CONTRACT).unwrap()).unwrap();
        trainer.rest();
        let seen = std::fs::read_to_string(dir.path().join("seen")).unwrap();
        for (name, ours) in KEPT_MEMORY {
            let value = std::env::var(name).unwrap_or_else(|_| ours.into());
            assert!(
                seen.lines().any(|line| line == format!("{name}={value}")),
                "{name}={value} not in {seen}"
            );
        }
    }

    /// A line of `/proc/PID/limits`: the soft and the hard limit.
    #[cfg(target_os = "linux")]
    fn limits(pid: u32, name: &str) -> [String; 2] {
        let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let mut words = line.split_whitespace().map(str::to_owned);
        [words.next().unwrap(), words.next().unwrap()]
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_its_owner_sets_is_set_on_the_process() {
        use rustix::process::{Resource, getpriority_process, getrlimit};
        let dir = tempfile::tempdir().unwrap();
        let contract: DataContract = serde_json::from_str(CONTRACT).unwrap();
        let all = crate::usage::memory_share().unwrap();
        for (max_memory_bytes, expected) in [(Some(512 << 20), 512 << 20), (None, all)] {
            let settings = TrainerSettings {
                niceness: 11,
                max_memory_bytes,
                device: DeviceChoice::Cpu,
                ..fake(dir.path(), "exec cat >/dev/null")
            };
            let mut trainer = ProcessTrainer::new(settings, "d.csv");
            trainer.inspect(&contract).unwrap();
            let pid = trainer.group.id().unwrap();
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            // The nineteenth field; the second is the name.
            let nice: i32 =
                stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().parse().unwrap();
            assert_eq!(nice, getpriority_process(None).unwrap().max(11));
            let bytes = getrlimit(Resource::Data).maximum.map_or(expected, |most| most.min(expected));
            assert_eq!(limits(pid, "Max data size"), [bytes.to_string(), bytes.to_string()]);
            // No core file, whatever the owner sets.
            assert_eq!(limits(pid, "Max core file size"), ["0", "0"]);
        }
    }

    #[test]
    fn only_a_limit_of_the_owners_is_the_systems_where_there_may_be_cuda() {
        let devices = tempfile::tempdir().unwrap();
        let limit = |device: &str, max_memory_bytes| {
            let device = device.parse().unwrap();
            let settings = TrainerSettings { device, max_memory_bytes, ..TrainerSettings::default() };
            data_limit(&settings, devices.path())
        };
        let share = crate::usage::memory_share();
        for device in ["auto", "cpu", "cuda:0"] {
            assert_eq!((limit(device, None), limit(device, Some(7))), (share, Some(7)));
        }
        std::fs::write(devices.path().join("nvidiactl"), "").unwrap();
        for (device, unset) in [("auto", None), ("cpu", share), ("cuda:0", None)] {
            assert_eq!((limit(device, None), limit(device, Some(7))), (unset, Some(7)));
        }
    }

    #[test]
    fn a_dead_process_fails_the_call_and_the_next_call_starts_another() {
        let dir = tempfile::tempdir().unwrap();
        let mut trainer = ProcessTrainer::new(fake(dir.path(), "exec sleep 600"), "d.csv");
        let contract: DataContract = serde_json::from_str(CONTRACT).unwrap();
        trainer.inspect(&contract).unwrap();
        let interrupt = trainer.interrupt();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            interrupt.give_up();
        });
        assert!(matches!(trainer.inspect(&contract), Err(TrainerError::Broken(_))));
        killer.join().unwrap();
        trainer.interrupt().begin();
        assert_eq!(trainer.inspect(&contract).unwrap().rows, 7);
        assert_eq!(starts(dir.path()), 2);
    }

    #[test]
    fn what_is_given_up_before_the_process_is_asked_starts_none_and_the_next_request_does() {
        let dir = tempfile::tempdir().unwrap();
        let mut trainer = ProcessTrainer::new(fake(dir.path(), "exec cat >/dev/null"), "d.csv");
        let contract: DataContract = serde_json::from_str(CONTRACT).unwrap();
        let interrupt = trainer.interrupt();
        interrupt.give_up();
        let e = trainer.inspect(&contract).unwrap_err();
        assert!(matches!(&e, TrainerError::Broken(why) if why.contains("nobody waits")), "{e}");
        assert_eq!(starts(dir.path()), 0);
        interrupt.begin();
        assert_eq!(trainer.inspect(&contract).unwrap().rows, 7);
        // While a model was read the process was killed, and nothing was asked of it.
        interrupt.give_up();
        // As the trainer's thread does, however long a killed process takes to die.
        trainer.rest();
        interrupt.begin();
        assert_eq!(trainer.inspect(&contract).unwrap().rows, 7);
        assert_eq!(starts(dir.path()), 2);
    }

    #[test]
    fn a_missing_program_is_named() {
        let settings = TrainerSettings { program: Some("/no/such".into()), ..TrainerSettings::default() };
        let contract: DataContract = serde_json::from_str(CONTRACT).unwrap();
        let e = ProcessTrainer::new(settings, "d.csv").inspect(&contract).unwrap_err();
        assert!(e.to_string().contains("/no/such") && e.to_string().contains("[trainer] program"), "{e}");
    }
}
