//! The jobs of a simulation: small models, real contracts.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use undertone_core::digest::{Digest, Digester};
use undertone_core::id::{ClientId, Round};
use undertone_round::job::{Job, JobSpec};

/// Rounds of every job.
pub(crate) const ROUNDS: u32 = 3;
/// Columns of the data; a logistic model has a weight for each and a bias.
const COLUMNS: usize = 7;
/// From the offers of an attempt to its end, in milliseconds.
pub(crate) const ROUND_MS: u64 = 120_000;

/// Jobs by kind and number of clients.
type Resolved = BTreeMap<(Kind, u32), Arc<Job>>;

/// What kind of job it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// No promise, everybody, weighed by rows.
    Plain,
    /// No promise, some of those who are there.
    Drawn,
    /// No promise, and a client takes part twice at the most, two rounds apart.
    Limited,
    /// The coordinator adds the noise.
    Central,
    /// The same with a budget for hardly more than the plan.
    Scarce,
    /// Clients add noise to every step.
    Record,
    /// Asynchronous rounds.
    Buffered,
}

impl Kind {
    pub(crate) const ALL: [Self; 7] =
        [Self::Plain, Self::Drawn, Self::Limited, Self::Central, Self::Scarce, Self::Record, Self::Buffered];

    /// What it is counted as.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "job: plain",
            Self::Drawn => "job: drawn cohort",
            Self::Limited => "job: limited participation",
            Self::Central => "job: central noise",
            Self::Scarce => "job: scarce budget",
            Self::Record => "job: record-level noise",
            Self::Buffered => "job: asynchronous rounds",
        }
    }

    /// Whether each training draws noise of its own, so that two trainings for one attempt are two updates.
    pub(crate) fn draws_in_clients(self) -> bool {
        self == Self::Record
    }

    /// Whether two runs with the same cohorts come to the same sums.
    pub(crate) fn is_reproducible(self) -> bool {
        matches!(self, Self::Plain | Self::Drawn | Self::Limited)
    }

    /// The job for so many clients. Resolving a contract takes a while: it is done once.
    pub(crate) fn job(self, clients: u32) -> Arc<Job> {
        static JOBS: LazyLock<Mutex<Resolved>> = LazyLock::new(Mutex::default);
        let mut jobs = JOBS.lock().unwrap_or_else(PoisonError::into_inner);
        let job = jobs.entry((self, clients)).or_insert_with(|| {
            let spec = JobSpec::from_toml(&self.document(clients), "simulated.toml");
            let job = spec.and_then(JobSpec::resolve);
            Arc::new(job.unwrap_or_else(|e| panic!("the {self:?} job of {clients} clients: {e}")))
        });
        Arc::clone(job)
    }

    fn document(self, clients: u32) -> String {
        let least = (clients / 2).max(2);
        let cohort = match self {
            Self::Plain | Self::Central | Self::Scarce | Self::Record => {
                format!("rule = \"all\"\nsize = {clients}\nmin_clients = {least}")
            }
            Self::Drawn => format!("rule = \"uniform\"\nsize = {least}\nmin_clients = 2"),
            Self::Limited => {
                // Half of them in turn: whoever was in the first round may be in the third.
                let half = (clients / 2).max(1);
                format!(
                    "rule = \"uniform\"\nsize = {half}\nmin_clients = 1\nparticipations = 2\nseparation = 2"
                )
            }
            Self::Buffered => {
                format!("rule = \"buffered\"\nconcurrency = {}\nbuffer = 2\nmax_staleness = 2", clients - 1)
            }
        };
        let weights = if self == Self::Plain { "weights = \"declared_rows\"" } else { "" };
        let client =
            "unit = \"client\"\ntrust = \"central\"\nclip_norm = 1.0\nnoise_multiplier = 4.0\ndelta = 1e-5";
        let privacy = match self {
            Self::Plain | Self::Drawn | Self::Limited | Self::Buffered => "unit = \"none\"".to_owned(),
            Self::Central => format!("{client}\nbudget_epsilon = 20.0"),
            Self::Scarce => format!("{client}\nbudget_epsilon = 2.2"),
            Self::Record => "unit = \"record\"\ntrust = \"local\"\nclip_norm = 1.0\nsampling_rate = 0.25\nnoise_multiplier = 1.5\n\
                             delta = 1e-3\nbudget_epsilon = 12.0"
                .to_owned(),
        };
        let columns: String = (0..COLUMNS)
            .map(|n| format!("[[data.columns]]\nname = \"x{n}\"\nkind = \"number\"\nrange = [0, 1]\n"))
            .collect();
        format!(
            "name = \"sim\"\nrounds = {ROUNDS}\n[model]\nkind = \"logistic\"\n[training]\nlearning_rate = 0.1\nlocal_steps = 2\n\
             [cohort]\n{cohort}\n[aggregation]\n{weights}\n[privacy]\n{privacy}\n[deadlines]\nround = \"{}s\"\n\
             reconnect = \"20s\"\ngather = \"300s\"\nevaluation = \"20s\"\ntransfer_idle = \"10s\"\nmax_attempts = 6\n\
             [data]\n[data.label]\ncolumn = \"y\"\n\
             classes = [{{ name = \"no\", values = [\"0\"] }}, {{ name = \"yes\", values = [\"1\"] }}]\n{columns}",
            ROUND_MS / 1000
        )
    }
}

/// What training gives: the same for a client, a round and a model, unless each training draws noise of its own.
pub(crate) fn trained(
    job: &Job,
    client: &ClientId,
    round: Round,
    model: &Digest,
    draw: Option<u64>,
) -> Vec<i32> {
    let values = |part: u64| {
        let mut d = Digester::new();
        d.field(client.as_str().as_bytes());
        d.field(&round.0.to_le_bytes());
        d.field(model.as_bytes());
        d.field(&draw.unwrap_or(0).to_le_bytes());
        d.field(&part.to_le_bytes());
        *d.finish().as_bytes()
    };
    let words = (0..).flat_map(|part| values(part).as_chunks::<2>().0.to_vec());
    words.map(|pair| i32::from(i16::from_le_bytes(pair)) % 1000).take(job.part().len()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_resolves_and_has_the_deadlines_that_are_counted_with() {
        for kind in Kind::ALL {
            for clients in [3, 4, 7, 20] {
                let job = kind.job(clients);
                assert_eq!(job.part().len(), COLUMNS + 1, "{kind:?}");
                assert_eq!(u128::from(ROUND_MS), job.spec().deadlines.round.0.as_millis());
                assert_eq!(job.spec().rounds, ROUNDS);
            }
        }
        let (scarce, rounds) = (Kind::Scarce.job(4), ROUNDS);
        let (plan, budget) = (scarce.contract().epsilon_after(rounds), scarce.contract().budget_epsilon());
        let all = scarce.contract().epsilon_after(rounds * scarce.spec().deadlines.max_attempts);
        assert!(plan < budget && budget < all, "{plan:?} {budget:?} {all:?}");
    }

    #[test]
    fn training_depends_on_what_it_should() {
        let (job, model) = (Kind::Plain.job(3), Digest::of(b"model"));
        let client = |name| ClientId::new(name).unwrap();
        let base = trained(&job, &client("a"), Round(1), &model, None);
        assert_eq!(base, trained(&job, &client("a"), Round(1), &model, None));
        for other in [
            trained(&job, &client("b"), Round(1), &model, None),
            trained(&job, &client("a"), Round(2), &model, None),
            trained(&job, &client("a"), Round(1), &Digest::of(b"other"), None),
            trained(&job, &client("a"), Round(1), &model, Some(1)),
        ] {
            assert_ne!(base, other);
        }
    }
}
