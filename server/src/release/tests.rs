//! The stream of a release against straightforward arithmetic, over several blocks.

use super::*;
use crate::pace::Pace;
use crate::spool::{self, Claim};
use rand_chacha::rand_core::SeedableRng as _;
use std::path::Path;
use std::time::{Duration, Instant};
use undertone::v1::{Chunk, UploadMessage, upload_message};
use undertone_core::digest::Digest;
use undertone_core::encoding::{Units, decoder::decode_all};
use undertone_core::fixed::FixedVector;
use undertone_core::id::{Attempt, AttemptKey, ClientId, JobId, Round};
use undertone_privacy::ledger::Ledger;
use undertone_privacy::ledger::population::{Budgets, Totals};
use undertone_round::job::JobSpec;
use undertone_round::participant::Parcel;
use undertone_store::{Durability, FolderBlobs};

/// A model of some blocks; the last one is not full.
const HIDDEN: &str = "[500, 600]";
const NONE: &str = "unit = \"none\"";
const CENTRAL: &str = "unit = \"client\"\ntrust = \"central\"\nclip_norm = 50.0\nnoise_multiplier = 1.0\ndelta = 1e-5\nbudget_epsilon = 50.0";

fn job(privacy: &str, more: &str) -> Arc<Job> {
    let sample = undertone_harness::SAMPLE_JOB;
    let (before, rest) = sample.split_once("[privacy]").expect("a sample with [privacy]");
    let (_, after) = rest.split_once("\n[").expect("a table after it");
    let text = format!("{before}[privacy]\n{privacy}\n\n{more}\n\n[{after}");
    let text = text.replace("kind = \"logistic\"", &format!("kind = \"mlp\"\nhidden = {HIDDEN}"));
    let text = text.replace("size = 2", "size = 5");
    Arc::new(JobSpec::from_toml(&text, "job.toml").unwrap().resolve().unwrap())
}

fn key() -> AttemptKey {
    AttemptKey { job: JobId::new("j").unwrap(), round: Round(1), attempt: Attempt(1) }
}

fn entry(job: &Job) -> LedgerEntry {
    let reserved =
        Ledger::default().reserve(key(), job.contract(), &Totals::new(Budgets::default())).unwrap();
    reserved.sampled(Digest::of(b"the cohort")).unwrap()
}

struct Round1 {
    job: Arc<Job>,
    blobs: Arc<dyn Blobs>,
    inputs: Inputs,
    /// What each client's update came to.
    decoded: Vec<Vec<i32>>,
}

impl Round1 {
    async fn new(job: Arc<Job>, folder: &Path, clients: usize) -> Self {
        let blobs: Arc<dyn Blobs> = Arc::new(FolderBlobs::open(folder, Durability::Process).await.unwrap());
        let model = first_model(&job, &blobs).await.unwrap();
        let (len, encoding) = (job.part().len(), job.spec().transport.updates);
        assert!(len > 2 * BLOCK && !len.is_multiple_of(BLOCK));
        let (mut updates, mut decoded) = (vec![], vec![]);
        for i in 0..clients {
            let units = (0..len).map(|at| ((at * 31 + i * 7919) % 8191) as i32 - 4095).collect();
            let parcel = Parcel::of(&job, FixedVector::from_units(job.grid(), units).unwrap());
            let bytes =
                parcel.encoded(&job, &mut None, &mut rand_chacha::ChaCha20Rng::from_seed([7; 32])).unwrap();
            decoded.push(decode_all(&encoding, Units::new(job.grid()), len, &bytes).unwrap());
            let client = ClientId::new(format!("client-{i}")).unwrap();
            updates.push(upload(&job, client, bytes, &blobs).await);
        }
        let inputs = Inputs { model, updates, sums: vec![], carried: Carried::default() };
        Self { job, blobs, inputs, decoded }
    }

    async fn release(&self, noise: &Arc<AttemptNoise>) -> Result<ModelRef, Trouble> {
        let entry = entry(&self.job);
        attempt(&self.job, &entry, &self.inputs, noise, &self.blobs, &mut Made::default()).await
    }

    async fn values(&self, model: ModelRef) -> Vec<f32> {
        let file = self.blobs.get(&model.digest, model.bytes).await.unwrap();
        self.job.layout().from_safetensors(&file).unwrap()
    }

    fn file(folder: &Path, digest: Digest) -> std::path::PathBuf {
        let hex = digest.to_string();
        folder.join(&hex[..2]).join(&hex[2..])
    }
}

async fn upload(job: &Job, client: ClientId, bytes: Vec<u8>, blobs: &Arc<dyn Blobs>) -> Update {
    let digest = Digest::of(&bytes);
    let (key, length) = (key(), bytes.len() as u64);
    // What goes beside it differs from client to client.
    let which = client.as_str().bytes().last().map_or(0, u64::from);
    let within = job.spec().privacy.adaptive_clip().map(|_| which.is_multiple_of(2));
    let number = job.rescaling().map(|_| 1000 + which);
    let weight = if job.max_weight() > 1 { 1 + which as u32 } else { 1 };
    let claim = Claim { key, client, digest, bytes: length, weight, within, number };
    let chunks = bytes.chunks(256 << 10).enumerate().map(|(i, data)| {
        let chunk = Chunk { offset: (i * (256 << 10)) as u64, data: data.to_vec().into() };
        Ok(UploadMessage { kind: Some(upload_message::Kind::Chunk(chunk)) })
    });
    let messages = tokio_stream::iter(chunks.collect::<Vec<_>>());
    let bound = job.norm_bound(None);
    let pace = Pace::new(Instant::now(), Duration::from_secs(30), Duration::from_secs(600));
    let received = async {
        let unfinished = spool::Unfinished::default();
        let arrived = spool::receive(messages, &claim, job, blobs, &unfinished, &pace, |_| {}).await?;
        arrived.keep(&claim, job, bound, blobs).await
    };
    match received.await {
        Ok(update) => update,
        Err(spool::Rejected::Invalid(reason)) => panic!("{reason}"),
        Err(spool::Rejected::Transfer(e) | spool::Rejected::Improper(e)) => panic!("{e}"),
    }
}

fn noise() -> Arc<AttemptNoise> {
    Arc::new(AttemptNoise::from_os().unwrap())
}

#[tokio::test]
async fn every_encoding_is_summed_across_blocks() {
    for updates in [
        "{ kind = \"fixed32\" }",
        "{ kind = \"f32\" }",
        "{ kind = \"bf16\" }",
        "{ kind = \"fixed\", bits = 7 }",
        "{ kind = \"block\", bits = 4, block = 64 }",
        "{ kind = \"top-k\", fraction = 0.01, values = \"f32\" }",
        "{ kind = \"top-k\", fraction = 0.4, values = \"bf16\" }",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let round =
            Round1::new(job(NONE, &format!("[transport]\nupdates = {updates}")), folder.path(), 3).await;
        let model = round.release(&noise()).await.unwrap();
        let before = round.values(round.inputs.model).await;
        assert_eq!(before, round.job.initial_values());
        let divisor = round.job.grid().units_per_one() * 3.0;
        for (i, now) in round.values(model).await.into_iter().enumerate() {
            let sum: i64 = round.decoded.iter().map(|units| i64::from(units[i])).sum();
            let wanted = (f64::from(before[i]) + sum as f64 / divisor) as f32;
            assert_eq!(now, wanted, "{updates}: value {i}");
        }
    }
}

/// Whoever summed what: the same bits, with noise too. What cannot be used is left alone, and the updates are there.
#[tokio::test]
async fn partial_sums_change_no_bit() {
    let adaptive = format!(
        "{CENTRAL}\nadaptive_clip = {{ min = 0.1, max = 100.0, target_quantile = 0.5, learning_rate = 0.2, count_noise = 9.0 }}"
    );
    for (privacy, more) in [
        (NONE, ""),
        (NONE, "[transport]\nupdates = { kind = \"top-k\", fraction = 0.1, values = \"bf16\" }"),
        (NONE, "[aggregation]\nrescale = { kind = \"q-fedavg\", q = 1.0, lipschitz = 10.0, max_loss = 2.0 }"),
        (NONE, "[aggregation]\nweights = \"declared_rows\"\nmax_weight = 100"),
        (CENTRAL, ""),
        (adaptive.as_str(), ""),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut round = Round1::new(job(privacy, more), folder.path(), 5).await;
        let noise = noise();
        let expected = round.release(&noise).await.unwrap();
        let all = round.inputs.updates.clone();
        let (job, blobs) = (round.job.clone(), round.blobs.clone());
        let make = async |updates: &[Update]| partial::make(&job, &key(), updates, &blobs).await.unwrap();
        let (a, b, c) = (make(&all[..2]).await, make(&all[2..4]).await, make(&all[1..4]).await);
        let whole = make(&all).await;
        // Of another attempt.
        let other = AttemptKey { attempt: Attempt(2), ..key() };
        assert!(partial::make(&job, &other, &all[..2], &blobs).await.is_err(), "updates know their attempt");
        for (sums, used, left) in [
            (vec![a], 1, 3),
            (vec![a, b], 2, 1),
            // An update counts once.
            (vec![a, c], 1, 3),
            (vec![c, a, b], 1, 2),
            (vec![a, a], 1, 3),
            (vec![whole], 1, 0),
            (vec![whole, b], 1, 0),
        ] {
            let (chosen, others) = partial::choose(&job, &key(), &all, &sums, &blobs).await;
            assert_eq!((chosen.len(), others.len()), (used, left), "{more}: {sums:?}");
            round.inputs.sums = sums;
            assert_eq!(round.release(&noise).await.unwrap(), expected, "{privacy} {more}");
        }
        let (chosen, others) = partial::choose(&job, &other, &all, &[a], &blobs).await;
        assert_eq!((chosen.len(), others.len()), (0, 5));
        // One of an update that does not count (any more).
        let (chosen, others) = partial::choose(&job, &key(), &all[1..], &[a], &blobs).await;
        assert_eq!((chosen.len(), others.len()), (0, 4));
        // One that weighs something else by now.
        let mut heavier = all.clone();
        heavier[0].weight += 1;
        let (chosen, others) = partial::choose(&job, &key(), &heavier, &[a], &blobs).await;
        assert_eq!((chosen.len(), others.len()), (0, 5));
        let path = Round1::file(folder.path(), a.digest);
        let mut damaged = std::fs::read(&path).unwrap();
        *damaged.last_mut().unwrap() ^= 1;
        std::fs::write(&path, damaged).unwrap();
        round.inputs.sums = vec![a, b];
        assert_eq!(round.release(&noise).await.unwrap(), expected, "{privacy} {more}");
    }
}

/// Blocks of the part are cut where no tensor is; what lies between is the model's of before, to the bit.
#[tokio::test]
async fn a_part_is_moved_across_blocks_and_the_rest_is_not() {
    for tensors in [r#"["0.bias", "2.weight", "4.bias"]"#, r#"["*.weight"]"#, r#"["2.weight"]"#] {
        for more in ["", "[aggregation]\nrule = { kind = \"median\" }"] {
            let folder = tempfile::tempdir().unwrap();
            let mut spec = job(NONE, more).spec().clone();
            spec.training.tensors = Some(serde_json::from_str(tensors).unwrap());
            let round = Round1::new(Arc::new(spec.resolve().unwrap()), folder.path(), 3).await;
            let model = round.release(&noise()).await.unwrap();
            let before = round.values(round.inputs.model).await;
            let one = round.job.grid().units_per_one();
            for (i, now) in round.values(model).await.into_iter().enumerate() {
                let mean = round.job.part().place(i).map(|at| {
                    let mut units: Vec<i32> = round.decoded.iter().map(|units| units[at]).collect();
                    units.sort_unstable();
                    let sum: i64 = units.iter().map(|&u| i64::from(u)).sum();
                    if more.is_empty() { sum as f64 / (3.0 * one) } else { f64::from(units[1]) / one }
                });
                let wanted = mean.map_or(before[i], |mean| (f64::from(before[i]) + mean) as f32);
                assert_eq!(now, wanted, "{tensors} {more}: value {i}");
            }
        }
    }
}

#[tokio::test]
async fn a_release_that_is_made_again_has_the_same_noise() {
    let folder = tempfile::tempdir().unwrap();
    let round = Round1::new(job(CENTRAL, ""), folder.path(), 2).await;
    let (one, other) = (noise(), noise());
    let first = round.release(&one).await.unwrap();
    assert_eq!(round.release(&one).await.unwrap(), first);
    assert_ne!(round.release(&other).await.unwrap(), first);
    assert_ne!(round.values(first).await, round.values(round.inputs.model).await);
}

#[tokio::test]
async fn what_is_damaged_on_the_disk_enters_no_model() {
    for privacy in [NONE, CENTRAL] {
        let folder = tempfile::tempdir().unwrap();
        let round = Round1::new(job(privacy, ""), folder.path(), 2).await;
        let before = round.blobs.list().await.unwrap().len();
        let about = [
            (round.inputs.updates[1].blob, "the spooled update of client-1"),
            (round.inputs.model.digest, "the current model"),
        ];
        for (digest, what) in about {
            let path = Round1::file(folder.path(), digest);
            let whole = std::fs::read(&path).unwrap();
            // A value's last bit (in the last block), and the end cut off.
            let mut flipped = whole.clone();
            let at = flipped.len() - 1000;
            flipped[at] ^= 1;
            for damaged in [&flipped[..], &whole[..whole.len() - 1], &whole[..whole.len() / 2]] {
                std::fs::write(&path, damaged).unwrap();
                let reason = match (round.release(&noise()).await, digest == round.inputs.model.digest) {
                    // What other updates can make up for.
                    (Err(Trouble::Failed(Impossible { reason, is_final: false })), false) => reason,
                    // What only a person can: nothing is spent meanwhile.
                    (Err(Trouble::Now(reason)), true) => reason,
                    other => panic!("{what}: {other:?}"),
                };
                assert!(reason.contains(what) && reason.contains("damaged"), "{reason}");
            }
            std::fs::write(&path, whole).unwrap();
        }
        // Another file in its place, and none at all: neither is what another attempt makes up for.
        let path = Round1::file(folder.path(), round.inputs.model.digest);
        let whole = std::fs::read(&path).unwrap();
        for other in [Some([0; 64]), None] {
            match other {
                Some(bytes) => std::fs::write(&path, bytes).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            let trouble = round.release(&noise()).await;
            assert!(
                matches!(&trouble, Err(Trouble::Now(reason)) if reason.contains("the current model")),
                "{trouble:?}"
            );
        }
        std::fs::write(&path, whole).unwrap();
        assert_eq!(round.blobs.list().await.unwrap().len(), before, "nothing of it is kept");
        round.release(&noise()).await.unwrap();
    }
}

/// Updates that a rule reads again and again are decoded on all cores: what the others became does not stay where one is rotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_rotten_update_among_those_that_are_decoded_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let more = "[transport]\nupdates = { kind = \"fixed\", bits = 7 }\n\n[aggregation]\nrule = { kind = \"median\" }";
    let round = Round1::new(job(NONE, more), folder.path(), 7).await;
    let before = round.blobs.list().await.unwrap();
    for (at, update) in round.inputs.updates.iter().enumerate() {
        let path = Round1::file(folder.path(), update.blob);
        let whole = std::fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        std::fs::write(&path, flipped).unwrap();
        let trouble = round.release(&noise()).await;
        let Err(Trouble::Failed(Impossible { reason, is_final: false })) = trouble else {
            panic!("{trouble:?}")
        };
        assert!(reason.contains(&format!("client-{at}")) && reason.contains("damaged"), "{reason}");
        assert_eq!(round.blobs.list().await.unwrap(), before, "nothing that was decoded stays");
        std::fs::write(&path, whole).unwrap();
    }
    round.release(&noise()).await.unwrap();
}

/// Equal bytes are one blob: what a release made may be what the job stands on.
#[tokio::test]
async fn nothing_that_a_state_names_is_discarded() {
    struct Named(Digest);
    impl Wanted for Named {
        fn is_wanted(&self) -> bool {
            false
        }
        fn is_over(&self) -> bool {
            true
        }
        fn names(&self, blob: &Digest) -> bool {
            *blob == self.0
        }
    }
    let blobs: Arc<dyn Blobs> = Arc::new(undertone_store::MemoryBlobs::new());
    let (kept, _) = blobs.put("a state that did not change".into()).await.unwrap();
    let (gone, _) = blobs.put("a state that did".into()).await.unwrap();
    let made = Made { kept: [None, Some(ModelRef { digest: kept, bytes: 27 }), None], ..Made::default() };
    let model = Made { model: Some(ModelRef { digest: gone, bytes: 16 }), ..Made::default() };
    for made in [made, model] {
        discard(made.blobs(), &blobs, &Named(kept)).await;
    }
    assert_eq!(blobs.list().await.unwrap(), [kept]);
}
