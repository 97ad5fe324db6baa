//! How noisy the prefix sums are.

use super::Parameters;

impl Parameters {
    /// The root of the mean, over `rounds` prefix sums, of the variance that C⁻¹z has in them for z of variance 1:
    /// RMSE(A·C⁻¹) with A the matrix of prefix sums. Times the sensitivity and the noise multiplier it is the error that
    /// the training run sees.
    ///
    /// # Panics
    /// If `rounds` is zero.
    pub fn prefix_error(&self, rounds: u32) -> f64 {
        assert!(rounds > 0, "without a round there is no error");
        let mut buffers: Vec<(f64, f64, f64)> =
            self.theta().zip(self.omega()).map(|(theta, omega)| (theta, omega, 0.0)).collect();
        // The answer to an impulse in round 0 is the first column of C⁻¹; its prefix sums are that of A·C⁻¹.
        let (mut prefix, mut total) = (0.0, 0.0);
        for i in 0..rounds {
            let taken: f64 = buffers.iter().map(|&(_, omega, state)| omega * state).sum();
            let noise = if i == 0 { 1.0 } else { -taken };
            for (theta, _, state) in &mut buffers {
                *state = *theta * *state + noise;
            }
            prefix += noise;
            // Column j has this value in row i + j: it is in `rounds` - i rows.
            total += f64::from(rounds - i) * prefix * prefix;
        }
        libm::sqrt(total / f64::from(rounds))
    }
}
