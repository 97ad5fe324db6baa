//! The operator's commands: a file for each noun.

pub(crate) mod bench;
pub(crate) mod client;
pub(crate) mod deal;
pub(crate) mod job;
pub(crate) mod ledger;
pub(crate) mod model;
pub(crate) mod privacy;
pub(crate) mod token;

use crate::failure::bad_input;
use crate::output::Screen;
use crate::profile::{Connection, Profile, call_failed};
use anyhow::Result;
use std::path::PathBuf;
use undertone::v1;

/// Who runs a command, and where its output goes.
#[derive(Debug)]
pub(crate) struct Operator {
    profile: PathBuf,
    /// Where to write.
    pub(crate) screen: Screen,
}

impl Operator {
    /// The operator whose profile lies in `profile`.
    pub(crate) fn new(profile: PathBuf, screen: Screen) -> Self {
        Self { profile, screen }
    }

    /// Connects to the coordinator.
    ///
    /// # Errors
    /// As [`Profile::load`] and [`Profile::connect`].
    pub(crate) async fn connect(&self) -> Result<Connection> {
        Profile::load(&self.profile)?.connect().await
    }
}

/// The job whose id is `prefix`, or the only one whose id begins with it.
///
/// # Errors
/// If there is none or more than one.
pub(crate) async fn find_job(connection: &mut Connection, prefix: &str) -> Result<v1::JobSummary> {
    let response = connection.list_jobs(v1::ListJobsRequest {}).await.map_err(call_failed)?;
    pick_job(response.into_inner().jobs, prefix)
}

fn pick_job(jobs: Vec<v1::JobSummary>, prefix: &str) -> Result<v1::JobSummary> {
    let (exact, longer): (Vec<_>, Vec<_>) =
        jobs.into_iter().filter(|j| j.job.starts_with(prefix)).partition(|j| j.job == prefix);
    let mut found = if exact.is_empty() { longer } else { exact };
    match found.len() {
        0 => Err(bad_input(format!("no job begins with \"{prefix}\": `undertone job list` shows them"))),
        1 => Ok(found.remove(0)),
        n => {
            let some: Vec<&str> = found.iter().take(5).map(|j| j.job.as_str()).collect();
            let more = if n > some.len() { ", …" } else { "" };
            Err(bad_input(format!(
                "{n} jobs begin with \"{prefix}\": {}{more}; give more letters",
                some.join(", ")
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs(ids: &[&str]) -> Vec<v1::JobSummary> {
        ids.iter().map(|id| v1::JobSummary { job: (*id).into(), ..Default::default() }).collect()
    }

    #[test]
    fn a_beginning_is_enough_if_it_fits_one() {
        let all = ["heart-ab", "heart-abc", "heart-x", "skin-1"];
        let pick = |prefix| pick_job(jobs(&all), prefix).map(|j| j.job).map_err(|e| e.to_string());
        assert_eq!(pick("skin"), Ok("skin-1".into()));
        assert_eq!(pick("heart-ab"), Ok("heart-ab".into()));
        assert_eq!(pick("heart-abc"), Ok("heart-abc".into()));
        assert!(
            pick("heart")
                .unwrap_err()
                .starts_with("3 jobs begin with \"heart\": heart-ab, heart-abc, heart-x")
        );
        assert!(pick("lung").unwrap_err().contains("undertone job list"));
    }
}
