//! The job of a benchmark: rounds of a perceptron with about as many parameters as asked for, no privacy, no
//! evaluation. Its clients never train, so its data contract is a formality.

use crate::failure::bad_input;
use anyhow::Result;
use undertone_core::limits::{MAX_PARAMETERS, MAX_WIDTH};
use undertone_round::job::{Job, JobSpec, Transport};

/// Features of the data contract.
const FEATURES: u64 = 4;
/// The fewest parameters that the shape below can come close to.
const FEWEST: u64 = 100;

/// Who is asked in each round.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asked {
    /// All of so many.
    All(u32),
    /// So many, drawn anew in each round.
    Drawn(u32),
}

/// A job of `rounds` rounds with a model of about `params` parameters, whose updates and models travel like this.
///
/// # Errors
/// If there can be no such model, or it cannot travel like this.
pub(super) fn job(params: u64, rounds: u32, asked: Asked, transport: Transport) -> Result<Job> {
    if !(FEWEST..=MAX_PARAMETERS).contains(&params) {
        return Err(bad_input(format!("--params must be {FEWEST} to {MAX_PARAMETERS}, not {params}")));
    }
    let (first, second) = hidden(params);
    let (rule, size) = match asked {
        Asked::All(size) => ("all", size),
        Asked::Drawn(size) => ("uniform", size),
    };
    let columns: Vec<String> =
        (0..FEATURES).map(|i| format!(r#"{{ name = "x{i}", kind = "number", range = [-1, 1] }}"#)).collect();
    let text = format!(
        r#"name = "bench"
rounds = {rounds}
model = {{ kind = "mlp", hidden = [{first}, {second}], seed = 1 }}
training = {{ learning_rate = 0.1, local_steps = 1 }}
cohort = {{ rule = "{rule}", size = {size}, min_clients = {size} }}
aggregation = {{ weights = "uniform" }}
privacy = {{ unit = "none" }}
evaluation = {{ every = 0 }}
# A slow machine is measured too. One attempt: a round that fails ends the benchmark.
deadlines = {{ round = "1h", transfer_idle = "10m", max_attempts = 1 }}
[data]
min_rows = 1
label = {{ column = "y", classes = [{{ name = "0", values = ["0"] }}, {{ name = "1", values = ["1"] }}] }}
columns = [{}]
"#,
        columns.join(", ")
    );
    let mut spec = JobSpec::from_toml(&text, "the benchmark's job")?;
    spec.transport = transport;
    spec.resolve().map_err(|e| bad_input(e.to_string()))
}

/// Widths of two hidden layers, near the square root, that come closest to `params` parameters in all.
fn hidden(params: u64) -> (u64, u64) {
    let root = params.isqrt();
    let widest = MAX_WIDTH as u64;
    (root / 2 + 1..=(2 * root).min(widest))
        .filter_map(|first| {
            // first (FEATURES + 1) + second (first + 1) + (second + 1): two classes are one output.
            let rest = params.checked_sub(first * (FEATURES + 1) + 1)?;
            let second = ((rest + (first + 2) / 2) / (first + 2)).clamp(1, widest);
            let total = first * (FEATURES + 1) + second * (first + 2) + 1;
            Some((total.abs_diff(params), first, second))
        })
        .min()
        .map(|(_, first, second)| (first, second))
        .expect("the smallest width leaves room")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_has_the_size_that_was_asked_for() {
        for params in [100, 101, 10_000, 1_000_000, 25_000_000, MAX_PARAMETERS] {
            let job = job(params, 3, Asked::All(2), Transport::default()).unwrap();
            let has = job.layout().len() as u64;
            assert!(has.abs_diff(params) * 100 <= params, "{has} for {params}");
        }
        for params in [0, 99, MAX_PARAMETERS + 1] {
            assert!(
                job(params, 3, Asked::All(2), Transport::default())
                    .unwrap_err()
                    .to_string()
                    .contains("--params must be 100 to")
            );
        }
    }

    #[test]
    fn a_drawn_cohort_is_of_the_asked_size() {
        assert_eq!(job(1000, 1, Asked::Drawn(7), Transport::default()).unwrap().spec().cohort.size(), 7);
    }
}
