//! The state of local training on disk: what a killed trainer goes on from.
//!
//! A checkpoint is one frame of [`undertone_core::trainer_protocol`]: a header that says which task it belongs to and
//! where the sampler stands, and the weights and the optimiser's vectors as f32. It is written whole under another
//! name, synced, and renamed; it holds only whole steps. With a record-level contract the steps that are in no
//! checkpoint are made anew, with other batches under a new key and other noise; neither key nor noise is kept: see
//! docs/decisions/0019.

use crate::failure::Failure;
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};
use undertone_core::digest::{Digest, Digester};
use undertone_core::limits::MAX_PARAMETERS;
use undertone_core::trainer::{CheckpointPlace, TrainTask};
use undertone_core::trainer_protocol::{read_frame, write_frame};

/// Where the generator of batches stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SamplerState {
    key: [u8; 32],
    /// In words of 32 bits.
    position: u64,
    /// Rows of the pass in hand that are past; 0 where batches are drawn one by one.
    pub(crate) next: u64,
}

impl SamplerState {
    /// Of a generator, `next` rows into a pass that it ordered from here on.
    pub(crate) fn of(rng: &ChaCha20Rng, next: u64) -> Self {
        let position = u64::try_from(rng.get_word_pos()).expect("nobody draws 2^64 words");
        Self { key: rng.get_seed(), position, next }
    }

    /// So many rows into the pass.
    pub(crate) fn with_next(self, next: u64) -> Self {
        Self { next, ..self }
    }

    /// The generator as it was.
    pub(crate) fn rng(&self) -> ChaCha20Rng {
        let mut rng = ChaCha20Rng::from_seed(self.key);
        rng.set_word_pos(self.position.into());
        rng
    }
}

/// Training between two steps.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct State {
    /// Steps that are done.
    pub(crate) step: u64,
    /// For the batches to come; none under a record-level contract, where they are drawn under a new key.
    pub(crate) sampler: Option<SamplerState>,
    /// Over the part that is trained.
    pub(crate) weights: Vec<f32>,
    /// The optimiser's steps and vectors.
    pub(crate) optimizer: (u64, Vec<f32>),
    /// The best measurement on held-out rows so far.
    pub(crate) best: Option<Best>,
    /// Measurements since then.
    pub(crate) without_progress: u32,
}

/// A measurement on held-out rows, and the weights that it is of.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Best {
    pub(crate) loss: f64,
    pub(crate) step: u64,
    pub(crate) weights: Vec<f32>,
}

/// What stands before the values.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    checkpoint: u32,
    /// Digest of attempt, task and start weights.
    belongs_to: Digest,
    /// Digest of the values: a disk may damage what was written whole.
    values: Digest,
    step: u64,
    sampler: Option<SamplerState>,
    /// Lengths of weights, optimiser's vectors, best weights.
    lengths: [u64; 3],
    optimizer_steps: u64,
    best: Option<(f64, u64)>,
    without_progress: u32,
}

/// The form of checkpoints.
const VERSION: u32 = 2;

/// Keeps the state of one training; without a place it keeps nothing.
#[derive(Debug)]
pub(crate) struct Keeper {
    place: Option<(CheckpointPlace, Digest)>,
    written: Instant,
    /// A failure is told once.
    failed: bool,
    /// This very training was begun before.
    begun: bool,
}

impl Keeper {
    /// Of the training that begins with these weights.
    pub(crate) fn new(task: &TrainTask, weights: &[f32]) -> Self {
        let place = task.checkpoint.as_ref().map(|place| (place.clone(), digest(task, place, weights)));
        Self { place, ..Self::none() }
    }

    /// Keeps nothing.
    pub(crate) fn none() -> Self {
        Self { place: None, written: Instant::now(), failed: false, begun: false }
    }

    /// What was kept of this very training. What cannot be used is named in the log and done without.
    pub(crate) fn load(&mut self) -> Option<State> {
        let (place, belongs_to) = self.place.as_ref()?;
        let found = read(&place.path, *belongs_to);
        // What cannot be read may be of this training.
        self.begun = !matches!(found, Ok(None));
        match found {
            Ok(Some(state)) => {
                eprintln!("undertone-trainer: going on after step {} from the checkpoint", state.step);
                Some(state)
            }
            Ok(None) => None,
            Err(e) => {
                eprintln!("undertone-trainer: the checkpoint cannot be used ({e}): training begins anew");
                None
            }
        }
    }

    /// Whether this training was begun before, also if nothing of it can be used; known once it was [loaded](Self::load).
    pub(crate) fn was_begun(&self) -> bool {
        self.begun
    }

    /// Notes that training begins, in a checkpoint before its first step: who begins it again knows. False if that cannot be
    /// written; true where nothing is ever kept, for nobody begins such a training again.
    pub(crate) fn begin(&mut self, state: impl FnOnce() -> Result<State, Failure>) -> Result<bool, Failure> {
        Ok(self.place.is_none() || self.write(&state()?))
    }

    /// Writes the state if it is time. That it cannot be written costs no more than what it is for: training goes on.
    pub(crate) fn keep(&mut self, state: impl FnOnce() -> Result<State, Failure>) -> Result<(), Failure> {
        let due =
            |place: &CheckpointPlace| self.written.elapsed() >= Duration::from_secs(place.every_s.into());
        if self.place.as_ref().is_some_and(|(place, _)| due(place)) {
            self.write(&state()?);
        }
        Ok(())
    }

    /// Writes the state now, where there is a place for it; whether it is there.
    fn write(&mut self, state: &State) -> bool {
        let Some((place, belongs_to)) = &self.place else { return false };
        let written = write(&place.path, *belongs_to, state);
        if let Err(e) = &written
            && !std::mem::replace(&mut self.failed, true)
        {
            eprintln!("undertone-trainer: no checkpoint at {}: {e}; training goes on", place.path.display());
        }
        self.written = Instant::now();
        written.is_ok()
    }
}

fn digest(task: &TrainTask, place: &CheckpointPlace, weights: &[f32]) -> Digest {
    let bare = TrainTask { checkpoint: None, ..task.clone() };
    let mut digester = Digester::new();
    digester.field(b"undertone checkpoint v1");
    digester.field(crate::LIBTORCH_VERSION.as_bytes());
    digester.field(place.attempt.as_bytes());
    digester.field(&serde_json::to_vec(&bare).expect("a task is plain data"));
    weights.iter().for_each(|w| digester.update(&w.to_le_bytes()));
    digester.finish()
}

fn digest_of_values(values: &[f32]) -> Digest {
    let mut digester = Digester::new();
    values.iter().for_each(|v| digester.update(&v.to_le_bytes()));
    digester.finish()
}

fn write(path: &Path, belongs_to: Digest, state: &State) -> io::Result<()> {
    let best: &[f32] = state.best.as_ref().map_or(&[], |best| &best.weights);
    let (steps, vectors) = &state.optimizer;
    let values = [&state.weights[..], &vectors[..], best].concat();
    let header = Header {
        checkpoint: VERSION,
        belongs_to,
        values: digest_of_values(&values),
        step: state.step,
        sampler: state.sampler.clone(),
        lengths: [state.weights.len(), vectors.len(), best.len()].map(|n| n as u64),
        optimizer_steps: *steps,
        best: state.best.as_ref().map(|best| (best.loss, best.step)),
        without_progress: state.without_progress,
    };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let tmp = path.with_file_name(name);
    let mut file = BufWriter::new(private(&tmp)?);
    write_frame(&mut file, &header, &values).map_err(io::Error::other)?;
    file.flush()?;
    file.get_ref().sync_all()?;
    fs::rename(&tmp, path)?;
    // Only on Unix is a folder a file that can be synced.
    if cfg!(unix)
        && let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty())
    {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// For the owner alone: weights, and what their batches follow from.
fn private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    options.open(path)
}

/// `None`: there is none, or it is another training's.
fn read(path: &Path, belongs_to: Digest) -> Result<Option<State>, String> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|e| e.to_string())?,
    };
    // Weights, two vectors of the optimiser, the best weights.
    let frame = read_frame::<Header>(&mut BufReader::new(file), 4 * MAX_PARAMETERS);
    let (header, mut values) = frame.map_err(|e| e.to_string())?.ok_or("it is empty")?;
    if header.checkpoint != VERSION || header.belongs_to != belongs_to {
        return Ok(None);
    }
    let total = header.lengths.iter().try_fold(0u64, |sum, n| sum.checked_add(*n));
    if total != Some(values.len() as u64) || header.values != digest_of_values(&values) {
        return Err("its values are damaged".into());
    }
    let [weights, vectors, _] = header.lengths.map(|n| n as usize);
    let best = values.split_off(weights + vectors);
    let vectors = values.split_off(weights);
    Ok(Some(State {
        step: header.step,
        sampler: header.sampler,
        weights: values,
        optimizer: (header.optimizer_steps, vectors),
        best: header.best.map(|(loss, step)| Best { loss, step, weights: best }),
        without_progress: header.without_progress,
    }))
}

#[cfg(test)]
mod tests;
