//! The job: model, data contract, plan, cohort, aggregation, privacy contract, rounds.
//!
//! Operators write it as TOML; it travels and is stored as canonical JSON, and every side reads it through the
//! same constructor. Its digest is the digest of that JSON.

mod external;
mod module;
mod rescale;
#[cfg(test)]
mod training_tests;

use serde::{Deserialize, Serialize};
use undertone_core::aggregate::IntegerSum;
use undertone_core::cohort::Cohort;
use undertone_core::config::{ConfigError, parse_toml, with_suggestion};
use undertone_core::digest::Digest;
use undertone_core::duration::Span;
use undertone_core::encoding::broadcast::Downlink;
use undertone_core::encoding::composition::{Combination, Promise, Surroundings};
use undertone_core::encoding::delta::{self, DeltaEncoding};
use undertone_core::encoding::{EncodedLen, Encoding};
use undertone_core::fixed::Grid;
use undertone_core::id::JobId;
use undertone_core::initial::{FileRef, Initial};
use undertone_core::layout::{MAX_HEADER_BYTES, ModelLayout};
use undertone_core::limits::{MAX_JOB_DOCUMENT_BYTES, MAX_ROUNDS, MAX_WEIGHT};
use undertone_core::model::ModelSpec;
use undertone_core::optimizer::ServerOptimizer;
use undertone_core::part::Part;
use undertone_core::plan::{LocalWork, Over, TrainPlan};
use undertone_core::rules::Rule;
use undertone_core::rules::rescale::{Rescale, Rescaling};
use undertone_core::rules::staleness::Staleness;
use undertone_core::schema::DataContract;
use undertone_core::trainer::{EvaluationTask, RecordMechanism, RecordPrivacy, TrainTask};
use undertone_privacy::adaptive_clip::ClipState;
use undertone_privacy::clip::bound_in_units;
use undertone_privacy::contract::{PrivacyContract, Trust, Unit};
use undertone_privacy::release::clip_norm_of;
use undertone_privacy::resolve::{ContractError, ResolvedContract, Schedule, Terms};

/// Most attempts at one round.
const MAX_ATTEMPTS: u32 = 100;

/// A job as it is written down. [`JobSpec::resolve`] turns it into a [`Job`], or says why not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// A name for people; the job's id is this and a random suffix.
    pub name: String,
    /// Number of rounds.
    pub rounds: u32,
    /// What is trained.
    pub model: ModelSpec,
    /// The values that it begins with; `None`: they are drawn from the model's seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial: Option<Initial>,
    /// What a client does in a round.
    pub training: TrainPlan,
    /// Who is asked in a round.
    pub cohort: Cohort,
    /// How updates become a new model.
    #[serde(default)]
    pub aggregation: Aggregation,
    /// How updates and models travel.
    #[serde(default, skip_serializing_if = "Transport::is_default")]
    pub transport: Transport,
    /// What is promised to whom.
    pub privacy: PrivacyContract,
    /// Measuring released models on evaluators' data.
    #[serde(default)]
    pub evaluation: Evaluation,
    /// How long things may take.
    #[serde(default)]
    pub deadlines: Deadlines,
    /// What the data must look like.
    pub data: DataContract,
}

/// How updates become a new model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Aggregation {
    /// How much an update counts.
    pub weights: Weights,
    /// The largest weight of one client; weights beyond it are cut to it by the client and refused by the server.
    pub max_weight: u32,
    /// Values travel as multiples of 2^-fraction_bits.
    pub fraction_bits: Grid,
    /// An update with a larger L2 norm is refused. With a client-level contract its `clip_norm` stands instead.
    pub max_update_norm: f64,
    /// How updates become one: the mean, or a rule that some bad updates cannot carry away.
    #[serde(skip_serializing_if = "is_mean")]
    pub rule: Rule,
    /// How the mean (or what the rule makes instead) moves the model.
    pub server: ServerOptimizer,
    /// Whether clients rescale their updates, and by what.
    #[serde(skip_serializing_if = "Rescale::is_plain")]
    pub rescale: Rescale,
}

fn is_mean(rule: &Rule) -> bool {
    *rule == Rule::default()
}

/// How updates and models travel: in fewer bytes, at the price of precision.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Transport {
    /// How a client's update is encoded. Whatever it is, the coordinator sums integers on the job's grid.
    pub updates: Encoding,
    /// How the model that clients train from is encoded; `None`: it is sent as the file that it is. Whatever it is, the
    /// coordinator's own model keeps all its bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub models: Option<Encoding>,
    /// How a client that has the model of the round before is brought to this round's; `None`: it is sent the whole one.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "delta::read")]
    pub deltas: Option<DeltaEncoding>,
}

impl Transport {
    /// How models travel down.
    pub fn down(&self) -> Downlink {
        Downlink { models: self.models, deltas: self.deltas }
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How much an update counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// All the same.
    #[default]
    Uniform,
    /// By the number of rows that the data owner declares (a public figure).
    DeclaredRows,
}

impl Default for Aggregation {
    fn default() -> Self {
        Self {
            weights: Weights::Uniform,
            max_weight: 10_000,
            fraction_bits: Grid::new(16).expect("16 is within the bounds"),
            max_update_norm: 1000.0,
            rule: Rule::default(),
            server: ServerOptimizer::default(),
            rescale: Rescale::default(),
        }
    }
}

/// Measuring released models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Evaluation {
    /// Ask evaluators after every n-th round, and after the last. 0: never.
    pub every: u32,
    /// Stop the job once so many measurements in a row brought no loss below the best one before. 0: never. What is decided
    /// by measurements costs no privacy beyond them.
    #[serde(skip_serializing_if = "is_zero")]
    pub patience: u32,
    /// By how much a loss must be below the best one to count as better, in nats.
    #[serde(skip_serializing_if = "is_nothing")]
    pub min_improvement: f64,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

fn is_nothing(x: &f64) -> bool {
    *x == 0.0
}

impl Default for Evaluation {
    fn default() -> Self {
        Self { every: 1, patience: 0, min_improvement: 0.0 }
    }
}

impl Evaluation {
    /// Whether a round of `rounds` is measured.
    pub fn wants(&self, round: u32, rounds: u32) -> bool {
        self.every > 0 && (round == rounds || round.is_multiple_of(self.every))
    }
}

/// How long things may take, and how often they are tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Deadlines {
    /// From the offers of an attempt to its end.
    pub round: Span,
    /// How long a client whose session broke may stay away before the attempt goes on without it.
    pub reconnect: Span,
    /// How long a job waits for enough clients to begin an attempt; then it fails.
    pub gather: Span,
    /// How long evaluators have for the last model.
    pub evaluation: Span,
    /// How long a transfer may stand still.
    pub transfer_idle: Span,
    /// Attempts at one round.
    pub max_attempts: u32,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            round: Span::seconds(600),
            reconnect: Span::seconds(30),
            gather: Span::seconds(3600),
            evaluation: Span::seconds(60),
            transfer_idle: Span::seconds(30),
            max_attempts: 3,
        }
    }
}

/// Why a job cannot be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum JobError {
    /// The file or document does not parse.
    #[error("{0}")]
    Malformed(#[from] ConfigError),
    /// A number or a combination that makes no sense.
    #[error("[{section}] {problem}")]
    Invalid {
        /// The table of the job file.
        section: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
}

impl JobSpec {
    /// Reads a job file; `file` is named in errors.
    ///
    /// # Errors
    /// [`JobError::Malformed`] with line and nearest key.
    pub fn from_toml(text: &str, file: &str) -> Result<Self, JobError> {
        check_size(text.len())?;
        Ok(parse_toml(text, file)?)
    }

    /// Reads the canonical JSON.
    ///
    /// # Errors
    /// [`JobError::Malformed`].
    pub fn from_document(document: &[u8]) -> Result<Self, JobError> {
        check_size(document.len())?;
        serde_json::from_slice(document).map_err(|e| malformed(with_suggestion(&e.to_string())))
    }

    /// The canonical JSON: fields in the order of the types, no white space.
    pub fn to_document(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a job is plain data")
    }

    /// The digest of the canonical JSON.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.to_document())
    }

    /// Checks everything that spans sections and fixes what follows from it.
    ///
    /// # Errors
    /// [`JobError::Invalid`] with the section.
    pub fn resolve(self) -> Result<Job, JobError> {
        let bad = |section, problem: String| JobError::Invalid { section, problem };
        // The id is this and "-" and six letters.
        if let Err(e) = JobId::new(format!("{}-000000", self.name)) {
            return Err(bad("name", e.to_string()));
        }
        if self.rounds == 0 || self.rounds > MAX_ROUNDS {
            return Err(bad("rounds", format!("must be 1 to {MAX_ROUNDS}, not {}", self.rounds)));
        }
        self.model.validate().map_err(|e| bad("model", e))?;
        self.training.validate().map_err(|e| bad("training", e))?;
        self.cohort.validate().map_err(|e| bad("cohort", e))?;
        self.aggregation.server.validate().map_err(|e| bad("aggregation", e))?;
        self.check_aggregation()?;
        let e = &self.evaluation;
        if !(e.min_improvement.is_finite() && e.min_improvement >= 0.0) {
            let text = format!("min_improvement must be a number of at least 0, not {}", e.min_improvement);
            return Err(bad("evaluation", text));
        }
        if e.every == 0 && (e.patience > 0 || self.privacy.metrics().is_some()) {
            let text = "every = 0 measures nothing: leave out patience and [privacy] metrics, or set every";
            return Err(bad("evaluation", text.into()));
        }
        let d = &self.deadlines;
        if d.gather < d.reconnect {
            return Err(bad("deadlines", "gather must not be shorter than reconnect".into()));
        }
        if !(1..=MAX_ATTEMPTS).contains(&d.max_attempts) {
            let text = format!("max_attempts must be 1 to {MAX_ATTEMPTS}, not {}", d.max_attempts);
            return Err(bad("deadlines", text));
        }
        external::check(&self)?;
        module::check(&self)?;
        if self.privacy.unit() == Unit::Record {
            self.training.check_record_privacy().map_err(|e| bad("training", e))?;
            if self.privacy.record_mechanism() == Some(RecordMechanism::FastGaussian)
                && self.model.drops_out()
            {
                // Examples whose gradient is not finite are left out by another pass, in which the others would get other masks.
                return Err(bad(
                    "privacy",
                    "mechanism = \"fast-gaussian\" does not go with dropout: an example could move what another one's comes to; \
                     take \"discrete-gaussian\", or leave dropout out"
                        .into(),
                ));
            }
        }
        self.training.check_target(self.data.shape().target).map_err(|e| bad("training", e))?;
        if let Some(schedule) = self.training.schedule.filter(|s| s.over() == Over::Job) {
            schedule.check_length(self.rounds).map_err(|e| bad("training", e))?;
        }
        let local_steps = match self.training.work() {
            LocalWork::Steps(n) => n,
            LocalWork::Epochs(_) => 1,
        };
        if self.cohort.buffered().is_some()
            && self.privacy.trust() == Some(Trust::Central)
            && (self.training.local_steps.is_none() || self.training.early_stop.is_some())
        {
            return Err(bad(
                "training",
                "rule = \"buffered\" with trust = \"central\" needs local_steps and no early_stop: otherwise the time that training \
                 takes, and with it the release that an update is in, would follow the private rows"
                    .into(),
            ));
        }
        // What the noise is scaled to is what an update may count.
        if self.privacy.unit() == Unit::Client && self.max_weight() != self.privacy.max_weight() {
            return Err(bad(
                "aggregation",
                format!(
                    "a client-level contract needs weights = \"uniform\", or, with trust = \"central\", [privacy] max_weight = {} \
                     (the largest weight, which the noise is scaled to) beside weights = \"declared_rows\" and max_weight = {}",
                    self.aggregation.max_weight, self.aggregation.max_weight
                ),
            ));
        }
        let layout = self.model.layout(&self.data.shape()).map_err(|e| bad("model", e.to_string()))?;
        self.check_initial(&layout).map_err(|e| bad("initial", e))?;
        if let Some(augmentation) = &self.training.augmentation {
            augmentation.check(&self.data.shape().input).map_err(|e| bad("training", e))?;
        }
        let part = self.training.part(&layout).map_err(|e| bad("training", e.to_string()))?;
        let schedule = Schedule { rounds: self.rounds, local_steps };
        let contract =
            self.privacy.resolve_measured(schedule, &self.cohort, self.evaluation.every).map_err(|e| {
                let section = if matches!(e, ContractError::Cohort { .. }) { "cohort" } else { "privacy" };
                bad(section, e.to_string())
            })?;
        let grid = self.aggregation.fraction_bits;
        if let Some(rule) = self.privacy.adaptive_clip() {
            rule.check_grid(grid).map_err(|e| bad("privacy", e.to_string()))?;
        }
        if let Terms::ClientCentral(terms) = contract.terms() {
            // Known to fit before anybody is asked.
            terms.check_noise(grid, part.len()).map_err(|e| bad("privacy", e.to_string()))?;
        }
        let (update_norm_bound, update_norm_units) = match contract.terms() {
            // What leaves is the update with its noise, which is longer than the update.
            Terms::ClientLocal(terms) => {
                let noise = terms.noise(grid).map_err(|e| bad("privacy", e.to_string()))?;
                (noise.message_bound(part.len()), noise.message_bound_units(part.len()))
            }
            terms => {
                let bound = match terms {
                    Terms::ClientCentral(_) => self.privacy.clip_norm(),
                    _ => None,
                }
                .unwrap_or(self.aggregation.max_update_norm);
                (bound, bound_in_units(bound, grid).map_err(|e| bad("aggregation", e.to_string()))?)
            }
        };
        self.check_transport(update_norm_units)?;
        let rescaling = self.check_rescale(update_norm_bound)?;
        let digest = self.digest();
        Ok(Job {
            digest,
            spec: self,
            layout,
            part,
            contract,
            update_norm_bound,
            update_norm_units,
            rescaling,
        })
    }

    fn check_aggregation(&self) -> Result<(), JobError> {
        let a = &self.aggregation;
        let bad = |problem: String| Err(JobError::Invalid { section: "aggregation", problem });
        if a.max_weight == 0 || a.max_weight > MAX_WEIGHT {
            return bad(format!("max_weight must be 1 to {MAX_WEIGHT}, not {}", a.max_weight));
        }
        let (least, most) = (self.cohort.min_updates().max(1) as usize, self.cohort.size() as usize);
        if let Err(problem) = a.rule.validate(least, most) {
            return bad(format!("rule: {problem}"));
        }
        if a.rule.needs_all_rows() && self.privacy.trust() == Some(Trust::Central) {
            return bad(
                "rule = anything but \"mean\" does not go with trust = \"central\": the noise that the coordinator adds is scaled to \
                 how far one client moves a *sum*, and no robust rule has such a bound; take rule = { kind = \"mean\" }, or a \
                 contract with trust = \"local\", where updates are private before they are combined"
                    .into(),
            );
        }
        if a.rule.needs_all_rows() && self.cohort.buffered().is_some() {
            return bad(
                "rule = anything but \"mean\" does not go with [cohort] rule = \"buffered\": what a robust rule withstands is shown \
                 for updates that were made from one model, and it has no place for weights by staleness; take rule = { kind = \
                 \"mean\" }, or [cohort] rule = \"all\" or \"uniform\""
                    .into(),
            );
        }
        let one = match self.cohort.buffered().map(|b| b.staleness(self.max_weight())) {
            None => 1,
            Some(Ok(staleness)) => staleness.one(),
            Some(Err(problem)) => return bad(problem),
        };
        let heaviest = u64::from(self.cohort.size()) * u64::from(self.max_weight()) * u64::from(one);
        if heaviest > IntegerSum::MAX_TOTAL_WEIGHT {
            return bad(format!(
                "a cohort of {} with max_weight {} could overflow the exact sum: their product must be at most {}",
                self.cohort.size(),
                a.max_weight,
                IntegerSum::MAX_TOTAL_WEIGHT / u64::from(one)
            ));
        }
        if !(a.max_update_norm.is_finite() && a.max_update_norm > 0.0) {
            return bad(format!("max_update_norm must be a positive number, not {}", a.max_update_norm));
        }
        Ok(())
    }

    fn check_transport(&self, norm_units: u64) -> Result<(), JobError> {
        let encoding = &self.transport.updates;
        let bad = |problem: String| Err(JobError::Invalid { section: "transport", problem });
        let promise = match (self.privacy.unit(), self.privacy.trust()) {
            (Unit::None, _) => Promise::None,
            (Unit::Record, _) => Promise::RecordLocal,
            (Unit::Client, Some(Trust::Central)) => Promise::ClientCentral,
            (Unit::Client, _) => Promise::ClientLocal,
        };
        let combination = match self.aggregation.rule {
            Rule::Mean {} => Combination::Sum,
            Rule::Median {} | Rule::TrimmedMean(_) => Combination::Coordinates,
            _ => Combination::Distances,
        };
        let with = Surroundings { promise, secure_aggregation: false, combination };
        if let Err(reasons) = encoding.composes_with(&with) {
            return bad(reasons.join("; "));
        }
        if let Err(problem) = self.transport.down().validate() {
            return bad(problem);
        }
        let most = self
            .privacy
            .adaptive_clip()
            .map_or(Ok(norm_units), |rule| bound_in_units(rule.max(), self.aggregation.fraction_bits));
        let most = most.map_or(u64::MAX, |most| most.max(norm_units));
        if most > encoding.largest_units() {
            return bad(format!(
                "updates = {encoding} can carry norms of at most {:.1} on this grid, and the job allows more: lower \
                 max_update_norm (or the clip norm), or fraction_bits",
                encoding.largest_units() as f64 / self.aggregation.fraction_bits.units_per_one()
            ));
        }
        Ok(())
    }

    /// Whether the file that the job begins with can be one of this layout.
    fn check_initial(&self, layout: &ModelLayout) -> Result<(), String> {
        match &self.initial {
            None => Ok(()),
            Some(Initial::Written(source)) => Err(format!(
                "weights = \"{:.256}\" is a file beside the job file: hand the job in with `undertone job submit`, which \
                 sends the file and names it by its digest",
                source.weights
            )),
            Some(Initial::File(file)) => {
                let values = 4 * layout.len() as u64;
                let most = values + MAX_HEADER_BYTES as u64 + 8;
                if (values..=most).contains(&file.bytes) {
                    return Ok(());
                }
                Err(format!("a file of {} bytes holds no model of {} values", file.bytes, layout.len()))
            }
        }
    }

    fn max_weight(&self) -> u32 {
        match self.aggregation.weights {
            Weights::Uniform => 1,
            Weights::DeclaredRows => self.aggregation.max_weight,
        }
    }
}

fn check_size(bytes: usize) -> Result<(), JobError> {
    if bytes > MAX_JOB_DOCUMENT_BYTES {
        return Err(malformed(format!("{bytes} bytes, at most {MAX_JOB_DOCUMENT_BYTES}")));
    }
    Ok(())
}

fn malformed(problem: String) -> JobError {
    JobError::Malformed(ConfigError { place: "job".into(), problem })
}

/// A job that holds together.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    spec: JobSpec,
    digest: Digest,
    layout: ModelLayout,
    part: Part,
    contract: ResolvedContract,
    update_norm_bound: f64,
    update_norm_units: u64,
    rescaling: Option<Rescaling>,
}

impl Job {
    /// Reads and resolves the canonical JSON.
    ///
    /// # Errors
    /// [`JobError`].
    pub fn from_document(document: &[u8]) -> Result<Self, JobError> {
        JobSpec::from_document(document)?.resolve()
    }

    /// What was written down.
    pub fn spec(&self) -> &JobSpec {
        &self.spec
    }

    /// The digest of the job's canonical JSON.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The model's tensors.
    pub fn layout(&self) -> &ModelLayout {
        &self.layout
    }

    /// The part of the model that is trained: updates, noise and the server optimiser's state are as long as it is.
    pub fn part(&self) -> &Part {
        &self.part
    }

    /// How clients rescale their updates; `None`: not at all.
    pub fn rescaling(&self) -> Option<&Rescaling> {
        self.rescaling.as_ref()
    }

    /// The privacy contract with its noise and its price.
    pub fn contract(&self) -> &ResolvedContract {
        &self.contract
    }

    /// The grid that updates travel on.
    pub fn grid(&self) -> Grid {
        self.spec.aggregation.fraction_bits
    }

    /// The size of an update on the wire.
    pub fn encoded_len(&self) -> EncodedLen {
        self.spec.transport.updates.encoded_len(self.part.len())
    }

    /// The largest size of an update on the wire, in bytes.
    pub fn update_bytes(&self) -> u64 {
        self.encoded_len().max()
    }

    /// The file that the first model is, where it is not drawn from the model's seed.
    pub fn initial_file(&self) -> Option<FileRef> {
        match self.spec.initial {
            Some(Initial::File(file)) => Some(file),
            _ => None,
        }
    }

    /// The TorchScript file that the model is.
    pub fn module_file(&self) -> Option<FileRef> {
        self.spec.model.exported().map(|exported| exported.file)
    }

    /// The initial values that the model's seed gives.
    pub fn initial_values(&self) -> Vec<f32> {
        self.spec.model.initial_values(&self.spec.data.shape())
    }

    /// The initial values that the model's seed gives, one by one.
    pub fn initial_stream(&self) -> Box<dyn Iterator<Item = f32> + Send> {
        self.spec.model.initial_stream(&self.spec.data.shape())
    }

    /// The largest L2 norm of an update on the wire: the contract's clip norm where the coordinator's noise rests on it,
    /// what a clipped update with its noise reaches where clients add it, else the job's sanity bound. In round 1, where
    /// the clip norm moves.
    pub fn update_norm_bound(&self) -> f64 {
        self.update_norm_bound
    }

    /// The largest bound that a round may have.
    pub fn largest_norm(&self) -> f64 {
        self.spec.privacy.adaptive_clip().map_or(self.update_norm_bound, |rule| rule.max())
    }

    /// The bound in a round, as a norm and in units of the grid: another one than in round 1 where the clip norm moves.
    pub fn norm_bound(&self, state: Option<&ClipState>) -> (f64, u64) {
        let moved =
            self.clip_norm(state).and_then(|norm| Some((norm, bound_in_units(norm, self.grid()).ok()?)));
        // The clamps suit the grid: the job would not have resolved.
        moved.unwrap_or((self.update_norm_bound, self.update_norm_units))
    }

    /// A round's `bound` for an update with this number beside it, where updates are rescaled.
    pub fn bound_beside(&self, number: Option<u64>, bound: (f64, u64)) -> (f64, u64) {
        let Some((rescaling, number)) = self.rescaling.as_ref().zip(number) else { return bound };
        let units = rescaling.bound(number, bound.1);
        if units == bound.1 { bound } else { (units as f64 / self.grid().units_per_one(), units) }
    }

    /// The clip norm of a round, where it moves; then each client also says whether its update was within it.
    pub fn clip_norm(&self, state: Option<&ClipState>) -> Option<f64> {
        self.spec.privacy.adaptive_clip()?;
        clip_norm_of(&self.contract, state)
    }

    /// The weight of a client that declares this many rows.
    pub fn weight(&self, declared_rows: u64) -> u32 {
        match self.spec.aggregation.weights {
            Weights::Uniform => 1,
            Weights::DeclaredRows => {
                u32::try_from(declared_rows).unwrap_or(u32::MAX).clamp(1, self.spec.aggregation.max_weight)
            }
        }
    }

    /// What updates count by their staleness, where rounds are asynchronous.
    pub fn staleness(&self) -> Option<Staleness> {
        let buffered = self.spec.cohort.buffered()?;
        Some(buffered.staleness(self.max_weight()).expect("checked when the job was resolved"))
    }

    /// What updates that were sent with these weights would weigh together if all were fresh, where stale ones weigh less.
    pub fn fresh_weight(&self, sent: impl IntoIterator<Item = u32>) -> Option<u64> {
        let one = u64::from(self.staleness()?.one());
        Some(sent.into_iter().map(|weight| u64::from(weight) * one).sum())
    }

    /// The largest weight that the job accepts.
    pub fn max_weight(&self) -> u32 {
        self.spec.max_weight()
    }

    /// How the job's models are measured.
    pub fn evaluation_task(&self) -> EvaluationTask {
        EvaluationTask {
            model: self.spec.model.clone(),
            data: self.spec.data.clone(),
            loss: self.spec.training.loss.clone(),
            module: None,
        }
    }

    /// The work of a round for a client that declares this many rows.
    pub fn train_task(&self, declared_rows: u64, sampling_seed: Option<u64>) -> TrainTask {
        let record_privacy: Option<RecordPrivacy> = self.contract.record_privacy(declared_rows);
        let Self { spec, .. } = self;
        TrainTask {
            record_privacy,
            sampling_seed,
            first_loss: self.rescaling.is_some_and(|r| r.wants_loss()),
            ..TrainTask::new(spec.model.clone(), spec.data.clone(), spec.training.clone())
        }
    }
}
