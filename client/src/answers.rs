//! What an evaluator has answered under contracts that put noise on measurements.
//!
//! Each answer is one draw of noise over the same rows: a second draw for the same model would be a second measurement,
//! paid for by nobody. So an answer is durable before it leaves, and whoever asks again gets the same one. Rounds only go
//! forward: what is older than the answers that are kept is not answered again.

use crate::folder::{Access, ClientFolder, create_private_dir, write_durably};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use undertone_core::digest::Digest;
use undertone_core::id::{JobId, Round};
use undertone_core::trainer::Metrics;

/// Answers that are kept for each job: as many as a coordinator may have open.
const KEPT: usize = 16;
const MAX_BYTES: u64 = 64 << 10;

/// The answers of one client.
#[derive(Debug, Clone)]
pub(crate) struct Answers {
    dir: PathBuf,
}

/// What was answered to a job.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Answered {
    /// Digest of the job document that they were given under: another one is another job.
    document: Option<Digest>,
    /// ε of all measurements so far.
    pub(crate) epsilon: f64,
    /// Measurements so far.
    pub(crate) measurements: u32,
    /// The newest ones.
    kept: BTreeMap<Round, Metrics>,
}

impl Answered {
    /// The answer that was given for this round.
    pub(crate) fn given(&self, round: Round) -> Option<Metrics> {
        self.kept.get(&round).copied()
    }

    /// Whether answers were given under another document than this one.
    pub(crate) fn is_of_another(&self, document: Digest) -> bool {
        self.document.is_some_and(|known| known != document)
    }

    /// Whether a round is past: a newer one was answered, and this one was not, or its answer is kept no longer.
    pub(crate) fn is_past(&self, round: Round) -> bool {
        self.kept.last_key_value().is_some_and(|(newest, _)| *newest > round)
    }
}

impl Answers {
    pub(crate) fn new(folder: &ClientFolder) -> Self {
        Self { dir: folder.dir().join("answers") }
    }

    /// What was answered to this job.
    ///
    /// # Errors
    /// If it cannot be read, or is damaged: then nothing may be measured, for it might be the second time.
    pub(crate) fn of(&self, job: &JobId) -> io::Result<Answered> {
        let path = self.path(job);
        let damaged = |problem: String| {
            let text = format!(
                "{} {problem}; it says what this evaluator has answered: restore it, or remove it knowing that measuring a \
                 model again costs privacy again",
                path.display()
            );
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        match std::fs::metadata(&path) {
            Ok(meta) if meta.len() > MAX_BYTES => Err(damaged("is too long".into())),
            Ok(_) => serde_json::from_slice(&std::fs::read(&path)?)
                .map_err(|e| damaged(format!("is damaged ({e})"))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Answered::default()),
            Err(e) => Err(e),
        }
    }

    /// Makes an answer durable; only then may it leave.
    ///
    /// # Errors
    /// If it cannot be written: then it must not leave.
    pub(crate) fn keep(
        &self,
        job: &JobId,
        mut answered: Answered,
        (document, epsilon): (Digest, f64),
        round: Round,
        metrics: Metrics,
    ) -> io::Result<()> {
        answered.document = Some(document);
        answered.epsilon += epsilon;
        answered.measurements += 1;
        answered.kept.insert(round, metrics);
        while answered.kept.len() > KEPT {
            answered.kept.pop_first();
        }
        create_private_dir(&self.dir)?;
        let json = serde_json::to_vec(&answered).expect("plain data");
        write_durably(&self.path(job), &json, Access::Owner)
    }

    fn path(&self, job: &JobId) -> PathBuf {
        self.dir.join(format!("{job}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(loss: f64) -> Metrics {
        Metrics::of_classes(loss, 0.5, 10)
    }

    #[test]
    fn an_answer_is_given_once_and_then_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let answers = Answers::new(&ClientFolder::new(dir.path()));
        let job = JobId::new("heart-abc123").unwrap();
        for round in 1..=20 {
            let so_far = answers.of(&job).unwrap();
            assert_eq!((so_far.given(Round(round)), so_far.is_past(Round(round))), (None, false));
            answers
                .keep(
                    &job,
                    so_far,
                    (Digest::of(b"document"), 0.25),
                    Round(round),
                    metrics(f64::from(round) / 3.0),
                )
                .unwrap();
        }
        let answers = Answers::new(&ClientFolder::new(dir.path())).of(&job).unwrap();
        assert_eq!((answers.measurements, answers.epsilon), (20, 5.0));
        assert!(
            !answers.is_of_another(Digest::of(b"document")) && answers.is_of_another(Digest::of(b"other"))
        );
        assert_eq!(answers.given(Round(20)), Some(metrics(20.0 / 3.0)), "to the last bit");
        assert_eq!(answers.given(Round(5)).map(|m| m.loss), Some(5.0 / 3.0));
        // Forgotten, not free.
        assert_eq!((answers.given(Round(4)), answers.is_past(Round(4))), (None, true));
        assert_eq!(
            Answers::new(&ClientFolder::new(dir.path())).of(&JobId::new("other").unwrap()).unwrap(),
            Answered::default()
        );
    }

    #[test]
    fn a_damaged_record_stops_measuring() {
        let dir = tempfile::tempdir().unwrap();
        let answers = Answers::new(&ClientFolder::new(dir.path()));
        let job = JobId::new("j").unwrap();
        answers
            .keep(&job, Answered::default(), (Digest::of(b"document"), 0.25), Round(1), metrics(1.0))
            .unwrap();
        std::fs::write(dir.path().join("answers/j.json"), b"{\"measurements\":").unwrap();
        let e = answers.of(&job).unwrap_err().to_string();
        assert!(e.contains("restore it") && e.contains("j.json"), "{e}");
    }
}
