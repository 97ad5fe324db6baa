//! Tails of the binomial distribution, to about 13 digits (Loader 2000, *Fast and Accurate Computation of Binomial
//! Probabilities*): what a capped cohort is charged with.

/// Pr[Bin(`n`, `p`) ≥ `k`] for 0 < p < 1.
pub(crate) fn at_least(k: u64, n: u64, p: f64) -> f64 {
    if k == 0 {
        return 1.0;
    }
    if k > n {
        return 0.0;
    }
    let odds = p / (1.0 - p);
    if k as f64 > n as f64 * p {
        let (mut term, mut sum, mut j) = (probability(k, n, p), 0.0, k);
        while term > sum * 1e-17 && j < n {
            sum += term;
            term *= (n - j) as f64 / (j + 1) as f64 * odds;
            j += 1;
        }
        return (sum + term).min(1.0);
    }
    let (mut term, mut below, mut j) = (probability(k - 1, n, p), 0.0, k - 1);
    while term > below * 1e-17 && j > 0 {
        below += term;
        term *= j as f64 / ((n - j + 1) as f64 * odds);
        j -= 1;
    }
    (1.0 - below - term).max(0.0)
}

/// Pr[Bin(n, p) = k].
fn probability(k: u64, n: u64, p: f64) -> f64 {
    let (k_f, n_f) = (k as f64, n as f64);
    if k == 0 {
        return libm::exp(n_f * libm::log1p(-p));
    }
    if k == n {
        return libm::exp(n_f * libm::log(p));
    }
    let rest = n_f - k_f;
    let log = stirling_error(n_f)
        - stirling_error(k_f)
        - stirling_error(rest)
        - deviance(k_f, n_f * p)
        - deviance(rest, n_f * (1.0 - p));
    libm::exp(log) * libm::sqrt(n_f / (2.0 * std::f64::consts::PI * k_f * rest))
}

/// log n! - log(√(2πn)·(n/e)ⁿ) for n ≥ 1.
fn stirling_error(n: f64) -> f64 {
    if n < 16.0 {
        return libm::lgamma(n + 1.0) - (n + 0.5) * libm::log(n) + n
            - 0.5 * libm::log(2.0 * std::f64::consts::PI);
    }
    let nn = n * n;
    (1.0 / 12.0
        - (1.0 / 360.0
            - (1.0 / 1260.0 - (1.0 / 1680.0 - (1.0 / 1188.0 - 691.0 / 360_360.0 / nn) / nn) / nn) / nn)
            / nn)
        / n
}

/// x·log(x/m) + m - x, without cancellation where x is near m.
fn deviance(x: f64, m: f64) -> f64 {
    if (x - m).abs() >= 0.1 * (x + m) {
        return x * libm::log(x / m) + m - x;
    }
    let v = (x - m) / (x + m);
    let (mut sum, mut term) = ((x - m) * v, 2.0 * x * v);
    for j in 1..1000 {
        term *= v * v;
        let next = sum + term / f64::from(2 * j + 1);
        if next == sum {
            break;
        }
        sum = next;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_equal_the_published_ones() {
        // 50-digit arithmetic (mpmath), independent sums.
        for (k, n, p, exact) in BINOMIAL {
            let found = at_least(*k, *n, *p);
            assert!((found / exact - 1.0).abs() < 1e-12, "Pr[Bin({n}, {p}) >= {k}] = {found}, not {exact}");
        }
    }

    #[test]
    fn ends() {
        assert_eq!((at_least(0, 5, 0.3), at_least(6, 5, 0.3)), (1.0, 0.0));
        assert!((at_least(5, 5, 0.3) / 0.3f64.powi(5) - 1.0).abs() < 1e-13);
        assert!((at_least(1, 5, 0.3) - (1.0 - 0.7f64.powi(5))).abs() < 1e-15);
    }

    const BINOMIAL: &[(u64, u64, f64, f64)] = &[
        (16, 1000, 0.01, 0.047_870_585_757_947_22),
        (60, 6000, 0.01, 0.517_427_936_082_887_4),
        (1, 10, 0.3, 0.971_752_475_1),
        (45, 90, 0.5, 0.541_935_561_494_355_3),
        (130, 10000, 0.01, 0.002_175_091_348_918_602),
        (160, 10000, 0.01, 1.706_423_206_656_146e-08),
        (95, 10000, 0.01, 0.705_853_548_613_671_6),
        (1010, 100000, 0.01, 0.379_558_018_948_033_6),
        (20, 20, 0.7, 0.000_797_922_662_976_118_9),
        (3, 50, 0.2, 0.998_714_585_046_756_7),
        (1200, 2000, 0.55, 3.558_135_176_693_366_3e-06),
    ];
}
