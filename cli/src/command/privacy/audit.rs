//! `undertone privacy audit`: one run with canaries, and the verdict in words.

use crate::failure::bad_input;
use crate::output::{Screen, figure, given, printable};
use crate::submission::Submission;
use anyhow::{Result, bail};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use undertone_privacy::audit::{AuditError, Coins, Design, JobUnderAudit, Outcome, Wishes, WithoutNoise};
use undertone_privacy::contract::Unit;
use undertone_privacy::noise::NoiseRng;
use undertone_privacy::sensitivity::Adjacency;
use undertone_round::job::Job;

/// Attack a job's own noise with canaries, and hold what they prove against the claimed ε.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Canaries are the strongest records (or clients) that the contract allows. Each is in or out by the fall of a fair \
coin, or sends one of two opposite updates where neighbours replace a client; the job's own functions draw, clip, sum \
and noise them over the planned rounds; whoever sees only what is released, or with trust = \"local\" each message, \
guesses how the coins fell. So many right guesses are impossible, at the given confidence, unless the true ε is at \
least the measured one (Steinke, Nasr and Jagielski 2023). Nothing is sent, no data is read.

With rule = \"poisson\" canaries are drawn like any client, in as many populations as it takes to hold them, and who \
was drawn is not seen: the claim is the amplified one, which holds against observers and not against the coordinator.

Measured and claimed ε are compared at one δ. Where no run could refute the claim at the contract's δ, even if the \
job had no noise at all, it is a smaller one: the same noise keeps a promise at every δ.

An audit without a contradiction proves nothing: it is a test that the job has passed. Whether it could fail is what \
--without-noise shows: the same rounds with the noise left out must be found out.

Exit codes: 0 if there is no contradiction, 1 if the measured ε is above the claimed one. With --without-noise, 0 if \
it is above (the control worked), 1 if not. 2 if the job promises nothing or the input makes no sense.")]
pub(crate) struct Arguments {
    /// The job file
    #[arg(value_name = "JOB.toml")]
    job: PathBuf,
    /// Canaries [default: enough to refute the claim, up to 50000]
    #[arg(long, value_name = "N")]
    canaries: Option<u32>,
    /// Guesses, surest first [default: as few as can refute the claim]
    #[arg(long, value_name = "R")]
    guesses: Option<u32>,
    /// Rounds to run [default: all that are planned]
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// The probability with which the measured bound holds
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    confidence: f64,
    /// Toss the same coins each time; noise is never seeded
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Leave the noise out: the control, which must be found out
    #[arg(long)]
    without_noise: bool,
}

impl Arguments {
    /// Runs the audit.
    ///
    /// # Errors
    /// If the file or the wishes make no sense, or the operating system gives no randomness.
    pub(super) fn run(self, screen: Screen) -> Result<ExitCode> {
        let submission = Submission::read(&self.job)?;
        let job = submission.job();
        let wishes = Wishes {
            canaries: self.canaries,
            guesses: self.guesses,
            rounds: self.rounds,
            confidence: self.confidence,
        };
        let design = Design::new(job.contract(), wishes).map_err(|e| bad_input(e.to_string()))?;
        let mut noise = NoiseRng::from_os()?;
        let coins = self.seed.map_or_else(|| Coins::fresh(&mut noise), Coins::seeded);
        let outcome = if self.without_noise {
            design.run(&mut WithoutNoise::new(job.contract(), job.grid(), noise), coins)
        } else {
            design.run(&mut JobUnderAudit::new(job.contract(), job.grid(), noise), coins)
        };
        let outcome = outcome.or_else(|e| match e {
            AuditError::Refused { .. } => bail!("{e}"),
            _ => Err(bad_input(e.to_string())),
        })?;

        let passed = outcome.contradicts_the_claim() == self.without_noise;
        let verdict = verdict(self.without_noise, &outcome);
        if screen.json {
            screen.json(&report(job, &design, &outcome, self.without_noise, passed, verdict))?;
        } else {
            for line in describe(job, &design, &outcome, self.without_noise) {
                screen.line(&line)?;
            }
            let paint = screen.paint;
            screen.line(&if passed { paint.green(verdict) } else { paint.red(verdict) })?;
        }
        Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn verdict(without_noise: bool, outcome: &Outcome) -> &'static str {
    match (without_noise, outcome.contradicts_the_claim()) {
        (false, false) => "no contradiction: what the canaries prove is within what the contract admits",
        (false, true) => {
            "contradiction: more leaks than the contract admits; do not run this job with this version"
        }
        (true, true) => "the control worked: without noise the audit refutes the claim, as it must",
        (true, false) => "the control failed: the audit did not notice that the noise was missing",
    }
}

fn describe(job: &Job, design: &Design, outcome: &Outcome, without_noise: bool) -> Vec<String> {
    let contract = job.contract();
    let what = match contract.unit() {
        Unit::Client => "clients",
        Unit::Record | Unit::None => "records",
    };
    let rounds = match (design.rounds(), job.spec().rounds) {
        (rounds, planned) if rounds == planned => format!("all {planned} rounds"),
        (rounds, planned) => format!("{rounds} of {planned} rounds"),
    };
    let noise = if without_noise { "WITHOUT its noise" } else { "with its noise" };
    let own = match (contract.delta(), contract.epsilon_after(design.rounds())) {
        (Some(delta), Some(epsilon)) if delta != design.delta() => {
            format!("; that is {} at the contract's δ {}", figure(epsilon), given(delta))
        }
        _ => String::new(),
    };
    let coin = match contract.adjacency() {
        Some(Adjacency::ReplaceOne) => "each sends one of two updates by a coin",
        _ => "each in or out by a coin",
    };
    let evidence = outcome.evidence;
    vec![
        format!("audit of {}, {rounds}, {noise}", printable(&job.spec().name)),
        format!(
            "  canaries  {} {what}, {coin}; {} of {} guesses are right",
            evidence.canaries(),
            evidence.right(),
            evidence.guesses()
        ),
        format!(
            "  measured  ε is at least {} at δ {}, with a confidence of {}",
            figure(outcome.measured),
            given(design.delta()),
            given(design.confidence())
        ),
        format!("  claimed   ε is at most {} at δ {}{own}", figure(outcome.claimed), given(design.delta())),
    ]
}

fn report(
    job: &Job,
    design: &Design,
    outcome: &Outcome,
    without_noise: bool,
    passed: bool,
    verdict: &str,
) -> serde_json::Value {
    let contract = job.contract();
    json!({
        "job": job.spec().name,
        "digest": job.digest(),
        "unit": contract.unit().as_str(),
        "noise": !without_noise,
        "rounds": design.rounds(),
        "canaries": outcome.evidence.canaries(),
        "guesses": outcome.evidence.guesses(),
        "right": outcome.evidence.right(),
        "confidence": design.confidence(),
        "delta": design.delta(),
        "epsilon_measured": outcome.measured,
        "epsilon_claimed": outcome.claimed,
        "contract": {
            "delta": contract.delta(),
            "epsilon": contract.epsilon_after(design.rounds()),
            "noise_multiplier": contract.noise_multiplier(),
            "accountant": contract.accountant(),
        },
        "contradiction": outcome.contradicts_the_claim(),
        "passed": passed,
        "verdict": verdict,
    })
}
