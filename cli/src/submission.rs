//! A job file on its way to the coordinator: checked here first, and told in the operator's words.

use crate::failure::bad_input;
use crate::module::Module;
use crate::output::{Paint, figure, given};
use crate::profile::{Connection, call_failed};
use crate::weights::Weights;
use anyhow::{Result, anyhow, ensure};
use serde_json::{Value, json};
use std::path::Path;
use undertone::v1;
use undertone_core::cohort::CohortRule;
use undertone_core::digest::Digest;
use undertone_core::limits::MAX_JOB_DOCUMENT_BYTES;
use undertone_privacy::contract::{Noise, Trust, Unit};
use undertone_privacy::resolve::ResolvedContract;
use undertone_privacy::sensitivity::Adjacency;
use undertone_round::job::{Job, JobError, JobSpec};

/// A job that holds together, not yet submitted.
#[derive(Debug)]
pub(crate) struct Submission {
    job: Job,
    /// The model, if it is a file.
    module: Option<Module>,
    /// What the job begins with, if it is a file.
    weights: Option<Weights>,
}

impl Submission {
    /// Reads and checks a job file.
    ///
    /// # Errors
    /// If it cannot be read, does not parse (line and nearest key), or makes no sense as a whole (section).
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let shown = file.display().to_string();
        let cannot = |e: std::io::Error| bad_input(format!("cannot read {shown}: {e}"));
        let bytes = std::fs::metadata(file).map_err(cannot)?.len();
        if bytes > MAX_JOB_DOCUMENT_BYTES as u64 {
            return Err(bad_input(format!(
                "{shown} has {bytes} bytes, a job at most {MAX_JOB_DOCUMENT_BYTES}"
            )));
        }
        let text = std::fs::read_to_string(file).map_err(cannot)?;
        let wrong = |e: JobError| match e {
            // Names the file already.
            JobError::Malformed(e) => bad_input(e.to_string()),
            JobError::Invalid { .. } => bad_input(format!("{shown}: {e}")),
        };
        let mut spec = JobSpec::from_toml(&text, &shown).map_err(wrong)?;
        let folder = file.parent().unwrap_or(Path::new(""));
        let module = Module::of(&mut spec, folder)
            .map_err(|(path, e)| bad_input(format!("{shown}: [model] {}: {e}", path.display())))?;
        let weights = Weights::of(&mut spec, folder)
            .map_err(|(path, e)| bad_input(format!("{shown}: [initial] {}: {e}", path.display())))?;
        Ok(Self { job: spec.resolve().map_err(wrong)?, module, weights })
    }

    /// The job.
    pub(crate) fn job(&self) -> &Job {
        &self.job
    }

    /// Hands the job to the coordinator; gives its id.
    ///
    /// # Errors
    /// If the server refuses, or took in something else.
    pub(crate) async fn send(&self, connection: &mut Connection) -> Result<String> {
        if let Some(module) = &self.module {
            module.send(connection).await?;
        }
        if let Some(weights) = &self.weights {
            weights.send(self.job.spec(), connection).await?;
        }
        let request = v1::SubmitJobRequest { job_document: self.job.spec().to_document().into() };
        let response = connection.submit_job(request).await.map_err(call_failed)?.into_inner();
        let digest = Digest::try_from(&response.job_digest[..])
            .map_err(|e| anyhow!("the coordinator's answer: {e}"))?;
        ensure!(
            digest == self.job.digest(),
            "the coordinator reads the job otherwise than this version of undertone (digests {} and {}): cancel {} \
             and use the same version on both sides",
            digest.short(),
            self.job.digest().short(),
            response.job
        );
        Ok(response.job)
    }

    /// What was submitted and what it promises, for people.
    pub(crate) fn describe(&self, id: &str, paint: Paint) -> Vec<String> {
        let mut lines = vec![format!("job {}", paint.bold(id))];
        let mut add = |name: &str, text: String| lines.push(format!("  {name:<9}{text}"));
        add("model", self.model());
        add("rounds", self.rounds());
        for (i, text) in self.privacy().into_iter().enumerate() {
            add(if i == 0 { "privacy" } else { "" }, text);
        }
        lines
    }

    fn model(&self) -> String {
        let spec = self.job.spec();
        let part = self.job.part();
        let trained =
            if part.is_whole() { String::new() } else { format!(", {} of them trained", part.len()) };
        let input = spec.data.shape().input;
        format!("{} for {input}, {} parameters{trained}", spec.model, part.whole_len())
    }

    fn rounds(&self) -> String {
        let spec = self.job.spec();
        let cohort = match spec.cohort.rule() {
            CohortRule::All { size, min_clients } => format!("all of {size} clients, at least {min_clients}"),
            CohortRule::Uniform { size, min_clients } => {
                format!("{size} clients drawn, at least {min_clients}")
            }
            CohortRule::Poisson { rate, population, cap, .. } => {
                format!("each of {population} clients with probability {rate}, at most {cap}")
            }
            CohortRule::Buffered(b) => format!(
                "the next {} updates of {} clients at work, at most {} models old (weights {})",
                b.buffer,
                b.concurrency,
                b.max_staleness,
                b.decay.as_str()
            ),
        };
        let often = spec.cohort.participation().map_or(String::new(), |rule| {
            format!("; a client joins at most {} times, {} rounds apart", rule.limit(), rule.separation())
        });
        format!("{}, each with {cohort}{often}", spec.rounds)
    }

    fn privacy(&self) -> Vec<String> {
        let resolved = self.job.contract();
        let contract = resolved.contract();
        let rounds = self.job.spec().rounds;
        let (Some(delta), Some(budget), Some(noise), Some(clip), Some(planned)) = (
            resolved.delta(),
            resolved.budget_epsilon(),
            resolved.noise_multiplier(),
            contract.clip_norm(),
            resolved.epsilon_after(rounds),
        ) else {
            return vec!["none is promised (unit = \"none\")".to_owned()];
        };
        let who = match resolved.unit() {
            Unit::Record => "for each record",
            Unit::Client => "for each client",
            Unit::None => "for nobody",
        };
        let trust = match resolved.trust() {
            Some(Trust::Local) => "nobody need be trusted: clients add the noise",
            Some(Trust::Central) => "the coordinator is trusted: it adds the noise",
            None => "no noise",
        };
        let neighbours = match resolved.adjacency() {
            Some(Adjacency::ReplaceOne) => ", also against its replacement by another",
            _ => "",
        };
        let target = match contract.noise() {
            Some(Noise::TargetEpsilon(target)) => format!("target ε {}, ", given(target)),
            _ => String::new(),
        };
        let mut lines = vec![
            format!("{who}{neighbours}; {trust}"),
            format!(
                "{target}planned ε {} after all rounds at δ {}, budget ε {}",
                figure(planned),
                given(delta),
                given(budget)
            ),
        ];
        let sampling =
            contract.sampling_rate().map(|q| format!(", sampling rate {}", given(q))).unwrap_or_default();
        lines.push(format!("noise multiplier {}, clip norm {}{sampling}", figure(noise), given(clip)));
        lines
    }

    /// The job's privacy contract with its numbers.
    pub(crate) fn contract(&self) -> &ResolvedContract {
        self.job.contract()
    }

    /// What was submitted, for programs.
    pub(crate) fn to_json(&self, id: &str) -> Value {
        let resolved = self.job.contract();
        let target = match resolved.contract().noise() {
            Some(Noise::TargetEpsilon(target)) => Some(target),
            _ => None,
        };
        json!({
            "job": id,
            "digest": self.job.digest(),
            "rounds": self.job.spec().rounds,
            "parameters": self.job.layout().len(),
            "trained_parameters": self.job.part().len(),
            "privacy": {
                "promise": resolved.unit() != Unit::None,
                "unit": resolved.unit().as_str(),
                "trust": resolved.trust().map(Trust::as_str),
                "adjacency": resolved.adjacency(),
                "target_epsilon": target,
                "planned_epsilon": resolved.epsilon_after(self.job.spec().rounds),
                "delta": resolved.delta(),
                "budget_epsilon": resolved.budget_epsilon(),
                "noise_multiplier": resolved.noise_multiplier(),
                "accountant": resolved.accountant(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = r#"
name = "toy"
rounds = 20
[model]
kind = "logistic"
[training]
learning_rate = 0.5
local_steps = 2
[cohort]
rule = "all"
size = 4
min_clients = 3
[privacy]
unit = "record"
trust = "local"
clip_norm = 1.0
sampling_rate = 0.25
target_epsilon = 5.0
delta = 1e-3
budget_epsilon = 10.0
[data]
label = { column = "y", classes = [{ name = "no", values = ["0"] }, { name = "yes", values = ["1"] }] }
columns = [{ name = "x", kind = "number", range = [0, 1] }]
"#;

    fn read(text: &str) -> Result<Submission> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("job.toml");
        std::fs::write(&file, text).unwrap();
        Submission::read(&file)
    }

    #[test]
    fn a_job_is_told_in_the_operators_words() {
        let lines = read(JOB).unwrap().describe("toy-abc", Paint::default());
        assert_eq!(
            lines[..5],
            [
                "job toy-abc",
                "  model    logistic regression for rows of 1 features, 2 parameters",
                "  rounds   20, each with all of 4 clients, at least 3",
                "  privacy  for each record; nobody need be trusted: clients add the noise",
                "           target ε 5, planned ε 5.00 after all rounds at δ 0.001, budget ε 10",
            ]
        );
        assert!(lines[5].contains("clip norm 1, sampling rate 0.25"), "{}", lines[5]);
        assert_eq!(lines.len(), 6);
        let none = read(
            &JOB.replace(&JOB[JOB.find("unit").unwrap()..JOB.find("[data]").unwrap()], "unit = \"none\"\n"),
        );
        assert!(none.unwrap().describe("x", Paint::default())[3].contains("none is promised"));
    }

    #[test]
    fn a_model_that_cannot_read_the_data_is_refused_before_it_is_sent() {
        for (model, words) in [
            (
                "kind = \"cnn\"\nblocks = [{ channels = 8, kernel = 3 }]",
                "[model] a cnn looks at pictures, this data has rows",
            ),
            ("kind = \"linear\"", "[model] linear predicts a number"),
            ("kind = \"resnet18\"\nnorm = \"batch\"", "use norm = \"group\""),
            ("kind = \"transformer\"\nwidth = 8\nheads = 3\nlayers = 1", "[model] heads = 3 does not divide"),
        ] {
            let e = read(&JOB.replace("kind = \"logistic\"", model)).unwrap_err().to_string();
            assert!(e.contains(words), "{e}");
        }
        let transformer =
            JOB.replace("kind = \"logistic\"", "kind = \"transformer\"\nwidth = 8\nheads = 2\nlayers = 1");
        let lines = read(&transformer).unwrap().describe("x", Paint::default());
        assert_eq!(
            lines[1],
            "  model    transformer with 1 layer of width 8, 2 heads for rows of 1 features, 913 parameters"
        );
    }

    #[test]
    fn a_budget_that_is_too_small_is_noticed() {
        let tight = JOB.replace("target_epsilon = 5.0", "noise_multiplier = 0.8");
        let e = read(&tight).unwrap_err().to_string();
        assert!(e.contains("[privacy] 20 rounds") && e.contains("rounds would fit"), "{e}");
    }

    #[test]
    fn what_is_wrong_names_file_and_place() {
        let e = read(&JOB.replace("rounds", "roundz")).unwrap_err().to_string();
        assert!(e.contains("job.toml line 3: unknown key \"roundz\": did you mean \"rounds\"?"), "{e}");
        let e = read(&JOB.replace("min_clients = 3", "min_clients = 5")).unwrap_err().to_string();
        assert!(e.contains("job.toml: [cohort] min_clients must be 1 to"), "{e}");
        let e = Submission::read(Path::new("/nonexistent/job.toml")).unwrap_err().to_string();
        assert!(e.contains("cannot read /nonexistent/job.toml"), "{e}");
    }
}
