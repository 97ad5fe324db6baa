//! Updates on their way in: spooled where they go on after a break, compared with their digest, decoded and measured, and only
//! then offered to the round. And the receipts, which are never given before the update is durable.

use crate::driver::Reply;
use crate::faults::Fault;
use crate::message::{Claim, Refused, ToClient, ToServer};
use crate::mutant::Mutant;
use crate::replica::AtReplica;
use crate::storage::ready;
use crate::world::World;
use undertone_core::digest::Digest;
use undertone_core::encoding::{Decoder, Units};
use undertone_core::fixed::squared_norm;
use undertone_core::id::AttemptKey;
use undertone_round::coordinator::{Input, Update};
use undertone_round::job::Job;
use undertone_store::{Store as _, UploadRecord};

/// Seconds that a question waits for an update that is just being taken in.
const UPDATE_TURN_S: u32 = 30;

/// An upload under way.
pub(crate) struct Upload {
    claim: Claim,
    job: usize,
    /// Given to the round: nothing of it depends on the line any more.
    judged: Option<Judged>,
}

enum Judged {
    /// What was sent is a valid update.
    Kept(Digest),
    /// It is not.
    Bad,
}

impl Upload {
    pub(crate) fn is_judged(&self) -> bool {
        self.judged.is_some()
    }
}

fn attempt_prefix(key: &AttemptKey) -> String {
    format!("{key}/")
}

fn client_prefix(claim: &Claim) -> String {
    format!("{}{}#", attempt_prefix(&claim.key), claim.client)
}

fn spool_name(claim: &Claim) -> String {
    format!("{}{}", client_prefix(claim), claim.fingerprint())
}

/// The integers of an update that is whole.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn decoded(job: &Job, bytes: &[u8]) -> Result<Vec<i32>, String> {
    let mut units = vec![0; job.part().len()];
    let of_job = &job.spec().transport.updates;
    let mut decoder = Decoder::new(of_job, Units::new(job.grid()), units.len()).map_err(|e| e.to_string())?;
    let mut sink = |at: usize, run: &[i32]| units[at..at + run.len()].copy_from_slice(run);
    decoder.push(bytes, &mut sink).map_err(|e| e.to_string())?;
    decoder.finish().map_err(|e| e.to_string())?;
    Ok(units)
}

impl World {
    /// What was accepted of a client in an attempt. `Err`: the store does not say.
    fn taken_in(&mut self, r: usize, claim: &Claim) -> Result<Option<UploadRecord>, Refused> {
        if !self.store_answers(r) {
            return Err(Refused::Unavailable);
        }
        let Some(process) = &self.replicas[r].process else { return Err(Refused::Unavailable) };
        ready(process.store.upload(&claim.key, &claim.client)).map_err(|_| Refused::Unavailable)
    }

    fn counts(&mut self, r: usize, claim: &Claim) -> Result<bool, Refused> {
        let record = self.taken_in(r, claim)?;
        Ok(record.is_some_and(|record| record.claim == Some(claim.fingerprint())))
    }

    /// Whether the round takes it: which job it is of.
    fn expects(&mut self, r: usize, claim: &Claim) -> Result<usize, Refused> {
        let job = self.scenario.jobs.iter().position(|job| job.id == claim.key.job);
        let job = job.ok_or(Refused::Bad)?;
        let driver = self.driver(r, job).ok_or(Refused::NotNow)?;
        match driver.state.expects(&claim.key.job, &claim.client, &claim.key) {
            Ok(_) => Ok(job),
            Err(_) => Err(Refused::NotNow),
        }
    }

    fn receipt(&mut self, conn: usize, call: u64, claim: &Claim, outcome: Result<(), Refused>) {
        if outcome.is_ok() {
            self.watch.receipt(&self.storage, claim);
            self.coverage.note("receipts");
        }
        self.send_down(conn, ToClient::Receipt { call, outcome });
    }

    /// The receipt for an update whose attempt is over, if it was accepted while it was not.
    fn receipt_of_before(&mut self, r: usize, conn: usize, call: u64, claim: &Claim) {
        let outcome = match self.counts(r, claim) {
            Ok(true) => {
                self.coverage.note("receipts for attempts that are over");
                Ok(())
            }
            Ok(false) => Err(Refused::NotNow),
            Err(refused) => Err(refused),
        };
        self.receipt(conn, call, claim, outcome);
    }

    pub(crate) fn begin_upload(&mut self, r: usize, conn: usize, call: u64, claim: Claim) {
        // Before all else, also while the attempt is open: a receipt that was lost costs no second transfer.
        match self.counts(r, &claim) {
            Ok(true) => {
                self.coverage.note("receipts that were lost and given again");
                return self.receipt(conn, call, &claim, Ok(()));
            }
            Ok(false) => {}
            Err(refused) => return self.receipt(conn, call, &claim, Err(refused)),
        }
        let Some(process) = &self.replicas[r].process else { return };
        if process.uploads.values().any(|upload| upload.claim.client == claim.client) {
            return self.receipt(conn, call, &claim, Err(Refused::Unavailable));
        }
        let job = match self.expects(r, &claim) {
            Ok(job) => job,
            Err(Refused::NotNow) => return self.receipt_of_before(r, conn, call, &claim),
            Err(refused) => return self.receipt(conn, call, &claim, Err(refused)),
        };
        // A client has one unfinished upload of an attempt: another claim ends the one before.
        let (name, whose) = (spool_name(&claim), client_prefix(&claim));
        let spool = &mut self.replicas[r].spool;
        for other in spool.names().into_iter().filter(|other| other.starts_with(&whose) && *other != name) {
            spool.remove(&other);
        }
        let offset = spool.read(&name).map_or(0, |bytes| bytes.len() as u64).min(claim.bytes);
        let whole = offset == claim.bytes;
        let Some(process) = &mut self.replicas[r].process else { return };
        process.uploads.insert((conn, call), Upload { claim, job, judged: None });
        self.send_down(conn, ToClient::Go { call, offset });
        if whole {
            self.judge(r, conn, call);
        }
    }

    pub(crate) fn take_chunk(&mut self, r: usize, conn: usize, call: u64, offset: u64, bytes: &[u8]) {
        let Some(process) = &mut self.replicas[r].process else { return };
        let Some(upload) = process.uploads.get(&(conn, call)).filter(|upload| !upload.is_judged()) else {
            return;
        };
        let claim = upload.claim.clone();
        if self.expects(r, &claim).is_err() {
            // Nobody waits for it any more.
            self.end_upload(r, conn, call);
            self.replicas[r].spool.remove(&spool_name(&claim));
            return self.receipt_of_before(r, conn, call, &claim);
        }
        let (name, spool) = (spool_name(&claim), &mut self.replicas[r].spool);
        let here = spool.read(&name).map_or(0, |bytes| bytes.len() as u64);
        if offset != here || here + bytes.len() as u64 > claim.bytes {
            self.end_upload(r, conn, call);
            return self.receipt(conn, call, &claim, Err(Refused::Unavailable));
        }
        spool.append(&name, bytes);
        if self.strikes(Fault::PowerLostInUpload) {
            return self.kill_replica(r, true);
        }
        if here + bytes.len() as u64 == claim.bytes {
            self.judge(r, conn, call);
        }
    }

    fn end_upload(&mut self, r: usize, conn: usize, call: u64) -> Option<Upload> {
        self.replicas[r].process.as_mut()?.uploads.remove(&(conn, call))
    }

    /// The last byte is here: what it is, and whether the round takes it.
    fn judge(&mut self, r: usize, conn: usize, call: u64) {
        let Some(Upload { claim, job, .. }) = self.end_upload(r, conn, call) else { return };
        let name = spool_name(&claim);
        let bytes = self.replicas[r].spool.read(&name).unwrap_or_default().to_vec();
        if Digest::of(&bytes) != claim.digest && self.mutant != Some(Mutant::BelievesTornSpool) {
            self.coverage.note("uploads that were torn in the spool");
            self.replicas[r].spool.remove(&name);
            return self.receipt(conn, call, &claim, Err(Refused::Unavailable));
        }
        let sim = self.scenario.jobs[job].job.clone();
        let clip = self.driver(r, job).and_then(|driver| driver.state.carried.clip);
        let (_, bound) = sim.norm_bound(clip.as_ref());
        let valid = decoded(&sim, &bytes).is_ok_and(|units| squared_norm(&units) <= u128::from(bound).pow(2));
        let (client, key) = (claim.client.clone(), claim.key.clone());
        let (input, judged) = if valid {
            if self.strikes(Fault::BlobUnwritable) {
                return self.receipt(conn, call, &claim, Err(Refused::Unavailable));
            }
            let length = bytes.len() as u64;
            // Ends with whose it is, so that two updates are never one blob.
            let blob = [bytes, format!("\n{key}\n{client}\n{}\n", claim.weight).into_bytes()].concat();
            let blob = self.storage.put(blob).digest;
            let update = Update { client, blob, bytes: length, weight: claim.weight, origin: None };
            (Input::Update { key, update, claim: claim.fingerprint() }, Judged::Kept(blob))
        } else {
            self.coverage.note("updates that break the bound");
            (Input::BadUpdate { client, key, reason: "the update's norm is too large".into() }, Judged::Bad)
        };
        self.replicas[r].spool.remove(&name);
        let Some(process) = &mut self.replicas[r].process else { return };
        process.uploads.insert((conn, call), Upload { claim, job, judged: Some(judged) });
        self.feed_job(r, job, input, Some(Reply { conn, call }));
    }

    /// What came of an update that was given to the round.
    pub(crate) fn upload_judged(&mut self, r: usize, reply: Reply, answer: Result<(), Refused>) {
        let Reply { conn, call } = reply;
        let Some(Upload { claim, job, judged: Some(judged) }) = self.end_upload(r, conn, call) else {
            return;
        };
        let outcome = match (judged, answer) {
            (Judged::Bad, Ok(())) => Err(Refused::Bad),
            (Judged::Kept(_), Ok(())) => Ok(()),
            (Judged::Kept(blob), Err(Refused::NotNow)) => {
                let before = self.taken_in(r, &claim);
                let is_named = self.driver(r, job).is_some_and(|driver| driver.state.blobs().contains(&blob));
                if !is_named {
                    self.delete(r, [blob]);
                }
                match before {
                    Ok(Some(record)) if record.blob == blob => Ok(()),
                    Ok(_) => Err(Refused::NotNow),
                    Err(refused) => Err(refused),
                }
            }
            (_, Err(refused)) => Err(refused),
        };
        self.receipt(conn, call, &claim, outcome);
    }

    /// Whether an update counts whose receipt never came.
    pub(crate) fn settle(&mut self, r: usize, conn: usize, call: u64, claim: Claim, asked: u32) {
        let counts = match self.mutant {
            Some(Mutant::SaysUncounted) => Ok(false),
            _ => self.counts(r, &claim),
        };
        let outcome = match counts {
            Ok(true) => Ok(true),
            Err(refused) => Err(refused),
            Ok(false) => {
                let Some(process) = &self.replicas[r].process else { return };
                let same = |upload: &Upload| {
                    (&upload.claim.key, &upload.claim.client) == (&claim.key, &claim.client)
                };
                // What is just being taken in neither counts nor does it not.
                match process.uploads.values().any(same) {
                    true if asked < UPDATE_TURN_S => {
                        let message = ToServer::Settle { call, claim, asked: asked + 1 };
                        return self.later_at_replica(1_000, r, AtReplica::Again { conn, message });
                    }
                    true => Err(Refused::Unavailable),
                    false => self.expects(r, &claim).map(|_| false),
                }
            }
        };
        self.send_down(conn, ToClient::Settled { call, outcome });
    }

    /// Forgets what is left of the uploads of an attempt that is over.
    pub(crate) fn forget_unfinished(&mut self, r: usize, key: &AttemptKey) {
        let prefix = attempt_prefix(key);
        let spool = &mut self.replicas[r].spool;
        for name in spool.names().into_iter().filter(|name| name.starts_with(&prefix)) {
            spool.remove(&name);
        }
    }
}
