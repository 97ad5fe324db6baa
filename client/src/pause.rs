//! When training is to wait: conditions that the data owner sets, looked at before and while a trainer works.
//!
//! Before: the client declines the offer, so that the round goes on with others. While: the trainer's processes are held
//! with SIGSTOP between two instructions and go on with SIGCONT, whatever they are and whatever they compute. The round's
//! deadline goes on meanwhile; when the coordinator withdraws the attempt, the held work is ended like any other, and
//! after `give_up_after` the client gives the attempt up by itself.

mod battery;
mod load;
mod program;
mod terminals;

use crate::process_group::Group;
use battery::OnBattery;
use load::Load;
use program::Program;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use terminals::Terminals;
use undertone_core::trainer::TrainerError;

/// A reason for training to wait. Looked at again and again while a trainer works.
pub trait Condition: Send {
    /// Why training is to wait now, in words for the data owner; `None`: it may go on. `running` says whether the
    /// trainer itself is at work, and so part of what is seen.
    fn holds(&mut self, running: bool) -> Option<String>;
}

/// What the data owner sets.
#[derive(Debug, Clone, PartialEq)]
pub struct PauseSettings {
    /// Wait while the machine runs on its battery.
    pub on_battery: bool,
    /// Wait while the load average of the last minute, without the trainer's own threads, is above this.
    pub load_above: Option<f64>,
    /// Wait while somebody has typed into a terminal of this machine within this time.
    pub typed_within: Option<Duration>,
    /// Wait while this program ends with status 0; 1 lets training go on.
    pub command: Option<Vec<String>>,
    /// How often is looked.
    pub check_every: Duration,
    /// A call that has waited so long in one go is given up.
    pub give_up_after: Duration,
}

impl Default for PauseSettings {
    fn default() -> Self {
        Self {
            on_battery: false,
            load_above: None,
            typed_within: None,
            command: None,
            check_every: Duration::from_secs(5),
            give_up_after: Duration::from_secs(15 * 60),
        }
    }
}

impl PauseSettings {
    /// The conditions, for a trainer of so many threads.
    pub(crate) fn conditions(&self, threads: u32) -> Vec<Box<dyn Condition>> {
        let mut all: Vec<Box<dyn Condition>> = Vec::new();
        if self.on_battery {
            all.push(Box::new(OnBattery::default()));
        }
        if let Some(above) = self.load_above {
            all.push(Box::new(Load::new(above, threads)));
        }
        if let Some(within) = self.typed_within {
            all.push(Box::new(Terminals::new(within)));
        }
        if let Some(command) = &self.command {
            all.push(Box::new(Program::new(command.clone())));
        }
        all
    }
}

/// The conditions, and whether training waits. Clones share them.
#[derive(Clone)]
pub(crate) struct Pauses(Arc<Mutex<Inner>>);

struct Inner {
    conditions: Vec<Box<dyn Condition>>,
    check_every: Duration,
    give_up_after: Duration,
    looked: Option<Instant>,
    /// Since when training waits, and why.
    paused: Option<(Instant, String)>,
}

impl Pauses {
    pub(crate) fn new(settings: &PauseSettings, threads: u32) -> Self {
        Self::of(settings.conditions(threads), settings)
    }

    pub(crate) fn of(conditions: Vec<Box<dyn Condition>>, settings: &PauseSettings) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            conditions,
            check_every: settings.check_every,
            give_up_after: settings.give_up_after,
            looked: None,
            paused: None,
        })))
    }

    /// Before work: whether it may begin.
    ///
    /// # Errors
    /// [`TrainerError::Paused`] with the reason.
    pub(crate) fn may_begin(&self) -> Result<(), TrainerError> {
        match self.lock().why(false) {
            None => Ok(()),
            Some(why) => Err(TrainerError::Paused(format!("not now: {why} ([trainer] pause)"))),
        }
    }

    /// While processes work: holds them or lets them go on, as the conditions say. Returns the error with which a call
    /// that has waited too long is to end.
    pub(crate) fn hold(&self, group: &Group) -> Option<TrainerError> {
        let mut inner = self.lock();
        if inner.conditions.is_empty() {
            return None;
        }
        let due = inner.looked.is_none_or(|at| at.elapsed() >= inner.check_every);
        if due {
            inner.looked = Some(Instant::now());
            let running = inner.paused.is_none();
            match (inner.why(running), running) {
                (Some(why), true) => {
                    group.stop();
                    tracing::info!(why, "training waits");
                    inner.paused = Some((Instant::now(), why));
                }
                (None, false) => {
                    group.go_on();
                    let waited = inner.paused.take().map(|(since, _)| since.elapsed().as_secs());
                    tracing::info!(waited_s = waited, "training goes on");
                }
                (Some(_), false) | (None, true) => {}
            }
        }
        let (since, why) = inner.paused.as_ref()?;
        (since.elapsed() >= inner.give_up_after).then(|| {
            TrainerError::Paused(format!(
                "given up after {:?}: {why} ([trainer] pause, give_up_after)",
                inner.give_up_after
            ))
        })
    }

    /// Whether training waits.
    pub(crate) fn is_paused(&self) -> bool {
        self.lock().paused.is_some()
    }

    /// The work is over: the next begins afresh.
    pub(crate) fn resume(&self) {
        self.lock().paused = None;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing is done under the lock that could leave it half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn why(&mut self, running: bool) -> Option<String> {
        self.conditions.iter_mut().find_map(|condition| condition.holds(running))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;
    use std::sync::atomic::{AtomicBool, Ordering};

    struct Flag(Arc<AtomicBool>);

    impl Condition for Flag {
        fn holds(&mut self, _: bool) -> Option<String> {
            self.0.load(Ordering::SeqCst).then(|| "a test says so".into())
        }
    }

    fn pauses(give_up_after: Duration) -> (Pauses, Arc<AtomicBool>) {
        let flag = Arc::new(AtomicBool::new(false));
        let settings =
            PauseSettings { check_every: Duration::ZERO, give_up_after, ..PauseSettings::default() };
        (Pauses::of(vec![Box::new(Flag(flag.clone()))], &settings), flag)
    }

    #[cfg(target_os = "linux")]
    fn state(pid: u32) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(')').unwrap().1.trim().chars().next().unwrap()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn processes_are_held_and_go_on() {
        let (pauses, flag) = pauses(Duration::from_secs(3600));
        let group = Group::default();
        group.hold(Command::new("sleep").arg("600").process_group(0).spawn().unwrap());
        let pid = group.id().unwrap();
        assert_eq!(pauses.hold(&group), None);
        assert!(!pauses.is_paused());
        flag.store(true, Ordering::SeqCst);
        assert!(
            matches!(pauses.may_begin(), Err(TrainerError::Paused(why)) if why.contains("a test says so"))
        );
        assert_eq!(pauses.hold(&group), None);
        // Stopping takes the system a moment.
        while state(pid) != 'T' {
            std::thread::yield_now();
        }
        assert!(pauses.is_paused());
        flag.store(false, Ordering::SeqCst);
        assert_eq!(pauses.hold(&group), None);
        while state(pid) == 'T' {
            std::thread::yield_now();
        }
        assert!(!pauses.is_paused());
        assert_eq!(pauses.may_begin(), Ok(()));
        group.kill();
        group.wait().unwrap();
    }

    #[test]
    fn a_call_that_waits_too_long_is_given_up() {
        let (pauses, flag) = pauses(Duration::ZERO);
        flag.store(true, Ordering::SeqCst);
        let Some(TrainerError::Paused(why)) = pauses.hold(&Group::default()) else { panic!() };
        assert!(why.contains("given up") && why.contains("a test says so"), "{why}");
        pauses.resume();
        assert!(!pauses.is_paused());
    }

    #[test]
    fn without_conditions_nothing_waits() {
        let pauses = Pauses::new(&PauseSettings::default(), 1);
        assert_eq!((pauses.may_begin(), pauses.hold(&Group::default())), (Ok(()), None));
    }
}
