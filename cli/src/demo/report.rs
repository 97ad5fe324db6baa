//! What came out: a table for people, one JSON document for programs.

use super::baseline::{Baseline, Baselines};
use super::example::Example;
use crate::output::{Align, Paint, Table, figure, given, printable};
use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use undertone_core::id::Round;
use undertone_core::trainer::Metrics;
use undertone_round::event::JobEvent;

/// What the job's events say about its result.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    rounds: u32,
    /// Fewest clients in a released round.
    fewest: Option<u32>,
    last: Option<(Round, Metrics)>,
    trouble: Option<String>,
}

impl Tally {
    /// Takes in an event.
    pub(crate) fn note(&mut self, event: &JobEvent) {
        match event {
            JobEvent::Released { round, clients, .. } => {
                self.rounds = self.rounds.max(round.0);
                self.fewest = Some(self.fewest.map_or(*clients, |n| n.min(*clients)));
            }
            JobEvent::Evaluated { round, metrics, .. }
                if self.last.is_none_or(|(last, _)| last <= *round) =>
            {
                self.last = Some((*round, *metrics));
            }
            JobEvent::NotEvaluated { reason, .. } => self.trouble = Some(reason.clone()),
            _ => {}
        }
    }

    /// What became of the job.
    ///
    /// # Errors
    /// If the evaluator did not measure the last model.
    pub(crate) fn result(&self) -> Result<Training> {
        let measured = self.last.filter(|(round, _)| round.0 == self.rounds);
        let (_, metrics) = measured.with_context(|| {
            let why = self.trouble.as_deref().map(printable).unwrap_or_else(|| "it gave no answer".into());
            format!("the evaluator did not measure the model of round {}: {why}", self.rounds)
        })?;
        Ok(Training { rounds: self.rounds, fewest_clients: self.fewest.unwrap_or(0), metrics })
    }
}

/// What became of the job.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Training {
    /// Rounds released.
    pub(crate) rounds: u32,
    /// Fewest clients in one of them.
    pub(crate) fewest_clients: u32,
    /// What the evaluator measured of the last model.
    pub(crate) metrics: Metrics,
}

/// The coordinator's privacy statement: what the demo repeats and does not compute.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Statement {
    promise: bool,
    unit: String,
    #[serde(default)]
    trust: Option<String>,
    epsilon: f64,
    /// The mechanism's ε is not below this.
    #[serde(default)]
    epsilon_lower: Option<f64>,
    delta: f64,
    accountant: String,
    #[serde(default)]
    budget_epsilon: Option<f64>,
}

impl Statement {
    /// Reads it.
    ///
    /// # Errors
    /// If it is something else, or promises nothing.
    pub(crate) fn read(value: &Value) -> Result<Self> {
        let statement: Self = serde_json::from_value(value.clone())
            .with_context(|| format!("not the privacy statement of a private job: {value}"))?;
        ensure!(statement.promise, "the job promises no privacy: {value}");
        Ok(statement)
    }
}

/// The result of a demo. Serialises to the document that `--json` prints; its fields are relied on.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    epsilon: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    epsilon_lower: Option<f64>,
    delta: f64,
    unit: String,
    accountant: String,
    test_loss: f64,
    test_accuracy: f64,
    rounds: u32,
    baseline_pooled_accuracy: f64,
    baseline_single_accuracy: Map<String, Value>,
    seconds: f64,
    #[serde(skip)]
    statement: Statement,
    #[serde(skip)]
    training: Training,
    #[serde(skip)]
    baselines: Baselines,
}

impl Report {
    /// From the coordinator's statement, the evaluator's measurement and the baselines.
    ///
    /// # Errors
    /// If no accuracy was measured: the examples tell classes apart.
    pub(crate) fn new(
        statement: Statement,
        training: Training,
        baselines: Baselines,
        seconds: f64,
    ) -> Result<Self> {
        let test_accuracy = training.metrics.accuracy.context("the evaluator measured no accuracy")?;
        let alone = |(name, b): &(_, Baseline)| (ToString::to_string(name), b.accuracy.into());
        Ok(Self {
            epsilon: statement.epsilon,
            epsilon_lower: statement.epsilon_lower,
            delta: statement.delta,
            unit: statement.unit.clone(),
            accountant: statement.accountant.clone(),
            test_loss: training.metrics.loss,
            test_accuracy,
            rounds: training.rounds,
            baseline_pooled_accuracy: baselines.pooled.accuracy,
            baseline_single_accuracy: baselines.alone.iter().map(alone).collect(),
            seconds: (seconds * 100.0).round() / 100.0,
            statement,
            training,
            baselines,
        })
    }

    /// The table for people.
    pub(crate) fn lines(&self, example: &Example, paint: Paint) -> Vec<String> {
        let s = &self.statement;
        let mut lines = vec![
            paint.bold(&format!(
                "privacy loss   ε = {} at δ = {} for each {} (accountant: {}{})",
                figure(s.epsilon),
                given(s.delta),
                printable(&s.unit),
                printable(&s.accountant),
                s.epsilon_lower.map_or_else(String::new, |e| format!(", ε from {e:.4} to {:.4}", s.epsilon))
            )),
            paint.bold(&format!("test accuracy  {:.3}", self.test_accuracy)),
            paint.bold(&format!("test loss      {:.3}", self.test_loss)),
            String::new(),
        ];
        if let Some(budget) = s.budget_epsilon {
            lines[0] += &format!(", budget {}", given(budget));
        }
        if let Some(trust) = &s.trust {
            lines[0] += &format!(", {} trust", printable(trust));
        }
        lines.push(format!("Measured on {} rows that nobody trained on:", example.evaluator.rows()));
        lines.extend(self.table(example).render(paint).lines().map(str::to_owned));
        lines.push(String::new());
        if let Some((name, best)) =
            self.baselines.alone.iter().max_by(|a, b| a.1.accuracy.total_cmp(&b.1.accuracy))
        {
            lines.push(format!(
                "worth of joining   {:+.3} accuracy against the best one alone ({name})",
                self.test_accuracy - best.accuracy
            ));
        }
        lines.push(format!(
            "price of privacy   {:+.3} accuracy against all rows in one place",
            self.test_accuracy - self.baselines.pooled.accuracy
        ));
        lines
    }

    fn table(&self, example: &Example) -> Table {
        let mut table = Table::new(&[
            ("TRAINED ON", Align::Left),
            ("PRIVACY", Align::Left),
            ("ACCURACY", Align::Right),
            ("LOSS", Align::Right),
        ]);
        let mut row = |who: String, privacy: String, accuracy: f64, loss: f64| {
            table.row([who, privacy, format!("{accuracy:.3}"), format!("{loss:.3}")]);
        };
        let (fewest, all) = (self.training.fewest_clients as usize, example.trainers.len());
        let federated = if fewest < all {
            // Not everyone was there all the time: say so.
            format!("federated, {fewest} to {all} clients in a round")
        } else {
            format!("{}, federated", example.everyone)
        };
        row(federated, format!("ε = {}", figure(self.epsilon)), self.test_accuracy, self.test_loss);
        let pooled = self.baselines.pooled;
        row(
            format!("{}, pooled in one place", example.everyone),
            "none".into(),
            pooled.accuracy,
            pooled.loss,
        );
        for (name, b) in &self.baselines.alone {
            row(format!("{name} alone"), "none".into(), b.accuracy, b.loss);
        }
        table
    }
}
