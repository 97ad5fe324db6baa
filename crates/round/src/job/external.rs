//! What does not go together with a model that only the clients' own programs know.

use super::{JobError, JobSpec};
use undertone_privacy::contract::Unit;

/// Refuses what nobody could promise of a program that is not ours.
pub(super) fn check(spec: &JobSpec) -> Result<(), JobError> {
    if !spec.model.is_external() {
        return Ok(());
    }
    built_in_alone(
        spec,
        "an external model is trained by the clients' own programs, and nobody could promise that they clip each row's gradient",
        "an external model is measured by the evaluators' own programs, and nobody could promise what one row can move in their sums",
    )
}

/// Refuses what can be promised of built-in models alone; `trained` and `measured` say why not of this one.
pub(super) fn built_in_alone(spec: &JobSpec, trained: &str, measured: &str) -> Result<(), JobError> {
    let bad = |problem| Err(JobError::Invalid { section: "model", problem });
    if spec.privacy.unit() == Unit::Record {
        return bad(format!("{trained}: a record-level contract needs a built-in model"));
    }
    if spec.privacy.metrics().is_some() {
        return bad(format!("{measured}: leave out [privacy] metrics, or take a built-in model"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: &str = r#"{ unit = "client", trust = "central", clip_norm = 0.5, noise_multiplier = 4.0, delta = 1e-5, budget_epsilon = 99.0"#;
    const RECORD: &str = r#"{ unit = "record", trust = "local", clip_norm = 1.0, sampling_rate = 0.25, noise_multiplier = 1.5, delta = 1e-3,
        budget_epsilon = 99.0 }"#;

    fn resolved(privacy: &str) -> Result<(), String> {
        let text = format!(
            r#"
name = "own"
rounds = 2
model = {{ kind = "external", tensors = [{{ name = "w", shape = [2, 3] }}, {{ name = "b", shape = [2] }}] }}
training = {{ learning_rate = 0.5, local_steps = 2 }}
cohort = {{ rule = "all", size = 4, min_clients = 2 }}
privacy = {}
[data]
label = {{ column = "y", classes = [{{ name = "no", values = ["0"] }}, {{ name = "yes", values = ["1"] }}] }}
columns = [{{ name = "x", kind = "number", range = [0, 1] }}]
"#,
            privacy.replace('\n', " ")
        );
        let job = JobSpec::from_toml(&text, "job.toml").unwrap().resolve().map_err(|e| e.to_string())?;
        assert_eq!((job.layout().len(), job.initial_values().len()), (8, 8));
        Ok(())
    }

    #[test]
    fn what_a_program_could_not_promise_is_refused_at_submit() {
        assert_eq!(resolved(r#"{ unit = "none" }"#), Ok(()));
        assert_eq!(resolved(&format!("{CLIENT} }}")), Ok(()));
        assert!(resolved(RECORD).unwrap_err().contains("needs a built-in model"));
        let measured = resolved(&format!("{CLIENT}, metrics = {{ epsilon = 0.1, max_loss = 4.0 }} }}"));
        assert!(measured.unwrap_err().contains("leave out [privacy] metrics"));
    }
}
