//! Releasing: spooled updates -> exact sum -> what the contract allows out -> new model, durable.
//!
//! ```text
//! readers: spooled updates ─decode, fold─▶ sum of a block ┐
//! current model ──────────────────────▶ values of a block ┴─noise, optimiser─▶ new model, a block further
//! ```
//!
//! Blocks are of the part of the model that the job trains; what lies between goes from file to file as it is.
//!
//! All of it is a stream over the blocks of the model: memory is some blocks, whatever the model's size and however many
//! updates there are (a rule, a server optimiser with moments and correlated noise keep vectors of the model's size).
//! Nothing that was made is kept before every input was held against its checksum (the model and states: their digests).
//!
//! A disk that fails for a while costs time, not privacy: the release is made again from its beginning with the same noise,
//! and comes to the same bytes.

pub(crate) mod broadcast;
mod gather;
mod model;
pub(crate) mod partial;

use crate::coordinator::Shared;
use crate::driver::FIRST_PAUSE;
use crate::spool::Spooled;
use crate::sweep::let_go;
use broadcast::Before;
pub(crate) use model::{FirstModelError, first_model};
use model::{ModelReader, ModelWriter, Stopped};
use partial::Partial;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use undertone_core::digest::Digest;
use undertone_core::encoding::Encoding;
use undertone_core::optimizer::{OptimizerState, ServerRound, StateError};
use undertone_core::part::Part;
use undertone_core::rules::Aggregate;
use undertone_privacy::adaptive_clip::ClipState;
use undertone_privacy::ledger::LedgerEntry;
use undertone_privacy::noise::AttemptNoise;
use undertone_privacy::release::{self, Counted, Release, ReleaseError, release_robust};
use undertone_round::coordinator::{BlobRef, Broadcast, Carried, ModelRef, Update};
use undertone_round::job::Job;
use undertone_store::{BlobError, BlobWriter, Blobs, LocalBlob};

/// Values of a block: half a megabyte of an update, which with its sum stays in a core's cache. A multiple of 4096, so that
/// every encoding can be cut here.
const BLOCK: usize = 1 << 17;

/// The blocks of a model of `len` values.
fn blocks(len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(BLOCK).map(move |start| start..len.min(start + BLOCK))
}

/// What a release is made from.
#[derive(Debug)]
pub(crate) struct Inputs {
    /// The model that it moves.
    pub(crate) model: ModelRef,
    /// What is summed.
    pub(crate) updates: Vec<Update>,
    /// Sums of some of them that others made.
    pub(crate) sums: Vec<BlobRef>,
    /// What the release before left.
    pub(crate) carried: Carried,
}

/// Why there is no release: a sentence for the job's log.
#[derive(Debug)]
pub(crate) struct Impossible {
    pub(crate) reason: String,
    /// Whether no other attempt can do better.
    pub(crate) is_final: bool,
}

/// Why a release did not come to its end.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// It cannot be made.
    Failed(Impossible),
    /// The disk fails; it may be mended.
    Now(String),
}

impl Trouble {
    /// What no waiting mends, but perhaps another attempt.
    pub(crate) fn failed(reason: String) -> Self {
        Self::Failed(Impossible { reason, is_final: false })
    }

    /// What must go on from the release before is gone or damaged: no other attempt can do better.
    fn lost(reason: String) -> Self {
        Self::Failed(Impossible { reason, is_final: true })
    }

    pub(crate) fn blob(what: &str, e: &BlobError) -> Self {
        let text = format!("{what} cannot be read: {e}");
        if e.may_pass() { Self::Now(text) } else { Self::failed(text) }
    }
}

impl From<ReleaseError> for Trouble {
    fn from(e: ReleaseError) -> Self {
        Self::Failed(Impossible { reason: e.to_string(), is_final: e.is_final() })
    }
}

/// What a release may ask of the job that it is for.
pub(crate) trait Wanted: Send + Sync {
    /// Whether the job waits for it.
    fn is_wanted(&self) -> bool;
    /// Whether the job is over.
    fn is_over(&self) -> bool;
    /// Whether the job's state names this blob.
    fn names(&self, blob: &Digest) -> bool;
}

/// Makes the model of an attempt. `None`: the daemon shuts down, or nobody wanted it any more. Everything that waiting does
/// not mend is a sentence for the job's log.
pub(crate) async fn release(
    job: Arc<Job>,
    entry: LedgerEntry,
    inputs: Inputs,
    shared: &Arc<Shared>,
    blobs: &Arc<dyn Blobs>,
    wanted: &dyn Wanted,
) -> Result<Option<(ModelRef, Carried)>, Impossible> {
    let noise = AttemptNoise::from_os();
    let noise = Arc::new(noise.map_err(|e| Impossible { reason: e.to_string(), is_final: false })?);
    let mut pause = FIRST_PAUSE;
    let mut made = Made::default();
    loop {
        match attempt(&job, &entry, &inputs, &noise, blobs, &mut made).await {
            Ok(model) => {
                if pause != FIRST_PAUSE {
                    shared.note_fault(&entry.key.job, None);
                }
                let Made { clip, kept: [noise, optimizer, centre], broadcast, .. } = made;
                return Ok(Some((model, Carried { clip, noise, optimizer, centre, broadcast })));
            }
            Err(Trouble::Failed(impossible)) => {
                if pause != FIRST_PAUSE {
                    shared.note_fault(&entry.key.job, None);
                }
                discard(made.blobs(), blobs, wanted).await;
                return Err(impossible);
            }
            Err(Trouble::Now(reason)) => {
                tracing::error!(reason, "cannot release yet; trying again");
                shared.note_fault(&entry.key.job, Some(reason));
                if shared.wait_or_stop(&mut pause).await.is_err() || !wanted.is_wanted() {
                    // Another release of the same attempt may have come to the same bytes: only of a job that is over is it
                    // known that nobody needs them. What stays is swept at the next start.
                    if wanted.is_over() {
                        discard(made.blobs(), blobs, wanted).await;
                    }
                    return Ok(None);
                }
            }
        }
    }
}

/// What goes on from a release, as far as it is durable. The same bytes however often it is made.
#[derive(Default)]
struct Made {
    clip: Option<ClipState>,
    /// Noise, server optimiser, centre.
    kept: [Option<ModelRef>; 3],
    model: Option<ModelRef>,
    broadcast: Option<Broadcast>,
}

impl Made {
    fn blobs(&self) -> Vec<Digest> {
        let kept = self.kept.iter().flatten().chain(&self.model).map(|blob| blob.digest);
        kept.chain(self.broadcast.iter().flat_map(Broadcast::blobs)).collect()
    }
}

/// Deletes what no state will name. Equal bytes are one blob, so that what a state names may be among it.
pub(crate) async fn discard(made: Vec<Digest>, blobs: &Arc<dyn Blobs>, wanted: &dyn Wanted) {
    let gone = made.into_iter().filter(|blob| !wanted.names(blob));
    let_go(&**blobs, gone, "what a release made that nobody waits for").await;
}

/// One try: from its beginning, with the noise of the tries before.
async fn attempt(
    job: &Arc<Job>,
    entry: &LedgerEntry,
    inputs: &Inputs,
    noise: &Arc<AttemptNoise>,
    blobs: &Arc<dyn Blobs>,
    made: &mut Made,
) -> Result<ModelRef, Trouble> {
    let mut plain = vec![];
    let poured = pour(job, entry, inputs, noise, blobs, &mut plain).await;
    let_go(&**blobs, plain, "a decoded update").await;
    let (left, file) = poured?;
    let id = &entry.key.job;
    made.clip = left.clip;
    let states = [
        ("noise that goes on", left.noise),
        ("state of the server optimiser", left.optimizer),
        ("centre of the aggregation rule", left.centre),
    ];
    for (place, (what, bytes)) in made.kept.iter_mut().zip(states) {
        let Some(bytes) = bytes else { continue };
        let (digest, bytes) = blobs.put(bytes.into()).await.map_err(|e| unwritten(what, &e))?;
        *place = Some(ModelRef { digest, bytes });
    }
    let model = model::commit(file).await.map_err(|e| unwritten("new model", &e))?;
    made.model = Some(model);
    let before = inputs.carried.broadcast.map(|broadcast| Before { model: inputs.model, broadcast });
    made.broadcast = broadcast::make(job, id, model, before, blobs).await?;
    Ok(model)
}

/// From what is found to a model's file that is written and not yet durable. Files that are made only to be read now are told
/// in `plain`, whatever comes of it.
async fn pour(
    job: &Arc<Job>,
    entry: &LedgerEntry,
    inputs: &Inputs,
    noise: &Arc<AttemptNoise>,
    blobs: &Arc<dyn Blobs>,
    plain: &mut Vec<Digest>,
) -> Result<(Left, Box<dyn BlobWriter>), Trouble> {
    let ready = Ready::find(job, entry, inputs, blobs, plain).await?;
    let mut file = ModelWriter::begin(blobs).await.map_err(|e| unwritten("new model", &e))?;
    let (job, entry, noise) = (Arc::clone(job), entry.clone(), Arc::clone(noise));
    // Off the async threads: it is work for all cores.
    let poured = tokio::task::spawn_blocking(move || (ready.pour(&job, &entry, &noise, &mut file), file));
    let (left, file) = poured.await.map_err(|e| Trouble::failed(format!("the release broke: {e}")))?;
    // A file that cannot be written is the cause of all that follows.
    let file = file.written().await.map_err(|e| unwritten("new model", &e))?;
    Ok((left?, file))
}

fn stopped() -> Trouble {
    Trouble::Now("the new model cannot be stored".into())
}

fn unwritten(what: &str, e: &BlobError) -> Trouble {
    Trouble::Now(format!("the {what} cannot be stored: {e}"))
}

/// What a release is made from, found.
struct Ready {
    /// All of them.
    all: Vec<Update>,
    /// Those that nobody summed.
    updates: Vec<Spooled>,
    sums: Vec<Partial>,
    model: ModelRef,
    file: LocalBlob,
    clip: Option<ClipState>,
    noise: Option<Vec<u8>>,
    optimizer: Option<Vec<u8>>,
    centre: Option<Vec<u8>>,
}

/// Makes each update a file of values on the grid, as many at once as there are cores; tells the files in `plain`.
async fn decode(
    updates: &mut [Spooled],
    job: &Arc<Job>,
    blobs: &Arc<dyn Blobs>,
    plain: &mut Vec<Digest>,
) -> Result<(), Trouble> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for some in updates.chunks_mut(cores) {
        let decoding = some.iter().map(|update| {
            let (update, job, blobs) = (update.clone(), Arc::clone(job), Arc::clone(blobs));
            tokio::spawn(async move { update.plain(&job, &blobs).await })
        });
        // All of them to their end: what is made is to be known, whatever becomes of another.
        let decoding: Vec<_> = decoding.collect();
        let mut trouble = None;
        for (update, decoding) in some.iter_mut().zip(decoding) {
            let decoded = decoding.await;
            match decoded.unwrap_or_else(|e| Err(Trouble::failed(format!("decoding broke: {e}")))) {
                Ok(decoded) => {
                    plain.push(decoded.update.blob);
                    *update = decoded;
                }
                Err(e) => trouble = trouble.or(Some(e)),
            }
        }
        if let Some(trouble) = trouble {
            return Err(trouble);
        }
    }
    Ok(())
}

/// What goes on from a release, in memory.
#[derive(Default)]
struct Left {
    clip: Option<ClipState>,
    noise: Option<Vec<u8>>,
    optimizer: Option<Vec<u8>>,
    centre: Option<Vec<u8>>,
}

impl Ready {
    async fn find(
        job: &Arc<Job>,
        entry: &LedgerEntry,
        inputs: &Inputs,
        blobs: &Arc<dyn Blobs>,
        plain: &mut Vec<Digest>,
    ) -> Result<Self, Trouble> {
        // A rule wants each of them.
        let usable = if job.spec().aggregation.rule.needs_all_rows() { &[][..] } else { &inputs.sums };
        let (sums, left) = partial::choose(job, &entry.key, &inputs.updates, usable, blobs).await;
        let mut updates = Vec::with_capacity(left.len());
        for update in &left {
            let what = format!("the spooled update of {}", update.client);
            let found = Spooled::find(&entry.key, update.clone(), blobs).await;
            updates.push(found.map_err(|e| Trouble::blob(&what, &e))?);
        }
        // A rule reads updates again and again, at any place: they must lie plainly.
        let rule_reads = job.spec().aggregation.rule.needs_all_rows();
        if rule_reads && job.spec().transport.updates != Encoding::Fixed32 {
            decode(&mut updates, job, blobs, plain).await?;
        }
        let carried = &inputs.carried;
        let centre = state("the centre of the aggregation rule", carried.centre, blobs).await?;
        let noise = state("the noise of the rounds before", carried.noise, blobs).await?;
        let optimizer = state("the state of the server optimiser", carried.optimizer, blobs).await?;
        let (model, clip) = (inputs.model, carried.clip);
        let file = blobs.local(&model.digest).await.map_err(|e| model::damaged(&e.to_string()))?;
        let all = inputs.updates.clone();
        Ok(Self { all, updates, sums, model, file, clip, noise, optimizer, centre })
    }

    /// Sum or rule, noise, server optimiser: the new model, block by block into `out`.
    fn pour(
        self,
        job: &Job,
        entry: &LedgerEntry,
        noise: &AttemptNoise,
        out: &mut ModelWriter,
    ) -> Result<Left, Trouble> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let skip = name(entry).len();
        // The state of another optimiser or model, or a damaged one, cannot be begun again half-way.
        let lost = |e: StateError| Trouble::lost(format!("the server optimiser: {e}"));
        let server = &job.spec().aggregation.server;
        let len = job.part().len();
        let mut state = match self.optimizer {
            Some(bytes) => {
                let own = bytes.get(skip..).unwrap_or_default();
                OptimizerState::from_bytes(server, len, own).map_err(lost)?
            }
            None => server.start(len),
        };
        let mut moving = Moving {
            model: ModelReader::open(self.file, self.model, job.layout())?,
            server: server.round(&mut state),
            out,
            weights: vec![0.0; BLOCK.min(job.layout().len())],
            part: job.part(),
            moved: 0,
            written: 0,
            // Correlated noise pays for one draw a round.
            is_final: job.contract().is_correlated(),
        };
        let mut left = Left::default();
        if job.spec().aggregation.rule.needs_all_rows() {
            let centre = self.centre.as_deref().map(|bytes| values(bytes.get(skip..).unwrap_or_default()));
            let aggregate = gather::robust(job, &self.updates, threads, centre.as_deref())?;
            if job.spec().aggregation.rule.needs_centre() {
                left.centre = Some(centre_bytes(entry, &aggregate, job));
            }
            let released = release_robust(aggregate, job.grid(), job.contract(), entry)?;
            moving.begin(job, entry, None)?;
            for block in blocks(len) {
                moving.block(released.mean_in(block))?;
            }
            moving.end()?;
        } else {
            let whole = gather::whole(job, &self.all);
            let carried = release::Carried { clip: self.clip, noise: self.noise };
            let mut rng = noise.begin();
            let next = gather::sum(job, &self.updates, &self.sums, threads, |mut summed| {
                let cohort = job.spec().cohort;
                let sent = self.all.iter().map(Update::sent_weight);
                let cohort = Counted {
                    most: cohort.size(),
                    denominator: cohort.denominator(),
                    fresh_weight: job.fresh_weight(sent),
                };
                let within = summed.within;
                // Only where nothing is promised: such a job does not resolve with any other contract.
                let factor = job.rescaling().map_or(1.0, |rescaling| summed.numbers.factor(rescaling));
                let mut release =
                    Release::begin(whole, within, job.contract(), entry, cohort, carried, &mut rng)?;
                moving.begin(job, entry, release.next_clip())?;
                for block in blocks(len) {
                    let released = release.part(summed.block(block.len())?, &mut rng)?;
                    moving.block(released.mean().map(|mean| mean * factor))?;
                }
                moving.end()?;
                summed.finish()?;
                Ok(release.finish()?)
            })?;
            (left.clip, left.noise) = (next.clip, next.noise);
        }
        left.optimizer = server.keeps_state().then(|| {
            let mut bytes = name(entry);
            bytes.reserve_exact(state.stored_bytes());
            state.write_to(&mut bytes).expect("a vector takes everything");
            bytes
        });
        Ok(left)
    }
}

/// The model on its way from the file of the round before to the one of this round.
struct Moving<'a> {
    model: ModelReader,
    server: ServerRound<'a>,
    out: &'a mut ModelWriter,
    weights: Vec<f32>,
    part: &'a Part,
    /// Values of the part that were moved.
    moved: usize,
    /// Values of the model that were written.
    written: usize,
    is_final: bool,
}

impl Moving<'_> {
    /// Writes what stands before the values.
    fn begin(&mut self, job: &Job, entry: &LedgerEntry, next: Option<ClipState>) -> Result<(), Trouble> {
        let facts = serde_json::json!({
            "job": entry.key.job, "job_digest": job.digest(), "round": entry.key.round, "unit": job.contract().unit().as_str(),
            // What the ledger commits to is this file: the clip norm that goes on from it, too.
            "next_clip_norm": next.map(|c| c.clip_norm()),
        });
        let metadata = BTreeMap::from([("undertone".into(), facts.to_string())]);
        self.out.header(job.layout(), &metadata).map_err(|Stopped| stopped())
    }

    /// Moves the next values of the part by their mean; what lies before and between them is written as it is.
    fn block(&mut self, mut mean: impl ExactSizeIterator<Item = f64>) -> Result<(), Trouble> {
        let values = self.moved..self.moved + mean.len();
        self.moved = values.end;
        for place in self.part.places(values) {
            self.copy(place.start)?;
            let weights = &mut self.weights[..place.len()];
            self.model.values(weights)?;
            self.server.part(weights, mean.by_ref().take(place.len()));
            if !weights.iter().fold(true, |all, w| all & w.is_finite()) {
                let reason = "the new model is not finite: lower the learning rates".into();
                return Err(Trouble::Failed(Impossible { reason, is_final: self.is_final }));
            }
            self.out.values(weights).map_err(|Stopped| stopped())?;
            self.written = place.end;
        }
        Ok(())
    }

    /// Writes the values before this one as they are.
    fn copy(&mut self, until: usize) -> Result<(), Trouble> {
        while self.written < until {
            let len = self.weights.len().min(until - self.written);
            let weights = &mut self.weights[..len];
            self.model.values(weights)?;
            self.out.values(weights).map_err(|Stopped| stopped())?;
            self.written += len;
        }
        Ok(())
    }

    /// Writes what is left as it is. Whether all of it was the model.
    fn end(mut self) -> Result<(), Trouble> {
        self.copy(self.part.whole_len())?;
        self.model.finish()
    }
}

/// What the release before left.
async fn state(
    what: &str,
    blob: Option<ModelRef>,
    blobs: &Arc<dyn Blobs>,
) -> Result<Option<Vec<u8>>, Trouble> {
    let Some(blob) = blob else { return Ok(None) };
    let read = blobs.get(&blob.digest, blob.bytes).await;
    read.map(Some).map_err(|e| match Trouble::blob(what, &e) {
        Trouble::Failed(Impossible { reason, .. }) => Trouble::lost(reason),
        now => now,
    })
}

/// Whose state it is: two jobs that come to equal states must not share a blob that one of them deletes.
fn name(entry: &LedgerEntry) -> Vec<u8> {
    format!("{}\n", entry.key.job).into_bytes()
}

fn centre_bytes(entry: &LedgerEntry, aggregate: &Aggregate, job: &Job) -> Vec<u8> {
    let centre = aggregate.mean(job.grid());
    name(entry).into_iter().chain(centre.iter().flat_map(|v| v.to_le_bytes())).collect()
}

fn values(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
}

#[cfg(test)]
mod tests;
