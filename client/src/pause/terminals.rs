//! Whether somebody uses the machine through a terminal.

use super::{Condition, Look};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// Holds while somebody has typed into a terminal within some time: a terminal's device is "accessed" when what was typed
/// is read from it, which is also how `w` counts idle time. Graphical sessions are not seen here.
pub(super) struct Terminals {
    dirs: Vec<PathBuf>,
    within: Duration,
}

impl Terminals {
    pub(super) fn new(within: Duration) -> Self {
        Self { dirs: vec!["/dev/pts".into(), "/dev".into()], within }
    }
}

impl Condition for Terminals {
    fn holds(&mut self, _: &Look<'_>) -> Option<String> {
        let now = SystemTime::now();
        for entry in self.dirs.iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let number = name.strip_prefix("tty").unwrap_or(&name);
            if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
                continue;
            }
            let accessed = entry.metadata().and_then(|m| m.accessed());
            // A clock that was set back makes an access lie ahead: that was just now, too.
            let ago = accessed.ok().map(|at| now.duration_since(at).unwrap_or_default());
            if let Some(ago) = ago.filter(|ago| *ago < self.within) {
                return Some(format!("somebody typed into terminal {name} {} s ago", ago.as_secs()));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, FileTimes};
    use std::sync::atomic::AtomicBool;

    #[test]
    fn only_terminals_that_were_just_read_count() {
        let dir = tempfile::tempdir().unwrap();
        let look = Look { since_computing: None, over: &AtomicBool::new(false) };
        let mut condition = Terminals { dirs: vec![dir.path().into()], within: Duration::from_secs(300) };
        let touch = |name: &str, ago: u64| {
            let file = File::create(dir.path().join(name)).unwrap();
            let at = SystemTime::now() - Duration::from_secs(ago);
            file.set_times(FileTimes::new().set_accessed(at)).unwrap();
        };
        touch("ptmx", 0);
        touch("ttyS0", 0);
        touch("3", 3600);
        assert_eq!(condition.holds(&look), None);
        touch("tty1", 20);
        assert!(condition.holds(&look).unwrap().contains("tty1"));
        touch("tty1", 301);
        assert_eq!(condition.holds(&look), None);
    }
}
