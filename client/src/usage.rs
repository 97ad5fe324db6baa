//! What a group of processes uses, and how large a folder is.

use std::path::Path;

/// The share of the machine's memory that training may take if its owner sets nothing.
const MEMORY_SHARE: (u64, u64) = (3, 4);

/// What processes use together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    /// How many there are.
    pub(crate) processes: usize,
    /// Memory that is theirs alone, in bytes.
    pub(crate) memory_bytes: u64,
}

/// What the process `leader` uses with all that it started: its group, and the descendants that left the group.
///
/// Looked up in `/proc`; `None` where there is none, or the process is gone.
pub(crate) fn of_group(leader: u32) -> Option<Usage> {
    let mut all: Vec<Entry> =
        std::fs::read_dir("/proc").ok()?.flatten().filter_map(|e| entry(&e.path())).collect();
    all.sort_unstable_by_key(|e| e.pid);
    let mut ours = vec![false; all.len()];
    let mut usage = Usage::default();
    // Children of children: until nobody new is found.
    loop {
        let mut found = false;
        for (i, e) in all.iter().enumerate() {
            let child = || all.binary_search_by_key(&e.parent, |p| p.pid).is_ok_and(|parent| ours[parent]);
            if !ours[i] && (e.group == leader || e.pid == leader || child()) {
                ours[i] = true;
                found = true;
                usage.processes += 1;
                usage.memory_bytes += memory_bytes(e.pid);
            }
        }
        if !found {
            return (usage.processes > 0).then_some(usage);
        }
    }
}

/// The same of a process that seldom starts others: looked at alone while it has no children, which costs next to nothing,
/// while [`of_group`] looks at each process of the machine.
pub(crate) fn of_one(leader: u32) -> Option<Usage> {
    let children = std::fs::read_to_string(format!("/proc/{leader}/task/{leader}/children"));
    match children {
        Ok(children) if children.trim().is_empty() => {
            Some(Usage { processes: 1, memory_bytes: memory_bytes(leader) })
        }
        // It has some, or this kernel does not list them, or it is gone.
        Ok(_) | Err(_) => of_group(leader),
    }
}

struct Entry {
    pid: u32,
    parent: u32,
    group: u32,
}

/// The numbers behind the name in `/proc/PID/stat`: state, parent, group.
fn entry(dir: &Path) -> Option<Entry> {
    let pid = dir.file_name()?.to_str()?.parse().ok()?;
    let stat = std::fs::read_to_string(dir.join("stat")).ok()?;
    // The name stands in brackets and may hold anything, brackets too.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(1);
    Some(Entry { pid, parent: fields.next()?.parse().ok()?, group: fields.next()?.parse().ok()? })
}

/// A process's resident memory that no file backs.
fn memory_bytes(pid: u32) -> u64 {
    let read = || {
        let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
        let mut fields = statm.split_whitespace().skip(1).map(|f| f.parse::<u64>().ok());
        let (resident, shared) = (fields.next()??, fields.next()??);
        Some(resident.saturating_sub(shared) * rustix::param::page_size() as u64)
    };
    // It ended meanwhile.
    read().unwrap_or(0)
}

/// The bytes that the files of a folder take, its folders included; links are not followed.
pub(crate) fn of_folder(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(m) if m.is_dir() => of_folder(&entry.path()),
            Ok(m) => m.len(),
            Err(_) => 0,
        })
        .sum()
}

/// What training may take of the machine's memory, in bytes, if its owner sets nothing; `None` where `/proc` does not tell.
pub(crate) fn memory_share() -> Option<u64> {
    machine_memory().map(|all| all / MEMORY_SHARE.1 * MEMORY_SHARE.0)
}

/// The machine's memory in bytes, where `/proc` tells.
fn machine_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemTotal:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_as_large_as_its_files() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(of_folder(dir.path()), 0);
        std::fs::create_dir(dir.path().join("inner")).unwrap();
        std::fs::write(dir.path().join("a"), [0; 100]).unwrap();
        std::fs::write(dir.path().join("inner/b"), [0; 11]).unwrap();
        std::os::unix::fs::symlink("/dev/zero", dir.path().join("link")).unwrap();
        let link = std::fs::symlink_metadata(dir.path().join("link")).unwrap().len();
        assert_eq!(of_folder(dir.path()), 111 + link);
        assert_eq!(of_folder(&dir.path().join("no")), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_found() {
        let usage = of_group(std::process::id()).unwrap();
        assert!(usage.processes >= 1 && usage.memory_bytes > 0, "{usage:?}");
        assert!(machine_memory().unwrap() > usage.memory_bytes);
        assert!(memory_share().unwrap() < machine_memory().unwrap());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn one_process_is_looked_at_with_its_children() {
        use rustix::process::{Pid, Signal, kill_process_group};
        use std::io::Read as _;
        use std::os::unix::process::CommandExt as _;
        use std::process::{Command, Stdio};
        let mut child = Command::new("sh")
            .args(["-c", "sleep 600 & sleep 600 & echo; wait"])
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut line = [0];
        child.stdout.take().unwrap().read_exact(&mut line).unwrap();
        assert_eq!(of_one(child.id()).unwrap().processes, 3);
        kill_process_group(Pid::from_child(&child), Signal::KILL).unwrap();
        child.wait().unwrap();
        let mut alone = Command::new("sleep").arg("600").spawn().unwrap();
        assert_eq!(of_one(alone.id()).unwrap().processes, 1);
        alone.kill().unwrap();
        alone.wait().unwrap();
        assert_eq!(of_one(alone.id()), None);
    }
}
