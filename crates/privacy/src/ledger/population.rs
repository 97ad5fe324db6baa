//! What a population spends over all its jobs.
//!
//! Later jobs are chosen after earlier results were seen, so their losses may not be composed as if they had been fixed
//! in advance. The budget is enforced by a Rényi filter ([`crate::rdp::filter`]) at one order, which the budget alone fixes
//! before anything is seen; what is shown is the filter's odometer. Where there is no budget nothing is enforced, and the
//! odometer runs on a scale of its own.

use super::{LedgerEntry, Loss};
use crate::contract::Unit;
use crate::rdp::RdpCurve;
use crate::rdp::filter::RdpFilter;
use serde::{Deserialize, Serialize};

/// The (ε, δ) that a population may spend in all.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PopulationBudget {
    /// ε, over all jobs.
    pub epsilon: f64,
    /// δ, over all jobs.
    pub delta: f64,
}

/// Budgets by who is protected; none: spent without a limit, and told.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Budgets {
    /// Of each record of any client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<PopulationBudget>,
    /// Of each client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<PopulationBudget>,
}

impl Budgets {
    /// Whether the numbers make sense.
    ///
    /// # Errors
    /// A sentence with the key.
    pub fn check(&self) -> Result<(), String> {
        for (unit, budget) in [("record", self.record), ("client", self.client)] {
            let Some(PopulationBudget { epsilon, delta }) = budget else { continue };
            if !(epsilon.is_finite() && epsilon > 0.0) {
                return Err(format!(
                    "[budget.{unit}] epsilon must be a finite number above 0, not {epsilon}"
                ));
            }
            if !(delta > 0.0 && delta < 1.0) {
                return Err(format!("[budget.{unit}] delta must be above 0 and below 1, not {delta}"));
            }
        }
        Ok(())
    }
}

/// Curves of sampled mechanisms end here.
const LARGEST_ORDER: f64 = 1024.0;

/// The scale on which spending is told where no budget sets one.
const TOLD: PopulationBudget = PopulationBudget { epsilon: 8.0, delta: 1e-6 };

/// What was spent.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PopulationSpent {
    /// ε of each record, by record-level and client-level jobs together. A changed record changes its client's whole
    /// contribution: a client-level release costs a record up to what replacing the client costs.
    pub record_epsilon: f64,
    /// The δ that goes with it.
    pub record_delta: f64,
    /// ε of each client, by client-level jobs.
    pub client_epsilon: f64,
    /// The δ that goes with it.
    pub client_delta: f64,
    /// Attempts without any promise: no ε covers them.
    pub unprotected: u64,
    /// Attempts that protect records but not clients: no client-level ε covers them.
    pub clients_unprotected: u64,
}

/// The population's budget does not allow another attempt.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PopulationSpentUp {
    /// The filter stops.
    #[error(
        "the budget of the population is spent: ε = {epsilon} at δ = {delta} for each {unit} over all jobs, of which this \
         attempt would need more than the {left:.1} % that are left"
    )]
    Filter {
        /// Who is protected.
        unit: &'static str,
        /// The budget's ε.
        epsilon: f64,
        /// The budget's δ.
        delta: f64,
        /// What is left, in per cent.
        left: f64,
    },
    /// No ε covers the job.
    #[error(
        "the population has a budget for each {unit}, and this job gives no promise at that level: its loss would have no \
         bound; give it a contract with unit = \"{unit}\"{also}, or remove the budget from server.toml"
    )]
    NoPromise {
        /// Who is protected.
        unit: &'static str,
        /// Other units that would do.
        also: &'static str,
    },
}

/// The sums of all jobs over a population.
#[derive(Debug, Clone, PartialEq)]
pub struct Totals {
    budgets: Budgets,
    record: Spending,
    client: Spending,
    unprotected: u64,
    clients_unprotected: u64,
}

impl Totals {
    /// Nothing spent under these budgets.
    pub fn new(budgets: Budgets) -> Self {
        Self {
            record: Spending::new(budgets.record),
            client: Spending::new(budgets.client),
            budgets,
            unprotected: 0,
            clients_unprotected: 0,
        }
    }

    /// The budgets.
    pub fn budgets(&self) -> Budgets {
        self.budgets
    }

    /// What is spent, by an odometer that holds at whatever moment one looks.
    pub fn spent(&self) -> PopulationSpent {
        PopulationSpent {
            record_epsilon: self.record.filter.odometer(),
            record_delta: self.record.delta,
            client_epsilon: self.client.filter.odometer(),
            client_delta: self.client.delta,
            unprotected: self.unprotected,
            clients_unprotected: self.clients_unprotected,
        }
    }

    /// Whether an attempt like this one may be reserved.
    ///
    /// # Errors
    /// [`PopulationSpentUp`].
    pub fn admit(&self, entry: &LedgerEntry) -> Result<(), PopulationSpentUp> {
        for (spending, level, unit, also) in [
            (&self.record, Unit::Record, "record", " or \"client\""),
            (&self.client, Unit::Client, "client", ""),
        ] {
            let Some(budget) = spending.budget else { continue };
            let Some((curve, times)) = entry.loss.and_then(|loss| loss.at_level(level, entry.unit)) else {
                return Err(PopulationSpentUp::NoPromise { unit, also });
            };
            let mut filter = spending.filter.clone();
            let trained = filter.admit(&curve, times * u64::from(entry.compositions));
            let measured = trained.and_then(|()| match entry.metrics {
                Some(epsilon) => filter.admit(&RdpCurve::pure(epsilon), 1),
                None => Ok(()),
            });
            if measured.is_err() {
                let left = (100.0 * (1.0 - spending.filter.share_spent())).max(0.0);
                return Err(PopulationSpentUp::Filter {
                    unit,
                    epsilon: budget.epsilon,
                    delta: budget.delta,
                    left,
                });
            }
        }
        Ok(())
    }

    /// How many attempts of this kind the budgets still admit; none: no budget limits them.
    /// `metrics`: the measurements that are planned beside them, and ε of each.
    pub fn attempts_left(
        &self,
        unit: Unit,
        loss: Option<Loss>,
        compositions: u32,
        metrics: Option<(u32, f64)>,
    ) -> Option<u64> {
        let left = |spending: &Spending, level: Unit| {
            spending.budget?;
            let Some((curve, times)) = loss.and_then(|loss| loss.at_level(level, unit)) else {
                return Some(0);
            };
            let mut filter = spending.filter.clone();
            if let Some((count, epsilon)) = metrics
                && filter.admit(&RdpCurve::pure(epsilon), count.into()).is_err()
            {
                return Some(0);
            }
            Some(filter.room(&curve) / (times * u64::from(compositions.max(1))))
        };
        let record = left(&self.record, Unit::Record);
        let client = left(&self.client, Unit::Client);
        record.into_iter().chain(client).min()
    }

    /// The part of a unit's budget that is spent, 0 to 1; none without a budget.
    pub fn used(&self, unit: Unit) -> Option<f64> {
        let spending = match unit {
            Unit::Record => &self.record,
            Unit::Client => &self.client,
            Unit::None => return None,
        };
        spending.budget.map(|_| spending.filter.share_spent())
    }

    pub(super) fn add(&mut self, entry: &LedgerEntry) {
        let Some(loss) = entry.loss else {
            self.unprotected += 1;
            self.clients_unprotected += 1;
            return;
        };
        let compositions = u64::from(entry.compositions);
        if let Some((curve, times)) = loss.at_level(Unit::Record, entry.unit) {
            self.record.filter.charge(&curve, times * compositions);
        }
        let measured = entry.metrics.map(RdpCurve::pure);
        // Noise that hides all that an evaluator has hides each row of it.
        if let Some(curve) = &measured {
            self.record.filter.charge(curve, 1);
        }
        match loss.at_level(Unit::Client, entry.unit) {
            Some((curve, times)) => {
                self.client.filter.charge(&curve, times * compositions);
                measured.iter().for_each(|curve| self.client.filter.charge(curve, 1));
            }
            None => self.clients_unprotected += 1,
        }
    }
}

/// What one unit has spent.
#[derive(Debug, Clone, PartialEq)]
struct Spending {
    filter: RdpFilter,
    /// None: spent without a limit.
    budget: Option<PopulationBudget>,
    delta: f64,
}

impl Spending {
    /// The order is the one at which a pure Gaussian could spend the most: it depends on the budget alone.
    fn new(budget: Option<PopulationBudget>) -> Self {
        let scale = budget.unwrap_or(TOLD);
        // At one of the orders that every curve has, sampled or not.
        let gaussian =
            RdpCurve::new(1.0, 1.0).expect("a noise multiplier of 1 has a curve").up_to(LARGEST_ORDER);
        let filter = RdpFilter::planned(scale.epsilon, scale.delta, &gaussian);
        // An ε so small that no order leaves anything: then nothing may be spent.
        let filter = filter.unwrap_or_else(|_| RdpFilter::closed(scale.delta));
        Self { filter, budget, delta: scale.delta }
    }
}
