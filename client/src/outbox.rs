//! The outbox: for each job its account, and the update that is on its way.
//!
//! The bytes are durable before the account says so, and the account is durable before the bytes are removed: after
//! a crash the account is never wrong about bytes that may have left.

use crate::folder::{Access, ClientFolder, create_private_dir, remove_if_there, sync_parent, write_durably};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng as _;
use std::io;
use std::path::{Path, PathBuf};
use undertone_core::digest::Digest;
use undertone_core::encoding::residual::Residual;
use undertone_core::id::JobId;
use undertone_round::job::Job;
use undertone_round::participant::{Account, Parcel, Sealed};

/// The outbox of one client.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    dir: PathBuf,
}

const ACCOUNT: &str = "account.json";
const UPDATE: &str = "update";
/// What an encoding left out of the updates so far, to be sent later.
const RESIDUAL: &str = "residual";
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

    /// Makes an update durable, encoded as the job says: first the bytes, then the account, then what was left out.
    pub(crate) fn store(
        &self,
        account: Account,
        parcel: &Parcel,
        weight: u32,
        job: &Job,
    ) -> io::Result<Sealed> {
        create_private_dir(&self.dir)?;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(io::Error::other)?;
        let mut residual = self.residual(account.job(), job)?;
        let bytes = parcel.encoded(job, &mut residual, &mut ChaCha20Rng::from_seed(seed));
        let bytes = bytes.map_err(io::Error::other)?;
        let within = parcel.within.map(|bit| bit.to_wire());
        let sealed = Sealed {
            update: Digest::of(&bytes),
            bytes: bytes.len() as u64,
            weight,
            within,
            number: parcel.number,
        };
        write_durably(&self.update(account.job()), &bytes, Access::Owner)?;
        let residual_path = self.residual_path(account.job());
        self.write_account(&account.with_sealed(sealed.clone()))?;
        if let Some(residual) = residual {
            write_durably(&residual_path, &residual.to_bytes(), Access::Owner)?;
        }
        Ok(sealed)
    }

    /// What waits of earlier updates. One that is damaged, or of another model, is begun anew: it costs a little of what
    /// was left out, and nothing else.
    fn residual(&self, id: &JobId, job: &Job) -> io::Result<Option<Residual>> {
        match std::fs::read(self.residual_path(id)) {
            Ok(bytes) => match Residual::from_bytes(&bytes, job.grid(), job.part().len()) {
                Ok(residual) => Ok(Some(residual)),
                Err(e) => {
                    tracing::warn!(error = %e, "what was left out of earlier updates cannot be read; it is lost");
                    Ok(None)
                }
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Closes an attempt: first the account, then the bytes. An update that was not `delivered` waits with what was left
    /// out of it.
    pub(crate) fn discard(&self, account: &Account, delivered: bool, job: Option<&Job>) -> io::Result<()> {
        self.write_account(account)?;
        let update = self.update(account.job());
        if let (false, Some(job)) = (delivered, job)
            && let Some(mut residual) = self.residual(account.job(), job)?
            && let Ok(message) = std::fs::read(&update)
        {
            match residual.take_back(&job.spec().transport.updates, &message) {
                Ok(()) => {
                    write_durably(&self.residual_path(account.job()), &residual.to_bytes(), Access::Owner)?;
                }
                Err(e) => tracing::warn!(error = %e, "an update that was not delivered is lost"),
            }
        }
        remove_if_there(&update)?;
        sync_parent(&update)
    }

    fn write_account(&self, account: &Account) -> io::Result<()> {
        let json = serde_json::to_vec(account).expect("an account is plain data");
        write_durably(&self.dir.join(format!("{}.{ACCOUNT}", account.job())), &json, Access::Owner)
    }

    fn residual_path(&self, job: &JobId) -> PathBuf {
        self.dir.join(format!("{job}.{RESIDUAL}"))
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

    fn job(transport: &str) -> Job {
        let text = undertone_harness::SAMPLE_JOB.replace("[deadlines]", &format!("{transport}\n[deadlines]"));
        undertone_round::job::JobSpec::from_toml(&text, "job.toml").unwrap().resolve().unwrap()
    }

    fn update() -> Parcel {
        Parcel::of(&job(""), FixedVector::from_units(Grid::new(16).unwrap(), vec![1000, -2]).unwrap())
    }

    fn outbox(dir: &Path) -> Outbox {
        Outbox::new(&ClientFolder::new(dir))
    }

    #[test]
    fn what_is_stored_is_found_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let box_ = outbox(dir.path());
        assert!(box_.load().unwrap().is_empty());
        let sealed = box_.store(account(1), &update(), 7, &job("")).unwrap();
        assert_eq!((sealed.bytes, sealed.weight), (8, 7));
        assert_eq!(std::fs::read(box_.update(account(1).job())).unwrap(), update().update.to_bytes());
        assert_eq!(outbox(dir.path()).load().unwrap(), [account(1).with_sealed(sealed)]);
        box_.discard(&account(1), true, None).unwrap();
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
        box_.store(account(2), &update(), 1, &job("")).unwrap();
        std::fs::remove_file(box_.update(account(2).job())).unwrap();
        assert_eq!(box_.load().unwrap(), [account(2)]);
    }

    #[test]
    fn a_damaged_account_stops_the_client() {
        let dir = tempfile::tempdir().unwrap();
        let box_ = outbox(dir.path());
        box_.store(account(1), &update(), 1, &job("")).unwrap();
        std::fs::write(dir.path().join("outbox/heart-abc123.account.json"), b"{").unwrap();
        assert!(box_.load().unwrap_err().to_string().contains("damaged"));
    }

    /// What an encoding leaves out is sent later; an update that did not count waits as well.
    #[test]
    fn what_is_left_out_waits() {
        let dir = tempfile::tempdir().unwrap();
        let box_ = outbox(dir.path());
        let job = job("[transport]\nupdates = { kind = \"top-k\", fraction = 0.5 }");
        let waits = || {
            let residual = box_.residual(account(1).job(), &job).unwrap().unwrap();
            residual.norm().round()
        };
        box_.store(account(1), &update(), 1, &job).unwrap();
        assert_eq!(waits(), 2.0, "the smaller value");
        box_.discard(&account(1), true, Some(&job)).unwrap();
        assert_eq!(waits(), 2.0);
        box_.store(account(2), &update(), 1, &job).unwrap();
        assert_eq!(waits(), 4.0);
        box_.discard(&account(2), false, Some(&job)).unwrap();
        assert_eq!(waits(), 1000.0, "all of the second update, and the rest of the first");
        std::fs::write(dir.path().join("outbox/heart-abc123.residual"), b"damaged").unwrap();
        assert!(box_.store(account(3), &update(), 1, &job).is_ok());
        assert_eq!(waits(), 2.0);
    }
}
