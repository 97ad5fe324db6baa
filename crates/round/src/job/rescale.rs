//! What goes with rescaled updates, and what does not.

use super::{JobError, JobSpec, Weights};
use undertone_core::rules::rescale::{Rescale, Rescaling};
use undertone_privacy::contract::Unit;

impl JobSpec {
    /// The rescaling that the job asks for, if the rest of the job goes with it; `norm` is the bound on updates.
    ///
    /// # Errors
    /// [`JobError::Invalid`] with the reason.
    pub(super) fn check_rescale(&self, norm: f64) -> Result<Option<Rescaling>, JobError> {
        let a = &self.aggregation;
        let (rescale, name) = (&a.rescale, a.rescale.name());
        let bad = |problem: String| Err(JobError::Invalid { section: "aggregation", problem });
        if rescale.is_plain() {
            return Ok(None);
        }
        match (self.privacy.unit(), rescale) {
            (Unit::None, _) => {}
            (_, Rescale::QFedAvg(_)) => {
                return bad(
                    "rescale = q-fedavg goes with unit = \"none\" only: it makes of each client's loss, which is private, a number \
                     that leaves without noise"
                        .into(),
                );
            }
            (Unit::Record, _) => {
                return bad(
                    "rescale = fednova does not go with a record-level contract: its local_steps are public and the same for all, \
                     so that fednova would change nothing"
                        .into(),
                );
            }
            (Unit::Client, _) => {
                return bad(
                    "rescale = fednova does not go with a client-level contract: the number of a client's steps, which follows its \
                     rows, is outside of what the noise is scaled to"
                        .into(),
                );
            }
        }
        if a.rule.needs_all_rows() {
            return bad(format!(
                "rescale = {name} needs rule = {{ kind = \"mean\" }}: a robust rule does not sum, and a number beside each update \
                 would be believed where the update is not"
            ));
        }
        if self.cohort.buffered().is_some() {
            return bad(format!(
                "rescale = {name} does not go with [cohort] rule = \"buffered\": it weighs the clients of a round against each other, \
                 who began with one model; take another cohort rule, or leave rescale out"
            ));
        }
        if matches!(rescale, Rescale::QFedAvg(_)) && a.weights != Weights::Uniform {
            return bad(
                "rescale = q-fedavg needs weights = \"uniform\": it weighs clients by their loss, each of them once".into(),
            );
        }
        match rescale.resolve(&self.training, norm) {
            Ok(rescaling) => Ok(rescaling),
            Err(problem) => bad(format!("rescale: {problem}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Job;

    const NOVA: &str = "rescale = { kind = \"fednova\", max_steps = 50 }";
    const FAIR: &str = "rescale = { kind = \"q-fedavg\", q = 1.0, lipschitz = 10.0, max_loss = 2.0 }";
    const EPOCHS: &str = "local_epochs = 2\nbatch_size = 8";

    fn resolve(training: &str, aggregation: &str, privacy: &str) -> Result<Job, String> {
        let text = format!(
            r#"
name = "heart"
rounds = 3
[model]
kind = "mlp"
hidden = [4]
[training]
learning_rate = 0.5
{training}
[cohort]
rule = "all"
size = 4
min_clients = 4
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
        let spec = JobSpec::from_toml(&text, "job.toml").map_err(|e| e.to_string())?;
        spec.resolve().map_err(|e| e.to_string())
    }

    const NONE: &str = "unit = \"none\"";
    const RECORD: &str = "unit = \"record\"\ntrust = \"local\"\nclip_norm = 1.0\nsampling_rate = 0.25\n\
                          noise_multiplier = 1.5\ndelta = 1e-3\nbudget_epsilon = 20.0";
    const CENTRAL: &str = "unit = \"client\"\ntrust = \"central\"\nclip_norm = 0.5\nnoise_multiplier = 4.0\n\
                           delta = 1e-5\nbudget_epsilon = 10.0";

    #[test]
    fn what_does_not_go_with_it_is_refused_with_the_reason() {
        let local = CENTRAL.replace("central", "local");
        let median = format!("{NOVA}\nrule = {{ kind = \"median\" }}");
        let fair_median = format!("{FAIR}\nrule = {{ kind = \"median\" }}");
        let by_rows = format!("{FAIR}\nweights = \"declared_rows\"");
        for (training, aggregation, privacy, words) in [
            ("local_steps = 2", FAIR, RECORD, "each client's loss, which is private"),
            (EPOCHS, FAIR, CENTRAL, "each client's loss, which is private"),
            (EPOCHS, FAIR, &local, "each client's loss, which is private"),
            ("local_steps = 2", NOVA, RECORD, "public and the same for all"),
            (EPOCHS, NOVA, CENTRAL, "outside of what the noise is scaled to"),
            (EPOCHS, NOVA, &local, "outside of what the noise is scaled to"),
            (EPOCHS, &median, NONE, "a robust rule does not sum"),
            (EPOCHS, &fair_median, NONE, "a robust rule does not sum"),
            (EPOCHS, &by_rows, NONE, "weights = \"uniform\""),
            ("local_steps = 2", NOVA, NONE, "changes nothing here"),
            (EPOCHS, "rescale = { kind = \"fednovo\", max_steps = 1 }", NONE, "did you mean \"fednova\""),
        ] {
            let e = resolve(training, aggregation, privacy).unwrap_err();
            assert!(e.contains(words), "{aggregation} {words}: {e}");
        }
    }

    #[test]
    fn asynchronous_rounds_do_not_rescale() {
        for rescale in [NOVA, FAIR] {
            let mut spec = resolve(EPOCHS, rescale, NONE).unwrap().spec().clone();
            let cohort = r#"{"rule": "buffered", "concurrency": 4, "buffer": 2, "max_staleness": 3}"#;
            spec.cohort = serde_json::from_str(cohort).unwrap();
            let e = spec.clone().resolve().unwrap_err().to_string();
            assert!(e.contains("does not go with [cohort] rule = \"buffered\""), "{e}");
            spec.aggregation.rescale = Rescale::default();
            assert!(spec.resolve().is_ok());
        }
    }

    #[test]
    fn only_a_job_that_rescales_has_anything_of_it() {
        let plain = resolve(EPOCHS, "", NONE).unwrap();
        let document = String::from_utf8(plain.spec().to_document()).unwrap();
        assert!(!document.contains("rescale") && !document.contains("tensors"), "{document}");
        assert_eq!(resolve(EPOCHS, "rescale = { kind = \"plain\" }", NONE).unwrap().digest(), plain.digest());
        assert!(plain.rescaling().is_none() && !plain.train_task(1, None).first_loss);
        assert_eq!(plain.bound_beside(Some(1), (2.0, 7)), (2.0, 7));
        for (aggregation, loss) in [(NOVA, false), (FAIR, true)] {
            let job = resolve(EPOCHS, aggregation, NONE).unwrap();
            assert_eq!(job.train_task(1, None).first_loss, loss);
            assert_eq!(Job::from_document(&job.spec().to_document()).unwrap(), job);
        }
        let fair = resolve(EPOCHS, FAIR, NONE).unwrap();
        assert_eq!(fair.bound_beside(Some(1 << 19), (1000.0, 1000 << 16)), (500.0, 500 << 16));
    }

    /// The owner of the data has the last word on what tells a loss.
    #[test]
    fn a_loss_leaves_only_where_the_owner_allows_it() {
        use crate::participant::{Policy, Terms};
        let policy = Policy { allow_no_privacy: true, ..Policy::default() };
        let allows = Policy { allow_exact_measurements: true, ..policy.clone() };
        let check = |aggregation: &str, policy: &Policy| {
            let job = resolve(EPOCHS, aggregation, NONE).unwrap();
            Terms::of(&job, None, policy).check(&job, None, policy)
        };
        let refusal = check(FAIR, &policy).unwrap_err();
        assert!(refusal.told.contains("allow_exact_measurements"), "{}", refusal.told);
        assert!(check(FAIR, &allows).is_ok() && check(NOVA, &policy).is_ok() && check("", &policy).is_ok());
    }

    /// Everything of a job that trains a part is sized by the part.
    #[test]
    fn a_part_sizes_the_job() {
        let head = format!("{EPOCHS}\ntensors = [\"2.*\"]");
        let (whole, part) = (resolve(EPOCHS, "", NONE).unwrap(), resolve(&head, "", NONE).unwrap());
        assert_eq!((whole.layout().len(), whole.part().len(), whole.update_bytes()), (13, 13, 52));
        assert_eq!((part.layout().len(), part.part().len(), part.update_bytes()), (13, 5, 20));
        assert_ne!(whole.digest(), part.digest());
        assert_eq!(Job::from_document(&part.spec().to_document()).unwrap(), part);
        assert_eq!(part.train_task(1, None).part().unwrap(), *part.part());
        // What a client adds as noise is as long as what it sends.
        let local = CENTRAL.replace("central", "local");
        let (whole, part) = (resolve(EPOCHS, "", &local).unwrap(), resolve(&head, "", &local).unwrap());
        assert!(part.update_norm_bound() < whole.update_norm_bound());
        for (tensors, words) in [
            ("[\"3.*\"]", "[training] tensors: \"3.*\" names no tensor of the model: the nearest are \""),
            ("[\"2.weight\", \"2.bais\"]", "\"2.bias\""),
            ("[]", "leave it out"),
            ("[\"2.*t\"]", "with * only at"),
        ] {
            let e = resolve(&format!("{EPOCHS}\ntensors = {tensors}"), "", NONE).unwrap_err();
            assert!(e.contains(words), "{words}: {e}");
        }
    }
}
