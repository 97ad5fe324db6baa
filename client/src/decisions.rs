//! The client's own log of decisions: each offer, yes or no, and the numbers that it was based on.

use crate::folder::{ClientFolder, append_line, create_private_dir};
use serde::Serialize;
use std::io;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use undertone_core::digest::Digest;
use undertone_core::id::{AttemptKey, JobId, Round};
use undertone_round::participant::{Decision, Terms, Verdict};

/// `decisions.jsonl`: appended to and synced before the coordinator hears the answer.
#[derive(Debug, Clone)]
pub(crate) struct DecisionLog {
    path: PathBuf,
}

/// One line.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    unix_ms: u64,
    /// What was asked: "train" or "evaluate".
    asked: &'static str,
    job: &'a JobId,
    round: Round,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    /// "accept" or "decline".
    decision: &'static str,
    /// What the coordinator was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// What it was not told.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    details: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    terms: Option<&'a Terms>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<Digest>,
}

impl DecisionLog {
    pub(crate) fn new(folder: &ClientFolder) -> Self {
        Self { path: folder.decisions() }
    }

    /// A decision of the participant machine.
    pub(crate) fn record(&self, decision: &Decision) -> io::Result<()> {
        let (word, reason, details, model) = match &decision.verdict {
            Verdict::Accept(a) => ("accept", None, a.withheld(), Some(a.model().digest())),
            Verdict::Decline(r) => ("decline", Some(r.told.as_str()), r.details.as_slice(), None),
        };
        self.append(&Entry {
            unix_ms: now(),
            asked: "train",
            job: &decision.key.job,
            round: decision.key.round,
            attempt: Some(decision.key.attempt.0),
            decision: word,
            reason,
            details,
            terms: Some(&decision.terms),
            model,
        })
    }

    /// An offer whose job document cannot be read: there are no numbers.
    pub(crate) fn record_unreadable(&self, key: &AttemptKey, reason: &str) -> io::Result<()> {
        self.append(&Entry {
            unix_ms: now(),
            asked: "train",
            job: &key.job,
            round: key.round,
            attempt: Some(key.attempt.0),
            decision: "decline",
            reason: Some(reason),
            details: &[],
            terms: None,
            model: None,
        })
    }

    /// A request to measure a model: `refusal` is what the coordinator was told, and what it was not.
    pub(crate) fn record_evaluation(
        &self,
        job: &JobId,
        round: Round,
        model: Digest,
        refusal: Option<(&str, &[String])>,
    ) -> io::Result<()> {
        self.append(&Entry {
            unix_ms: now(),
            asked: "evaluate",
            job,
            round,
            attempt: None,
            decision: if refusal.is_some() { "decline" } else { "accept" },
            reason: refusal.map(|(told, _)| told),
            details: refusal.map_or(&[], |(_, details)| details),
            terms: None,
            model: Some(model),
        })
    }

    fn append(&self, entry: &Entry<'_>) -> io::Result<()> {
        if let Some(dir) = self.path.parent() {
            create_private_dir(dir)?;
        }
        append_line(&self.path, &serde_json::to_vec(entry).expect("an entry is plain data"))
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
