//! What is watched while a trainer's process works: its owner's bounds, and whether it is to wait.

use crate::pause::Pauses;
use crate::process_group::Group;
use crate::usage;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use undertone_core::trainer::{ProgramFault, TrainerError};

/// How often is looked.
const TICK: Duration = Duration::from_millis(200);
/// Most processes of one call.
pub(crate) const MAX_PROCESSES: usize = 512;

/// What one call may take. Past it, its processes are ended.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Bounds {
    /// Time, that of pauses left out.
    pub(crate) time: Option<Duration>,
    /// Memory of all its processes, in bytes.
    pub(crate) memory_bytes: Option<u64>,
    /// A folder, and the bytes that it may grow to.
    pub(crate) disk: Option<(PathBuf, u64)>,
    /// Processes. `None`: it is one that seldom starts others.
    pub(crate) processes: Option<usize>,
}

/// Watches one call from [`Watch::begin`] to [`Watch::end`].
pub(crate) struct Watch {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Option<TrainerError>>,
}

impl Watch {
    /// Starts to watch the processes of `group`.
    pub(crate) fn begin(group: Group, bounds: Bounds, pauses: Pauses) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        let span = tracing::Span::current();
        let thread = std::thread::Builder::new()
            .name("watch".into())
            .spawn(move || {
                let _in_span = span.entered();
                let mut state = State { group, bounds, pauses, ran: Duration::ZERO };
                loop {
                    let begun = Instant::now();
                    std::thread::park_timeout(TICK);
                    if is_over.load(Ordering::SeqCst) {
                        // The end may have come between a look and the hold that followed from it.
                        state.pauses.resume(&state.group);
                        return None;
                    }
                    if let Some(verdict) = state.look(begun.elapsed(), &is_over) {
                        state.group.kill();
                        state.pauses.resume(&state.group);
                        return Some(verdict);
                    }
                }
            })
            .expect("the system can start a thread");
        Self { over, thread }
    }

    /// The call is over, and its processes are not held. Says why, if the watch ended it.
    pub(crate) fn end(self) -> Option<TrainerError> {
        self.over.store(true, Ordering::SeqCst);
        self.thread.thread().unpark();
        self.thread.join().unwrap_or_else(|_| Some(TrainerError::Broken("the watch panicked".into())))
    }
}

struct State {
    group: Group,
    bounds: Bounds,
    pauses: Pauses,
    ran: Duration,
}

impl State {
    fn look(&mut self, since: Duration, is_over: &AtomicBool) -> Option<TrainerError> {
        if let Some(gives_up) = self.pauses.hold(&self.group, is_over) {
            return Some(gives_up);
        }
        if !self.pauses.is_paused() {
            self.ran += since;
        }
        let over = |fault, detail: String| Some(TrainerError::Program { fault, detail });
        if let Some(most) = self.bounds.time.filter(|most| self.ran > *most) {
            let text = format!("it did not finish within {most:?} ([trainer] max_time)");
            return over(ProgramFault::Time, text);
        }
        if let Some((folder, most)) = &self.bounds.disk {
            let bytes = usage::of_folder(folder);
            if bytes > *most {
                return over(
                    ProgramFault::Disk,
                    format!(
                        "it filled its folder with {} MiB, at most {} MiB beside the model ([trainer] max_disk_mib)",
                        bytes >> 20,
                        most >> 20
                    ),
                );
            }
        }
        if self.bounds.memory_bytes.is_none() && self.bounds.processes.is_none() {
            return None;
        }
        let leader = self.group.id()?;
        let used = match self.bounds.processes {
            Some(_) => usage::of_group(leader)?,
            None => usage::of_one(leader)?,
        };
        if let Some(most) = self.bounds.memory_bytes.filter(|most| used.memory_bytes > *most) {
            let text = format!(
                "it took {} MiB of memory, at most {} MiB ([trainer] max_memory_mib; three quarters of the machine's where that is not set)",
                used.memory_bytes >> 20,
                most >> 20
            );
            return match self.bounds.processes {
                Some(_) => over(ProgramFault::Memory, text),
                // The trainer's own process.
                None => Some(TrainerError::Memory(text)),
            };
        }
        if let Some(most) = self.bounds.processes.filter(|most| used.processes > *most) {
            let text = format!("it started {} processes, at most {most}", used.processes);
            return over(ProgramFault::Processes, text);
        }
        None
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::pause::{Condition, Look, PauseSettings};
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;

    fn watched(script: &str, bounds: Bounds) -> Option<TrainerError> {
        let group = Group::default();
        group.hold(Command::new("sh").args(["-c", script]).process_group(0).spawn().unwrap());
        let watch = Watch::begin(group.clone(), bounds, Pauses::new(&PauseSettings::default(), 1));
        group.wait().unwrap();
        watch.end()
    }

    #[test]
    fn what_crosses_a_bound_is_ended_with_the_number() {
        let many = Bounds { processes: Some(3), ..Bounds::default() };
        let e = watched("for i in 1 2 3 4 5; do sleep 86399 & done; wait", many).unwrap();
        assert!(
            matches!(&e, TrainerError::Program { fault: ProgramFault::Processes, detail } if detail.contains("at most 3"))
        );
        let large = Bounds { memory_bytes: Some(8 << 20), ..Bounds::default() };
        let program = Bounds { processes: Some(100), ..large.clone() };
        let grow =
            "head -c 100000000 /dev/zero | tr '\\0' x | awk '{ a = a $0 } END { system(\"sleep 86399\") }'";
        let e = watched(grow, program).unwrap();
        assert!(
            matches!(&e, TrainerError::Program { fault: ProgramFault::Memory, detail } if detail.contains("at most 8 MiB"))
        );
        // The built-in trainer is no program of the owner's.
        let e = watched(grow, large).unwrap();
        assert!(matches!(&e, TrainerError::Memory(text) if text.contains("at most 8 MiB")), "{e}");
        let long = Bounds { time: Some(Duration::ZERO), ..Bounds::default() };
        let e = watched("sleep 86399", long).unwrap();
        assert!(matches!(&e, TrainerError::Program { fault: ProgramFault::Time, .. }), "{e}");
    }

    /// A condition that takes until the call is over, and then holds.
    struct Slow(Arc<AtomicBool>);

    impl Condition for Slow {
        fn holds(&mut self, look: &Look<'_>) -> Option<String> {
            self.0.store(true, Ordering::SeqCst);
            while !look.over.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            Some("a test says so".into())
        }
    }

    #[test]
    fn a_call_that_ends_while_a_condition_is_asked_leaves_nothing_held() {
        let asked = Arc::new(AtomicBool::new(false));
        let pauses = Pauses::of(vec![Box::new(Slow(Arc::clone(&asked)))], &PauseSettings::default());
        let group = Group::default();
        group.hold(Command::new("sleep").arg("600").process_group(0).spawn().unwrap());
        let watch = Watch::begin(group.clone(), Bounds::default(), pauses.clone());
        while !asked.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(watch.end(), None);
        // Stopping would take the system a moment.
        std::thread::sleep(Duration::from_millis(100));
        assert!(!group.is_stopped() && !pauses.is_paused());
        group.kill();
        group.wait().unwrap();
    }

    #[test]
    fn the_end_of_a_call_does_not_wait_for_the_owners_command() {
        let dir = tempfile::tempdir().unwrap();
        let asked = dir.path().join("asked");
        let script = format!("touch '{}'; exec sleep 600", asked.display());
        let command = Some(vec!["sh".into(), "-c".into(), script]);
        let pauses = Pauses::new(&PauseSettings { command, ..PauseSettings::default() }, 1);
        let group = Group::default();
        group.hold(Command::new("sleep").arg("600").process_group(0).spawn().unwrap());
        let watch = Watch::begin(group.clone(), Bounds::default(), pauses);
        while !asked.exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let begun = Instant::now();
        assert_eq!(watch.end(), None);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        group.kill();
        group.wait().unwrap();
    }

    #[test]
    fn what_keeps_its_bounds_is_left_alone() {
        let bounds = Bounds {
            time: Some(Duration::from_secs(3600)),
            memory_bytes: Some(1 << 40),
            processes: Some(100),
            disk: Some(("/nonexistent".into(), 1)),
        };
        assert_eq!(watched("sleep 0.5", bounds), None);
    }
}
