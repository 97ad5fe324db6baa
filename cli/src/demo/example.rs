//! The shipped examples: who has which rows, and the job. Embedded, so that an installed program has them.

use anyhow::{Context as _, Result, anyhow};
use undertone_core::id::{ClientId, ClientRole};
use undertone_data::partition::iid_csv;
use undertone_data::resplit::resplit;
use undertone_data::split::split_csv;
use undertone_data::synthetic::Classification;
use undertone_round::job::JobSpec;

/// The share of rows that only the evaluator sees.
const HELD_OUT: f64 = 0.2;

/// A job and the participants that it is for.
#[derive(Debug)]
pub(crate) struct Example {
    /// Its name.
    pub(crate) name: &'static str,
    /// What its split, and all else that is drawn but noise, follows from.
    pub(crate) seed: u64,
    /// What it shows, in a line.
    pub(crate) about: &'static str,
    /// What all trainers together are called.
    pub(crate) everyone: &'static str,
    /// The job as TOML.
    pub(crate) job: String,
    /// Who trains.
    pub(crate) trainers: Vec<Site>,
    /// Who measures, on rows that nobody trains on.
    pub(crate) evaluator: Site,
}

/// One participant and its rows.
#[derive(Debug)]
pub(crate) struct Site {
    /// Its name.
    pub(crate) name: ClientId,
    /// What it does.
    pub(crate) role: ClientRole,
    /// Name of its data file.
    pub(crate) file: &'static str,
    /// Its rows as CSV with a header.
    pub(crate) csv: String,
}

impl Site {
    fn new(name: &str, role: ClientRole, file: &'static str, csv: String) -> Result<Self> {
        Ok(Self { name: ClientId::new(name)?, role, file, csv })
    }

    /// Number of rows (no field of the examples spans lines).
    pub(crate) fn rows(&self) -> usize {
        self.csv.lines().skip(1).filter(|l| !l.is_empty()).count()
    }

    /// The public figure that the data owner gives: its rows, rounded down to tens.
    pub(crate) fn declared_rows(&self) -> usize {
        (self.rows() / 10 * 10).max(10)
    }
}

/// Four real hospitals and the patients that none of them trained on; see `examples/hospitals/README.md`.
///
/// # Errors
/// If the embedded files do not fit together.
pub(crate) fn hospitals(seed: u64) -> Result<Example> {
    macro_rules! file {
        ($path:literal) => {
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/hospitals/", $path))
        };
    }
    let shipped = [
        ("cleveland", file!("cleveland/heart.csv")),
        ("hungary", file!("hungary/heart.csv")),
        ("long-beach", file!("long-beach/heart.csv")),
        ("switzerland", file!("switzerland/heart.csv")),
    ];
    let files = resplit(&shipped, file!("evaluator/heldout.csv"), "dataset", "id", HELD_OUT, seed)
        .context("the embedded hospitals' files do not fit together")?;
    let trainers: Result<Vec<Site>> = files
        .train
        .into_iter()
        .map(|(name, csv)| Site::new(&name, ClientRole::Trainer, "heart.csv", csv))
        .collect();
    Ok(Example {
        name: "hospitals",
        seed,
        about: "four real hospitals train one model of heart disease; no patient's row leaves its hospital",
        everyone: "all four hospitals",
        job: seeded(file!("job.toml"), seed)?,
        trainers: trainers?,
        evaluator: Site::new("evaluator", ClientRole::Evaluator, "heldout.csv", files.held_out)?,
    })
}

/// A synthetic set dealt out to four clients; see `examples/quickstart/README.md`.
///
/// # Errors
/// If the embedded job makes no sense.
pub(crate) fn quickstart(seed: u64) -> Result<Example> {
    let job = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/quickstart/job.toml"));
    let set = Classification { seed, ..Classification::default() };
    let (train, held_out) = split_csv(&set.generate()?.to_csv(), HELD_OUT, seed)?;
    let trainers: Result<Vec<Site>> = iid_csv(&train, 4, seed)?
        .into_iter()
        .enumerate()
        .map(|(i, csv)| Site::new(&format!("client-{}", i + 1), ClientRole::Trainer, "train.csv", csv))
        .collect();
    Ok(Example {
        name: "quickstart",
        seed,
        about: "four clients train a small neural network on a synthetic set of 1000 rows",
        everyone: "all four clients",
        job: seeded(job, seed)?,
        trainers: trainers?,
        evaluator: Site::new("evaluator", ClientRole::Evaluator, "heldout.csv", held_out)?,
    })
}

/// The job with this seed of the initial weights, where its model has one.
fn seeded(text: &str, seed: u64) -> Result<String> {
    let mut spec = JobSpec::from_toml(text, "the embedded job.toml")?;
    match spec.model.seed_mut() {
        Some(old) if *old != seed => *old = seed,
        // As it was written, with its comments.
        _ => return Ok(text.to_owned()),
    }
    toml::to_string(&spec).map_err(|e| anyhow!("the job cannot be written as TOML: {e}"))
}
