//! A [`Trainer`] that is a program of the data owner's, in any language and framework.
//!
//! For each call the client makes a fresh folder that only its user can enter, writes the task (and the model's values)
//! into it, runs the program there within the walls of [`crate::sandbox`], and reads what it wrote. What leaves the machine
//! is made here as always: the change of the values is clipped, put on the grid, noised and sent by the same code, whoever
//! trained. [`files`] says what lies in the folder.
//!
//! A record-level contract is refused: it promises that each row's gradient was clipped before noise was added, and nobody
//! could say that of a program that is not ours.

mod files;
#[cfg(test)]
mod tests;

use crate::config::{CommandSettings, Mode, TrainerSettings};
use crate::folder::ClientFolder;
use crate::output::Output;
use crate::pause::Pauses;
use crate::process;
use crate::process_group::Group;
use crate::progress::OnProgress;
use crate::sandbox::{Network, Outcome, Plan, SANDBOXED};
use crate::trainer_thread::Interrupt;
use crate::watch::{Bounds, MAX_PROCESSES, Watch};
use files::{Ask, Site, Work};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use undertone_core::data_files::DataFiles;
use undertone_core::schema::DataContract;
use undertone_core::trainer::{
    BoundedSums, DataReport, EvaluationTask, LocalUpdate, Metrics, ProgramFault, TrainTask, Trainer,
    TrainerError,
};

/// This program, which walls the data owner's program in.
const LAUNCHER: &str = "undertone-client";
/// Variables of the client's environment that the program gets too.
const KEPT_VARIABLES: [&str; 10] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "VIRTUAL_ENV",
    "CUDA_VISIBLE_DEVICES",
];

/// See the module.
pub struct CommandTrainer {
    settings: TrainerSettings,
    command: CommandSettings,
    folder: ClientFolder,
    data: DataFiles,
    group: Group,
    interrupt: Interrupt,
    pauses: Pauses,
    /// Why the system gives no namespaces, once that is known.
    no_namespaces: Option<String>,
    on_progress: Option<OnProgress>,
}

impl CommandTrainer {
    /// A trainer that runs `command` on `data` (a path: one file or folder), with folders of its own in `folder`. Nothing is started yet.
    pub fn new(
        settings: TrainerSettings,
        command: CommandSettings,
        folder: ClientFolder,
        data: impl Into<DataFiles>,
    ) -> Self {
        let group = Group::default();
        let ends = group.clone();
        Self {
            pauses: Pauses::new(&settings.pause, settings.threads),
            settings,
            command,
            folder,
            data: data.into(),
            group,
            interrupt: Interrupt::new(move || ends.kill()),
            no_namespaces: None,
            on_progress: None,
        }
    }

    /// Lets `listener` hear of the lines `undertone: step N of M` in the program's output.
    #[must_use]
    pub fn on_progress(mut self, listener: OnProgress) -> Self {
        self.on_progress = Some(listener);
        self
    }

    /// Ends the program; the call that waits for it then fails, and so do others until the next request begins.
    pub fn interrupt(&self) -> Interrupt {
        self.interrupt.clone()
    }

    fn does(&self, mode: Mode) -> bool {
        self.command.does.contains(&mode)
    }

    /// Runs the program on one task; gives the folder in which it left its answer.
    fn run(&mut self, ask: &Ask<'_>, weights: &[f32]) -> Result<Work, TrainerError> {
        if self.interrupt.is_given_up() {
            return Err(unwanted());
        }
        self.pauses.may_begin()?;
        let device = self.settings.device.to_string();
        let site = Site { data: &self.data, threads: self.settings.threads, device: &device };
        let work = Work::create(&self.folder.work(), &site, ask, weights)?;
        let outcome = loop {
            match self.run_in(&work, weights.len() as u64 * 4)? {
                Outcome::NoNamespaces { why } if self.command.network == Network::CutOrRefuse => {
                    return Err(fault(
                        ProgramFault::NotStarted,
                        format!("its network cannot be cut ([trainer] network = \"cut-or-refuse\"): {why}"),
                    ));
                }
                Outcome::NoNamespaces { why } if self.no_namespaces.is_none() => {
                    let network = self.command.network == Network::Cut;
                    tracing::warn!(
                        why,
                        "the training program runs without namespaces{}: what it starts outside its process group is not ended \
                         with it",
                        if network { ", so its network is NOT cut" } else { "" }
                    );
                    self.no_namespaces = Some(why);
                }
                outcome => break outcome,
            }
        };
        match outcome {
            Outcome::Exit { status: 0 } => Ok(work),
            Outcome::Exit { status } => Err(fault(
                ProgramFault::Exit,
                format!("it ended with status {status}; its last lines are above"),
            )),
            Outcome::Signal { signal } => {
                Err(fault(ProgramFault::Killed, format!("signal {signal} ended it")))
            }
            Outcome::NotStarted { why } | Outcome::NoNamespaces { why } => {
                Err(fault(ProgramFault::NotStarted, why))
            }
        }
    }

    /// Runs the program once, watched.
    fn run_in(&mut self, work: &Work, model_bytes: u64) -> Result<Outcome, TrainerError> {
        let broken = |what: &str, e: &dyn std::fmt::Display| {
            TrainerError::Broken(format!("the training program: {what}: {e}"))
        };
        let launcher = process::beside(LAUNCHER).ok_or_else(|| {
            TrainerError::Broken(format!(
                "{LAUNCHER}, which walls the training program in, is not beside this program"
            ))
        })?;
        let plan = self.plan(work, model_bytes)?;
        let bounds = Bounds {
            time: Some(self.command.max_time),
            memory_bytes: plan.memory_bytes,
            disk: Some((work.files().to_owned(), plan.file_bytes)),
            processes: Some(MAX_PROCESSES),
        };
        work.write_plan(&plan).map_err(|e| broken("cannot write its plan", &e))?;
        let mut child = Command::new(launcher)
            .arg(SANDBOXED)
            .arg("enter")
            .arg(work.plan())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|e| broken("cannot start", &e))?;
        tracing::debug!(pid = child.id(), program = %plan.program.display(), "the training program has started");
        let pipes = (child.stdout.take(), child.stderr.take());
        self.group.hold(child);
        // It may have been given up before there was anything to end.
        if self.interrupt.is_given_up() {
            self.group.kill();
        }
        let output = Output::of_program(pipes, self.on_progress.clone());
        let watch = Watch::begin(self.group.clone(), bounds, self.pauses.clone());
        let ended = self.group.wait();
        let verdict = watch.end();
        // What it wrote is told before what came of it.
        output.end();
        if let Some(verdict) = verdict {
            return Err(verdict);
        }
        ended.map_err(|e| broken("cannot wait for it", &e))?;
        if self.interrupt.is_given_up() {
            return Err(unwanted());
        }
        work.outcome().map_err(|e| {
            fault(ProgramFault::Killed, format!("it was killed with the process that waited for it ({e})"))
        })
    }

    fn plan(&self, work: &Work, model_bytes: u64) -> Result<Plan, TrainerError> {
        let (program, arguments) =
            self.command.command.split_first().ok_or_else(|| {
                fault(ProgramFault::NotStarted, "[trainer] command names no program".into())
            })?;
        // A name is looked for on the search path, anything else from the client's folder on.
        let program = match program.contains('/') {
            true => self.folder.dir().join(program),
            false => self.in_folder(program).unwrap_or_else(|| PathBuf::from(program)),
        };
        let arguments = arguments.iter().map(|argument| match self.in_folder(argument) {
            Some(path) => path.to_string_lossy().into_owned(),
            None => argument.clone(),
        });
        Ok(Plan {
            program,
            arguments: arguments.collect(),
            environment: self.environment(work),
            dir: work.files().to_owned(),
            namespaces: self.no_namespaces.is_none(),
            network: self.command.network,
            memory_bytes: self.settings.memory_bound(),
            // The values that it was given and those that it gives back lie there too.
            file_bytes: self.command.max_disk_bytes.saturating_add(model_bytes.saturating_mul(3)),
            niceness: self.settings.niceness,
            outcome: work.outcome_path(),
            client: std::process::id(),
        })
    }

    /// A file of the client's folder by this name, as an absolute path: the program runs elsewhere.
    fn in_folder(&self, name: &str) -> Option<PathBuf> {
        let path = self.folder.dir().join(name);
        path.is_file().then(|| std::path::absolute(&path).unwrap_or(path))
    }

    fn environment(&self, work: &Work) -> Vec<(String, String)> {
        let kept = KEPT_VARIABLES.iter().copied().chain(self.command.environment.iter().map(String::as_str));
        let mut all: Vec<(String, String)> =
            kept.filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?))).collect();
        let threads = self.settings.threads.to_string();
        for name in ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "UNDERTONE_THREADS"] {
            all.push((name.into(), threads.clone()));
        }
        let path = |path: &Path| path.to_string_lossy().into_owned();
        all.push(("UNDERTONE_DEVICE".into(), self.settings.device.to_string()));
        all.push(("UNDERTONE_TASK".into(), path(&work.task())));
        all.push(("TMPDIR".into(), path(&work.temporary())));
        // Lines come when they are written, not when the program ends.
        all.push(("PYTHONUNBUFFERED".into(), "1".into()));
        all
    }
}

fn fault(fault: ProgramFault, detail: String) -> TrainerError {
    TrainerError::Program { fault, detail: format!("the training program: {detail}") }
}

fn unwanted() -> TrainerError {
    TrainerError::Broken("the training program was ended, as nobody waits for it any more".into())
}

impl Trainer for CommandTrainer {
    fn inspect(&mut self, data: &DataContract) -> Result<DataReport, TrainerError> {
        // Each offer begins here: one that would have to wait is declined.
        self.pauses.may_begin()?;
        if !self.does(Mode::Inspect) {
            return undertone_data::inspect(self.data.clone(), data);
        }
        let ask = Ask { mode: Mode::Inspect, data, model: None, train: None, loss: None };
        self.run(&ask, &[])?.report(data)
    }

    fn train(&mut self, task: &TrainTask, weights: &[f32]) -> Result<LocalUpdate, TrainerError> {
        if task.record_privacy.is_some() {
            return Err(TrainerError::Unsupported(
                "a training program of the client's owner cannot take a record-level privacy contract: nobody could promise that \
                 it clips each row's gradient"
                    .into(),
            ));
        }
        let part = task.part()?;
        let (model, train) = (Some(&task.model), Some((task, &part)));
        let ask = Ask { mode: Mode::Train, data: &task.data, model, train, loss: None };
        self.run(&ask, weights)?.update(task, &part, weights)
    }

    fn evaluate(&mut self, task: &EvaluationTask, weights: &[f32]) -> Result<Metrics, TrainerError> {
        if !self.does(Mode::Evaluate) {
            return Err(TrainerError::Unsupported(
                "the client's training program does not measure models: add \"evaluate\" to [trainer] does once it can".into(),
            ));
        }
        let (model, loss) = (Some(&task.model), task.loss.as_ref());
        let ask = Ask { mode: Mode::Evaluate, data: &task.data, model, train: None, loss };
        self.run(&ask, weights)?.metrics(&task.data)
    }

    fn evaluate_bounded(
        &mut self,
        _: &EvaluationTask,
        _: f64,
        _: &[f32],
    ) -> Result<BoundedSums, TrainerError> {
        Err(TrainerError::Unsupported(
            "a training program of the client's owner cannot measure for a contract with [privacy] metrics: the noise rests on \
             what one row can move, and nobody could promise that for its sums"
                .into(),
        ))
    }
}

impl Drop for CommandTrainer {
    fn drop(&mut self) {
        self.group.reap(std::time::Duration::ZERO);
    }
}
