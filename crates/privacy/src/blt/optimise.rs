//! Parameters that make sensitivity times error small.

use super::{BltError, MAX_BLT_ROUNDS, MAX_BUFFERS, Parameters};
use crate::participation::Participation;

/// Searches for the `buffers` pairs (θ, ω) with the least product of sensitivity and prefix error for a run of `rounds`
/// rounds.
///
/// A search for *utility*: privacy is computed from whatever comes out, so an optimum that was missed costs accuracy and
/// never privacy. The arithmetic is f64 and libm, the same bits on every machine. Takes time in proportion to `rounds`:
/// about a tenth of a second for four buffers and 1024 rounds.
///
/// # Errors
/// [`BltError`] for a number of buffers or rounds out of range.
pub fn optimise(buffers: usize, rounds: u32, participation: Participation) -> Result<Parameters, BltError> {
    if !(1..=MAX_BUFFERS).contains(&buffers) {
        return Err(BltError::Buffers { theta: buffers, omega: buffers });
    }
    if !(1..=MAX_BLT_ROUNDS).contains(&rounds) {
        return Err(BltError::Rounds(rounds));
    }
    let loss = |point: &[f64]| match parameters(point) {
        Ok(p) => p.sensitivity(rounds, participation) * p.prefix_error(rounds),
        // Σω above 1 or θ at its ends: outside of what is allowed.
        Err(_) => f64::INFINITY,
    };
    // One more buffer at a time: each search starts from the best of the one before, with a fast or a slow buffer that
    // does little, so that more buffers are never worse.
    let slow = libm::log(f64::from(rounds) + 1.0);
    let mut best: Vec<f64> = Vec::new();
    for _ in 0..buffers {
        let starts = [-1.0, 1.0, 0.5 * slow, slow].map(|theta| {
            let mut start = best.clone();
            start.extend([theta, if best.is_empty() { -1.5 } else { -4.0 }]);
            start
        });
        let found = starts.into_iter().map(|start| search(loss, start));
        best = found.min_by(|a, b| a.1.total_cmp(&b.1)).expect("there are four starts").0;
    }
    parameters(&best)
}

/// θ = 1/(1 + e^-a), ω = e^w: no bound but Σω ≤ 1 is left.
fn parameters(point: &[f64]) -> Result<Parameters, BltError> {
    let theta: Vec<f64> = point.iter().step_by(2).map(|a| 1.0 / (1.0 + libm::exp(-a))).collect();
    let omega: Vec<f64> = point.iter().skip(1).step_by(2).map(|&w| libm::exp(w)).collect();
    Parameters::new(&theta, &omega)
}

/// Nelder and Mead's simplex (1965), started again around its result until that no longer helps: a simplex can
/// collapse before it has arrived.
fn search(loss: impl Fn(&[f64]) -> f64, start: Vec<f64>) -> (Vec<f64>, f64) {
    let mut best = (loss(&start), start);
    for restart in 0..8 {
        let size = if restart % 2 == 0 { 0.5 } else { 0.1 };
        let found = simplex(&loss, &best.1, size);
        let gain = 1.0 - found.0 / best.0;
        if found.0 <= best.0 {
            best = found;
        }
        // Also ends where the start was not allowed and nothing else was found (NaN).
        if restart > 0 && (gain.is_nan() || gain < 1e-6) {
            break;
        }
    }
    (best.1, best.0)
}

fn simplex(loss: impl Fn(&[f64]) -> f64, start: &[f64], size: f64) -> (f64, Vec<f64>) {
    const STEPS_PER_DIMENSION: usize = 150;
    let dimensions = start.len();
    let mut corners = vec![(loss(start), start.to_vec())];
    for i in 0..dimensions {
        let mut corner = start.to_vec();
        corner[i] += size;
        corners.push((loss(&corner), corner));
    }
    for _ in 0..STEPS_PER_DIMENSION * dimensions {
        corners.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (best, second, worst) = (corners[0].0, corners[dimensions - 1].0, corners[dimensions].0);
        if worst - best <= 1e-9 * best {
            break;
        }
        let centre: Vec<f64> = (0..dimensions)
            .map(|i| corners[..dimensions].iter().map(|c| c.1[i]).sum::<f64>() / dimensions as f64)
            .collect();
        let along = |factor: f64| {
            let corner: Vec<f64> =
                centre.iter().zip(&corners[dimensions].1).map(|(c, w)| c + factor * (c - w)).collect();
            (loss(&corner), corner)
        };
        let reflected = along(1.0);
        let next = if reflected.0 < best {
            let expanded = along(2.0);
            if expanded.0 < reflected.0 { expanded } else { reflected }
        } else if reflected.0 < second {
            reflected
        } else {
            let contracted = along(if reflected.0 < worst { 0.5 } else { -0.5 });
            if contracted.0 < worst.min(reflected.0) {
                contracted
            } else {
                let towards = corners[0].1.clone();
                for corner in &mut corners[1..] {
                    for (x, t) in corner.1.iter_mut().zip(&towards) {
                        *x = f64::midpoint(*x, *t);
                    }
                    corner.0 = loss(&corner.1);
                }
                continue;
            }
        };
        corners[dimensions] = next;
    }
    corners.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).expect("a simplex has corners")
}
