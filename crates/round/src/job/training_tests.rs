//! The training plan of a job file: what does not go together is refused when the job is submitted.

use super::{Job, JobSpec};
use undertone_core::plan::{Loss, Optimizer};
use undertone_core::shape::Target;

const NONE: &str = "unit = \"none\"";
const RECORD: &str = "unit = \"record\"\ntrust = \"local\"\nclip_norm = 1.0\nsampling_rate = 0.25\n\
                      noise_multiplier = 1.5\ndelta = 1e-3\nbudget_epsilon = 20.0";

fn resolve(training: &str, privacy: &str) -> Result<Job, String> {
    resolve_with("kind = \"mlp\"\nhidden = [4]", training, privacy)
}

fn resolve_with(model: &str, training: &str, privacy: &str) -> Result<Job, String> {
    let text = format!(
        r#"
name = "heart"
rounds = 10
[model]
{model}
[training]
learning_rate = 0.05
local_steps = 20
{training}
[cohort]
rule = "all"
size = 4
min_clients = 4
[privacy]
{privacy}
[data.label]
column = "num"
classes = [{{ name = "no", values = ["0"] }}, {{ name = "mild", values = ["1"] }}, {{ name = "yes", values = ["2"] }}]
[[data.columns]]
name = "age"
kind = "number"
range = [0, 120]
"#
    );
    let spec = JobSpec::from_toml(&text, "job.toml").map_err(|e| e.to_string())?;
    spec.resolve().map_err(|e| e.to_string())
}

#[test]
fn dropout_goes_with_either_noise() {
    let model = "kind = \"transformer\"\nwidth = 4\nheads = 2\nlayers = 1\ndropout = 0.1";
    for mechanism in ["", "mechanism = \"discrete-gaussian\"", "mechanism = \"fast-gaussian\""] {
        resolve_with(model, "", &format!("{RECORD}\n{mechanism}")).unwrap();
    }
}

#[test]
fn what_does_not_go_together_is_refused_with_the_reason() {
    for (training, privacy, words) in [
        ("loss = { kind = \"mse\" }", NONE, "take \"cross-entropy\" or \"bce\""),
        ("loss = { kind = \"cross-entropy\", class_weights = [1.0, 2.0] }", NONE, "2 class_weights"),
        ("loss = { kind = \"hinge\" }", NONE, "unknown value \"hinge\""),
        ("loss = { kind = \"bce\", delta = 1.0 }", NONE, "delta"),
        ("optimizer = { kind = \"sgd\", beta1 = 0.9 }", NONE, "beta1"),
        ("optimizer = { kind = \"adamm\" }", NONE, "did you mean \"adam"),
        ("momentum = 0.9\noptimizer = { kind = \"adamw\" }", NONE, "momentum belongs to sgd"),
        ("schedule = { kind = \"cosine\", over = \"job\", warm_up = 11 }", NONE, "there are 10 rounds"),
        ("schedule = { kind = \"cosine\", warm_up = 21 }", NONE, "there are 20 local_steps"),
        ("precision = \"f16\"", NONE, "unknown value \"f16\""),
        ("early_stop = { patience = 2 }", RECORD, "early_stop does not go with a record-level contract"),
        ("clip_gradient_norm = 1.0", RECORD, "remove clip_gradient_norm"),
        ("batch_size = 8", RECORD, "remove batch_size"),
        ("precision = \"bf16\"", RECORD, "bf16 rounds 65,536 times as coarsely; remove precision"),
    ] {
        let e = resolve(training, privacy).unwrap_err();
        assert!(e.contains(words), "{training}: {e}");
    }
}

#[test]
fn a_plan_reaches_the_task_and_the_measurements() {
    let training = "loss = { kind = \"bce\" }\noptimizer = { kind = \"adam\" }\nweight_decay = 0.01\n\
                    schedule = { kind = \"cosine\", over = \"job\", warm_up = 2 }\n";
    for (precision, privacy) in [("precision = \"bf16\"", NONE), ("", RECORD)] {
        let job = resolve(&format!("{training}{precision}"), privacy).unwrap();
        assert_eq!(job.evaluation_task().loss, Some(Loss::Bce {}));
        let task = job.train_task(100, None);
        assert!(matches!(task.plan.optimizer, Optimizer::Adam { .. }));
        assert_eq!(task.evaluation(), job.evaluation_task());
        let again = Job::from_document(&job.spec().to_document()).unwrap();
        assert_eq!(again.digest(), job.digest());
    }
    let plain = resolve("", NONE).unwrap();
    assert_eq!(plain.evaluation_task().loss, None);
    assert_eq!(Loss::usual(plain.spec().data.shape().target), Loss::usual(Target::Class { classes: 3 }));
}

/// The documents of jobs that are stored say nothing of what they do not set: their digests stay.
#[test]
fn a_document_of_before_stays_as_it_is() {
    let document = resolve("momentum = 0.9", NONE).unwrap().spec().to_document();
    let text = String::from_utf8(document).unwrap();
    assert!(text.contains(r#""training":{"learning_rate":0.05,"momentum":0.9,"local_steps":20},"#), "{text}");
}
