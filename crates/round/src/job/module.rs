//! What does not go together with a model that is a TorchScript file.

use super::external::built_in_alone;
use super::{JobError, JobSpec};
use undertone_core::plan::Precision;

/// Refuses what the file itself decides.
pub(super) fn check(spec: &JobSpec) -> Result<(), JobError> {
    if spec.model.exported().is_none() {
        return Ok(());
    }
    let bad = |section, problem: &str| Err(JobError::Invalid { section, problem: problem.into() });
    // What a file against its readers can do with single rows is not walled in: it could keep one for the next call, or fail
    // for one and not for another. Clipping and noising the whole update stands outside of it.
    built_in_alone(
        spec,
        "a TorchScript module is somebody else's program, and nobody could promise what it does with single rows",
        "a TorchScript module is somebody else's program, and nobody could promise what one row can move in its sums",
    )?;
    if spec.training.loss.is_some() {
        return bad(
            "training",
            "a TorchScript module has a loss of its own: leave out loss, or export the module with another one",
        );
    }
    if spec.training.precision != Precision::default() {
        return bad(
            "training",
            "a TorchScript module computes in the precision that it was written in: leave out precision",
        );
    }
    if spec.initial.is_none() {
        return bad(
            "initial",
            "a TorchScript module has no seed to draw values from: name those that it was exported with (weights = \"model.safetensors\", \
             which export.py writes beside model.pt), or others",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(training: &str, initial: &str, model: &str) -> Result<JobSpec, String> {
        under("{ unit = \"none\" }", training, initial, model)
    }

    fn under(privacy: &str, training: &str, initial: &str, model: &str) -> Result<JobSpec, String> {
        let digest = "0".repeat(64);
        let text = format!(
            r#"
name = "own"
rounds = 2
model = {{ kind = "torchscript", {model} }}
training = {{ learning_rate = 0.5, local_steps = 2{training} }}
{initial}
cohort = {{ rule = "all", size = 4, min_clients = 2 }}
privacy = PRIVACY
[data]
label = {{ column = "y", classes = [{{ name = "no", values = ["0"] }}, {{ name = "yes", values = ["1"] }}] }}
columns = [{{ name = "x", kind = "number", range = [0, 1] }}]
"#
        )
        .replace("PRIVACY", privacy)
        .replace("DIGEST", &digest);
        let spec = JobSpec::from_toml(&text, "job.toml").map_err(|e| e.to_string())?;
        let job = spec.resolve().map_err(|e| e.to_string())?;
        assert_eq!(job.layout().len(), 8);
        assert_eq!(job.module_file().unwrap().bytes, 1234);
        // It travels as it is.
        Ok(super::super::Job::from_document(&job.spec().to_document()).unwrap().spec().clone())
    }

    const MODEL: &str = r#"digest = "DIGEST", bytes = 1234, tensors = [{ name = "fc.weight", shape = [2, 3] }, { name = "fc.bias", shape = [2] }]"#;
    const INITIAL: &str = r#"initial = { digest = "DIGEST", bytes = 200 }"#;

    #[test]
    fn a_file_is_known_by_its_digest_and_says_what_it_trains() {
        let spec = resolved("", INITIAL, MODEL).unwrap();
        assert_eq!(spec.model.exported().unwrap().tensors[0].name, "fc.weight");
    }

    #[test]
    fn what_nobody_could_promise_is_refused() {
        const RECORD: &str = r#"{ unit = "record", trust = "local", clip_norm = 1.0, sampling_rate = 0.25, noise_multiplier = 1.5,
            delta = 1e-3, budget_epsilon = 99.0 }"#;
        let e = under(RECORD, "", INITIAL, MODEL).unwrap_err();
        assert!(e.contains("a record-level contract needs a built-in model"), "{e}");
        const CLIENT: &str = r#"{ unit = "client", trust = "central", clip_norm = 0.5, noise_multiplier = 4.0, delta = 1e-5,
            budget_epsilon = 99.0 METRICS }"#;
        under(&CLIENT.replace("METRICS", ""), "", INITIAL, MODEL).unwrap();
        let noised = CLIENT.replace("METRICS", ", metrics = { epsilon = 1.0, max_loss = 2.0 }");
        let e = under(&noised, "", INITIAL, MODEL).unwrap_err();
        assert!(e.contains("leave out [privacy] metrics"), "{e}");
    }

    #[test]
    fn what_the_file_decides_is_refused_in_the_job() {
        for (training, initial, model, says) in [
            (
                ", loss = { kind = \"bce\" }",
                INITIAL,
                MODEL,
                "[training] a TorchScript module has a loss of its own",
            ),
            (", precision = \"bf16\"", INITIAL, MODEL, "leave out precision"),
            ("", "", MODEL, "[initial] a TorchScript module has no seed"),
            (
                "",
                INITIAL,
                "file = \"model.pt\"",
                "[model] file = \"model.pt\" is a file beside the job file: hand the job in with",
            ),
            ("", INITIAL, "digest = \"DIGEST\", bytes = 1234", "1 to 65536 parameters to train, not 0"),
            ("", INITIAL, "file = \"model.pt\", bytes = 1", "takes file"),
            (
                "",
                INITIAL,
                "digest = \"DIGEST\", bytes = 1, tensors = [{ name = \"w\", shape = [0] }]",
                "\"w\" of shape [0]",
            ),
        ] {
            let e = resolved(training, initial, model).unwrap_err();
            assert!(e.contains(says), "{e}");
        }
    }
}
