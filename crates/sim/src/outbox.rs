//! A client's durable folder: its accounts, the update on its way, and its own log of decisions.
//!
//! In the order in which the client's outbox writes: the bytes are durable before the account says so, and the account is durable
//! before the bytes are removed.

use crate::disk::Disk;
use std::collections::BTreeSet;
use undertone_core::digest::Digest;
use undertone_core::id::{AttemptKey, JobId};
use undertone_round::participant::{Account, Sealed};

/// The name of the file that a file is written to before it has its own.
fn half(name: &str) -> String {
    format!("{name}.tmp")
}

fn account_name(job: &JobId) -> String {
    format!("{job}.account")
}

fn update_name(job: &JobId) -> String {
    format!("{job}.update")
}

const DECISIONS: &str = "decisions";

/// The process was killed in the middle of a write.
pub(crate) struct Killed;

/// Asked at every place at which a process may be killed in a write: true if it is.
pub(crate) type Fate<'a> = &'a mut dyn FnMut() -> bool;

/// Whole or not at all, whatever happens.
fn write_durably(disk: &mut Disk, name: &str, bytes: &[u8], fate: Fate<'_>) -> Result<(), Killed> {
    let tmp = half(name);
    disk.remove(&tmp);
    let (first, rest) = bytes.split_at(bytes.len() / 2);
    disk.append(&tmp, first);
    if fate() {
        return Err(Killed);
    }
    disk.append(&tmp, rest);
    disk.sync(&tmp);
    if fate() {
        return Err(Killed);
    }
    disk.rename(&tmp, name);
    if fate() { Err(Killed) } else { Ok(()) }
}

fn write_account(disk: &mut Disk, account: &Account, fate: Fate<'_>) -> Result<(), Killed> {
    let json = serde_json::to_vec(account).expect("an account is plain data");
    write_durably(disk, &account_name(account.job()), &json, fate)
}

/// All accounts, in the state that the disk proves: an update whose bytes are gone is closed, and bytes that no account speaks of
/// are removed.
pub(crate) fn load(disk: &mut Disk) -> Result<Vec<Account>, String> {
    let mut accounts: Vec<Account> = vec![];
    for name in disk.names() {
        if name.ends_with(".tmp") {
            disk.remove(&name);
        } else if name.ends_with(".account") {
            let bytes = disk.read(&name).unwrap_or_default();
            let account: Account =
                serde_json::from_slice(bytes).map_err(|e| format!("{name} is damaged: {e}"))?;
            let there = |sealed: &Sealed| {
                disk.read(&update_name(account.job())).is_some_and(|b| b.len() as u64 == sealed.bytes)
            };
            let lost = account.sealed().is_some_and(|sealed| !there(sealed));
            accounts.push(if lost { account.closed() } else { account });
        }
    }
    for name in disk.names() {
        let spoken_for = accounts.iter().any(|a| a.sealed().is_some() && update_name(a.job()) == name);
        if name.ends_with(".update") && !spoken_for {
            disk.remove(&name);
        }
    }
    Ok(accounts)
}

/// Makes an update durable: first the bytes, then the account.
pub(crate) fn store(
    disk: &mut Disk,
    account: Account,
    bytes: &[u8],
    weight: u32,
    fate: Fate<'_>,
) -> Result<Sealed, Killed> {
    let sealed = seal(bytes, weight);
    write_durably(disk, &update_name(account.job()), bytes, fate)?;
    write_account(disk, &account.with_sealed(sealed.clone()), fate)?;
    Ok(sealed)
}

/// What an account says of these bytes.
pub(crate) fn seal(bytes: &[u8], weight: u32) -> Sealed {
    Sealed { update: Digest::of(bytes), bytes: bytes.len() as u64, weight, within: None, number: None }
}

/// Closes an attempt: first the account, then the bytes.
pub(crate) fn discard(disk: &mut Disk, account: &Account, fate: Fate<'_>) -> Result<(), Killed> {
    write_account(disk, account, fate)?;
    disk.remove(&update_name(account.job()));
    if fate() { Err(Killed) } else { Ok(()) }
}

/// The bytes of the update of a job, if it is there.
pub(crate) fn update<'a>(disk: &'a Disk, job: &JobId) -> Option<&'a [u8]> {
    disk.read(&update_name(job))
}

/// What the disk says that was stored for an attempt.
pub(crate) fn sealed(disk: &Disk, key: &AttemptKey) -> Option<Sealed> {
    let account: Account = serde_json::from_slice(disk.read(&account_name(&key.job))?).ok()?;
    account.sealed().filter(|_| account.last() == *key).cloned()
}

/// Writes a decision down, durably.
pub(crate) fn record(disk: &mut Disk, key: &AttemptKey) {
    disk.append(DECISIONS, format!("{key}\n").as_bytes());
    disk.sync(DECISIONS);
}

/// The attempts that were decided on.
pub(crate) fn decided(disk: &Disk) -> BTreeSet<String> {
    let text = String::from_utf8_lossy(disk.read(DECISIONS).unwrap_or_default()).into_owned();
    text.lines().map(str::to_owned).collect()
}
