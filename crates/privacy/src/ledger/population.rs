//! What a population spends over all its jobs.
//!
//! Later jobs are chosen after earlier results were seen, so their losses may not be composed as if they had been fixed
//! in advance. The budget is enforced by a Rényi filter (Feldman and Zrnic 2021, arXiv 2008.11193, Thm. 4.3): the order is
//! fixed by the budget alone, before anything is seen, and what is spent at that order may never exceed what the budget
//! allows there. The odometer that is shown is the ε that the spent Rényi losses convert to at the best order.

use super::{LedgerEntry, Loss};
use crate::contract::Unit;
use crate::rdp::RdpCurve;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use undertone_core::digest::Digester;

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

/// δ at which spending is told where no budget says one.
const TOLD_AT_DELTA: f64 = 1e-6;

/// What was spent, as a line tells it.
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

impl PopulationSpent {
    pub(super) fn digest_into(&self, d: &mut Digester) {
        for number in [self.record_epsilon, self.record_delta, self.client_epsilon, self.client_delta] {
            d.field(&number.to_bits().to_le_bytes());
        }
        d.field(&self.unprotected.to_le_bytes());
        d.field(&self.clients_unprotected.to_le_bytes());
    }
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

    /// What is spent.
    pub fn spent(&self) -> PopulationSpent {
        self.spent_at(self.record.delta, self.client.delta)
    }

    /// The same at other δ.
    pub(super) fn spent_at(&self, record_delta: f64, client_delta: f64) -> PopulationSpent {
        PopulationSpent {
            record_epsilon: self.record.epsilon(record_delta),
            record_delta,
            client_epsilon: self.client.epsilon(client_delta),
            client_delta,
            unprotected: self.unprotected,
            clients_unprotected: self.clients_unprotected,
        }
    }

    /// Whether an attempt like this one may be reserved.
    ///
    /// # Errors
    /// [`PopulationSpentUp`].
    pub fn admit(&self, entry: &LedgerEntry) -> Result<(), PopulationSpentUp> {
        let times = f64::from(entry.compositions);
        for (spending, level, unit, also) in [
            (&self.record, Unit::Record, "record", " or \"client\""),
            (&self.client, Unit::Client, "client", ""),
        ] {
            let Some(filter) = &spending.filter else { continue };
            let Some(one) = entry.loss.and_then(|loss| loss_at(level, entry.unit, loss, filter.order)) else {
                return Err(PopulationSpentUp::NoPromise { unit, also });
            };
            if !filter.admits(spending.at(filter.order) + times * one) {
                return Err(PopulationSpentUp::Filter {
                    unit,
                    epsilon: filter.budget.epsilon,
                    delta: filter.budget.delta,
                    left: filter.left_percent(spending.at(filter.order)),
                });
            }
        }
        Ok(())
    }

    /// How many attempts of this kind the budgets still admit; none: no budget limits them.
    pub fn attempts_left(&self, unit: Unit, loss: Option<Loss>, compositions: u32) -> Option<u64> {
        let left = |spending: &Spending, level: Unit| {
            let filter = spending.filter.as_ref()?;
            let Some(one) = loss.and_then(|loss| loss_at(level, unit, loss, filter.order)) else {
                return Some(0);
            };
            let one = f64::from(compositions) * one;
            Some(((filter.allowed - spending.at(filter.order)) / one).max(0.0) as u64)
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
        let filter = spending.filter.as_ref()?;
        Some(1.0 - filter.left_percent(spending.at(filter.order)) / 100.0)
    }

    pub(super) fn add(&mut self, entry: &LedgerEntry) {
        let Some(loss) = entry.loss else {
            self.unprotected += 1;
            self.clients_unprotected += 1;
            return;
        };
        let times = f64::from(entry.compositions);
        let (curve, factor) = loss.of_a_record(entry.unit);
        self.record.add(&curve, factor * times);
        match entry.unit {
            Unit::Client => self.client.add(&loss.curve(), times),
            Unit::Record | Unit::None => self.clients_unprotected += 1,
        }
    }
}

/// What one composition of an entry loses for each record or each client (`level`) at an order; `None` if the entry's
/// contract (over `unit`) promises nothing at that level.
fn loss_at(level: Unit, unit: Unit, loss: Loss, order: f64) -> Option<f64> {
    match (level, unit) {
        (_, Unit::None) | (Unit::Client, Unit::Record) => None,
        (Unit::Client, _) => Some(loss.curve().at(order)),
        _ => {
            let (curve, factor) = loss.of_a_record(unit);
            Some(factor * curve.at(order))
        }
    }
}

/// Rényi losses of one unit, at each order.
#[derive(Debug, Clone, PartialEq)]
struct Spending {
    /// By the bits of the order, so that curves with other orders add up where they meet.
    at_order: BTreeMap<u64, f64>,
    empty: bool,
    delta: f64,
    filter: Option<Filter>,
}

impl Spending {
    fn new(budget: Option<PopulationBudget>) -> Self {
        Self {
            at_order: BTreeMap::new(),
            empty: true,
            delta: budget.map_or(TOLD_AT_DELTA, |b| b.delta),
            filter: budget.map(Filter::new),
        }
    }

    fn at(&self, order: f64) -> f64 {
        self.at_order.get(&order.to_bits()).copied().unwrap_or(0.0)
    }

    fn add(&mut self, curve: &RdpCurve, times: f64) {
        if self.empty {
            self.at_order = RdpCurve::common_orders().map(|order| (order.to_bits(), 0.0)).collect();
            self.empty = false;
        }
        for (order, spent) in &mut self.at_order {
            *spent += times * curve.at(f64::from_bits(*order));
        }
    }

    fn epsilon(&self, delta: f64) -> f64 {
        if self.empty {
            return 0.0;
        }
        let convert =
            |(order, spent): (&u64, &f64)| crate::rdp::convert(f64::from_bits(*order), *spent, delta);
        self.at_order.iter().map(convert).fold(f64::INFINITY, f64::min).max(0.0)
    }
}

/// A Rényi filter at one order.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Filter {
    budget: PopulationBudget,
    order: f64,
    allowed: f64,
}

impl Filter {
    /// Fixes the order at which a pure Gaussian could spend the most: it depends on the budget alone.
    fn new(budget: PopulationBudget) -> Self {
        let allowed = |order: f64| budget.epsilon - crate::rdp::convert(order, 0.0, budget.delta);
        let order = RdpCurve::common_orders()
            .max_by(|a, b| (allowed(*a) / a).total_cmp(&(allowed(*b) / b)))
            .expect("there are orders");
        Self { budget, order, allowed: allowed(order).max(0.0) }
    }

    fn admits(&self, spent: f64) -> bool {
        spent <= self.allowed
    }

    fn left_percent(&self, spent: f64) -> f64 {
        if self.allowed > 0.0 { (100.0 * (1.0 - spent / self.allowed)).max(0.0) } else { 0.0 }
    }
}
