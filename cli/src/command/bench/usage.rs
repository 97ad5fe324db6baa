//! What a process uses of the machine, as Linux tells in `/proc`; and how many files it may open.

use crate::failure::bad_input;
use anyhow::{Context as _, Result, anyhow};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Whose use of the machine is looked at.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    server: u32,
    clients: Vec<u32>,
}

/// Processor time so far, in seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spent {
    /// Of the coordinator.
    pub(super) server: f64,
    /// Of all processes with clients.
    pub(super) clients: f64,
}

impl Watch {
    /// Of a coordinator and the processes with its clients.
    pub(super) fn new(server: u32, clients: Vec<u32>) -> Self {
        Self { server, clients }
    }

    /// What both sides have spent.
    ///
    /// # Errors
    /// If one has ended.
    pub(super) fn spent(&self) -> Result<Spent> {
        let clients: Result<f64> = self.clients.iter().map(|pid| cpu_s(*pid)).sum();
        Ok(Spent { server: cpu_s(self.server)?, clients: clients? })
    }

    /// The coordinator's memory.
    ///
    /// # Errors
    /// As [`Watch::spent`].
    pub(super) fn server(&self) -> Result<Memory> {
        memory(self.server)
    }

    /// The memory of the largest process with clients.
    ///
    /// # Errors
    /// As [`Watch::spent`].
    pub(super) fn largest_client(&self) -> Result<Memory> {
        let all: Result<Vec<Memory>> = self.clients.iter().map(|pid| memory(*pid)).collect();
        all?.into_iter().max_by_key(|m| m.peak).ok_or_else(|| anyhow!("there are no clients"))
    }
}

/// Processor time of a process and all its threads so far, in seconds; to a tick of the kernel (10 ms).
///
/// # Errors
/// If the process is gone, or there is no `/proc`.
fn cpu_s(pid: u32) -> Result<f64> {
    let stat = read(pid, "stat")?;
    let ticks =
        cpu_ticks(&stat).ok_or_else(|| anyhow!("/proc/{pid}/stat is not what Linux writes: {stat}"))?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// User and system time. The name of the program, in brackets, may hold blanks and brackets.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // After the name: state is field 3, utime 14 and stime 15 (proc_pid_stat(5)).
    let user: u64 = fields.nth(14 - 3)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Memory of a process in bytes: what it has resident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    /// Now.
    pub(super) now: u64,
    /// At its highest.
    pub(super) peak: u64,
}

/// The memory of a process.
///
/// # Errors
/// As [`cpu_s`].
fn memory(pid: u32) -> Result<Memory> {
    let status = read(pid, "status")?;
    let field = |name: &str| {
        bytes(&status, name).ok_or_else(|| anyhow!("/proc/{pid}/status tells no {name}: has it ended?"))
    };
    Ok(Memory { now: field("VmRSS:")?, peak: field("VmHWM:")? })
}

fn bytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

fn read(pid: u32, file: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{file}");
    std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {path}: benchmarks need Linux, and a process that runs"))
}

/// Lets this process, and what it starts, open as many files as `needed`.
///
/// # Errors
/// If the system does not allow it, with what to do.
pub(super) fn allow_files(needed: u64) -> Result<()> {
    let now = getrlimit(Resource::Nofile);
    if now.current.is_none_or(|limit| limit >= needed) {
        return Ok(());
    }
    if let Some(most) = now.maximum.filter(|&most| most < needed) {
        return Err(bad_input(format!(
            "so many connections need {needed} open files in one process, this system allows {most}: raise the hard \
             limit (`ulimit -Hn`, or LimitNOFILE= of a service), or take fewer --clients"
        )));
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum: now.maximum })
        .with_context(|| format!("cannot raise the limit of open files to {needed}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_is_no_trouble() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 10 0 0 0 170 30 5 6 20 0 9 0 100 200 300";
        assert_eq!(cpu_ticks(stat), Some(200));
        assert_eq!(cpu_ticks("42 (a) S 1"), None);
    }

    #[test]
    fn memory_is_in_bytes() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!((bytes(status, "VmHWM:"), bytes(status, "VmRSS:")), (Some(2 << 20), Some(1 << 20)));
        assert_eq!(bytes(status, "VmSwap:"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_uses_something() {
        let own = memory(std::process::id()).unwrap();
        assert!(own.now > 0 && own.peak >= own.now);
        assert!(cpu_s(std::process::id()).unwrap() >= 0.0);
        let e = allow_files(u64::MAX - 1);
        assert!(e.is_ok() || e.unwrap_err().to_string().contains("ulimit"));
    }
}
