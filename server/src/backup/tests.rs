//! Backups and restores of a state that is made by hand; the process tests make one by training.

use super::{BackupError, Knowledge, in_place, make, restore, verify};
use crate::ServerConfig;
use crate::init::{InitOptions, init};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use undertone_core::digest::Digest;
use undertone_core::id::{Attempt, AttemptKey, JobId, Round};
use undertone_privacy::ledger::chain::{Chain, Line};
use undertone_privacy::ledger::population::Budgets;
use undertone_privacy::ledger::{EntryState, recompute};
use undertone_round::coordinator::{JobState, ModelRef, Phase};
use undertone_round::job::{Job, JobSpec};
use undertone_store::{
    Blobs as _, Durability, FolderBlobs, JobRecord, ReleaseRecord, SqlStore, Store, TokenRecord, Transition,
};

const JOB: &str = undertone_harness::SAMPLE_JOB;
const CENTRAL: &str = "unit = \"client\"\ntrust = \"central\"\nclip_norm = 1.0\nnoise_multiplier = 4.0\n\
                       delta = 1e-5\nbudget_epsilon = 9.0";

/// A job file with a promise, of many rounds.
fn central(name: &str) -> String {
    JOB.replace("unit = \"none\"", CENTRAL)
        .replace("name = \"sample\"", &format!("name = \"{name}\""))
        .replace("rounds = 2", "rounds = 6")
        .replace("budget_epsilon = 9.0", "budget_epsilon = 60.0")
}

fn job(text: &str) -> Job {
    JobSpec::from_toml(text, "job.toml").unwrap().resolve().unwrap()
}

/// A published model of an ended job.
pub(crate) async fn publish(store: &dyn Store, name: &str, model: Digest, bytes: u64) {
    let id = JobId::new(name).unwrap();
    let record = JobRecord {
        id: id.clone(),
        document: "{}".into(),
        document_digest: Digest::of(b"{}"),
        version: JobRecord::FIRST_VERSION,
        status: "completed".into(),
        ended: true,
        state: "{}".into(),
        created_unix_s: 1,
    };
    store.insert_job(record, vec![]).await.unwrap();
    let release =
        ReleaseRecord { job: id.clone(), round: Round(1), model, bytes, unix_ms: 1, document: "{}".into() };
    let step = Transition {
        release: Some(release),
        ended: true,
        ..Transition::new(id, JobRecord::FIRST_VERSION, "completed", "{}")
    };
    store.commit(step).await.unwrap();
}

/// A deployment on a disk, and what is in it.
struct Deployment {
    folder: TempDir,
    config: ServerConfig,
    store: SqlStore,
    chain: Chain,
    version: u64,
}

impl Deployment {
    /// One with a published model, a join token, and a job of six rounds that nothing happened to.
    async fn new(text: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let options = InitOptions {
            folder: folder.path().join("d"),
            name: "kept".into(),
            listen: "127.0.0.1:7443".parse().unwrap(),
            hosts: vec!["localhost".into()],
        };
        let config = init(&options).unwrap();
        let store = SqlStore::sqlite(&config.storage.file(), Durability::Process).await.unwrap();
        let blobs = FolderBlobs::open(config.storage.blobs(), Durability::Process).await.unwrap();
        let (model, bytes) = blobs.put(bytes::Bytes::from_static(b"a model of before")).await.unwrap();
        publish(&store, "before", model, bytes).await;
        // What a round of a running job keeps: nobody else's business.
        blobs.put(bytes::Bytes::from_static(b"an update of a client")).await.unwrap();
        let token = TokenRecord {
            id: "t".into(),
            secret_digest: Digest::of(b"secret"),
            role: undertone_core::id::ClientRole::Trainer,
            name: None,
            uses_left: 1,
            max_uses: 1,
            expires_unix_s: u32::MAX.into(),
            created_unix_s: 1,
        };
        store.create_token(token).await.unwrap();
        let job = job(text);
        let state = JobState::new(ModelRef { digest: model, bytes }, 1);
        let record = JobRecord {
            id: id(),
            document: String::from_utf8(job.spec().to_document()).unwrap(),
            document_digest: job.digest(),
            version: JobRecord::FIRST_VERSION,
            status: "waiting".into(),
            ended: false,
            state: serde_json::to_string(&state).unwrap(),
            created_unix_s: 2,
        };
        store.insert_job(record, vec![]).await.unwrap();
        // As every coordinator that ran leaves it.
        fs::File::create(config.storage.folder.join("lock")).unwrap();
        let chain = Chain::new(Budgets::default());
        Self { folder, config, store, chain, version: JobRecord::FIRST_VERSION }
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("d")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Reserves attempts of the job at these rounds, and publishes those.
    async fn go_on(&mut self, text: &str, rounds: std::ops::RangeInclusive<u32>) {
        self.spend(&id(), text, rounds).await;
        let record = self.store.job(&id()).await.unwrap().unwrap();
        self.version = self
            .store
            .commit(Transition::new(id(), self.version, record.status, record.state))
            .await
            .unwrap();
    }

    async fn spend(&mut self, id: &JobId, text: &str, rounds: std::ops::RangeInclusive<u32>) {
        let job = job(text);
        for round in rounds {
            let key = AttemptKey { job: id.clone(), round: Round(round), attempt: Attempt(1) };
            let reserved =
                self.chain.job(id).reserve(key.clone(), job.contract(), self.chain.totals()).unwrap();
            let sampled = reserved.sampled(Digest::of(b"cohort")).unwrap();
            let output = Digest::of(&round.to_le_bytes());
            for entry in [reserved, sampled] {
                self.add(entry).await;
            }
            let committed = self.chain.job(id).commit(&key, output).unwrap();
            self.add(committed).await;
            let published = self.chain.job(id).publish(&key, output).unwrap();
            self.add(published).await;
        }
    }

    async fn add(&mut self, entry: undertone_privacy::ledger::LedgerEntry) {
        for line in self.chain.lines_for(&[entry], 7).unwrap() {
            // The lines of a job that is not here; the tokens stay.
            let tokens = self.store.list_tokens().await.unwrap();
            self.store.settle(&[crate::ledger::row(&line)], vec![], &[]).await.unwrap();
            for token in tokens {
                self.store.create_token(token).await.unwrap();
            }
            self.chain.apply(line).unwrap();
        }
    }

    fn epsilon(&self) -> f64 {
        self.chain.spent_by(&id()).and_then(|spent| spent.epsilon).unwrap_or(0.0)
    }

    /// As `undertone ledger export` does.
    async fn export(&self, name: &str) -> PathBuf {
        let rows = self.store.ledger(0, 10_000).await.unwrap();
        let text: String = rows.iter().map(|row| format!("{}\n", row.document)).collect();
        let file = self.path(name);
        fs::write(&file, text).unwrap();
        file
    }
}

fn id() -> JobId {
    JobId::new("sample-000001").unwrap()
}

fn worst(ledgers: &[&Path], jobs: &[&Path]) -> Knowledge {
    let owned = |paths: &[&Path]| paths.iter().map(|path| path.to_path_buf()).collect();
    Knowledge::TheWorst { ledgers: owned(ledgers), jobs: owned(jobs) }
}

/// The ledger of a restored deployment, checked line by line and recomputed.
async fn ledger_of(dir: &Path) -> (Chain, SqlStore) {
    let config = ServerConfig::load(dir).unwrap();
    let store = SqlStore::sqlite(&config.storage.file(), Durability::Process).await.unwrap();
    let lines: Vec<Line> = super::lines(&store).await.unwrap();
    recompute(&lines).unwrap();
    (Chain::from_lines(Budgets::default(), lines).unwrap(), store)
}

fn epsilon_of(chain: &Chain) -> f64 {
    chain.spent_by(&id()).and_then(|spent| spent.epsilon).unwrap_or(0.0)
}

#[tokio::test]
async fn what_is_lost_is_counted_and_the_job_does_not_go_on() {
    let text = central("sample");
    let mut d = Deployment::new(&text).await;
    d.go_on(&text, 1..=2).await;
    let made = make(&d.dir(), &d.path("backup")).await.unwrap();
    assert_eq!((made.open_jobs.as_slice(), made.manifest.ledger_lines), (&[id()][..], 8));
    d.go_on(&text, 3..=5).await;

    let back = d.path("back");
    let restored = restore(&d.path("backup"), &back, &worst(&[], &[])).await.unwrap();
    assert_eq!((restored.settled.lines_newer, restored.settled.tokens), (0, 1));
    let (chain, store) = ledger_of(&back).await;
    assert!(epsilon_of(&chain) >= d.epsilon(), "{} {}", epsilon_of(&chain), d.epsilon());
    let most = job(&text).contract().epsilon_after(2 + 4 * 3).unwrap();
    assert!((epsilon_of(&chain) - most).abs() < 1e-9, "four rounds with three attempts each, and no more");

    let record = store.job(&id()).await.unwrap().unwrap();
    assert!(record.ended && record.status == "failed", "{record:?}");
    let state: JobState = serde_json::from_str(&record.state).unwrap();
    assert!(matches!(state.phase, Phase::Ended { .. }), "{state:?}");
    assert!(store.list_tokens().await.unwrap().is_empty());
    let config = ServerConfig::load(&back).unwrap();
    let blobs = FolderBlobs::open(config.storage.blobs(), Durability::Process).await.unwrap();
    assert_eq!(blobs.list().await.unwrap(), [Digest::of(b"a model of before")], "no update of anybody");
    crate::identity::Authority::open(&config.pki).unwrap();
    for (file, mode) in
        [("pki/ca.key", 0o600), ("state/undertone.sqlite", 0o600), ("operator/operator.key", 0o600)]
    {
        assert_eq!(fs::metadata(back.join(file)).unwrap().permissions().mode() & 0o777, mode, "{file}");
        assert!(!back.join("state/restoring.sqlite").exists());
    }
}

#[tokio::test]
async fn the_database_that_was_used_last_says_what_was_spent() {
    let text = central("sample");
    let mut d = Deployment::new(&text).await;
    d.go_on(&text, 1..=1).await;
    make(&d.dir(), &d.path("backup")).await.unwrap();
    d.go_on(&text, 2..=4).await;
    let everything = Knowledge::Everything { database: d.config.storage.file() };
    let restored = restore(&d.path("backup"), &d.path("back"), &everything).await.unwrap();
    assert_eq!(restored.settled.lines_newer, 12);
    let (chain, store) = ledger_of(&d.path("back")).await;
    assert_eq!(epsilon_of(&chain), d.epsilon(), "neither less nor more");
    assert!(store.job(&id()).await.unwrap().unwrap().ended, "an older state of a job does not go on");

    // One that is older than the backup is not what was used last.
    let older = make(&d.dir(), &d.path("newer-backup")).await;
    assert!(older.is_ok());
    let odd = d.path("odd/undertone.sqlite");
    fs::create_dir(d.path("odd")).unwrap();
    fs::copy(d.path("backup/state.sqlite"), &odd).unwrap();
    // Nor is one that was taken out of its folder, where its last commits may be, or one of another backup.
    for (database, why) in [
        (odd.clone(), "not in the state folder"),
        (d.path("backup/state.sqlite"), "not in the state folder"),
        (odd, "older than the backup"),
    ] {
        let stale = Knowledge::Everything { database };
        let refused = restore(&d.path("newer-backup"), &d.path("elsewhere"), &stale).await.unwrap_err();
        assert!(refused.to_string().contains(why), "{refused}");
        assert!(!d.path("elsewhere").exists());
        let _ = fs::File::create(d.path("odd/lock"));
    }
}

#[tokio::test]
async fn ledgers_that_were_kept_are_taken_over_by_maximum() {
    let text = central("sample");
    let mut d = Deployment::new(&text).await;
    d.go_on(&text, 1..=1).await;
    let early = d.export("early.jsonl").await;
    make(&d.dir(), &d.path("backup")).await.unwrap();
    d.go_on(&text, 2..=3).await;
    let late = d.export("late.jsonl").await;
    d.go_on(&text, 4..=5).await;

    let both = worst(&[&late, &early], &[]);
    let restored = restore(&d.path("backup"), &d.path("back"), &both).await.unwrap();
    assert_eq!(restored.settled.lines_newer, 8);
    let (chain, _store) = ledger_of(&d.path("back")).await;
    assert!(epsilon_of(&chain) >= d.epsilon());
    let most = job(&text).contract().epsilon_after(3 + 3 * 3).unwrap();
    assert!((epsilon_of(&chain) - most).abs() < 1e-9, "less is unknown than without it");

    // A ledger of another course of things is refused.
    let (other, _store) = ledger_of(&d.path("back")).await;
    assert!(!other.is_empty());
    let rows = super::lines(&_store).await.unwrap();
    let forked = d.path("forked.jsonl");
    fs::write(&forked, rows.iter().map(|l| serde_json::to_string(l).unwrap() + "\n").collect::<String>())
        .unwrap();
    make(&d.dir(), &d.path("second")).await.unwrap();
    let refused = restore(&d.path("second"), &d.path("third"), &worst(&[&forked], &[])).await.unwrap_err();
    assert!(matches!(refused, BackupError::Parted { line: 13, .. }), "{refused}");
}

#[tokio::test]
async fn jobs_of_after_the_backup_are_counted_when_they_are_named() {
    let (text, later) = (central("sample"), central("later"));
    let mut d = Deployment::new(&text).await;
    make(&d.dir(), &d.path("backup")).await.unwrap();
    let new = JobId::new("later-000002").unwrap();
    d.spend(&new, &later, 1..=2).await;
    let ledger = d.export("ledger.jsonl").await;
    let refused = restore(&d.path("backup"), &d.path("back"), &worst(&[&ledger], &[])).await.unwrap_err();
    assert!(refused.to_string().contains("job later-000002 was submitted after the backup"), "{refused}");
    assert!(!d.path("back").exists(), "nothing is left of it");

    let file = d.path("later.toml");
    fs::write(&file, &later).unwrap();
    // Each file is one job's, also of jobs that differ in nothing.
    let twin = JobId::new("later-000003").unwrap();
    let one = d.chain.len();
    d.spend(&twin, &later, 1..=1).await;
    assert!(d.chain.len() > one);
    let both = d.export("both.jsonl").await;
    let refused = restore(&d.path("backup"), &d.path("back"), &worst(&[&both], &[&file])).await.unwrap_err();
    assert!(matches!(&refused, BackupError::UnknownJob(id) if *id == twin), "{refused}");
    restore(&d.path("backup"), &d.path("twins"), &worst(&[&both], &[&file, &file])).await.unwrap();
    restore(&d.path("backup"), &d.path("back"), &worst(&[&ledger], &[&file])).await.unwrap();
    let (chain, store) = ledger_of(&d.path("back")).await;
    store.close().await;
    let whole = job(&later).contract().epsilon_after(2 + 4 * 3).unwrap();
    assert!((chain.spent_by(&new).unwrap().epsilon.unwrap() - whole).abs() < 1e-9);

    // One of which nothing else is known.
    restore(&d.path("backup"), &d.path("again"), &worst(&[], &[&file])).await.unwrap();
    let (chain, _store) = ledger_of(&d.path("again")).await;
    let named: Vec<_> = chain.jobs().filter(|(id, _)| id.as_str().starts_with("later-")).collect();
    let all = job(&later).contract().epsilon_after(6 * 3).unwrap();
    assert_eq!(named.len(), 1);
    assert!((named[0].1.epsilon.unwrap() - all).abs() < 1e-9);
}

#[tokio::test]
async fn correlated_noise_never_goes_on_from_an_older_state() {
    let text = central("sample")
        .replace("budget_epsilon", "mechanism = \"blt\"\nbudget_epsilon")
        .replace("min_clients = 1", "min_clients = 1\nparticipations = 6\nseparation = 1");
    let mut d = Deployment::new(&text).await;
    d.go_on(&text, 1..=2).await;
    make(&d.dir(), &d.path("backup")).await.unwrap();
    d.go_on(&text, 3..=3).await;
    restore(&d.path("backup"), &d.path("back"), &worst(&[], &[])).await.unwrap();
    let (chain, store) = ledger_of(&d.path("back")).await;
    assert_eq!(epsilon_of(&chain), d.epsilon(), "the whole run was charged at its beginning");
    assert!(store.job(&id()).await.unwrap().unwrap().ended);
}

#[tokio::test]
async fn an_attempt_that_was_open_is_burnt() {
    let text = central("sample");
    let mut d = Deployment::new(&text).await;
    let key = AttemptKey { job: id(), round: Round(1), attempt: Attempt(1) };
    let job = job(&text);
    let reserved = d.chain.job(&id()).reserve(key.clone(), job.contract(), d.chain.totals()).unwrap();
    d.add(reserved).await;
    make(&d.dir(), &d.path("backup")).await.unwrap();
    restore(&d.path("backup"), &d.path("back"), &worst(&[], &[])).await.unwrap();
    let (chain, _store) = ledger_of(&d.path("back")).await;
    let state = chain.job(&id()).entry(&key).unwrap().state.clone();
    assert!(matches!(state, EntryState::Burnt { .. }), "{state:?}");
}

#[tokio::test]
async fn a_damaged_backup_is_refused_and_nothing_is_touched() {
    let text = central("sample");
    let mut d = Deployment::new(&text).await;
    d.go_on(&text, 1..=1).await;
    let backup = d.path("backup");
    make(&d.dir(), &backup).await.unwrap();
    let manifest = verify(&backup).unwrap();
    let mut files: Vec<String> = manifest.files.iter().map(|kept| kept.path.clone()).collect();
    files.push("backup.json".into());
    for file in files {
        let path = backup.join(&file);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x04;
        for broken in [flipped, whole[..whole.len() - 1].to_vec(), vec![]] {
            fs::write(&path, broken).unwrap();
            let refused = restore(&backup, &d.path("back"), &worst(&[], &[])).await.unwrap_err();
            assert!(matches!(refused, BackupError::Damaged { .. }), "{file}: {refused}");
            assert!(refused.to_string().contains(&file), "{refused}");
            assert!(!d.path("back").exists(), "{file}");
        }
        fs::remove_file(&path).unwrap();
        let refused = restore(&backup, &d.path("back"), &worst(&[], &[])).await.unwrap_err();
        assert!(matches!(refused, BackupError::Damaged { .. }), "{file}: {refused}");
        fs::write(&path, whole).unwrap();
    }
    verify(&backup).unwrap();
}

#[tokio::test]
async fn nothing_is_written_over_anything() {
    let text = central("sample");
    let d = Deployment::new(&text).await;
    make(&d.dir(), &d.path("backup")).await.unwrap();
    let again = make(&d.dir(), &d.path("backup")).await.unwrap_err();
    assert!(matches!(again, BackupError::Occupied(_)), "{again}");
    let over = restore(&d.path("backup"), &d.dir(), &worst(&[], &[])).await.unwrap_err();
    assert!(over.to_string().contains("holds something already"), "{over}");
    fs::create_dir(d.path("mounted")).unwrap();
    fs::create_dir(d.path("mounted/lost+found")).unwrap();
    restore(&d.path("backup"), &d.path("mounted"), &worst(&[], &[])).await.unwrap();
}

#[tokio::test]
async fn a_model_that_is_damaged_is_left_out_and_named() {
    let d = Deployment::new(&central("sample")).await;
    let digest = Digest::of(b"a model of before");
    let hex = digest.to_string();
    fs::write(d.config.storage.blobs().join(&hex[..2]).join(&hex[2..]), "a model of behind").unwrap();
    let made = make(&d.dir(), &d.path("backup")).await.unwrap();
    assert_eq!(made.manifest.without, [digest]);
    let restored = restore(&d.path("backup"), &d.path("back"), &worst(&[], &[])).await.unwrap();
    assert_eq!(restored.manifest.without, [digest]);
}

#[tokio::test]
async fn a_database_that_was_set_back_is_settled_where_it_is() {
    let text = central("sample");
    let mut d = Deployment::new(&text).await;
    d.go_on(&text, 1..=2).await;
    let lock = fs::File::create(d.config.storage.folder.join("lock")).unwrap();
    lock.try_lock().unwrap();
    let refused = in_place(&d.dir(), &worst(&[], &[])).await.unwrap_err();
    assert!(matches!(refused, BackupError::InUse(_)), "{refused}");
    drop(lock);
    // One that did not come to its end stays unsettled, and no coordinator begins on it.
    let absent = d.path("absent.jsonl");
    in_place(&d.dir(), &worst(&[&absent], &[])).await.unwrap_err();
    assert!(d.store.unsettled().await.unwrap().is_some());
    d.store.close().await;
    let began = crate::storage::open(&d.config.storage).await.err().unwrap();
    assert!(began.contains("restore --in-place"), "{began}");
    let settled = in_place(&d.dir(), &worst(&[], &[])).await.unwrap();
    assert_eq!(settled.jobs.len(), 1);
    let (chain, store) = ledger_of(&d.dir()).await;
    assert!(epsilon_of(&chain) > d.epsilon());
    store.close().await;
    let again = in_place(&d.dir(), &worst(&[], &[])).await.unwrap();
    assert_eq!(again.jobs, [], "a second time changes nothing");
}

#[tokio::test]
async fn a_deployment_on_postgres_is_sent_to_its_own_tools() {
    let d = Deployment::new(&central("sample")).await;
    let file = d.dir().join("server.toml");
    let text = fs::read_to_string(&file).unwrap();
    let text = text.replacen("[storage]\n", "[storage]\ndatabase = \"postgres://u@localhost/u\"\n", 1);
    fs::write(&file, text).unwrap();
    let refused = make(&d.dir(), &d.path("backup")).await.unwrap_err().to_string();
    assert!(refused.contains("pg_dump") && refused.contains("--in-place"), "{refused}");
}
