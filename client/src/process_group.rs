//! A child process and all that it starts: stopped, continued and ended together.

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::io;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long is waited between two looks at a process.
const LOOK: Duration = Duration::from_millis(10);

/// A process that leads a group of its own. Clones share it.
///
/// The group is signalled only while its leader is not yet reaped, so that its number cannot belong to another.
#[derive(Debug, Clone, Default)]
pub(crate) struct Group(Arc<Mutex<Option<Child>>>);

impl Group {
    /// Takes a child that was started with `process_group(0)`.
    pub(crate) fn hold(&self, child: Child) {
        *self.lock() = Some(child);
    }

    /// The leader's process id, while there is one.
    pub(crate) fn id(&self) -> Option<u32> {
        self.lock().as_ref().map(Child::id)
    }

    /// Ends all of the group. Its leader is still to be waited for.
    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Holds all of the group where it is.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// Whether its leader is held, as `/proc` tells.
    #[cfg(all(test, target_os = "linux"))]
    pub(crate) fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id().unwrap())).unwrap();
        stat.rsplit_once(')').unwrap().1.trim_start().starts_with('T')
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = self.lock().as_ref() {
            // It may be gone already, which is what was wanted.
            let _ = kill_process_group(Pid::from_child(child), signal);
        }
    }

    /// Whether the leader has ended; then what is left of its group is ended too. `None` if it goes on.
    ///
    /// # Errors
    /// If the system cannot say, or there is no process.
    pub(crate) fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        let mut slot = self.lock();
        let Some(child) = slot.as_mut() else { return Err(io::Error::other("there is no process")) };
        let pid = Pid::from_child(child);
        // Looked at and left unreaped, so that the group's number stays its own while it is ended.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if waitid(WaitId::Pid(pid), options)?.is_none() {
            return Ok(None);
        }
        let _ = kill_process_group(pid, Signal::KILL);
        let status = child.wait()?;
        *slot = None;
        Ok(Some(status))
    }

    /// Waits for the leader's end.
    ///
    /// # Errors
    /// If the system cannot say, or there is no process.
    pub(crate) fn wait(&self) -> io::Result<ExitStatus> {
        loop {
            match self.try_wait()? {
                Some(status) => return Ok(status),
                None => std::thread::sleep(LOOK),
            }
        }
    }

    /// Waits for the leader's end, and after `patience` brings it about.
    pub(crate) fn reap(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            match self.try_wait() {
                Ok(None) if Instant::now() < deadline => std::thread::sleep(LOOK),
                Ok(None) => {
                    self.kill();
                    let _ = self.wait();
                    return;
                }
                Ok(Some(_)) | Err(_) => return,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Child>> {
        // Nothing is done under the lock that could leave it half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
