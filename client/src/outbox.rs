//! The outbox: for each job its account, and the update that is on its way.
//!
//! The bytes are durable before the account says so, and the account is durable before the bytes are removed: after
//! a crash the account is never wrong about bytes that may have left.

use crate::folder::{Access, ClientFolder, create_private_dir, remove_if_there, sync_parent, write_durably};
use std::io;
use std::path::{Path, PathBuf};
use undertone_core::digest::Digest;
use undertone_core::id::JobId;
use undertone_round::participant::{Account, Parcel, Sealed};

/// The outbox of one client.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    dir: PathBuf,
}

const ACCOUNT: &str = "account.json";
const UPDATE: &str = "update";
const MAX_ACCOUNT_BYTES: u64 = 64 << 10;

impl Outbox {
    pub(crate) fn new(folder: &ClientFolder) -> Self {
        Self { dir: folder.outbox() }
    }

    /// All accounts, in the state that the disk proves: an update whose bytes are gone is closed, and bytes that no
    /// account speaks of are removed.
    pub(crate) fn load(&self) -> io::Result<Vec<Account>> {
        create_private_dir(&self.dir)?;
        let mut accounts = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            match path.extension().and_then(|e| e.to_str()) {
                Some("tmp") => remove_if_there(&path)?,
                Some("json") => accounts.push(self.load_account(&path)?),
                _ => {}
            }
        }
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let spoken_for = || accounts.iter().any(|a| a.sealed().is_some() && self.update(a.job()) == path);
            if path.extension().is_some_and(|e| e == UPDATE) && !spoken_for() {
                remove_if_there(&path)?;
            }
        }
        Ok(accounts)
    }

    fn load_account(&self, path: &Path) -> io::Result<Account> {
        let damaged = |problem: String| {
            // Without the account the client no longer knows what it gave: it must not guess.
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "{problem}; it says what this client gave to a job: restore it, or remove it knowing that"
                ),
            )
        };
        if std::fs::metadata(path)?.len() > MAX_ACCOUNT_BYTES {
            return Err(damaged(format!("{} is too long", path.display())));
        }
        let account: Account = serde_json::from_slice(&std::fs::read(path)?)
            .map_err(|e| damaged(format!("{} is damaged ({e})", path.display())))?;
        let there = |sealed: &Sealed| {
            std::fs::metadata(self.update(account.job())).is_ok_and(|m| m.len() == sealed.bytes)
        };
        let lost = account.sealed().is_some_and(|s| !there(s));
        Ok(if lost { account.closed() } else { account })
    }

    /// Makes an update durable: first the bytes, then the account.
    pub(crate) fn store(&self, account: Account, parcel: &Parcel, weight: u32) -> io::Result<Sealed> {
        create_private_dir(&self.dir)?;
        let bytes = parcel.update.to_bytes();
        let within = parcel.within.map(|bit| bit.to_wire());
        let sealed = Sealed { update: Digest::of(&bytes), bytes: bytes.len() as u64, weight, within };
        write_durably(&self.update(account.job()), &bytes, Access::Owner)?;
        self.write_account(&account.with_sealed(sealed.clone()))?;
        Ok(sealed)
    }

    /// Closes an attempt: first the account, then the bytes.
    pub(crate) fn discard(&self, account: &Account) -> io::Result<()> {
        self.write_account(account)?;
        let update = self.update(account.job());
        remove_if_there(&update)?;
        sync_parent(&update)
    }

    fn write_account(&self, account: &Account) -> io::Result<()> {
        let json = serde_json::to_vec(account).expect("an account is plain data");
        write_durably(&self.dir.join(format!("{}.{ACCOUNT}", account.job())), &json, Access::Owner)
    }

    /// Where a job's update lies. Job names hold no path separators.
    pub(crate) fn update(&self, job: &JobId) -> PathBuf {
        self.dir.join(format!("{job}.{UPDATE}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use undertone_core::fixed::{FixedVector, Grid};

    fn account(attempt: u32) -> Account {
        serde_json::from_value(serde_json::json!({
            "job": "heart-abc123", "document": Digest::of(b"job").to_string(), "updates": attempt,
            "round": 1, "attempt": attempt, "sealed": null
        }))
        .unwrap()
    }

    fn update() -> Parcel {
        FixedVector::from_units(Grid::new(16).unwrap(), vec![1, -2, 3]).unwrap().into()
    }

    fn outbox(dir: &Path) -> Outbox {
        Outbox::new(&ClientFolder::new(dir))
    }

    #[test]
    fn what_is_stored_is_found_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let box_ = outbox(dir.path());
        assert!(box_.load().unwrap().is_empty());
        let sealed = box_.store(account(1), &update(), 7).unwrap();
        assert_eq!((sealed.bytes, sealed.weight), (12, 7));
        assert_eq!(std::fs::read(box_.update(account(1).job())).unwrap(), update().update.to_bytes());
        assert_eq!(outbox(dir.path()).load().unwrap(), [account(1).with_sealed(sealed)]);
        box_.discard(&account(1)).unwrap();
        assert_eq!(outbox(dir.path()).load().unwrap(), [account(1)]);
        assert!(!box_.update(account(1).job()).exists());
    }

    #[test]
    fn a_crash_between_two_writes_is_mended() {
        let dir = tempfile::tempdir().unwrap();
        let box_ = outbox(dir.path());
        // Bytes written, account not: nobody was told of them.
        box_.load().unwrap();
        std::fs::write(box_.update(account(1).job()), b"orphan").unwrap();
        std::fs::write(dir.path().join("outbox/heart-abc123.update.tmp"), b"half").unwrap();
        assert!(box_.load().unwrap().is_empty());
        assert_eq!(std::fs::read_dir(dir.path().join("outbox")).unwrap().count(), 0);
        // Account written, bytes gone: the attempt is closed, and still counted.
        box_.store(account(2), &update(), 1).unwrap();
        std::fs::remove_file(box_.update(account(2).job())).unwrap();
        assert_eq!(box_.load().unwrap(), [account(2)]);
    }

    #[test]
    fn a_damaged_account_stops_the_client() {
        let dir = tempfile::tempdir().unwrap();
        let box_ = outbox(dir.path());
        box_.store(account(1), &update(), 1).unwrap();
        std::fs::write(dir.path().join("outbox/heart-abc123.account.json"), b"{").unwrap();
        assert!(box_.load().unwrap_err().to_string().contains("damaged"));
    }
}
