//! A condition that the data owner writes themselves.

use super::{Condition, Look};
use crate::output::Output;
use crate::process_group::Group;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Holds while a program ends with status 0. Status 1 says that training may go on; whatever else happens is said, and
/// holds too: an owner who set a condition wants it kept.
pub(super) struct Program {
    command: Vec<String>,
}

impl Program {
    pub(super) fn new(command: Vec<String>) -> Self {
        Self { command }
    }

    /// Its status; `None` if a signal ended it. It is ended itself after `patience`, and once the look is `over`.
    fn run(&self, patience: Duration, over: &AtomicBool) -> Result<Option<i32>, String> {
        let (program, arguments) = self.command.split_first().ok_or("no program is named")?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|e| format!("cannot start it: {e}"))?;
        // In the log like a trainer's: a log of JSON has no other lines.
        let _output = Output::of_condition(child.stderr.take());
        let group = Group::default();
        group.hold(child);
        let deadline = Instant::now() + patience;
        loop {
            match group.try_wait().map_err(|e| e.to_string())? {
                Some(status) => return Ok(status.code()),
                None if over.load(Ordering::SeqCst) => {
                    group.reap(Duration::ZERO);
                    return Err("it was ended, as nobody waits for it any more".into());
                }
                None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
                None => {
                    group.reap(Duration::ZERO);
                    return Err(format!("it did not end within {patience:?}"));
                }
            }
        }
    }
}

impl Condition for Program {
    fn holds(&mut self, look: &Look<'_>) -> Option<String> {
        let name = self.command.join(" ");
        match self.run(PATIENCE, look.over) {
            Ok(Some(0)) => Some(format!("`{name}` says so")),
            Ok(Some(1)) => None,
            Ok(Some(status)) => {
                Some(format!("`{name}` ended with status {status}, which is neither 0 (wait) nor 1 (go on)"))
            }
            Ok(None) => Some(format!("`{name}` was killed")),
            Err(e) => Some(format!("`{name}` does not work: {e}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static NOT_OVER: AtomicBool = AtomicBool::new(false);

    fn shell(script: &str) -> Program {
        Program::new(vec!["sh".into(), "-c".into(), script.into()])
    }

    #[test]
    fn the_status_decides_and_trouble_is_no_leave() {
        let look = Look { since_computing: None, over: &NOT_OVER };
        assert_eq!(shell("exit 1").holds(&look), None);
        assert!(shell("exit 0").holds(&look).unwrap().contains("says so"));
        assert!(shell("exit 7").holds(&look).unwrap().contains("status 7"));
        assert!(shell("kill -9 $$").holds(&look).unwrap().contains("killed"));
        let missing = Program::new(vec!["/no/such/program".into()]).holds(&look).unwrap();
        assert!(missing.contains("cannot start"), "{missing}");
    }

    #[test]
    fn one_that_hangs_is_ended() {
        let e = shell("sleep 600").run(Duration::from_millis(50), &NOT_OVER).unwrap_err();
        assert!(e.contains("did not end"), "{e}");
        let e = shell("sleep 600").run(Duration::from_secs(600), &AtomicBool::new(true)).unwrap_err();
        assert!(e.contains("nobody waits"), "{e}");
    }
}
