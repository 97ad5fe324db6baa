//! From a job's events to lines for people: one line a round, what went wrong indented below it.

use crate::output::{Paint, figure, given, printable};
use undertone_core::id::Round;
use undertone_core::trainer::Metrics;
use undertone_round::event::{JobEvent, Outcome};

/// Tells a job's story line by line.
#[derive(Debug)]
pub(crate) struct Narrator {
    rounds: u32,
    budget: Option<f64>,
    paint: Paint,
    /// A released round that waits for its measurement.
    pending: Option<Release>,
    waiting: Option<(Round, u32)>,
}

#[derive(Debug)]
struct Release {
    round: Round,
    clients: u32,
    asked: u32,
    epsilon: Option<f64>,
}

impl Narrator {
    /// For a job of this many rounds and this budget (none: no privacy promised).
    pub(crate) fn new(rounds: u32, budget: Option<f64>, paint: Paint) -> Self {
        Self { rounds, budget, paint, pending: None, waiting: None }
    }

    /// The lines that an event is worth.
    pub(crate) fn tell(&mut self, event: &JobEvent) -> Vec<String> {
        let mut lines = Vec::new();
        match event {
            JobEvent::Submitted { .. } | JobEvent::Received { .. } => {}
            JobEvent::Waiting { round, present, needed } => {
                // The same again is no news.
                if self.waiting.replace((*round, *present)) != Some((*round, *present)) {
                    lines.extend(self.flush());
                    lines.push(format!("round {round} waits: {present} of {needed} trainers are connected"));
                }
            }
            JobEvent::Offered { round, attempt, cohort, .. } => {
                self.waiting = None;
                if attempt.0 > 1 {
                    lines.push(
                        self.aside(*round, &format!("attempt {attempt} with {}", clients(cohort.len()))),
                    );
                }
            }
            JobEvent::Declined { round, client, reason } => {
                lines.push(self.trouble(*round, client.as_str(), "declined", reason));
            }
            JobEvent::Lost { round, client, reason } => {
                lines.push(self.trouble(*round, client.as_str(), "lost", reason));
            }
            JobEvent::Refused { round, client, reason } => {
                lines.push(self.trouble(*round, client.as_str(), "refused", reason));
            }
            JobEvent::Aborted { round, attempt, reason } => {
                let text =
                    format!("attempt {attempt} aborted: {} (its privacy budget is spent)", printable(reason));
                let text = if self.budget.is_some() {
                    text
                } else {
                    format!("attempt {attempt} aborted: {}", printable(reason))
                };
                lines.push(self.aside(*round, &self.paint.red(&text)));
            }
            JobEvent::Released { round, clients, asked, epsilon, .. } => {
                lines.extend(self.flush());
                let release = Release { round: *round, clients: *clients, asked: *asked, epsilon: *epsilon };
                self.pending = Some(release);
            }
            JobEvent::Evaluated { round, evaluator, metrics } => {
                match self.pending.take_if(|r| r.round == *round) {
                    Some(release) => lines.push(self.round_line(&release, Some(metrics))),
                    None => {
                        let text = format!(
                            "{evaluator} measured loss {:.4}, accuracy {:.4}",
                            metrics.loss, metrics.accuracy
                        );
                        lines.push(self.aside(*round, &text));
                    }
                }
            }
            JobEvent::NotEvaluated { round, evaluator, reason } => {
                lines.extend(self.flush());
                lines.push(self.trouble(*round, evaluator.as_str(), "could not measure", reason));
            }
            JobEvent::Ended { outcome } => {
                lines.extend(self.flush());
                lines.push(self.ending(outcome));
            }
        }
        lines
    }

    /// The line of a round that is still waiting for its measurement, without it.
    pub(crate) fn flush(&mut self) -> Option<String> {
        let release = self.pending.take()?;
        Some(self.round_line(&release, None))
    }

    fn round_line(&self, release: &Release, metrics: Option<&Metrics>) -> String {
        let width = self.rounds.to_string().len();
        let (loss, accuracy) = metrics
            .map_or(("-".into(), "-".into()), |m| (format!("{:.4}", m.loss), format!("{:.4}", m.accuracy)));
        let mut line = format!(
            "{}   {}/{} clients   loss {loss:<7} accuracy {accuracy:<6}",
            self.paint.bold(&format!("round {:>width$}/{}", release.round.0, self.rounds)),
            release.clients,
            release.asked,
        );
        match (release.epsilon, self.budget) {
            (Some(epsilon), Some(budget)) => {
                line += &format!("   ε {:<4} of {}", figure(epsilon), given(budget));
            }
            (Some(epsilon), None) => line += &format!("   ε {}", figure(epsilon)),
            (None, _) => {}
        }
        line.trim_end().to_owned()
    }

    fn trouble(&self, round: Round, who: &str, what: &str, reason: &str) -> String {
        let what = self.paint.red(what);
        self.aside(round, &format!("{} {what}: {}", printable(who), printable(reason)))
    }

    fn aside(&self, round: Round, text: &str) -> String {
        format!("    round {round}: {text}")
    }

    fn ending(&self, outcome: &Outcome) -> String {
        match outcome {
            Outcome::Completed => self.paint.green("completed: all rounds are released"),
            Outcome::BudgetSpent { reason } => {
                format!("{}: {}", self.paint.green("budget spent"), printable(reason))
            }
            Outcome::Cancelled { by, reason } => {
                format!("{} by {}: {}", self.paint.red("cancelled"), printable(by), printable(reason))
            }
            Outcome::Failed { reason } => format!("{}: {}", self.paint.red("failed"), printable(reason)),
        }
    }
}

fn clients(n: usize) -> String {
    if n == 1 { "1 client".to_owned() } else { format!("{n} clients") }
}

#[cfg(test)]
#[path = "narrator_tests.rs"]
mod tests;
