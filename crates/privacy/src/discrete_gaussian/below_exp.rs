//! Is a uniform number below e^(-n/d)? Decided exactly, with as many bits as it takes.
//!
//! The sampler asks only when 64 bits and a floating-point estimate leave it open, about once in 2^40 draws, so this
//! is written for clarity and not for speed.

/// Whether V·`odds` < e^(-`n`/`d`) for V uniform in [0, 1), of which `first` are the first 64 bits and `more` gives
/// further ones as they are needed.
///
/// Each round narrows V and the exponential to intervals; when these part, the order is certain. They part with
/// probability one, because e^(-n/d) is irrational (or 1), and a further word is needed once in about 2^64 rounds.
pub(super) fn is_below_exp(first: u64, odds: Odds, n: u128, d: u128, mut more: impl FnMut() -> u64) -> bool {
    let mut words = vec![first];
    loop {
        let limbs = words.len() + 2;
        let (exp, error) = exp_minus(n, d, limbs);
        let low = Fixed::from_words(&words, limbs).scaled(odds);
        let mut step = vec![0; words.len()];
        *step.last_mut().expect("at least one word") = 1;
        // A unit more for what the shift cuts off from each.
        let width = Fixed::from_words(&step, limbs).scaled(odds).plus_units(2);
        if low.plus(&width).plus_units(error) <= exp {
            return true;
        }
        if low >= exp.plus_units(error) {
            return false;
        }
        words.push(more());
    }
}

/// The rational number numerator/2^shift.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Odds {
    pub(super) numerator: u64,
    pub(super) shift: u32,
}

/// e^(-n/d) within ± the second value in units of 2^(-64·limbs).
fn exp_minus(n: u128, d: u128, limbs: usize) -> (Fixed, u64) {
    let (whole, rest) = (n / d, n % d);
    let (mut result, mut error) = taylor(&Fixed::from_ratio(rest, d, limbs));
    let (inverse_e, inverse_error) = taylor(&Fixed::one(limbs));
    for _ in 0..whole {
        if result.is_zero() {
            break;
        }
        // Both are below 1, so that their errors add; one unit is cut off, one covers the product of the errors.
        result = result.times(&inverse_e);
        error += inverse_error + 2;
    }
    (result, error)
}

/// e^-f for f in [0, 1] known to one unit, by its alternating series.
///
/// A term is short of the true one by at most (e + 2)/k + 1 units, where e is the error of the one before: never more
/// than 4. Past the last term that is not zero the rest of the series is smaller than its first term.
fn taylor(f: &Fixed) -> (Fixed, u64) {
    let limbs = f.0.len() - 1;
    let mut term = Fixed::one(limbs);
    let (mut added, mut taken) = (Fixed::zero(limbs), Fixed::zero(limbs));
    let mut k = 0;
    while !term.is_zero() {
        if k % 2 == 0 {
            added = added.plus(&term)
        } else {
            taken = taken.plus(&term)
        }
        k += 1;
        term = term.times(f).over(k);
    }
    (added.minus(&taken), 4 * (k + 2))
}

/// A fixed-point number: 64-bit limbs, the lowest first, the last one before the binary point.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fixed(Vec<u64>);

impl PartialOrd for Fixed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.0.iter().rev().cmp(other.0.iter().rev()))
    }
}

impl Fixed {
    fn zero(limbs: usize) -> Self {
        Self(vec![0; limbs + 1])
    }

    fn one(limbs: usize) -> Self {
        let mut one = Self::zero(limbs);
        one.0[limbs] = 1;
        one
    }

    /// ⌊n/d·2^(64·limbs)⌋ units, for n < d < 2^127, bit by bit.
    fn from_ratio(n: u128, d: u128, limbs: usize) -> Self {
        let mut quotient = Self::zero(limbs);
        let mut rest = n;
        for limb in quotient.0[..limbs].iter_mut().rev() {
            for bit in (0..64).rev() {
                rest <<= 1;
                if rest >= d {
                    rest -= d;
                    *limb |= 1 << bit;
                }
            }
        }
        quotient
    }

    /// 0.w₁w₂…, the first word first.
    fn from_words(words: &[u64], limbs: usize) -> Self {
        let mut value = Self::zero(limbs);
        for (limb, &word) in value.0[..limbs].iter_mut().rev().zip(words) {
            *limb = word;
        }
        value
    }

    fn is_zero(&self) -> bool {
        self.0.iter().all(|&limb| limb == 0)
    }

    fn plus(&self, other: &Self) -> Self {
        let mut carry = false;
        let add = |(&a, &b): (&u64, &u64)| {
            let (first, one) = a.overflowing_add(b);
            let (sum, two) = first.overflowing_add(u64::from(carry));
            carry = one || two;
            sum
        };
        Self(self.0.iter().zip(&other.0).map(add).collect())
    }

    fn plus_units(&self, units: u64) -> Self {
        let mut other = Self::zero(self.0.len() - 1);
        other.0[0] = units;
        self.plus(&other)
    }

    /// The difference; `other` must not be larger.
    fn minus(&self, other: &Self) -> Self {
        let mut borrow = false;
        let sub = |(&a, &b): (&u64, &u64)| {
            let (first, one) = a.overflowing_sub(b);
            let (difference, two) = first.overflowing_sub(u64::from(borrow));
            borrow = one || two;
            difference
        };
        Self(self.0.iter().zip(&other.0).map(sub).collect())
    }

    /// The product, cut off after the last limb.
    fn times(&self, other: &Self) -> Self {
        let limbs = self.0.len() - 1;
        let mut product = vec![0u64; 2 * self.0.len()];
        for (i, &a) in self.0.iter().enumerate() {
            let mut carry = 0u128;
            for (j, &b) in other.0.iter().enumerate() {
                let cell = u128::from(a) * u128::from(b) + u128::from(product[i + j]) + carry;
                product[i + j] = cell as u64;
                carry = cell >> 64;
            }
            product[i + other.0.len()] = carry as u64;
        }
        Self(product[limbs..=2 * limbs].to_vec())
    }

    /// The quotient, rounded down.
    fn over(&self, divisor: u64) -> Self {
        let mut quotient = self.clone();
        let mut rest = 0u128;
        for limb in quotient.0.iter_mut().rev() {
            let cell = (rest << 64) | u128::from(*limb);
            *limb = (cell / u128::from(divisor)) as u64;
            rest = cell % u128::from(divisor);
        }
        quotient
    }

    /// Times `odds`, rounded down.
    fn scaled(&self, odds: Odds) -> Self {
        let mut carry = 0u128;
        let mut scaled = self.clone();
        for limb in &mut scaled.0 {
            let cell = u128::from(*limb) * u128::from(odds.numerator) + carry;
            *limb = cell as u64;
            carry = cell >> 64;
        }
        let mut left = odds.shift;
        while left > 0 {
            let bits = left.min(63);
            let mut above = 0;
            for limb in scaled.0.iter_mut().rev() {
                let cell = *limb;
                *limb = (cell >> bits) | above;
                above = cell << (64 - bits);
            }
            left -= bits;
        }
        scaled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_has_its_digits() {
        // 1/e and e^(-10/3) to 192 bits, by mpmath 1.3.
        for (n, d, digits) in [
            (1, 1, [0x5e2d_58d8_b3bc_df1a, 0xbade_c782_9054_f90d, 0xda98_05aa_b56c_7733]),
            (10, 3, [0x0921_ee4a_be81_f737, 0xf932_c830_c32e_4afa, 0xa3b9_3f2a_e977_77c0]),
        ] {
            let (value, error) = exp_minus(n, d, 5);
            let found: Vec<u64> = value.0.iter().rev().skip(1).take(3).copied().collect();
            assert_eq!(found, digits, "e^-{n}/{d}");
            assert!(error < 10_000);
        }
        let (value, _) = exp_minus(0, 7, 3);
        assert_eq!(value, Fixed::one(3));
    }

    #[test]
    fn a_tie_is_broken_by_the_next_word() {
        let unit = Odds { numerator: 1, shift: 0 };
        let digits = [0x5e2d_58d8_b3bc_df1a, 0xbade_c782_9054_f90d, 0xda98_05aa_b56c_7733];
        let decide = |words: [u64; 3]| {
            let mut rest = words[1..].iter().copied();
            let below = is_below_exp(words[0], unit, 1, 1, || rest.next().expect("three words settle it"));
            (below, 2 - rest.len())
        };
        assert_eq!(decide([digits[0] - 1, 0, 0]), (true, 0));
        assert_eq!(decide([digits[0] + 1, 0, 0]), (false, 0));
        assert_eq!(decide([digits[0], digits[1] - 1, 0]), (true, 1));
        assert_eq!(decide([digits[0], digits[1] + 1, 0]), (false, 1));
        assert_eq!(decide([digits[0], digits[1], digits[2] - 1]), (true, 2));
        assert_eq!(decide([digits[0], digits[1], digits[2] + 1]), (false, 2));
    }

    #[test]
    fn odds_are_applied_and_far_tails_are_decided() {
        // V·3/4 < 1/e where V is just below and just above 4/3e.
        let odds = Odds { numerator: 3, shift: 2 };
        let threshold = 4.0 / 3.0 * libm::exp(-1.0) * 2f64.powi(64);
        assert!(is_below_exp((threshold * 0.999_999) as u64, odds, 1, 1, || unreachable!()));
        assert!(!is_below_exp((threshold * 1.000_001) as u64, odds, 1, 1, || unreachable!()));
        // e^-200 is about 2^-288.5: only a V with 288 leading zeros is below.
        let mut zeros = 0;
        let unit = Odds { numerator: 1, shift: 0 };
        assert!(!is_below_exp(0, unit, 200, 1, || {
            zeros += 1;
            u64::from(zeros == 4) << 40
        }));
        assert!(is_below_exp(0, Odds { numerator: 1, shift: 400 }, 200, 1, || 0));
    }
}
