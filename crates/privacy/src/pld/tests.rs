//! Reference values and laws of the accountant.

mod laws;
mod reference;
mod truth;

use super::*;

fn poisson(z: f64, q: f64, count: u64) -> Composition {
    Composition::new(Adjacency::AddRemove).add(Mechanism::poisson_gaussian(z, q).unwrap(), count).unwrap()
}
