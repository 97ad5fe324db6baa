//! Trainings that are finished, a line each: a study takes an hour or more, and goes on where it was stopped.

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use undertone_core::digest::Digest;

/// One training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    /// In per cent.
    pub(crate) accuracy: f64,
    pub(crate) seconds: f64,
}

#[derive(Serialize, Deserialize)]
struct Line {
    /// Of the program and the task.
    of: Digest,
    run: Run,
}

/// What is finished, kept in a file if there is one.
pub(crate) struct Finished {
    path: Option<PathBuf>,
    lines: Vec<Line>,
    /// A page is of one build.
    program: Digest,
}

impl Finished {
    /// What a study before this one left.
    pub(crate) fn open(path: Option<PathBuf>) -> Result<Self> {
        let mut lines: Vec<Line> = vec![];
        let program = std::env::current_exe().and_then(fs::read).context("cannot read this program")?;
        if let Some(path) = path.as_ref().filter(|path| path.is_file()) {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            // A line that was cut is a training that did not end.
            lines.extend(text.lines().filter_map(|line| serde_json::from_str(line).ok()));
            eprintln!(
                "{} trainings were done before; those of this very program are not made again. To begin anew, remove {}",
                lines.len(),
                path.display()
            );
        }
        Ok(Self { path, lines, program: Digest::of(&program) })
    }

    /// The run of a task: as it was, or as `train` gives it now.
    pub(crate) fn run(&mut self, task: &impl Serialize, train: impl FnOnce() -> Result<Run>) -> Result<Run> {
        let of = Digest::of(&serde_json::to_vec(&(self.program, task))?);
        if let Some(line) = self.lines.iter().find(|line| line.of == of) {
            return Ok(line.run);
        }
        let line = Line { of, run: train()? };
        if let Some(path) = &self.path {
            let folder = path.parent().context("a file is in a folder")?;
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            let mut file = OpenOptions::new().create(true).append(true).open(path)?;
            // A line that was cut before stays alone.
            writeln!(file, "\n{}", serde_json::to_string(&line)?)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        let run = line.run;
        self.lines.push(line);
        Ok(run)
    }

    /// All of it stands on a page: the next study begins anew.
    pub(crate) fn forget(self) -> Result<()> {
        match self.path.filter(|path| path.is_file()) {
            Some(path) => fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_finished_is_not_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("study/runs.jsonl");
        let open = || Finished::open(Some(path.clone())).unwrap();
        let run = |accuracy| Run { accuracy, seconds: 1.5 };
        assert_eq!(open().run(&"one", || Ok(run(86.25))).unwrap(), run(86.25));
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"of\": \"cut").unwrap();
        let mut again = open();
        assert_eq!(again.run(&"one", || panic!("it is done")).unwrap(), run(86.25));
        assert_eq!(again.run(&"other", || Ok(run(1.0))).unwrap(), run(1.0));
        assert_eq!(open().run(&"other", || panic!("so is it")).unwrap(), run(1.0));
        again.forget().unwrap();
        assert_eq!(open().run(&"one", || Ok(run(2.0))).unwrap(), run(2.0));
    }
}
