//! What would leave this machine, in words: worked out from `client.toml` and a job file, without connecting.

use crate::config::ClientConfig;
use std::fmt::{self, Write as _};
use undertone_core::cohort::CohortRule;
use undertone_core::id::ClientRole;
use undertone_core::plan::Loss;
use undertone_core::rules::rescale::Rescale;
use undertone_core::shape::Target;
use undertone_core::trainer::{DataReport, TrainerError};
use undertone_privacy::contract::{Trust, Unit};
use undertone_privacy::sensitivity::Adjacency;
use undertone_round::job::{Job, Weights};
use undertone_round::participant::Terms;

/// What leaves, and what does not. Shown with `Display`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disclosure {
    text: String,
}

impl Disclosure {
    /// For a client, and for one job if given, with the check of the data against the job's contract.
    pub fn of(config: &ClientConfig, job: Option<(&Job, &Result<DataReport, TrainerError>)>) -> Self {
        let mut page = Page(String::new());
        page.client(config);
        if let Some((job, data)) = job {
            match config.role {
                ClientRole::Trainer => page.training(config, job),
                ClientRole::Evaluator => page.evaluating(job),
            }
            page.data(data);
        }
        page.kept(config.role, job.map(|(job, _)| job));
        Self { text: page.0 }
    }
}

impl fmt::Display for Disclosure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Most tensors that are named.
const MOST_TENSORS: usize = 8;

struct Page(String);

impl Page {
    fn head(&mut self, text: &str) {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.line(format_args!("{text}"));
    }

    fn row(&mut self, name: &str, value: impl fmt::Display) {
        self.line(format_args!("  {name:<14} {value}"));
    }

    fn line(&mut self, text: fmt::Arguments<'_>) {
        writeln!(self.0, "{text}").expect("a text takes all");
    }

    fn client(&mut self, config: &ClientConfig) {
        let identity = config.folder.identity();
        let enrolled = identity.join(crate::identity::CERTIFICATE).exists();
        self.head("Leaves whenever the client runs");
        self.row("to", &config.server);
        self.row("name and role", format_args!("{}, {} (its certificate says so)", config.name, config.role));
        self.row(
            "certificate",
            if enrolled {
                format!("{} (the key beside it never leaves)", identity.display())
            } else {
                "none yet: enrol first".into()
            },
        );
        self.row("software", format_args!("undertone-client {}", undertone::version::SOFTWARE));
        self.row(
            "besides",
            "its network address, when it is there, and to each offer yes or no with a reason",
        );
    }

    fn training(&mut self, config: &ClientConfig, job: &Job) {
        let spec = job.spec();
        let terms = Terms::of(job, None, &config.policy);
        self.head(&format!(
            "Leaves in each of at most {} rounds of job \"{}\" (digest {})",
            spec.rounds,
            spec.name,
            job.digest().short()
        ));
        self.row(
            "update",
            format_args!(
                "{} numbers, {} bytes, multiples of 2^-{}",
                terms.values,
                terms.update_bytes,
                u8::from(job.grid())
            ),
        );
        if !job.part().is_whole() {
            let names: Vec<&str> = job.part().layout().tensors().iter().map(|t| t.name.as_str()).collect();
            let (all, shown) = (names.len(), names[..names.len().min(MOST_TENSORS)].join(", "));
            let more =
                if all > MOST_TENSORS { format!(" and {} more", all - MOST_TENSORS) } else { String::new() };
            self.row(
                "of",
                format_args!("the tensors {shown}{more}; the others of the model are not trained"),
            );
        }
        if let Some(command) = &config.trainer.command {
            self.row(
                "trained by",
                format_args!("your own program ({}); what it prints stays here", command.command.join(" ")),
            );
        }
        match spec.aggregation.rescale {
            Rescale::Plain {} => {}
            Rescale::FedNova(_) => {
                self.row("also leaves", "the number of your local steps, which follows your number of rows")
            }
            Rescale::QFedAvg(_) => self.row(
                "also leaves",
                "a number from which the loss of the round's model on your rows can be worked out",
            ),
        }
        if let Some(rows) = config.policy.declared_rows {
            self.row(
                "declared rows",
                format_args!("{rows}, a public figure that you set; the real number stays here"),
            );
        }
        match (spec.aggregation.weights, config.policy.declared_rows) {
            (Weights::Uniform, _) => self.row("weight", "1, the same for all"),
            (Weights::DeclaredRows, Some(rows)) => {
                self.row("weight", format_args!("{} (declared_rows = {rows})", terms.weight));
            }
            (Weights::DeclaredRows, None) => {
                self.row("weight", "your declared_rows, which client.toml lacks")
            }
        }
        if let Some(rule) = spec.cohort.participation() {
            self.row(
                "how often",
                format_args!(
                    "in at most {} rounds, at least {} rounds apart; this client keeps count itself",
                    rule.limit(),
                    rule.separation()
                ),
            );
        }
        if let Some(b) = spec.cohort.buffered() {
            self.row(
                "rounds",
                format_args!(
                    "asynchronous: your update counts in a later model if others are faster, less the older it is ({}), at most {} \
                     models later",
                    b.decay.as_str(),
                    b.max_staleness
                ),
            );
        }
        self.promise(&terms, job);
        match terms.check(job, None, &config.policy) {
            Ok(()) => self.row("policy", "this client's limits allow it"),
            Err(refusal) => self.row("policy", format_args!("DECLINED: {}", refusal.told)),
        }
    }

    fn promise(&mut self, terms: &Terms, job: &Job) {
        let clip = terms.clip_norm.unwrap_or_default();
        // In multiples of the clip norm: a replaced client is twice as far away as one that is missing.
        let contributions = terms.adjacency.unwrap_or_default().contributions() as f64;
        // And one that counts more is covered by as much more.
        let weight = f64::from(job.spec().privacy.max_weight());
        let noise = terms.noise_multiplier.unwrap_or_default() * contributions * weight;
        match terms.unit {
            Unit::Record => {
                self.row("protects", "each row of your data; nobody has to be trusted (noise is added here)");
                self.row("clip norm", format_args!("{clip} for each row's gradient"));
                self.row(
                    "noise",
                    format_args!(
                        "{:.4} x clip norm, in each of {} steps a round; a row is in a step with probability {}",
                        noise,
                        job.contract().charge(),
                        terms.sampling_rate.unwrap_or_default()
                    ),
                );
            }
            Unit::Client if terms.trust == Some(Trust::Local) => {
                self.row(
                    "protects",
                    "your whole data set from everyone; nobody has to be trusted (noise is added here)",
                );
                self.row("clip norm", format_args!("{clip} for the whole update"));
                self.row(
                    "noise",
                    format_args!("{noise:.4} x clip norm, added here to each value of the update"),
                );
                self.neighbours(terms.adjacency);
                self.row(
                    "always",
                    "one update a round: noise alone if training fails or the data does not meet the contract",
                );
            }
            Unit::Client => {
                self.row(
                    "protects",
                    "your whole data set from those who see models, NOT from the coordinator",
                );
                match job.spec().privacy.adaptive_clip() {
                    None => self.row("clip norm", format_args!("{clip} for the whole update")),
                    Some(rule) => {
                        self.row(
                            "clip norm",
                            format_args!(
                                "{clip} for the whole update in round 1, later at most {}: it follows the updates' norms",
                                rule.max()
                            ),
                        );
                        self.row(
                            "also leaves",
                            "whether your update was within the clip norm (yes or no), for a count that gets noise too",
                        );
                    }
                }
                if let (true, Some(rule)) =
                    (job.contract().is_correlated(), job.spec().cohort.participation())
                {
                    self.row(
                        "noise",
                        format_args!(
                            "{noise:.4} x what {} rounds of yours can move, correlated over the rounds, added by the \
                             coordinator to the sum of all updates",
                            rule.most_within(job.spec().rounds)
                        ),
                    );
                } else {
                    self.row(
                        "noise",
                        format_args!(
                            "{noise:.4} x clip norm, added by the coordinator to the sum of all updates"
                        ),
                    );
                }
                self.neighbours(terms.adjacency);
                if let CohortRule::Poisson { rate, .. } = job.spec().cohort.rule() {
                    self.row(
                        "drawn",
                        format_args!(
                            "by the coordinator, with probability {rate} a round; ε counts on it against those who see \
                             models"
                        ),
                    );
                }
            }
            Unit::None => {
                self.row(
                    "protects",
                    "NOBODY: no privacy is promised, the coordinator sees your update as it is",
                );
                self.row("largest norm", format_args!("{}; a longer update is not sent", terms.max_norm));
            }
        }
        if let (Some(one), Some(all), Some(budget), Some(delta)) =
            (terms.epsilon_one_round, terms.epsilon_planned, terms.epsilon_budget, terms.delta)
        {
            let rounds = job.spec().rounds;
            self.row(
                "ε",
                format_args!(
                    "{one:.4} for one round, {all:.4} for {rounds}, never above {budget} (δ = {delta:e})"
                ),
            );
        }
    }

    fn neighbours(&mut self, adjacency: Option<Adjacency>) {
        self.row(
            "compared with",
            match adjacency.unwrap_or_default() {
                Adjacency::AddRemove => "a job that you have no part in (adjacency = \"add-remove\")",
                Adjacency::ReplaceOne => {
                    "a job with any other update in your place (adjacency = \"replace-one\")"
                }
            },
        );
    }

    fn evaluating(&mut self, job: &Job) {
        self.head(&format!("Leaves for each measured model of job \"{}\"", job.spec().name));
        let evaluation = job.evaluation_task();
        let loss = evaluation.loss.unwrap_or_else(|| Loss::usual(evaluation.data.shape().target));
        // Being right means nothing of numbers; with noise there is the loss alone.
        let (exact, noised) = match job.spec().data.label().target() {
            Target::Class { .. } => ("loss, accuracy", "loss, accuracy"),
            Target::Number => ("loss, error", "loss"),
        };
        match (job.spec().privacy.metrics(), job.contract().planned_measurements()) {
            (Some(privacy), Some((number, epsilon))) => {
                self.row(noised, "with noise that is added here, once for each model");
                self.row(
                    "protects",
                    if job.contract().unit() == Unit::Client {
                        "all your rows together; nobody has to be trusted"
                    } else {
                        "each row of your data; nobody has to be trusted"
                    },
                );
                self.row(
                    "largest loss",
                    format_args!(
                        "{} for one row, in the unit of the job's loss ({}); more counts as that",
                        privacy.max_loss(),
                        loss.name()
                    ),
                );
                self.row(
                    "ε",
                    format_args!(
                        "{epsilon} for each model, {:.3} for the {number} that the job plans to have measured",
                        f64::from(number) * epsilon
                    ),
                );
            }
            _ => self.row(exact, "as they are, without noise"),
        }
        self.row("rows", "the number that you declare, not the real one");
    }

    fn data(&mut self, data: &Result<DataReport, TrainerError>) {
        self.head("Check of your data (stays here)");
        match data {
            Ok(report) if report.is_fit() => {
                self.row("rows", report.rows);
                self.row("contract", "met");
            }
            Ok(report) => {
                self.row("contract", "NOT met: the data is not trained on");
                report.problems.iter().for_each(|p| self.line(format_args!("    {p}")));
            }
            Err(e) => self.row("contract", format_args!("NOT checked: {e}")),
        }
    }

    fn kept(&mut self, role: ClientRole, job: Option<&Job>) {
        let rescale = job.map_or(Rescale::default(), |job| job.spec().aggregation.rescale);
        // What the number beside an update tells is not kept.
        let training = match rescale {
            Rescale::Plain {} => "the real number of rows, losses, accuracies",
            Rescale::FedNova(_) => "losses, accuracies",
            Rescale::QFedAvg(_) => "the real number of rows, accuracies",
        };
        self.head("Never leaves");
        self.row("data", "rows, values, column statistics, messages that quote them");
        match role {
            ClientRole::Trainer => self.row(
                "training",
                format_args!(
                    "{training}, gradients, the update before clipping (and before noise, where noise is added here)"
                ),
            ),
            ClientRole::Evaluator => self.row("measuring", "results of single rows, the real number of rows"),
        }
        self.row("key", "client.key");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use undertone_core::id::ClientId;
    use undertone_round::job::JobSpec;

    fn job(privacy: &str) -> Job {
        job_with(privacy, "")
    }

    fn page_of(job: &Job, data: Result<DataReport, TrainerError>) -> String {
        let name = ClientId::new("cleveland").unwrap();
        let config = ClientConfig::new("/nowhere", "https://h:1", name, ClientRole::Trainer);
        Disclosure::of(&config, Some((job, &data))).to_string()
    }

    fn job_with(privacy: &str, cohort: &str) -> Job {
        spec(privacy, &format!(r#"rule = "all", size = 4, min_clients = 2{cohort}"#)).resolve().unwrap()
    }

    fn spec(privacy: &str, cohort: &str) -> JobSpec {
        let text = format!(
            r#"
name = "heart"
rounds = 20
model = {{ kind = "logistic" }}
training = {{ learning_rate = 0.5, local_steps = 2 }}
cohort = {{ {cohort} }}
privacy = {{ {privacy} }}
[data]
label = {{ column = "num", classes = [{{ name = "no", values = ["0"] }}, {{ name = "yes", values = ["1"] }}] }}
columns = [{{ name = "age", kind = "number", range = [0, 120] }}]
"#
        );
        JobSpec::from_toml(&text, "job.toml").unwrap()
    }

    fn page(role: ClientRole, privacy: &str, data: Result<DataReport, TrainerError>) -> String {
        let name = ClientId::new("cleveland").unwrap();
        let mut config = ClientConfig::new("/nowhere", "https://h:1", name, role);
        config.policy.declared_rows = Some(240);
        Disclosure::of(&config, Some((&job(privacy), &data))).to_string()
    }

    fn fit() -> Result<DataReport, TrainerError> {
        Ok(DataReport { rows: 243, class_rows: vec![100, 143], ..DataReport::default() })
    }

    #[test]
    fn each_promise_is_told_as_it_is() {
        let record = r#"unit = "record", trust = "local", clip_norm = 1.0, sampling_rate = 0.25,
            noise_multiplier = 1.5, delta = 1e-3, budget_epsilon = 10.0"#
            .replace('\n', " ");
        let text = page(ClientRole::Trainer, &record, fit());
        for part in [
            "2 numbers, 8 bytes, multiples of 2^-16",
            "declared rows  240",
            "nobody has to be trusted",
            "1.5000 x clip norm, in each of 2 steps",
            "never above 10 (δ = 1e-3)",
            "limits allow it",
            "none yet: enrol first",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        let client =
            r#"unit = "client", trust = "central", clip_norm = 0.5, noise_multiplier = 4.0, delta = 1e-5,
            budget_epsilon = 10.0"#
                .replace('\n', " ");
        let text = page(ClientRole::Trainer, &client, fit());
        assert!(text.contains("NOT from the coordinator"), "{text}");
        assert!(text.contains("4.0000 x clip norm") && text.contains("no part in"), "{text}");
        let text = page(ClientRole::Trainer, &format!("{client}, adjacency = \"replace-one\""), fit());
        assert!(text.contains("8.0000 x clip norm") && text.contains("in your place"), "{text}");
        let local = client.replace("central", "local");
        let text = page(ClientRole::Trainer, &local, fit());
        for part in [
            "from everyone",
            "8.0000 x clip norm, added here",
            "in your place",
            "noise alone if training fails",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        let text = page(ClientRole::Trainer, r#"unit = "none""#, fit());
        assert!(text.contains("NOBODY") && text.contains("DECLINED") && !text.contains("ε"), "{text}");
    }

    #[test]
    fn what_stands_beside_an_update_and_what_is_trained_is_told() {
        let with = |training: &str, aggregation: &str| {
            let mut job = spec(r#"unit = "none""#, r#"rule = "all", size = 4, min_clients = 2"#);
            job.training = serde_json::from_str(&format!(r#"{{"learning_rate": 0.5, {training}}}"#)).unwrap();
            job.aggregation = serde_json::from_str(&format!("{{{aggregation}}}")).unwrap();
            page_of(&job.resolve().unwrap(), fit())
        };
        let plain = with(r#""local_steps": 2"#, "");
        assert!(plain.contains("the real number of rows, losses, accuracies"), "{plain}");
        assert!(!plain.contains("also leaves") && !plain.contains("the tensors"), "{plain}");
        let part = with(r#""local_steps": 2, "tensors": ["bias"]"#, "");
        assert!(
            part.contains("1 numbers, 4 bytes") && part.contains("the tensors bias; the others"),
            "{part}"
        );
        let nova = r#""rescale": {"kind": "fednova", "max_steps": 9}"#;
        let nova = with(r#""local_epochs": 2, "batch_size": 8"#, nova);
        assert!(nova.contains("number of your local steps") && !nova.contains("real number"), "{nova}");
        let fair = r#""rescale": {"kind": "q-fedavg", "q": 1.0, "lipschitz": 2.0, "max_loss": 2.0}"#;
        let fair = with(r#""local_steps": 2"#, fair);
        assert!(
            fair.contains("loss of the round's model on your rows") && !fair.contains("losses"),
            "{fair}"
        );
    }

    #[test]
    fn an_owners_program_is_told_and_what_it_cannot_promise_is_declined() {
        let name = ClientId::new("cleveland").unwrap();
        let mut config = ClientConfig::new("/nowhere", "https://h:1", name, ClientRole::Trainer);
        let command = crate::config::CommandSettings::new(vec!["python3".into(), "train.py".into()]);
        config.trainer.command = Some(command);
        config.policy.own_program = true;
        config.policy.declared_rows = Some(240);
        let record = r#"unit = "record", trust = "local", clip_norm = 1.0, sampling_rate = 0.25,
            noise_multiplier = 1.5, delta = 1e-3, budget_epsilon = 10.0"#
            .replace('\n', " ");
        let text = Disclosure::of(&config, Some((&job(&record), &fit()))).to_string();
        assert!(
            text.contains("python3 train.py") && text.contains("DECLINED: this client's owner"),
            "{text}"
        );
    }

    #[test]
    fn a_limit_on_participation_is_told() {
        let text = page_of(&job_with(r#"unit = "none""#, ", participations = 2, separation = 5"), fit());
        assert!(text.contains("in at most 2 rounds, at least 5 rounds apart"), "{text}");
        assert!(!page(ClientRole::Trainer, r#"unit = "none""#, fit()).contains("how often"));
    }

    #[test]
    fn asynchronous_rounds_are_told() {
        let buffered = r#"rule = "buffered", concurrency = 8, buffer = 4, max_staleness = 3"#;
        let text = page_of(&spec(r#"unit = "none""#, buffered).resolve().unwrap(), fit());
        assert!(text.contains("less the older it is (inverse-sqrt), at most 3 models later"), "{text}");
    }

    #[test]
    fn a_draw_is_told_with_whom_it_helps_against() {
        let client = r#"unit = "client", trust = "central", clip_norm = 0.5, noise_multiplier = 4.0, delta = 1e-5, budget_epsilon = 10.0"#;
        let poisson = r#"rule = "poisson", rate = 0.1, population = 100, cap = 40, min_clients = 2"#;
        let job = spec(client, poisson).resolve().unwrap();
        let text = page_of(&job, fit());
        assert!(
            text.contains("with probability 0.1 a round; ε counts on it against those who see models"),
            "{text}"
        );
    }

    #[test]
    fn an_evaluator_is_told_that_its_measurements_leave() {
        let unfit = Ok(DataReport { problems: vec!["column \"age\" is missing".into()], ..fit().unwrap() });
        let text = page(ClientRole::Evaluator, r#"unit = "none""#, unfit);
        assert!(text.contains("as they are, without noise") && text.contains("    column \"age\""), "{text}");
        let noised = r#"unit = "record", trust = "local", clip_norm = 1.0, sampling_rate = 0.25, noise_multiplier = 2.0,
            delta = 1e-3, budget_epsilon = 90.0, metrics = { epsilon = 0.5, max_loss = 4.0 }"#;
        let text = page(ClientRole::Evaluator, &noised.replace('\n', " "), fit());
        assert!(
            text.contains("with noise that is added here") && text.contains("0.5 for each model"),
            "{text}"
        );
        assert!(!text.contains("as they are"), "{text}");
        assert!(!text.contains("clip norm"), "{text}");
    }
}
