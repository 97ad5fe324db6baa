//! How busy the machine is with other things.

use super::{Condition, Look};
use std::path::PathBuf;
use std::time::Duration;

/// What was computed so long ago counts 1/e in the average.
const MEMORY: Duration = Duration::from_secs(60);
/// How often the system adds to the average: a change may be seen so much later.
const SAMPLED_EVERY: Duration = Duration::from_secs(5);

/// Holds while the load average of the last minute is above a limit. The trainer's own threads are taken off: they are no
/// reason to wait. After it has computed they fade as the average forgets them; short work counts as if it had filled the
/// minute, so that a doubt lets training go on, for a minute at most.
pub(super) struct Load {
    file: PathBuf,
    above: f64,
    threads: f64,
}

impl Load {
    pub(super) fn new(above: f64, threads: u32) -> Self {
        Self { file: "/proc/loadavg".into(), above, threads: threads.into() }
    }
}

impl Condition for Load {
    fn holds(&mut self, look: &Look<'_>) -> Option<String> {
        let load = std::fs::read_to_string(&self.file)
            .ok()
            .and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok());
        // An owner who set a limit wants it kept: what cannot be seen is no leave to go on.
        let Some(load) = load else {
            return Some(format!("the load cannot be read from {}", self.file.display()));
        };
        let own = look.since_computing.map_or(0.0, |since| {
            self.threads * (-since.saturating_sub(SAMPLED_EVERY).div_duration_f64(MEMORY)).exp()
        });
        let others = (load - own).max(0.0);
        (others > self.above).then(|| format!("the load is {others:.2}, above {}", self.above))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pause::{PauseSettings, Pauses};
    use crate::process_group::Group;
    use std::path::Path;
    use std::sync::atomic::AtomicBool;

    static NOT_OVER: AtomicBool = AtomicBool::new(false);

    /// The condition of an owner with two threads, on a machine whose load is written to a file.
    fn load(dir: &Path) -> Load {
        Load { file: dir.join("loadavg"), above: 1.5, threads: 2.0 }
    }

    fn set(dir: &Path, load: &str) {
        std::fs::write(dir.join("loadavg"), format!("{load} 1.00 0.50 1/123 4567\n")).unwrap();
    }

    #[test]
    fn the_trainers_own_threads_do_not_count() {
        let look =
            |since: Option<u64>| Look { since_computing: since.map(Duration::from_secs), over: &NOT_OVER };
        let dir = tempfile::tempdir().unwrap();
        let mut load = load(dir.path());
        assert!(load.holds(&look(None)).unwrap().contains("cannot be read"));
        set(dir.path(), "3.20");
        assert_eq!(load.holds(&look(Some(0))), None);
        assert!(load.holds(&look(None)).unwrap().contains("3.20, above 1.5"));
        set(dir.path(), "3.60");
        assert!(load.holds(&look(Some(0))).unwrap().contains("1.60"));
        // Of two threads e^(-55/60) is left: 0.80.
        set(dir.path(), "2.20");
        assert_eq!(load.holds(&look(Some(60))), None);
        set(dir.path(), "2.40");
        assert!(load.holds(&look(Some(60))).unwrap().contains("1.60"));
        assert!(load.holds(&look(Some(3600))).unwrap().contains("2.40"));
    }

    #[test]
    fn an_offer_after_training_is_not_declined_for_the_training() {
        let dir = tempfile::tempdir().unwrap();
        let settings = PauseSettings { check_every: Duration::ZERO, ..PauseSettings::default() };
        let pauses = Pauses::of(vec![Box::new(load(dir.path()))], &settings);
        set(dir.path(), "2.00");
        assert!(pauses.may_begin().is_err(), "nothing was computed: the load is others'");
        let group = Group::default();
        assert_eq!(pauses.hold(&group, &NOT_OVER), None);
        pauses.resume(&group);
        assert_eq!(pauses.may_begin(), Ok(()));
        set(dir.path(), "3.60");
        assert!(pauses.may_begin().is_err(), "the load is others', too");
    }
}
