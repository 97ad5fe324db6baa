//! Linux namespaces: a process without network, whose children all end with the first of them.

use rustix::process::{getgid, getuid};
use rustix::thread::UnshareFlags;
use std::fs;

/// Leaves the process table behind for the processes that this one starts, and, if `network`, the network for itself too.
///
/// In a user namespace of its own, so that no privilege is needed where the system allows such namespaces, and none is
/// left outside where the client has one.
///
/// # Errors
/// Why the system does not let it. The process is then of no further use: it may be half way.
pub(super) fn leave(network: bool) -> Result<(), String> {
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    let mut flags = UnshareFlags::NEWUSER | UnshareFlags::NEWPID;
    flags.set(UnshareFlags::NEWNET, network);
    unshare(flags).map_err(|e| format!("the system allows no namespaces: {e}"))?;
    let write = |file: &str, text: String| {
        fs::write(format!("/proc/self/{file}"), text)
            .map_err(|e| format!("the system allows no user namespace ({file}: {e})"))
    };
    // One user and one group, and both are who they were.
    write("uid_map", format!("{uid} {uid} 1"))?;
    write("setgroups", "deny".into())?;
    write("gid_map", format!("{gid} {gid} 1"))
}

/// It is deprecated since `UnshareFlags::FILES` would be unsafe with threads; that flag is not among ours, and there is one
/// thread.
#[allow(deprecated)]
fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    rustix::thread::unshare(flags)
}
