//! How busy the machine is with other things.

use super::{Condition, Look};
use std::path::PathBuf;

/// Holds while the load average of the last minute is above a limit. While the trainer works, its own threads are
/// taken off: they are no reason to wait.
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
        let others = if look.running { (load - self.threads).max(0.0) } else { load };
        (others > self.above).then(|| format!("the load is {others:.2}, above {}", self.above))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn the_trainers_own_threads_do_not_count() {
        let over = AtomicBool::new(false);
        let look = |running| Look { running, over: &over };
        let dir = tempfile::tempdir().unwrap();
        let mut load = Load { file: dir.path().join("loadavg"), above: 1.5, threads: 2.0 };
        assert!(load.holds(&look(false)).unwrap().contains("cannot be read"));
        std::fs::write(&load.file, "3.20 1.00 0.50 1/123 4567\n").unwrap();
        assert_eq!(load.holds(&look(true)), None);
        assert!(load.holds(&look(false)).unwrap().contains("3.20, above 1.5"));
        std::fs::write(&load.file, "3.60 1.00 0.50 1/123 4567\n").unwrap();
        assert!(load.holds(&look(true)).unwrap().contains("1.60"));
    }
}
