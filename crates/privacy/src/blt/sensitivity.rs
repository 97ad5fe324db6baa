//! How far one client can move C·g.

use super::Parameters;
use crate::participation::Participation;

/// Added to every sensitivity, relative: far above the error of its computation.
const ROUNDING_MARGIN: f64 = 1e-10;

impl Parameters {
    /// The largest L2 norm of C·x over all contributions x of one client: vectors of norm 1 in the rounds that
    /// `participation` allows within `rounds` rounds, zero in the others. Rounded up.
    ///
    /// For C ≥ 0 with non-increasing columns (which [`Parameters::new`] made sure of) the worst pattern is the earliest
    /// and densest, rounds 0, b, 2b …, with equal contributions: ‖Σ_j C[:, jb]‖ over j below k (Kalinin and Lampert
    /// 2024, arXiv 2405.13763, Theorem 2; that vectors are no worse than scalars holds because CᵀC ≥ 0). Any planned or
    /// actual number of rounds and rule of participation can be accounted like this, whatever θ and ω were optimised
    /// for.
    ///
    /// # Panics
    /// If `rounds` is zero.
    pub fn sensitivity(&self, rounds: u32, participation: Participation) -> f64 {
        assert!(rounds > 0, "without a round nothing is contributed");
        let c: Vec<f64> = self.coefficients(rounds).collect();
        let b = participation.separation() as usize;
        // At most as many as fit: the window below then never reaches past `rounds`.
        let window = participation.most_within(rounds) as usize * b;
        let mut column = vec![0.0; c.len()];
        let mut squares = 0.0;
        for i in 0..c.len() {
            let before = if i >= b { column[i - b] } else { 0.0 };
            let left = if i >= window { c[i - window] } else { 0.0 };
            column[i] = c[i] + (before - left);
            squares += column[i] * column[i];
        }
        libm::sqrt(squares) * (1.0 + ROUNDING_MARGIN)
    }
}
