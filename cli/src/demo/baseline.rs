//! The same model without privacy and without federation: what the demo's result is measured against.

use super::deployment::Places;
use super::example::{Example, Site};
use super::process::Programs;
use anyhow::{Context as _, Result, anyhow};
use serde::Deserialize;
use std::ffi::OsStr;
use std::path::PathBuf;
use undertone_core::id::ClientId;

/// What a model without privacy reaches on the evaluator's rows.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub(crate) struct Baseline {
    /// Share of rows that it gets right.
    pub(crate) accuracy: f64,
    /// Mean cross-entropy in nats.
    pub(crate) loss: f64,
}

/// All of them.
#[derive(Debug, PartialEq)]
pub(crate) struct Baselines {
    /// Trained on all rows in one place.
    pub(crate) pooled: Baseline,
    /// Trained on one client's rows alone.
    pub(crate) alone: Vec<(ClientId, Baseline)>,
}

/// Trains them, one after the other.
///
/// # Errors
/// If the client program fails, or its answer makes no sense.
pub(crate) async fn train_all(places: &Places, example: &Example, programs: &Programs) -> Result<Baselines> {
    let everyone: Vec<&Site> = example.trainers.iter().collect();
    let pooled = train(places, example, programs, &everyone).await.context("the pooled baseline")?;
    let mut alone = Vec::new();
    for site in &example.trainers {
        let baseline = train(places, example, programs, &[site]).await;
        alone.push((
            site.name.clone(),
            baseline.with_context(|| format!("the baseline of {} alone", site.name))?,
        ));
    }
    Ok(Baselines { pooled, alone })
}

async fn train(places: &Places, example: &Example, programs: &Programs, sites: &[&Site]) -> Result<Baseline> {
    let (job, test) = (places.job(), places.data(&example.evaluator));
    let files: Vec<PathBuf> = sites.iter().map(|site| places.data(site)).collect();
    let mut arguments: Vec<&dyn AsRef<OsStr>> = vec![&"baseline", &"--job", &job];
    for file in &files {
        arguments.extend([&"--train" as &dyn AsRef<OsStr>, file]);
    }
    let seed = example.seed.to_string();
    arguments.extend([&"--test" as &dyn AsRef<OsStr>, &test, &"--seed", &seed, &"--json"]);
    let output = programs.run("undertone-client", &arguments).await?;
    read(&String::from_utf8_lossy(&output.stdout))
}

/// The JSON on the last line.
fn read(stdout: &str) -> Result<Baseline> {
    let last = stdout.lines().rfind(|l| !l.trim().is_empty()).unwrap_or_default();
    let baseline: Baseline =
        serde_json::from_str(last).map_err(|e| anyhow!("not the JSON of a baseline ({e}): {last}"))?;
    if (0.0..=1.0).contains(&baseline.accuracy) && baseline.loss.is_finite() {
        Ok(baseline)
    } else {
        Err(anyhow!("a baseline that makes no sense: {last}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sense_is_read() {
        let good = "some words\n{\"accuracy\":0.8,\"loss\":0.5,\"rows\":184}\n\n";
        assert_eq!(read(good).unwrap(), Baseline { accuracy: 0.8, loss: 0.5 });
        for bad in ["", "words", "{\"accuracy\":0.8}", "{\"accuracy\":1.8,\"loss\":0.5,\"rows\":1}"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
