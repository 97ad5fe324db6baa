//! What a job must fulfil before it begins.

use super::{Job, JobError, JobSpec, Weights, external, module};
use undertone_core::aggregate::IntegerSum;
use undertone_core::encoding::composition::{Combination, Promise, Surroundings};
use undertone_core::id::JobId;
use undertone_core::initial::Initial;
use undertone_core::layout::{MAX_HEADER_BYTES, ModelLayout};
use undertone_core::limits::{MAX_ROUNDS, MAX_WEIGHT};
use undertone_core::plan::{LocalWork, Over};
use undertone_core::rules::Rule;
use undertone_privacy::clip::bound_in_units;
use undertone_privacy::contract::{Trust, Unit};
use undertone_privacy::resolve::{ContractError, Schedule, Terms};

/// Most attempts at one round.
const MAX_ATTEMPTS: u32 = 100;

impl JobSpec {
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

    pub(super) fn max_weight(&self) -> u32 {
        match self.aggregation.weights {
            Weights::Uniform => 1,
            Weights::DeclaredRows => self.aggregation.max_weight,
        }
    }
}
