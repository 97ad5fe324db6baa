//! The folder of one call of a training program.
//!
//! ```text
//! task.json            what to do                              written by the client
//! weights.safetensors  the model's values, all of them         written by the client (train, evaluate)
//! update.safetensors   the new values of the tensors that      written by the program (train)
//!                      are trained, under the same names
//! result.json          numbers                                 written by the program
//! tmp/                 for temporary files (TMPDIR)
//! ```
//!
//! `result.json` is `{"steps": 20}` after training, with `"first_loss"` where the task asks for it;
//! `{"loss": 0.3, "accuracy": 0.9, "rows": 200}` after measuring, with `"mean_absolute_error"` in place of the accuracy where
//! a number is predicted; and
//! `{"rows": 200, "class_rows": [90, 110], "problems": []}` after looking at the data, where each problem is a sentence for
//! the data owner. Other members are ignored.

use super::fault;
use crate::config::Mode;
use crate::folder::{create_private_dir, remove_if_there};
use crate::sandbox::{Outcome, Plan};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use undertone_core::data_files::DataFiles;
use undertone_core::layout::{ModelLayout, TensorSpec};
use undertone_core::model::ModelSpec;
use undertone_core::part::Part;
use undertone_core::plan::{Loss, TrainPlan};
use undertone_core::schema::DataContract;
use undertone_core::shape::Target;
use undertone_core::trainer::{
    DataReport, LocalUpdate, Metrics, ProgramFault, RoundOf, TrainTask, TrainerError,
};

/// The version of these files.
const VERSION: u32 = 1;
const TASK: &str = "task.json";
const WEIGHTS: &str = "weights.safetensors";
const UPDATE: &str = "update.safetensors";
const RESULT: &str = "result.json";
const MAX_RESULT_BYTES: u64 = 4 << 20;
/// Room in `update.safetensors` beside the values: metadata, and for each tensor its entry.
const MAX_HEADER: (u64, u64) = (1 << 20, 1024);
/// Values that are written at once.
const CHUNK: usize = 64 << 10;

/// What the program is asked.
pub(super) struct Ask<'a> {
    pub(super) mode: Mode,
    pub(super) data: &'a DataContract,
    pub(super) model: Option<&'a ModelSpec>,
    pub(super) train: Option<(&'a TrainTask, &'a Part)>,
    /// The loss that a measurement states, where the job names one.
    pub(super) loss: Option<&'a Loss>,
}

/// What is the same for all calls of a client.
pub(super) struct Site<'a> {
    pub(super) data: &'a DataFiles,
    pub(super) threads: u32,
    pub(super) device: &'a str,
}

/// `task.json`.
#[derive(Serialize)]
struct Task<'a> {
    version: u32,
    #[serde(rename = "do")]
    mode: Mode,
    data: Data<'a>,
    threads: u32,
    device: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a ModelSpec>,
    /// All tensors, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    layout: Option<ModelLayout>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weights: Option<&'static str>,
    /// The tensors that are trained, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    trained: Option<&'a [TensorSpec]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<&'a TrainPlan>,
    /// For schedules that move over rounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    round: Option<RoundOf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss: Option<&'a Loss>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sampling_seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_loss: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    update: Option<&'static str>,
    result: &'static str,
}

#[derive(Serialize)]
struct Data<'a> {
    path: PathBuf,
    /// The labels of pictures.
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<PathBuf>,
    contract: &'a DataContract,
}

/// `result.json` after training.
#[derive(Deserialize)]
struct Trained {
    steps: u64,
    first_loss: Option<f64>,
}

/// `result.json` after looking at the data.
#[derive(Deserialize)]
struct Inspected {
    rows: u64,
    #[serde(default)]
    class_rows: Vec<u64>,
    #[serde(default)]
    problems: Vec<String>,
}

/// The folder; removed when dropped.
pub(super) struct Work {
    dir: PathBuf,
    files: PathBuf,
}

impl Work {
    /// Makes the folder anew and writes what is asked into it.
    pub(super) fn create(
        dir: &Path,
        site: &Site<'_>,
        ask: &Ask<'_>,
        weights: &[f32],
    ) -> Result<Self, TrainerError> {
        let layout = match ask.model {
            Some(model) => {
                Some(model.layout(&ask.data.shape()).map_err(|e| TrainerError::Unsupported(e.to_string()))?)
            }
            None => None,
        };
        if let Some(layout) = layout.as_ref().filter(|layout| layout.len() != weights.len()) {
            return Err(TrainerError::Numerical(format!(
                "{} values where the model has {}",
                weights.len(),
                layout.len()
            )));
        }
        let broken = |e: io::Error| {
            TrainerError::Broken(format!(
                "cannot prepare the training program's folder {}: {e}",
                dir.display()
            ))
        };
        let work = Self { dir: dir.to_owned(), files: dir.join("files") };
        work.write(site, ask, layout, weights).map_err(broken)?;
        Ok(work)
    }

    fn write(
        &self,
        site: &Site<'_>,
        ask: &Ask<'_>,
        layout: Option<ModelLayout>,
        weights: &[f32],
    ) -> io::Result<()> {
        // What a client that was killed left behind.
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        create_private_dir(&self.dir)?;
        create_private_dir(&self.files)?;
        create_private_dir(&self.temporary())?;
        if let Some(layout) = &layout {
            write_weights(&self.files.join(WEIGHTS), layout, weights)?;
        }
        let train = ask.train.map(|(task, _)| task);
        let task = Task {
            version: VERSION,
            mode: ask.mode,
            data: Data {
                path: std::path::absolute(&site.data.path)?,
                labels: site.data.labels.as_ref().map(std::path::absolute).transpose()?,
                contract: ask.data,
            },
            threads: site.threads,
            device: site.device,
            model: ask.model,
            weights: layout.is_some().then_some(WEIGHTS),
            layout,
            trained: ask.train.map(|(_, part)| part.layout().tensors()),
            plan: train.map(|task| &task.plan),
            round: train.map(|task| task.round),
            loss: ask.loss,
            sampling_seed: train.and_then(|task| task.sampling_seed),
            first_loss: train.map(|task| task.first_loss),
            update: train.map(|_| UPDATE),
            result: RESULT,
        };
        fs::write(self.task(), serde_json::to_vec_pretty(&task)?)
    }

    /// The program's folder.
    pub(super) fn files(&self) -> &Path {
        &self.files
    }

    pub(super) fn task(&self) -> PathBuf {
        self.files.join(TASK)
    }

    pub(super) fn temporary(&self) -> PathBuf {
        self.files.join("tmp")
    }

    pub(super) fn plan(&self) -> PathBuf {
        self.dir.join("plan.json")
    }

    pub(super) fn outcome_path(&self) -> PathBuf {
        self.dir.join("outcome.json")
    }

    pub(super) fn write_plan(&self, plan: &Plan) -> io::Result<()> {
        // That of a try before this one.
        remove_if_there(&self.outcome_path())?;
        fs::write(self.plan(), serde_json::to_vec(plan)?)
    }

    /// How the program ended.
    pub(super) fn outcome(&self) -> io::Result<Outcome> {
        Ok(serde_json::from_slice(&fs::read(self.outcome_path())?)?)
    }

    /// What training gave.
    pub(super) fn update(
        &self,
        task: &TrainTask,
        part: &Part,
        weights: &[f32],
    ) -> Result<LocalUpdate, TrainerError> {
        let result: Trained = self.result()?;
        let first_loss = match (task.first_loss, result.first_loss) {
            (true, Some(loss)) if loss.is_finite() => Some(loss),
            (true, loss) => {
                return Err(bad(format!(
                    "the job asks for the loss before training, and {RESULT} says \"first_loss\": {loss:?}"
                )));
            }
            (false, _) => None,
        };
        let most = part.len() as u64 * 4 + MAX_HEADER.0 + MAX_HEADER.1 * part.layout().tensors().len() as u64;
        let bytes = self.read(UPDATE, most)?;
        let new = part.layout().from_safetensors(&bytes).map_err(|e| {
            bad(format!("{UPDATE}: {e}; it must hold the tensors that \"trained\" of {TASK} lists, as F32, and no other"))
        })?;
        drop(bytes);
        if let Some(i) = new.iter().position(|v| !v.is_finite()) {
            return Err(TrainerError::Numerical(format!(
                "the training program: value {i} of {UPDATE} is {}: training diverged",
                new[i]
            )));
        }
        let before = part.gather(weights);
        let delta = new.iter().zip(&before).map(|(new, old)| new - old).collect();
        Ok(LocalUpdate { delta, steps: result.steps, first_loss })
    }

    /// What measuring gave.
    pub(super) fn metrics(&self, contract: &DataContract) -> Result<Metrics, TrainerError> {
        let mut metrics: Metrics = self.result()?;
        // What is of the other kind of label is ignored, like any member that nobody asked for.
        let (name, value, is_good) = match contract.label().target() {
            Target::Class { .. } => {
                metrics.mean_absolute_error = None;
                let share = metrics.accuracy;
                ("\"accuracy\"", share, share.is_some_and(|a| (0.0..=1.0).contains(&a)))
            }
            Target::Number => {
                metrics.accuracy = None;
                let error = metrics.mean_absolute_error;
                ("\"mean_absolute_error\"", error, error.is_some_and(|e| e.is_finite() && e >= 0.0))
            }
        };
        if !metrics.loss.is_finite() || !is_good {
            let value = value.map_or("nothing".into(), |value| value.to_string());
            return Err(bad(format!(
                "{RESULT} says \"loss\" {} and {name} {value}: two numbers are wanted, a share as accuracy, an error of at \
                 least 0",
                metrics.loss
            )));
        }
        Ok(metrics)
    }

    /// What a look at the data gave.
    pub(super) fn report(&self, contract: &DataContract) -> Result<DataReport, TrainerError> {
        let Inspected { rows, class_rows, mut problems } = self.result()?;
        if rows < contract.min_rows() {
            problems.push(format!("too few rows: {rows}, the job asks for at least {}", contract.min_rows()));
        }
        Ok(DataReport { rows, class_rows, problems, ..DataReport::default() })
    }

    fn result<T: DeserializeOwned>(&self) -> Result<T, TrainerError> {
        let bytes = self.read(RESULT, MAX_RESULT_BYTES)?;
        serde_json::from_slice(&bytes).map_err(|e| bad(format!("{RESULT} is not what was asked for: {e}")))
    }

    /// A file that the program left: a plain one, and not longer than it may be.
    fn read(&self, name: &str, most: u64) -> Result<Vec<u8>, TrainerError> {
        let path = self.files.join(name);
        let no = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => {
                fault(ProgramFault::NoResult, format!("it ended well and left no {name} in its folder"))
            }
            _ => bad(format!("{name} cannot be read: {e}")),
        };
        // A pipe would never end, and a link could lead anywhere.
        let about = fs::symlink_metadata(&path).map_err(no)?;
        if !about.is_file() {
            return Err(bad(format!("{name} is no plain file")));
        }
        if about.len() > most {
            return Err(bad(format!("{name} has {} bytes, at most {most} here", about.len())));
        }
        let mut bytes = Vec::new();
        File::open(&path).and_then(|file| file.take(most).read_to_end(&mut bytes)).map_err(no)?;
        Ok(bytes)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(folder = %self.dir.display(), error = %e, "the training program's folder cannot be removed");
        }
    }
}

fn bad(detail: String) -> TrainerError {
    fault(ProgramFault::BadResult, detail)
}

fn write_weights(path: &Path, layout: &ModelLayout, weights: &[f32]) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&layout.header(&BTreeMap::new()))?;
    let mut bytes = Vec::with_capacity(4 * CHUNK.min(weights.len()));
    for chunk in weights.chunks(CHUNK) {
        bytes.clear();
        bytes.extend(chunk.iter().flat_map(|v| v.to_le_bytes()));
        file.write_all(&bytes)?;
    }
    file.flush()
}
