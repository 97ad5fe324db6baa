//! Jobs and offers for the tests of this folder.

use super::{ModelRef, Offer};
use crate::job::{Job, JobSpec};
use std::sync::Arc;
use undertone_core::digest::Digest;
use undertone_core::id::{Attempt, AttemptKey, JobId, Round};
use undertone_core::trainer::DataReport;

pub(super) const RECORD: &str = r#"unit = "record"
trust = "local"
clip_norm = 1.0
sampling_rate = 0.25
noise_multiplier = 1.5
delta = 1e-3
budget_epsilon = 6.0"#;

pub(super) const CLIENT: &str = r#"unit = "client"
trust = "central"
clip_norm = 0.5
noise_multiplier = 4.0
delta = 1e-5
budget_epsilon = 10.0"#;

pub(super) const LOCAL: &str = r#"unit = "client"
trust = "local"
clip_norm = 0.5
noise_multiplier = 4.0
delta = 1e-5
budget_epsilon = 10.0"#;

pub(super) const NONE: &str = r#"unit = "none""#;

/// A job of 20 rounds, two steps each, with this `[privacy]` table and these lines in `[aggregation]`.
pub(super) fn job_with(privacy: &str, aggregation: &str) -> Arc<Job> {
    job_of(privacy, aggregation, "")
}

/// A job in which a client takes part at most `limit` times, `separation` rounds apart.
pub(super) fn job_limited(privacy: &str, limit: u32, separation: u32) -> Arc<Job> {
    job_of(privacy, "", &format!("participations = {limit}\nseparation = {separation}"))
}

/// A job with these lines in `[transport]`.
pub(super) fn job_sent(transport: &str) -> Arc<Job> {
    let aggregation = format!("[transport]\n{transport}");
    job_of(NONE, &aggregation, "")
}

/// A job that trains these tensors, with these lines in `[transport]`.
pub(super) fn job_of_part(tensors: &str, transport: &str) -> Arc<Job> {
    let mut spec = job_sent(transport).spec().clone();
    spec.training.tensors = Some(vec![tensors.into()]);
    Arc::new(spec.resolve().unwrap())
}

/// A job whose model only clients' own programs know.
pub(super) fn external_job(privacy: &str) -> Arc<Job> {
    let mut spec = job_of(privacy, "", "").spec().clone();
    spec.model =
        serde_json::from_str(r#"{"kind": "external", "tensors": [{"name": "w", "shape": [2]}]}"#).unwrap();
    Arc::new(spec.resolve().unwrap())
}

/// The same with a TorchScript file.
pub(super) fn torchscript_job(privacy: &str) -> Arc<Job> {
    let mut spec = job_of(privacy, "", "").spec().clone();
    let digest = "0".repeat(64);
    spec.model = serde_json::from_str(&format!(
        r#"{{"kind": "torchscript", "digest": "{digest}", "bytes": 9, "tensors": [{{"name": "w", "shape": [2]}}]}}"#
    ))
    .unwrap();
    spec.initial = Some(serde_json::from_str(&format!(r#"{{"digest": "{digest}", "bytes": 100}}"#)).unwrap());
    Arc::new(spec.resolve().unwrap())
}

fn job_of(privacy: &str, aggregation: &str, cohort: &str) -> Arc<Job> {
    let text = format!(
        r#"
name = "heart"
rounds = 20
[model]
kind = "logistic"
[training]
learning_rate = 0.5
local_steps = 2
[cohort]
rule = "all"
size = 4
min_clients = 2
{cohort}
[aggregation]
{aggregation}
[privacy]
{privacy}
[data.label]
column = "num"
classes = [{{ name = "no", values = ["0"] }}, {{ name = "yes", values = ["1"] }}]
[[data.columns]]
name = "age"
kind = "number"
range = [0, 120]
"#
    );
    Arc::new(JobSpec::from_toml(&text, "job.toml").unwrap().resolve().unwrap())
}

pub(super) fn job(privacy: &str) -> Arc<Job> {
    job_with(privacy, "")
}

pub(super) fn key(job: &str, round: u32, attempt: u32) -> AttemptKey {
    AttemptKey { job: JobId::new(job).unwrap(), round: Round(round), attempt: Attempt(attempt) }
}

pub(super) fn offer(key: AttemptKey, job: &Arc<Job>) -> Offer {
    let model = ModelRef { digest: Digest::of(b"model"), bytes: job.update_bytes() + 100 };
    Offer::of_job(key, Arc::clone(job), model, None).unwrap()
}

pub(super) fn fit() -> DataReport {
    DataReport { rows: 100, class_rows: vec![50, 50], ..DataReport::default() }
}

pub(super) fn unfit() -> DataReport {
    DataReport { problems: vec!["line 3: age is \"young\"".into()], ..fit() }
}
