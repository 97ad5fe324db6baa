//! `undertone privacy plan`: what a job will spend, when its budget ends, and what else the same budget would buy.

use crate::failure::bad_input;
use crate::output::{Align, Screen, Table, figure, given};
use crate::submission::Submission;
use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;
use undertone_privacy::contract::PrivacyContract;
use undertone_privacy::resolve::{ContractError, ResolvedContract, Schedule};

/// Rounds told one by one.
const MOST_LINES: u32 = 24;
/// Attempts beyond the plan that are looked at for the end of the budget.
const MOST_ATTEMPTS: u32 = 10_000_000;

/// ε after each round of a job, the attempt at which its budget ends, and the price of the alternatives
#[derive(Debug, Args)]
#[command(after_help = "\
Reads the job file only: nothing is submitted. A failed attempt at a round is charged like a released one; the rounds that a
budget has room for beyond the plan are what pays for them.")]
pub(crate) struct Plan {
    /// The job file
    job: PathBuf,
}

/// A change to a job and what it would cost.
struct Alternative {
    what: String,
    outcome: Result<ResolvedContract, ContractError>,
}

impl Plan {
    /// Runs the command.
    ///
    /// # Errors
    /// If the file cannot be read, makes no sense, or promises nothing.
    pub(crate) fn run(self, screen: Screen) -> Result<ExitCode> {
        let submission = Submission::read(&self.job)?;
        let contract = submission.contract();
        let (Some(budget), Some(delta), Some(planned)) =
            (contract.budget_epsilon(), contract.delta(), contract.epsilon_after(contract.schedule().rounds))
        else {
            return Err(bad_input(format!(
                "{}: unit = \"none\" promises no privacy: there is nothing to plan",
                self.job.display()
            )));
        };
        let rounds = contract.schedule().rounds;
        let after: Vec<(u32, f64)> =
            told(rounds).into_iter().filter_map(|n| Some((n, contract.epsilon_after(n)?))).collect();
        let ends = last_affordable(contract, budget);
        let alternatives = alternatives(contract);
        if screen.json {
            let price = |a: &Alternative| {
                let epsilon = a.outcome.as_ref().ok().and_then(planned_epsilon);
                let noise = a.outcome.as_ref().ok().and_then(ResolvedContract::noise_multiplier);
                let refused = a.outcome.as_ref().err().map(ToString::to_string);
                json!({ "change": a.what, "planned_epsilon": epsilon, "noise_multiplier": noise, "refused": refused })
            };
            let after: Vec<Value> = after.iter().map(|(n, e)| json!({ "round": n, "epsilon": e })).collect();
            screen.json(&json!({
                "unit": contract.unit().as_str(),
                "accountant": contract.accountant(),
                "delta": delta,
                "noise_multiplier": contract.noise_multiplier(),
                "mechanism": contract.mechanism_name(),
                "measurements": contract.planned_measurements().map(|(n, epsilon)| json!({ "number": n, "epsilon": epsilon })),
                "rounds": rounds,
                "planned_epsilon": planned,
                "planned_epsilon_lower": contract.epsilon_interval_after(rounds).map(|i| i.lower),
                "budget_epsilon": budget,
                "attempts_in_budget": ends,
                "after": after,
                "alternatives": alternatives.iter().map(price).collect::<Vec<_>>(),
            }))?;
            return Ok(ExitCode::SUCCESS);
        }
        let noise =
            contract.noise_multiplier().map_or_else(String::new, |z| format!("noise multiplier {z:.4}, "));
        screen.line(&format!(
            "{noise}mechanism {}, δ {} for each {}, accountant {}",
            contract.mechanism_name().unwrap_or_default(),
            given(delta),
            contract.unit().as_str(),
            contract.accountant().unwrap_or_default()
        ))?;
        if contract.is_correlated() {
            screen
                .line("the noise of the rounds is one mechanism: the first attempt pays for the whole run")?;
        }
        if let Some((number, epsilon)) = contract.planned_measurements() {
            screen.line(&format!(
                "{number} measurements on evaluators' data are in it, with ε {} each",
                given(epsilon)
            ))?;
        }
        let mut table =
            Table::new(&[("AFTER ROUND", Align::Right), ("ε", Align::Right), ("OF BUDGET", Align::Right)]);
        for (n, epsilon) in &after {
            table.row([n.to_string(), figure(*epsilon), format!("{:.0} %", 100.0 * epsilon / budget)]);
        }
        screen.table(&table, "")?;
        match ends {
            Some(n) => screen.line(&format!(
                "the budget of {} pays for {n} attempts: the plan and {} that fail",
                given(budget),
                n - rounds
            ))?,
            None => {
                screen.line(&format!("the budget of {} is beyond any number of attempts", given(budget)))?
            }
        }
        let mut table =
            Table::new(&[("INSTEAD", Align::Left), ("PLANNED ε", Align::Right), ("NOISE", Align::Right)]);
        for a in &alternatives {
            let (epsilon, noise) = match &a.outcome {
                Ok(c) => (
                    planned_epsilon(c).map_or("-".into(), figure),
                    c.noise_multiplier().map_or("-".into(), |z| format!("{z:.3}")),
                ),
                Err(ContractError::OverBudget { epsilon, .. }) => (figure(*epsilon), "over budget".into()),
                Err(_) => ("-".into(), "refused".into()),
            };
            table.row([a.what.clone(), epsilon, noise]);
        }
        screen.table(&table, "")?;
        Ok(ExitCode::SUCCESS)
    }
}

fn planned_epsilon(contract: &ResolvedContract) -> Option<f64> {
    contract.epsilon_after(contract.schedule().rounds)
}

/// All rounds if they are few; else the first ones, some between, and the last.
fn told(rounds: u32) -> Vec<u32> {
    if rounds <= MOST_LINES {
        return (1..=rounds).collect();
    }
    let mut told: Vec<u32> =
        (1..=MOST_LINES).map(|n| (u64::from(rounds) * u64::from(n) / u64::from(MOST_LINES)) as u32).collect();
    told.insert(0, 1);
    told.dedup();
    told
}

/// The most attempts that the budget pays for; `None` if more than anybody will make.
fn last_affordable(contract: &ResolvedContract, budget: f64) -> Option<u32> {
    let fits = |n: u32| contract.epsilon_after(n).is_some_and(|e| e <= budget);
    let (mut low, mut high) = (contract.schedule().rounds, contract.schedule().rounds.saturating_mul(2));
    while fits(high) {
        if high >= MOST_ATTEMPTS {
            return None;
        }
        (low, high) = (high, high.saturating_mul(2));
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) { low = middle } else { high = middle }
    }
    Some(low)
}

/// What people change when a job costs too much, or when there is room.
fn alternatives(contract: &ResolvedContract) -> Vec<Alternative> {
    let (terms, plan) = (contract.contract(), contract.schedule());
    let mut list = vec![];
    let mut add = |what: String, terms: &PrivacyContract, schedule: Schedule| {
        list.push(Alternative { what, outcome: contract.instead(terms, schedule) });
    };
    for rounds in [plan.rounds / 2, plan.rounds.saturating_mul(2)] {
        if rounds > 0 {
            add(format!("rounds = {rounds}"), terms, Schedule { rounds, ..plan });
        }
    }
    if terms.sampling_rate().is_some() {
        for local_steps in [plan.local_steps / 2, plan.local_steps.saturating_mul(2)] {
            if local_steps > 0 {
                add(format!("local_steps = {local_steps}"), terms, Schedule { local_steps, ..plan });
            }
        }
    }
    for (what, changed) in variations(terms) {
        add(what, &changed, plan);
    }
    list
}

/// The contract with one number changed, as it would stand in the file. What makes no sense is left out.
fn variations(terms: &PrivacyContract) -> Vec<(String, PrivacyContract)> {
    let Ok(Value::Object(keys)) = serde_json::to_value(terms) else { return vec![] };
    let changes = [
        ("noise_multiplier", 0.8),
        ("noise_multiplier", 1.25),
        ("target_epsilon", 0.5),
        ("target_epsilon", 2.0),
        ("sampling_rate", 0.5),
        ("sampling_rate", 2.0),
        ("delta", 0.1),
        ("delta", 10.0),
    ];
    let changed = |(key, factor): (&str, f64)| {
        let value = keys.get(key)?.as_f64()? * factor;
        let mut keys = keys.clone();
        keys.insert(key.to_owned(), json!(value));
        let terms = serde_json::from_value(Value::Object(keys)).ok()?;
        Some((format!("{key} = {}", given(value)), terms))
    };
    changes.into_iter().filter_map(changed).collect()
}
