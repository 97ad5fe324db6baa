//! From a job's events to lines for people: one line a round, what went wrong indented below it.

use crate::output::{Paint, figure, given, printable, size};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use undertone_core::id::Round;
use undertone_core::trainer::Metrics;
use undertone_round::event::{JobEvent, Outcome};

/// How long a round's line waits for its measurement. Evaluators lag a little behind the rounds, most of all behind
/// the first, for which they must load their libraries.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// A round of fewer bytes in and out is told without them: the line is long enough.
const NOTABLE_BYTES: u64 = 1 << 20;

/// Tells a job's story line by line. Time is an argument.
#[derive(Debug)]
pub(crate) struct Narrator {
    rounds: u32,
    budget: Option<f64>,
    paint: Paint,
    /// Released rounds whose line is not told yet, in order.
    pending: VecDeque<Release>,
    waiting: Option<(Round, u32)>,
}

#[derive(Debug)]
struct Release {
    round: Round,
    clients: u32,
    asked: u32,
    epsilon: Option<f64>,
    /// Bytes in and out, where they are many.
    traffic: Option<(u64, u64)>,
    since: Instant,
    metrics: Option<Metrics>,
    /// Told below the line.
    notes: Vec<String>,
}

impl Release {
    fn is_ripe(&self, now: Instant) -> bool {
        self.metrics.is_some() || !self.notes.is_empty() || now.duration_since(self.since) >= PATIENCE
    }
}

impl Narrator {
    /// For a job of this many rounds and this budget (none: no privacy promised).
    pub(crate) fn new(rounds: u32, budget: Option<f64>, paint: Paint) -> Self {
        Self { rounds, budget, paint, pending: VecDeque::new(), waiting: None }
    }

    /// The lines that an event is worth; a round's line may come later.
    pub(crate) fn tell(&mut self, event: &JobEvent, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        match event {
            JobEvent::Submitted { .. } | JobEvent::Asked { .. } | JobEvent::Received { .. } => {}
            JobEvent::Waiting { round, present, needed } => {
                // The same again is no news.
                if self.waiting.replace((*round, *present)) != Some((*round, *present)) {
                    lines.extend(self.all());
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
                lines.push(self.aside(*round, &self.trouble(client.as_str(), "declined", reason)));
            }
            JobEvent::Lost { round, client, reason } => {
                lines.push(self.aside(*round, &self.trouble(client.as_str(), "lost", reason)));
            }
            JobEvent::Refused { round, client, reason } => {
                lines.push(self.aside(*round, &self.trouble(client.as_str(), "refused", reason)));
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
            JobEvent::Released { round, clients, asked, epsilon, received_bytes, sent_bytes, .. } => {
                self.pending.push_back(Release {
                    round: *round,
                    clients: *clients,
                    asked: *asked,
                    epsilon: *epsilon,
                    traffic: received_bytes.zip(*sent_bytes).filter(|(i, o)| (*i).max(*o) >= NOTABLE_BYTES),
                    since: now,
                    metrics: None,
                    notes: Vec::new(),
                });
            }
            JobEvent::Evaluated { round, evaluator, metrics } => match self.pending(*round) {
                Some(release) if release.metrics.is_none() && release.notes.is_empty() => {
                    release.metrics = Some(*metrics);
                }
                _ => {
                    let near = metrics.nearness().map_or(String::new(), |near| format!(", {near}"));
                    let text = format!("{evaluator} measured loss {:.4}{near}", metrics.loss);
                    lines.extend(self.note(*round, &text));
                }
            },
            JobEvent::NotEvaluated { round, evaluator, reason } => {
                let text = self.trouble(evaluator.as_str(), "could not measure", reason);
                lines.extend(self.note(*round, &text));
            }
            JobEvent::Ended { outcome } => {
                lines.extend(self.all());
                lines.push(self.ending(outcome));
            }
        }
        lines.extend(self.ripe(now));
        lines
    }

    /// The lines of rounds that were measured or have waited for it long enough.
    pub(crate) fn ripe(&mut self, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        // In order: a round that is measured waits for those before it.
        while let Some(release) = self.pending.pop_front_if(|r| r.is_ripe(now)) {
            lines.extend(self.round_lines(release));
        }
        lines
    }

    /// The lines of all rounds that are not told yet.
    fn all(&mut self) -> Vec<String> {
        let all: Vec<Release> = self.pending.drain(..).collect();
        all.into_iter().flat_map(|r| self.round_lines(r)).collect()
    }

    fn pending(&mut self, round: Round) -> Option<&mut Release> {
        self.pending.iter_mut().find(|r| r.round == round)
    }

    /// Something to say about a round: below its line if that is still to come, else now.
    fn note(&mut self, round: Round, text: &str) -> Option<String> {
        let line = self.aside(round, text);
        match self.pending(round) {
            Some(release) => {
                release.notes.push(line);
                None
            }
            None => Some(line),
        }
    }

    fn round_lines(&self, release: Release) -> Vec<String> {
        let mut lines = vec![self.round_line(&release)];
        lines.extend(release.notes);
        lines
    }

    fn round_line(&self, release: &Release) -> String {
        let width = self.rounds.to_string().len();
        let (loss, near) = match release.metrics {
            Some(m) => (format!("{:.4}", m.loss), m.nearness().unwrap_or_default()),
            None => ("-".into(), "accuracy -".into()),
        };
        let mut line = format!(
            "{}   {}/{} clients   loss {loss:<7} {near:<15}",
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
        if let Some((received, sent)) = release.traffic {
            line += &format!("   {} in, {} out", size(received), size(sent));
        }
        line.trim_end().to_owned()
    }

    fn trouble(&self, who: &str, what: &str, reason: &str) -> String {
        format!("{} {}: {}", printable(who), self.paint.red(what), printable(reason))
    }

    fn aside(&self, round: Round, text: &str) -> String {
        format!("    round {round}: {text}")
    }

    fn ending(&self, outcome: &Outcome) -> String {
        match outcome {
            Outcome::Completed => self.paint.green("completed: all rounds are released"),
            Outcome::StoppedEarly { reason, .. } => self.paint.green(&format!("stopped early: {reason}")),
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
