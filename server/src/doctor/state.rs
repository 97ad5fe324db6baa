//! What is kept: the database, the ledger, the jobs, and the blobs that they refer to.

use super::Check;
use crate::config::{ServerConfig, Storage};
use crate::storage;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use undertone_core::digest::Digest;
use undertone_privacy::ledger::chain::{Chain, Line};
use undertone_privacy::ledger::population::Budgets;
use undertone_round::coordinator::JobState;
use undertone_round::job::Job;
use undertone_store::{
    BlobError, Blobs, BucketBlobs, Durability, FolderBlobs, Inspection, JobRecord, SqlStore, Store,
};

/// A commit that takes so long makes every step of every job wait.
const SLOW: Duration = Duration::from_millis(100);
/// Less than that on a disk is little for anything.
const LITTLE: u64 = 1 << 30;
/// What a release may keep in memory of each value: the moments of a server optimiser, correlated noise, the model itself.
const BYTES_OF_A_VALUE: u64 = 24;

/// What the state tells other checks.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// What the largest release of an open job may keep in memory.
    pub(super) release_bytes: u64,
    /// When the last line of the ledger was written, in milliseconds of Unix time.
    pub(super) last_ms: u64,
    /// The database's clock, if it is another machine's.
    pub(super) database_ms: Option<u64>,
    /// What open jobs may need on the disk.
    pub(super) disk_bytes: u64,
}

pub(super) async fn checks(config: &ServerConfig) -> (Known, Vec<Check>) {
    let (mut known, mut checks) = (Known::default(), vec![]);
    let storage = &config.storage;
    let inspected = match &storage.database {
        Some(url) => {
            let found = SqlStore::look_at_postgres(url).await;
            known.database_ms = found.as_ref().ok().map(|found| found.clock_ms);
            found
        }
        None if !storage.file().exists() => {
            let found = format!("{} is not there", storage.file().display());
            checks.push(Check::warn(
                "database",
                found,
                "the first start makes it; after that, restore a backup",
            ));
            checks.push(space(&storage.folder, &known));
            return (known, checks);
        }
        None => SqlStore::look_at_sqlite(&storage.file()).await,
    };
    let found = match inspected {
        Ok(found) => found,
        Err(e) => {
            let next =
                "see what it says; docs/OPERATIONS.md tells what to do about a lost or damaged database";
            checks.push(Check::fail("database", e.to_string(), next));
            return (known, checks);
        }
    };
    checks.extend(database(&found));
    if storage.database.is_some() {
        checks.push(coordinators(&found));
    }
    if found.damage.is_empty() && found.schema == Some(found.known) {
        match open(storage).await {
            Ok(store) => {
                let told = kept(storage, &store, &mut known, &mut checks).await;
                if let Err(e) = told {
                    checks.push(Check::fail("state", e, "run doctor again; if it stays, restore a backup"));
                }
                store.close().await;
            }
            Err(e) => checks.push(Check::fail("state", e, "end what holds it, then run doctor again")),
        }
    }
    checks.push(space(&storage.folder, &known));
    (known, checks)
}

async fn open(storage: &Storage) -> Result<SqlStore, String> {
    // Nothing is written by it: the schema is the newest.
    let opened = match &storage.database {
        Some(url) => SqlStore::postgres(url, Durability::Process).await,
        None => SqlStore::sqlite(&storage.file(), Durability::Process).await,
    };
    opened.map_err(|e| e.to_string())
}

/// What the database says of itself.
pub(super) fn database(found: &Inspection) -> Vec<Check> {
    let (name, at) = ("database", &found.at);
    let mut checks = vec![match found.commit {
        Some(took) if took > SLOW => Check::warn(
            name,
            format!("{at} ({}) takes {} ms for a commit", found.version, took.as_millis()),
            "every step of every job waits for that: bring it nearer, or give it a faster disk",
        ),
        Some(took) => Check::ok(
            name,
            format!("{at} ({}), {:.1} ms for a commit", found.version, took.as_secs_f64() * 1e3),
        ),
        None => Check::ok(name, format!("{at} ({})", found.version)),
    }];
    if let Some(damage) = found.damage.first() {
        let all = found.damage.len();
        checks.push(Check::fail(
            "integrity",
            format!("{at} is damaged in {all} places, the first: {damage}"),
            "stop the coordinator, keep a copy of the file, restore a backup with --count-the-worst",
        ));
    }
    checks.push(match found.schema {
        Some(schema) if schema == found.known => {
            Check::ok("schema", format!("{schema}, the newest that this program knows"))
        }
        Some(schema) => Check::warn(
            "schema",
            format!("{schema}; the next start brings it to {}", found.known),
            "make a backup with the program that runs now, then start this one",
        ),
        None => Check::ok("schema", "nothing is in it; the first start makes the tables"),
    });
    checks
}

/// Who works on it, for a database that several may work on.
pub(super) fn coordinators(found: &Inspection) -> Check {
    let name = "coordinators";
    if found.coordinators.is_empty() {
        return Check::warn(name, "none works on this database", "start one: undertone-server run");
    }
    let names: Vec<&str> = found.coordinators.iter().map(String::as_str).collect();
    Check::ok(name, format!("{} on this database: {}", names.len(), names.join(", ")))
}

/// Ledger, jobs and blobs.
async fn kept(
    storage: &Storage,
    store: &SqlStore,
    known: &mut Known,
    checks: &mut Vec<Check>,
) -> Result<(), String> {
    checks.push(ledger(store, known).await?);
    let open = store.open_jobs().await.map_err(|e| e.to_string())?;
    checks.push(jobs(&open, known));
    let told = store.told("blobs").await.map_err(|e| e.to_string())?;
    // The name of a folder is made by its first start, and is nothing to look at.
    let has_place = storage.bucket.is_some() || storage.database.is_none();
    if let (Some(told), true) = (&told, has_place) {
        let place = storage::place_of_blobs(storage).map_err(|e| e.to_string())?;
        if *told != place {
            checks.push(Check::fail(
                "blobs",
                format!("this database's models are in {told}, and server.toml says {place}"),
                "write in [storage] what it was made with",
            ));
            return Ok(());
        }
    }
    let owner = store.told("deployment").await.map_err(|e| e.to_string())?;
    let blobs: Box<dyn Blobs> = match &storage.bucket {
        None if !storage.blobs().exists() => {
            let released = store.released_models().await.map_err(|e| e.to_string())?;
            if !(open.is_empty() && released.is_empty()) {
                let found =
                    format!("{} is not there, and jobs refer to what was in it", storage.blobs().display());
                checks.push(Check::fail("blobs", found, "put it back from a backup"));
            }
            return Ok(());
        }
        None => match FolderBlobs::open(storage.blobs(), Durability::Process).await {
            Ok(blobs) => Box::new(blobs),
            Err(e) => {
                checks.push(Check::fail("blobs", e.to_string(), "let this user read and write the folder"));
                return Ok(());
            }
        },
        Some(bucket) => {
            let probe = BucketBlobs::probe(&bucket.config(), &format!("doctor-{}", std::process::id())).await;
            match probe {
                Err(e) => {
                    let next = "check [storage] bucket, the key in AWS_ACCESS_KEY_ID, and the bucket's rules: put, get, list and delete \
                                are needed";
                    checks.push(Check::fail("bucket", e.to_string(), next));
                    return Ok(());
                }
                Ok(found) => {
                    checks.push(bucket_of(&bucket.url, found.owner.as_deref(), owner.as_deref(), found.took))
                }
            }
            let Some(owner) = owner.filter(|_| told.is_some()) else { return Ok(()) };
            // Not the folder of the coordinator that may be running: its own, for a moment.
            let near = storage.folder.join(format!("doctor-near-{}", std::process::id()));
            let opened = BucketBlobs::open(&bucket.config(), &owner, false, &near, 0).await;
            let found = match &opened {
                Ok(blobs) => blobs_of(store, blobs, &open).await,
                Err(e) => Err(e.to_string()),
            };
            let _ = std::fs::remove_dir_all(&near);
            checks.push(found?);
            return Ok(());
        }
    };
    checks.push(blobs_of(store, &*blobs, &open).await?);
    Ok(())
}

/// Whose a place in a bucket is, against whose it should be.
pub(super) fn bucket_of(url: &str, found: Option<&str>, ours: Option<&str>, took: Duration) -> Check {
    let name = "bucket";
    match (found, ours) {
        (Some(found), Some(ours)) if found == ours => {
            Check::ok(name, format!("{url} is ours; put, get, list and delete took {} ms", took.as_millis()))
        }
        (None, None) => Check::ok(name, format!("{url} works and is nobody's yet")),
        (Some(_), _) => Check::fail(
            name,
            format!("{url} belongs to another deployment"),
            "name a prefix of its own: a coordinator deletes what it does not know",
        ),
        (None, Some(_)) => Check::fail(
            name,
            format!("{url} has lost the object that says whose it is: was it emptied?"),
            "restore the bucket to where it was",
        ),
    }
}

async fn ledger(store: &SqlStore, known: &mut Known) -> Result<Check, String> {
    let mut chain = Chain::new(Budgets::default());
    loop {
        let rows = store.ledger(chain.len(), 1024).await.map_err(|e| e.to_string())?;
        let whole = rows.len() == 1024;
        for row in rows {
            let line = serde_json::from_str::<Line>(&row.document).map_err(|e| e.to_string());
            let applied = line.and_then(|line| {
                known.last_ms = known.last_ms.max(line.unix_ms);
                chain.apply(line).map_err(|e| e.to_string())
            });
            if let Err(e) = applied {
                return Ok(Check::fail(
                    "ledger",
                    format!("line {} of the privacy ledger: {e}", row.seq),
                    "stop the coordinator and restore a backup; nothing may be spent on this ledger",
                ));
            }
        }
        if !whole {
            let found = format!("{} lines, each following from the one before", chain.len());
            return Ok(Check::ok("ledger", found));
        }
    }
}

/// Jobs that go on, and what they may need.
fn jobs(open: &[JobRecord], known: &mut Known) -> Check {
    let mut unreadable = vec![];
    for record in open {
        let job = Job::from_document(record.document.as_bytes()).map_err(|e| e.to_string());
        let state = serde_json::from_str::<JobState>(&record.state).map_err(|e| e.to_string());
        match job.and_then(|job| state.map(|state| (job, state))) {
            Ok((job, state)) => {
                let values = job.layout().len() as u64;
                known.release_bytes = known.release_bytes.max(values * BYTES_OF_A_VALUE);
                // The updates of a cohort, the models of before and after, and what goes on between releases.
                let updates = u64::from(job.spec().cohort.whole()) * job.update_bytes();
                known.disk_bytes += updates + 2 * state.model.bytes + values * BYTES_OF_A_VALUE;
            }
            Err(e) => unreadable.push(format!("{}: {e}", record.id)),
        }
    }
    match unreadable.first() {
        None => Check::ok("jobs", format!("{} go on", open.len())),
        Some(first) => Check::fail(
            "jobs",
            format!("{} of {} cannot be read, the first: {first}", unreadable.len(), open.len()),
            "run the version that made them, or end them: undertone job cancel",
        ),
    }
}

/// Whether what the state refers to is there, and as long as it should be.
pub(super) async fn blobs_of(
    store: &dyn Store,
    blobs: &dyn Blobs,
    open: &[JobRecord],
) -> Result<Check, String> {
    let name = "blobs";
    let mut wanted: BTreeMap<Digest, Option<u64>> = BTreeMap::new();
    for record in open {
        wanted.extend(needed(record));
    }
    for job in store.jobs().await.map_err(|e| e.to_string())? {
        let releases = store.releases(&job.id).await.map_err(|e| e.to_string())?;
        wanted.extend(releases.iter().map(|release| (release.model, Some(release.bytes))));
    }
    let mut missing = vec![];
    for (digest, bytes) in &wanted {
        match blobs.len(digest).await {
            Ok(found) if bytes.is_none_or(|bytes| bytes == found) => {}
            Ok(found) => missing.push((
                *digest,
                format!("{} has {found} bytes and not {}", digest.short(), bytes.unwrap_or(0)),
            )),
            Err(BlobError::NotFound { .. }) => {
                missing.push((*digest, format!("{} is not there", digest.short())))
            }
            Err(e) => return Err(e.to_string()),
        }
    }
    // A coordinator that runs may have let go of some since.
    if !missing.is_empty() {
        let mut still: Vec<Digest> = store.released_models().await.map_err(|e| e.to_string())?;
        for record in store.open_jobs().await.map_err(|e| e.to_string())? {
            still.extend(needed(&record).into_iter().map(|(digest, _)| digest));
        }
        missing.retain(|(digest, _)| still.contains(digest));
    }
    Ok(match missing.first() {
        None => Check::ok(name, format!("all {} that jobs refer to are there", wanted.len())),
        Some((_, first)) => Check::fail(
            name,
            format!(
                "{} of {} that jobs refer to are lost or cut, the first: {first}",
                missing.len(),
                wanted.len()
            ),
            "put released models back from a backup (its folder blobs lies as this one); updates of open jobs are in none",
        ),
    })
}

/// The blobs of an open job, with their lengths where it says them.
fn needed(record: &JobRecord) -> Vec<(Digest, Option<u64>)> {
    let Ok(state) = serde_json::from_str::<JobState>(&record.state) else { return vec![] };
    let mut needed: Vec<_> = state.blobs().into_iter().map(|digest| (digest, None)).collect();
    needed.push((state.model.digest, Some(state.model.bytes)));
    let module = Job::from_document(record.document.as_bytes()).ok().and_then(|job| job.module_file());
    needed.extend(module.map(|file| (file.digest, Some(file.bytes))));
    needed
}

/// Whether there is room for what open jobs may need.
pub(super) fn space(folder: &Path, known: &Known) -> Check {
    let name = "disk space";
    // A folder that is not there yet will be on the disk of the one above.
    let there = folder.ancestors().find(|folder| folder.exists()).unwrap_or(folder);
    let free = match rustix::fs::statvfs(there) {
        Ok(disk) => disk.f_bavail.saturating_mul(disk.f_frsize),
        Err(e) => return Check::fail(name, format!("{}: {e}", there.display()), "mount it"),
    };
    enough(free, known.disk_bytes)
}

pub(super) fn enough(free: u64, needed: u64) -> Check {
    let name = "disk space";
    let mib = |bytes: u64| bytes >> 20;
    if free < needed {
        let found = format!("{} MiB are free, and the open jobs may need {} MiB", mib(free), mib(needed));
        Check::fail(name, found, "free or add space: a coordinator whose disk is full waits, and rounds fail")
    } else if free < LITTLE.max(2 * needed) {
        Check::warn(name, format!("only {} MiB are free", mib(free)), "free or add space")
    } else {
        let found = format!("{} MiB are free, the open jobs may need {} MiB", mib(free), mib(needed));
        Check::ok(name, found)
    }
}
