//! Whether to take part: decided in the client, on numbers it works out itself from the job document.
//!
//! [`Terms::of`] looks at the job alone, so a job that breaks the policy never makes anybody open the data.
//! [`consider`] then adds what the check of the data found. Only it can make an [`Acceptance`], and nothing is
//! trained without one.

use super::{Account, Offer, OfferedModel};
use crate::job::{Job, Weights};
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::Arc;
use undertone_core::digest::{Digest, Digester};
use undertone_core::id::AttemptKey;
use undertone_core::limits::clip_text;
use undertone_core::trainer::{DataReport, RoundOf, TrainTask, TrainerError};
use undertone_privacy::contract::{Trust, Unit};
use undertone_privacy::resolve::Terms as Promise;
use undertone_privacy::sensitivity::Adjacency;

/// What the data owner allows and declares.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Policy {
    /// The largest ε that one job may cost; `None`: whatever the job's contract says.
    pub max_epsilon: Option<f64>,
    /// Whether jobs that promise no privacy are taken.
    pub allow_no_privacy: bool,
    /// Whether an evaluator's loss and accuracy, or what tells a trainer's loss, may leave without noise.
    pub allow_exact_measurements: bool,
    /// The number of rows that the data owner declares, a public figure.
    pub declared_rows: Option<u64>,
    /// Makes batches reproducible (for studies); each attempt samples under a seed of its own derived from it.
    pub sampling_seed: Option<u64>,
    /// Whether the data owner's own program trains, not the built-in trainer.
    pub own_program: bool,
    /// Which jobs' TorchScript files may run here.
    pub torchscript: AllowedModules,
    /// Most memory of the built-in trainer, in bytes; `None`: not known.
    pub memory_bytes: Option<u64>,
}

impl Policy {
    /// Whether what the job's model is may be computed here, for training as for measuring.
    ///
    /// # Errors
    /// What the data owner would have to install, or to write. It says nothing of the data.
    pub fn check_model(&self, job: &Job) -> Result<(), Refusal> {
        if self.own_program {
            return Ok(());
        }
        if job.spec().model.is_external() {
            return Err(Refusal::open(
                "the job's model is external: this client would need a training program of its own ([trainer] command)",
            ));
        }
        if let Some(file) = job.module_file() {
            self.torchscript.check(&file.digest)?;
        }
        // Once as it is sent, once where it is computed: the least that training and measuring hold.
        let least = 2 * 4 * job.layout().len() as u64;
        match self.memory_bytes {
            Some(most) if least > most => Err(Refusal::open(format!(
                "the job's model takes {} MiB of memory at the least, and this client's trainer may take {} MiB ([trainer] max_memory_mib; \
                 three quarters of the machine's where that is not set)",
                least.div_ceil(1 << 20),
                most >> 20
            ))),
            _ => Ok(()),
        }
    }
}

/// The TorchScript files that a data owner lets run on their machine: the code of somebody else's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AllowedModules {
    /// None.
    #[default]
    None,
    /// Those with one of these digests.
    Only(BTreeSet<Digest>),
    /// Any.
    All,
}

impl AllowedModules {
    /// Whether this one may run.
    ///
    /// # Errors
    /// What the data owner would have to write.
    pub fn check(&self, digest: &Digest) -> Result<(), Refusal> {
        let allowed = match self {
            Self::None => false,
            Self::Only(digests) => digests.contains(digest),
            Self::All => true,
        };
        match allowed {
            true => Ok(()),
            false => Err(Refusal::open(format!(
                "the job's model is a TorchScript file, code of somebody else's, and this client's owner does not let it run: they would \
                 have to set [limits] allow_torchscript = [\"{digest}\"] (this file), or true (any)"
            ))),
        }
    }
}

/// The numbers that a decision rests on, worked out from the job document and the client's own account.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Terms {
    /// Digest of the job document.
    pub job_document: Digest,
    /// Whom the contract protects.
    pub unit: Unit,
    /// Who must be trusted with more than released models.
    pub trust: Option<Trust>,
    /// Values in an update.
    pub values: u64,
    /// Bytes that leave in a round.
    pub update_bytes: u64,
    /// The update's weight in the sum; follows from `declared_rows` alone.
    pub weight: u32,
    /// The rows that the data owner declares.
    pub declared_rows: Option<u64>,
    /// Largest L2 norm of an update that may leave.
    pub max_norm: f64,
    /// The contract's clip norm.
    pub clip_norm: Option<f64>,
    /// Which data sets the contract makes hard to tell apart.
    pub adjacency: Option<Adjacency>,
    /// The contract's noise, in multiples of the sensitivity that follows from `clip_norm` and `adjacency`.
    pub noise_multiplier: Option<f64>,
    /// The contract's sampling rate (record level only).
    pub sampling_rate: Option<f64>,
    /// The contract's δ.
    pub delta: Option<f64>,
    /// Updates that this client made for the job before this one.
    pub updates_before: u32,
    /// ε of one round alone.
    pub epsilon_one_round: Option<f64>,
    /// ε of the client's updates so far and this one.
    pub epsilon_after: Option<f64>,
    /// ε of all planned rounds.
    pub epsilon_planned: Option<f64>,
    /// The contract's budget.
    pub epsilon_budget: Option<f64>,
}

/// Why the client does not take part.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Refusal {
    /// The sentence for the coordinator: it holds no value of the data and no count of it.
    pub told: String,
    /// What only the client's own log says.
    pub details: Vec<String>,
}

/// The evidence that an attempt was considered and accepted. Only [`consider`] makes one.
#[derive(Debug, Clone)]
pub struct Acceptance {
    key: AttemptKey,
    job: Arc<Job>,
    model: OfferedModel,
    clip_norm: Option<f64>,
    task: TrainTask,
    weight: u32,
    withheld: Vec<String>,
}

/// A decision with the numbers it was based on.
#[derive(Debug, Clone)]
pub struct Decision {
    /// The attempt.
    pub key: AttemptKey,
    /// The numbers.
    pub terms: Terms,
    /// Yes or no.
    pub verdict: Verdict,
}

/// Yes or no.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// Take part.
    Accept(Box<Acceptance>),
    /// Do not.
    Decline(Refusal),
}

impl Refusal {
    /// A refusal that can be told in full.
    pub fn open(told: impl Into<String>) -> Self {
        Self { told: told.into(), details: Vec::new() }
    }
}

/// What the coordinator is told about any problem of the data.
pub const DATA_UNFIT: &str = "the local data does not meet the data contract: see the client's log";

/// What the coordinator is told of a trainer's error: whose turn it is, and nothing of what the trainer saw. Only where a job
/// promises no privacy, the step at which training ran away, too: elsewhere it would tell of the data.
pub fn told(error: &TrainerError, unit: Unit) -> String {
    let text = match error {
        TrainerError::Diverged { .. } if unit == Unit::None => return error.to_string(),
        TrainerError::Data(_) => DATA_UNFIT,
        TrainerError::Unsupported(_) => {
            "the client's trainer cannot do what this job asks: see the client's log"
        }
        // Found on made-up examples, in a process that has seen no data: that it failed may be told of any job. The words are the
        // module's all the same.
        TrainerError::Module(_) if unit == Unit::None => return clip_text(&error.to_string()).to_owned(),
        TrainerError::Module(_) => {
            "the job's TorchScript module does not train as it is: see the client's log, or try it in a job without privacy on data \
             that is nobody's"
        }
        TrainerError::Numerical(_) => {
            "weights or losses are not finite, or do not fit the model: see the client's log"
        }
        TrainerError::Diverged { .. } => {
            "training did not stay finite (learning_rate too high?): see the client's log"
        }
        TrainerError::Memory(_) => {
            "the model does not fit into the client's memory, one example at a time: take a smaller model, or train a part of \
             it ([training] tensors)"
        }
        TrainerError::Broken(_) => "the client's trainer broke: see the client's log",
        TrainerError::Program { fault, .. } => fault.told(),
        TrainerError::Paused(_) => {
            "the client's owner has training wait for now: the machine is in use, or runs on its battery"
        }
    };
    text.into()
}

impl Acceptance {
    /// The attempt.
    pub fn key(&self) -> &AttemptKey {
        &self.key
    }

    /// The job.
    pub fn job(&self) -> &Arc<Job> {
        &self.job
    }

    /// The model to start from.
    pub fn model(&self) -> OfferedModel {
        self.model
    }

    /// The clip norm of the round, where it moves.
    pub fn clip_norm(&self) -> Option<f64> {
        self.clip_norm
    }

    /// What to train.
    pub fn task(&self) -> &TrainTask {
        &self.task
    }

    /// The update's weight.
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// Why the data is not to be trained on although the client takes part: with local trust at client level noise leaves
    /// in its place, so that nobody is told that the data does not fit. Empty: train. For the client's own log.
    pub fn withheld(&self) -> &[String] {
        &self.withheld
    }
}

impl Terms {
    /// Works out the numbers of taking part once more.
    pub fn of(job: &Job, account: Option<&Account>, policy: &Policy) -> Self {
        let contract = job.contract();
        let updates_before = account.map_or(0, Account::updates);
        let paid = updates_before.saturating_add(1);
        // Where the draw is what protects, rounds in which the client was not drawn are compositions too.
        let counted = if contract.is_drawn() { paid.max(job.spec().rounds) } else { paid };
        Self {
            job_document: job.digest(),
            unit: contract.unit(),
            trust: contract.trust(),
            values: job.part().len() as u64,
            update_bytes: job.update_bytes(),
            weight: job.weight(policy.declared_rows.unwrap_or(1)),
            declared_rows: policy.declared_rows,
            max_norm: job.largest_norm(),
            clip_norm: contract.contract().clip_norm(),
            adjacency: contract.adjacency(),
            noise_multiplier: contract.noise_multiplier(),
            sampling_rate: contract.contract().sampling_rate(),
            delta: contract.delta(),
            updates_before,
            epsilon_one_round: contract.epsilon_after(1),
            epsilon_after: contract.epsilon_after(counted),
            epsilon_planned: contract.epsilon_after(job.spec().rounds),
            epsilon_budget: contract.budget_epsilon(),
        }
    }

    /// Holds the terms against the policy; the data is not looked at.
    ///
    /// # Errors
    /// The first rule that is broken, with the numbers.
    pub fn check(&self, job: &Job, account: Option<&Account>, policy: &Policy) -> Result<(), Refusal> {
        let no = |told: String| Err(Refusal::open(told));
        if account.is_some_and(|a| a.document() != self.job_document) {
            return no("the job's document is not the one that this client took part under before".into());
        }
        match (self.unit, self.epsilon_after, self.epsilon_planned, self.epsilon_budget) {
            (Unit::None, ..) if policy.allow_no_privacy => {}
            (Unit::None, ..) => {
                return no("this client takes no job that promises no privacy (privacy.unit = \"none\"): \
                           its owner would have to set [limits] allow_no_privacy = true"
                    .into());
            }
            (_, Some(after), Some(planned), Some(budget)) => {
                if let Some(limit) = policy.max_epsilon {
                    if planned > limit {
                        return no(format!("the job plans ε = {planned:.3}, this client's limit is {limit}"));
                    }
                    if after > limit {
                        return no(format!(
                            "with this round the job would cost ε = {after:.3} here, this client's limit is {limit}"
                        ));
                    }
                }
                if after > budget {
                    return no(format!(
                        "with this round the job would cost ε = {after:.3} here, its budget is {budget}"
                    ));
                }
            }
            _ => return no("the job promises privacy but its loss cannot be stated".into()),
        }
        if job.rescaling().is_some_and(|r| r.wants_loss()) && !policy.allow_exact_measurements {
            return no("the job's rescale = q-fedavg sends what tells the model's loss on the client's rows: its owner would have to \
                       set [limits] allow_exact_measurements = true"
                .into());
        }
        if policy.own_program && self.unit == Unit::Record {
            return no("this client's owner trains with a program of their own ([trainer] command), and nobody could promise that it \
                       clips each row's gradient and adds the noise: it takes no record-level contract"
                .into());
        }
        policy.check_model(job)?;
        let by_rows = job.spec().aggregation.weights == Weights::DeclaredRows;
        if policy.declared_rows.is_none() && (by_rows || self.unit == Unit::Record) {
            let what =
                if by_rows { "weights = \"declared_rows\"" } else { "a record-level privacy contract" };
            return no(format!(
                "{what} needs the number of rows that the data owner declares: set [data] declared_rows in client.toml"
            ));
        }
        Ok(())
    }
}

/// Holds an offer against the policy and the rule on participation; the data is not looked at.
pub(super) fn check_offer(
    terms: &Terms,
    offer: &Offer,
    account: Option<&Account>,
    policy: &Policy,
) -> Result<(), Refusal> {
    terms.check(offer.job(), account, policy)?;
    // The coordinator keeps the same count. The client's own is the one that its promise rests on.
    match (offer.job().spec().cohort.participation(), account) {
        (Some(rule), Some(account)) => rule
            .may_join(account.taken_part(), offer.key().round.0)
            .map_err(|e| Refusal::open(format!("by this client's own count, {e}"))),
        _ => Ok(()),
    }
}

/// Decides on an offer. `data` is the check of the local data, or why it could not be made.
pub fn consider(
    offer: &Offer,
    account: Option<&Account>,
    policy: &Policy,
    data: Result<&DataReport, &TrainerError>,
) -> Decision {
    let terms = Terms::of(offer.job(), account, policy);
    let terms_of = offer.job().contract().terms();
    let says_nothing_of_the_data = matches!(terms_of, Promise::ClientLocal(_) | Promise::ClientCentral(_));
    let verdict = match check_offer(&terms, offer, account, policy).map(|()| check_data(data, terms.unit)) {
        Ok(Ok(())) => Verdict::Accept(Box::new(accept(offer, &terms, policy, vec![]))),
        // That the owner needs the machine says nothing of the data either: the round goes on with others.
        Ok(Err(refusal)) if matches!(data, Err(TrainerError::Paused(_))) => Verdict::Decline(refusal),
        // The policy is no secret of the data; what the data is like would be.
        Ok(Err(unfit)) if says_nothing_of_the_data => {
            let why = std::iter::once(unfit.told).chain(unfit.details).collect();
            Verdict::Accept(Box::new(accept(offer, &terms, policy, why)))
        }
        Ok(Err(refusal)) | Err(refusal) => Verdict::Decline(refusal),
    };
    Decision { key: offer.key().clone(), terms, verdict }
}

fn check_data(data: Result<&DataReport, &TrainerError>, unit: Unit) -> Result<(), Refusal> {
    match data {
        Ok(report) if report.is_fit() => Ok(()),
        Ok(report) => Err(Refusal { told: DATA_UNFIT.into(), details: report.problems.clone() }),
        Err(e) => Err(Refusal { told: told(e, unit), details: vec![e.to_string()] }),
    }
}

fn accept(offer: &Offer, terms: &Terms, policy: &Policy, withheld: Vec<String>) -> Acceptance {
    let job = offer.job();
    let seed = policy.sampling_seed.map(|seed| sampling_seed(seed, job, offer.key()));
    // Jobs that need the declared rows were refused without; the others read no number here.
    let task = job.train_task(policy.declared_rows.unwrap_or(1), seed);
    let round = RoundOf { round: offer.key().round.0, rounds: job.spec().rounds };
    Acceptance {
        key: offer.key().clone(),
        job: Arc::clone(job),
        model: offer.model(),
        clip_norm: offer.clip_norm(),
        task: TrainTask { round, ..task },
        weight: terms.weight,
        withheld,
    }
}

/// One study seed, another batch order in each attempt. The job's id is left out: it has a random part, and a
/// repeated study should sample the same batches.
fn sampling_seed(seed: u64, job: &Job, key: &AttemptKey) -> u64 {
    let mut d = Digester::new();
    d.field(b"undertone sampling seed v1");
    d.field(&seed.to_le_bytes());
    d.field(job.digest().as_bytes());
    d.field(&key.round.0.to_le_bytes());
    d.field(&key.attempt.0.to_le_bytes());
    let digest = d.finish();
    let first: [u8; 8] = digest.as_bytes()[..8].try_into().expect("a digest has 32 bytes");
    u64::from_le_bytes(first)
}
