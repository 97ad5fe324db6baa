//! A budget for steps that are chosen while results come in: other noise, another cohort, an earlier stop.
//!
//! The sum of privacy losses, and a privacy loss distribution, are proofs for steps fixed in advance. Here a step is
//! admitted only if the Rényi divergences of all steps, this one too, stay within a budget at one order that was fixed
//! before the first: then the whole is as private as the budget says, however steps were chosen (Feldman and Zrnic
//! 2021, arXiv 2008.11193, Rényi privacy filters). The order must not move to whichever fits best at the end.

use super::RdpCurve;

/// Why a filter or a step is refused.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum FilterError {
    /// δ is no probability, or ε nothing to divide.
    #[error("a filter needs an epsilon above 0 and a delta between 0 and 1, not {epsilon} and {delta}")]
    Budget {
        /// ε.
        epsilon: f64,
        /// δ.
        delta: f64,
    },
    /// At this order nothing is left for any step.
    #[error(
        "at the order {order} the conversion to delta alone takes the whole of epsilon: fix a higher order"
    )]
    Order {
        /// The order.
        order: f64,
    },
    /// The step's divergence at the filter's order is not known.
    #[error("the mechanism's curve has no order {order}: fix the filter at one of its orders")]
    UnknownOrder {
        /// The order.
        order: f64,
    },
    /// The step does not fit.
    #[error("the step costs {cost} at the order {order} and {left} is left: use more noise or stop")]
    Exhausted {
        /// The order.
        order: f64,
        /// RDP of the step.
        cost: f64,
        /// RDP that is left.
        left: f64,
    },
}

/// Admits steps within an (ε, δ) budget.
#[derive(Debug, Clone, PartialEq)]
pub struct RdpFilter {
    order: f64,
    budget: f64,
    delta: f64,
    spent: f64,
}

impl RdpFilter {
    /// A filter that keeps (`epsilon`, `delta`) at a fixed `order`.
    ///
    /// # Errors
    /// [`FilterError::Budget`] or [`FilterError::Order`].
    pub fn new(epsilon: f64, delta: f64, order: f64) -> Result<Self, FilterError> {
        if !(epsilon > 0.0 && epsilon.is_finite() && delta > 0.0 && delta < 1.0) {
            return Err(FilterError::Budget { epsilon, delta });
        }
        // What the conversion to δ takes of ε before anything is spent.
        let budget = epsilon - super::convert(order, 0.0, delta);
        if !(order > 1.0 && budget > 0.0) {
            return Err(FilterError::Order { order });
        }
        Ok(Self { order, budget, delta, spent: 0.0 })
    }

    /// A filter that admits nothing: no order leaves anything of the budget.
    pub(crate) fn closed(delta: f64) -> Self {
        Self { order: 2.0, budget: f64::MIN_POSITIVE, delta, spent: 0.0 }
    }

    /// A filter at the order that would admit most steps of the planned `curve`.
    ///
    /// # Errors
    /// [`FilterError`] if no order of the curve leaves anything.
    pub fn planned(epsilon: f64, delta: f64, curve: &RdpCurve) -> Result<Self, FilterError> {
        let mut best: Option<(f64, Self)> = None;
        let mut refused = FilterError::Budget { epsilon, delta };
        for &(order, rdp) in &curve.points {
            match Self::new(epsilon, delta, order) {
                Ok(filter) if best.as_ref().is_none_or(|b| filter.budget / rdp > b.0) => {
                    best = Some((filter.budget / rdp, filter));
                }
                Ok(_) => {}
                Err(e) => refused = e,
            }
        }
        best.map(|b| b.1).ok_or(refused)
    }

    /// Charges `count` steps of `curve`, or none of them.
    ///
    /// # Errors
    /// [`FilterError::Exhausted`] if they do not fit, [`FilterError::UnknownOrder`].
    pub fn admit(&mut self, curve: &RdpCurve, count: u64) -> Result<(), FilterError> {
        let order = self.order;
        let cost = curve.at(order).ok_or(FilterError::UnknownOrder { order })? * count as f64;
        if self.spent + cost > self.budget {
            return Err(FilterError::Exhausted { order, cost, left: self.budget - self.spent });
        }
        self.spent += cost;
        Ok(())
    }

    /// Charges `count` steps of `curve` whether they fit or not: what has happened is spent. A curve without the
    /// filter's order spends everything.
    pub fn charge(&mut self, curve: &RdpCurve, count: u64) {
        self.spent += curve.at(self.order).map_or(f64::INFINITY, |cost| cost * count as f64);
    }

    /// How many further steps of `curve` would be admitted.
    pub fn room(&self, curve: &RdpCurve) -> u64 {
        match curve.at(self.order) {
            Some(cost) if cost > 0.0 => ((self.budget - self.spent) / cost * (1.0 - 1e-12)) as u64,
            _ => 0,
        }
    }

    /// The order that was fixed.
    pub fn order(&self) -> f64 {
        self.order
    }

    /// The share of the budget that is spent, 0 to 1.
    pub fn share_spent(&self) -> f64 {
        self.spent / self.budget
    }

    /// The running odometer: an ε that holds at δ for what has been released so far, at whatever moment one chooses to
    /// look and stop. Steps up in rungs and is above what a filter of that size would have promised; the filter's own
    /// ε is what is enforced.
    ///
    /// Rung f has the Rényi budget of 2^f thousandths of the filter's and δ_f = 6δ/(πf)², f = 1, 2, …: each is a filter,
    /// and by the union bound all hold at once (Lécuyer 2021, arXiv 2103.01379). By Markov's inequality,
    /// `Pr[loss > ε]` ≤ e^{(α-1)(B-ε)}.
    pub fn odometer(&self) -> f64 {
        if self.spent == 0.0 {
            return 0.0;
        }
        let mut rung = 1;
        let mut size = self.budget * 0.002;
        while size < self.spent {
            rung += 1;
            size *= 2.0;
        }
        let f = f64::from(rung);
        let log_delta = libm::log(self.delta * 6.0) - 2.0 * libm::log(std::f64::consts::PI * f);
        size - log_delta / (self.order - 1.0)
    }
}

impl RdpCurve {
    /// RDP of one step at `order`, if the curve has it.
    pub fn at(&self, order: f64) -> Option<f64> {
        self.points.iter().find(|p| p.0 == order).map(|p| p.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(z: f64) -> RdpCurve {
        RdpCurve::new(z, 0.01).unwrap()
    }

    #[test]
    fn admits_what_the_accountant_allows_for_the_planned_steps() {
        let mut filter = RdpFilter::planned(2.0, 1e-5, &curve(1.0)).unwrap();
        let room = filter.room(&curve(1.0));
        assert!(curve(1.0).epsilon(room, 1e-5) <= 2.0 && curve(1.0).epsilon(room + 2, 1e-5) > 2.0, "{room}");
        filter.admit(&curve(1.0), room).unwrap();
        assert!(filter.share_spent() <= 1.0 && filter.share_spent() > 0.99);
        let refused = filter.admit(&curve(1.0), 2).unwrap_err();
        assert!(matches!(refused, FilterError::Exhausted { .. }), "{refused}");
    }

    #[test]
    fn a_change_of_noise_is_charged_and_a_refused_step_is_not() {
        let mut filter = RdpFilter::planned(2.0, 1e-5, &curve(1.0)).unwrap();
        filter.admit(&curve(1.0), 300).unwrap();
        let before = filter.clone();
        assert!(filter.admit(&curve(0.5), 10_000).is_err());
        assert_eq!(filter, before);
        let order = filter.order();
        filter.admit(&curve(2.0), 5).unwrap();
        let cost = 300.0 * curve(1.0).at(order).unwrap() + 5.0 * curve(2.0).at(order).unwrap();
        assert!(
            (filter.share_spent() / before.share_spent() - cost / (300.0 * curve(1.0).at(order).unwrap()))
                .abs()
                < 1e-12
        );
        assert_eq!(filter.order(), order);
    }

    #[test]
    fn the_odometer_rises_and_is_never_below_the_accountant() {
        let mut filter = RdpFilter::planned(3.0, 1e-6, &curve(1.0)).unwrap();
        assert_eq!(filter.odometer(), 0.0);
        let (mut last, mut steps) = (0.0, 0);
        while filter.admit(&curve(1.0), 20).is_ok() {
            steps += 20;
            let now = filter.odometer();
            assert!(now >= last && now >= curve(1.0).epsilon(steps, 1e-6), "{steps}: {now}");
            last = now;
        }
        assert!(steps > 500);
    }

    #[test]
    fn nonsense_is_refused() {
        for (epsilon, delta) in [(0.0, 1e-5), (f64::NAN, 1e-5), (1.0, 0.0), (1.0, 1.0), (f64::INFINITY, 0.5)]
        {
            assert!(matches!(RdpFilter::new(epsilon, delta, 8.0), Err(FilterError::Budget { .. })));
        }
        for order in [1.0, 0.5, 1.1, f64::NAN] {
            assert!(matches!(RdpFilter::new(1.0, 1e-5, order), Err(FilterError::Order { .. })), "{order}");
        }
        let mut filter = RdpFilter::new(5.0, 1e-5, 8.5).unwrap();
        filter.order = 8.25;
        assert_eq!(filter.admit(&curve(1.0), 1), Err(FilterError::UnknownOrder { order: 8.25 }));
        assert_eq!(filter.room(&curve(1.0)), 0);
    }
}
