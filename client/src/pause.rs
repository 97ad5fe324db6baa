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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use terminals::Terminals;
use undertone_core::trainer::TrainerError;

/// A reason for training to wait. Looked at again and again while a trainer works.
pub trait Condition: Send {
    /// Why training is to wait now, in words for the data owner; `None`: it may go on.
    fn holds(&mut self, look: &Look<'_>) -> Option<String>;
}

/// What a condition is told when it is asked.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// How long ago the trainer last computed, and so how much of it is still part of what is seen: zero while it does,
    /// `None` if it has not yet.
    pub since_computing: Option<Duration>,
    /// Set as soon as nobody waits for the answer any more: a condition that takes its time may end then.
    pub over: &'a AtomicBool,
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
    /// When the trainer was last seen to compute.
    computed: Option<Instant>,
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
            computed: None,
            paused: None,
        })))
    }

    /// Before work: whether it may begin.
    ///
    /// # Errors
    /// [`TrainerError::Paused`] with the reason.
    pub(crate) fn may_begin(&self) -> Result<(), TrainerError> {
        match self.lock().why(&AtomicBool::new(false)) {
            None => Ok(()),
            Some(why) => Err(TrainerError::Paused(format!("not now: {why} ([trainer] pause)"))),
        }
    }

    /// While processes work: holds them or lets them go on, as the conditions say, unless the work is `over` by the time
    /// that they have said so. Returns the error with which a call that has waited too long is to end.
    pub(crate) fn hold(&self, group: &Group, over: &AtomicBool) -> Option<TrainerError> {
        let mut inner = self.lock();
        if inner.conditions.is_empty() {
            return None;
        }
        if inner.paused.is_none() {
            inner.computed = Some(Instant::now());
        }
        let due = inner.looked.is_none_or(|at| at.elapsed() >= inner.check_every);
        if due {
            inner.looked = Some(Instant::now());
            let running = inner.paused.is_none();
            let why = inner.why(over);
            if over.load(Ordering::SeqCst) {
                return None;
            }
            match (why, running) {
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

    /// The work is over: the next begins afresh, with processes that go on.
    pub(crate) fn resume(&self, group: &Group) {
        let mut inner = self.lock();
        match inner.paused.take() {
            Some(_) => group.go_on(),
            None => inner.computed = Some(Instant::now()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing is done under the lock that could leave it half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn why(&mut self, over: &AtomicBool) -> Option<String> {
        let look = Look { since_computing: self.computed.map(|at| at.elapsed()), over };
        self.conditions.iter_mut().find_map(|condition| condition.holds(&look))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;

    static NOT_OVER: AtomicBool = AtomicBool::new(false);

    struct Flag(Arc<AtomicBool>);

    impl Condition for Flag {
        fn holds(&mut self, _: &Look<'_>) -> Option<String> {
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
    #[test]
    fn processes_are_held_and_go_on() {
        let (pauses, flag) = pauses(Duration::from_secs(3600));
        let group = Group::default();
        group.hold(Command::new("sleep").arg("600").process_group(0).spawn().unwrap());
        assert_eq!(pauses.hold(&group, &NOT_OVER), None);
        assert!(!pauses.is_paused());
        flag.store(true, Ordering::SeqCst);
        assert!(
            matches!(pauses.may_begin(), Err(TrainerError::Paused(why)) if why.contains("a test says so"))
        );
        assert_eq!(pauses.hold(&group, &NOT_OVER), None);
        // Stopping takes the system a moment.
        while !group.is_stopped() {
            std::thread::yield_now();
        }
        assert!(pauses.is_paused());
        flag.store(false, Ordering::SeqCst);
        assert_eq!(pauses.hold(&group, &NOT_OVER), None);
        while group.is_stopped() {
            std::thread::yield_now();
        }
        assert!(!pauses.is_paused());
        assert_eq!(pauses.may_begin(), Ok(()));
        group.kill();
        group.wait().unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_held_when_the_work_ends_goes_on() {
        let (pauses, flag) = pauses(Duration::from_secs(3600));
        let group = Group::default();
        group.hold(Command::new("sleep").arg("600").process_group(0).spawn().unwrap());
        flag.store(true, Ordering::SeqCst);
        assert_eq!(pauses.hold(&group, &AtomicBool::new(true)), None);
        assert!(!pauses.is_paused(), "over before it was held");
        assert_eq!(pauses.hold(&group, &NOT_OVER), None);
        while !group.is_stopped() {
            std::thread::yield_now();
        }
        pauses.resume(&group);
        while group.is_stopped() {
            std::thread::yield_now();
        }
        assert!(!pauses.is_paused());
        group.kill();
        group.wait().unwrap();
    }

    #[test]
    fn a_call_that_waits_too_long_is_given_up() {
        let (pauses, flag) = pauses(Duration::ZERO);
        flag.store(true, Ordering::SeqCst);
        let group = Group::default();
        let Some(TrainerError::Paused(why)) = pauses.hold(&group, &NOT_OVER) else { panic!() };
        assert!(why.contains("given up") && why.contains("a test says so"), "{why}");
        pauses.resume(&group);
        assert!(!pauses.is_paused());
    }

    #[test]
    fn without_conditions_nothing_waits() {
        let pauses = Pauses::new(&PauseSettings::default(), 1);
        assert_eq!((pauses.may_begin(), pauses.hold(&Group::default(), &NOT_OVER)), (Ok(()), None));
    }
}
