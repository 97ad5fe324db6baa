//! A classification set from a seed, after scikit-learn's `make_classification` (which follows Guyon 2003, "Design
//! of experiments for the NIPS 2003 variable selection benchmark").
//!
//! Each class is a few normal clusters, each at its own corner of a hypercube in the space of informative features
//! and with its own random covariance. Redundant features are random linear combinations of the informative ones,
//! the others are noise, and the columns are in a random order. Not the same numbers as scikit-learn's, but the
//! same kind of set; the same bytes on every machine for the same seed.

use crate::split::random_order;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha20Rng;
use std::fmt::Write as _;

/// Most rows, and most features, of a synthetic set.
const MOST: usize = 1_000_000;

/// What the set should be like.
#[derive(Debug, Clone, PartialEq)]
pub struct Classification {
    /// Number of rows.
    pub samples: usize,
    /// Number of columns besides the label.
    pub features: usize,
    /// Columns that carry the class.
    pub informative: usize,
    /// Columns that are linear combinations of the informative ones. The rest is noise.
    pub redundant: usize,
    /// Number of classes, with as many rows each as can be.
    pub classes: usize,
    /// Clusters of each class.
    pub clusters_per_class: usize,
    /// Half the side of the hypercube: larger is easier.
    pub class_sep: f64,
    /// Share of rows whose class is drawn anew at random: larger is harder.
    pub flip_y: f64,
    /// The seed.
    pub seed: u64,
}

impl Default for Classification {
    /// The quickstart's set; where scikit-learn has a default, it is that.
    fn default() -> Self {
        Self {
            samples: 1000,
            features: 20,
            informative: 2,
            redundant: 10,
            classes: 2,
            clusters_per_class: 2,
            class_sep: 1.0,
            flip_y: 0.01,
            seed: 1,
        }
    }
}

/// A generated set.
#[derive(Debug, Clone, PartialEq)]
pub struct SyntheticSet {
    /// Shape (rows, features), row by row.
    pub values: Vec<f64>,
    /// The class of each row.
    pub labels: Vec<u32>,
    /// Number of features of a row.
    pub features: usize,
}

/// Why there is no such set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("synthetic set: {0}")]
pub struct InvalidClassification(String);

impl Classification {
    /// Generates the set.
    ///
    /// # Errors
    /// [`InvalidClassification`] says which number is wrong.
    pub fn generate(&self) -> Result<SyntheticSet, InvalidClassification> {
        self.validate()?;
        let mut rng = ChaCha20Rng::seed_from_u64(self.seed);
        let clusters = self.classes * self.clusters_per_class;
        let corners = self.corners(clusters, &mut rng);
        // One mixing matrix a cluster gives each its own covariance; rows are outputs.
        let shapes: Vec<Vec<f64>> =
            (0..clusters).map(|_| uniform(self.informative * self.informative, &mut rng)).collect();
        let mixing = uniform(self.redundant * self.informative, &mut rng);

        let row_order = random_order(self.samples, &mut rng);
        let columns = random_order(self.features, &mut rng);
        let mut values = vec![0.0; self.samples * self.features];
        let mut labels = vec![0; self.samples];
        for (i, &row) in row_order.iter().enumerate() {
            let cluster = i % clusters;
            let normals: Vec<f64> = (0..self.informative).map(|_| normal(&mut rng)).collect();
            let mut point = product(&shapes[cluster], &normals);
            for (x, corner) in point.iter_mut().zip(&corners[cluster]) {
                *x += corner;
            }
            let redundant = product(&mixing, &point);
            let noise = self.features - self.informative - self.redundant;
            let noise = (0..noise).map(|_| normal(&mut rng));
            for (&column, x) in columns.iter().zip(point.iter().copied().chain(redundant).chain(noise)) {
                values[row * self.features + column] = x;
            }
            let flipped = rng.random::<f64>() < self.flip_y;
            let random_class = rng.random_range(0..self.classes as u32);
            labels[row] = if flipped { random_class } else { (cluster % self.classes) as u32 };
        }
        Ok(SyntheticSet { values, labels, features: self.features })
    }

    /// The corner at which each cluster sits: all different, in a random order.
    fn corners(&self, clusters: usize, rng: &mut ChaCha20Rng) -> Vec<Vec<f64>> {
        let mut chosen: Vec<Vec<bool>> = Vec::with_capacity(clusters);
        while chosen.len() < clusters {
            let corner: Vec<bool> = (0..self.informative).map(|_| rng.random()).collect();
            if !chosen.contains(&corner) {
                chosen.push(corner);
            }
        }
        let coordinate = |up: bool| if up { self.class_sep } else { -self.class_sep };
        chosen.into_iter().map(|c| c.into_iter().map(coordinate).collect()).collect()
    }

    fn validate(&self) -> Result<(), InvalidClassification> {
        let bad = |text: String| Err(InvalidClassification(text));
        if self.samples == 0 || self.samples > MOST || self.features > MOST {
            return bad(format!("1 to {MOST} rows and at most as many features"));
        }
        if self.samples.saturating_mul(self.features) > 100 * MOST {
            return bad(format!("{} rows of {} features are too many values", self.samples, self.features));
        }
        if self.informative == 0 || self.informative.saturating_add(self.redundant) > self.features {
            return bad(format!(
                "{} informative and {} redundant features do not fit in {}",
                self.informative, self.redundant, self.features
            ));
        }
        // Compared as scikit-learn does: each cluster needs a corner of its own.
        let corners = 1usize.checked_shl(self.informative.min(20) as u32).unwrap_or(usize::MAX);
        let clusters = self.classes.saturating_mul(self.clusters_per_class);
        if self.classes < 2 || self.clusters_per_class == 0 || clusters > corners {
            return bad(format!(
                "{} classes of {} clusters need at least 2 classes, 1 cluster, and a corner each of the {corners} \
                 that {} informative features have",
                self.classes, self.clusters_per_class, self.informative
            ));
        }
        if !(self.class_sep.is_finite() && (0.0..=1.0).contains(&self.flip_y)) {
            return bad("class_sep must be finite and flip_y within 0 to 1".into());
        }
        Ok(())
    }
}

impl SyntheticSet {
    /// The set as CSV with six decimals: `x00, x01, …, label`.
    pub fn to_csv(&self) -> String {
        let digits = self.features.saturating_sub(1).to_string().len().max(2);
        let mut text = String::new();
        for i in 0..self.features {
            // Writing to a string does not fail.
            let _ = write!(text, "x{i:0digits$},");
        }
        text.push_str("label\n");
        for (row, label) in self.values.chunks(self.features).zip(&self.labels) {
            for x in row {
                let _ = write!(text, "{x:.6},");
            }
            let _ = writeln!(text, "{label}");
        }
        text
    }
}

/// `n` values, uniform in [-1, 1).
fn uniform(n: usize, rng: &mut ChaCha20Rng) -> Vec<f64> {
    (0..n).map(|_| 2.0 * rng.random::<f64>() - 1.0).collect()
}

/// A standard normal value (Box and Muller 1958). Logarithm and cosine from `libm` and not from the machine, whose
/// last bit may differ. For synthetic data only: privacy noise is never drawn like this.
pub(crate) fn normal(rng: &mut ChaCha20Rng) -> f64 {
    let u = 1.0 - rng.random::<f64>();
    let v: f64 = rng.random();
    libm::sqrt(-2.0 * libm::log(u)) * libm::cos(2.0 * std::f64::consts::PI * v)
}

/// The product of a matrix, given row by row, and a vector.
fn product(matrix: &[f64], vector: &[f64]) -> Vec<f64> {
    matrix.chunks(vector.len()).map(|row| row.iter().zip(vector).map(|(a, b)| a * b).sum()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csv_text::CsvText;

    /// Rank by Gaussian elimination with full pivoting.
    fn rank(set: &SyntheticSet) -> usize {
        let mut rows: Vec<Vec<f64>> = set.values.chunks(set.features).map(<[f64]>::to_vec).collect();
        let mut rank = 0;
        loop {
            let places = (rank..rows.len()).flat_map(|r| (0..set.features).map(move |c| (r, c)));
            let Some((r, c)) = places.max_by(|a, b| rows[a.0][a.1].abs().total_cmp(&rows[b.0][b.1].abs()))
            else {
                return rank;
            };
            if rows[r][c].abs() < 1e-9 {
                return rank;
            }
            rows.swap(rank, r);
            let pivot = rows[rank].clone();
            for row in &mut rows[rank + 1..] {
                let factor = row[c] / pivot[c];
                for (x, p) in row.iter_mut().zip(&pivot) {
                    *x -= factor * p;
                }
                row[c] = 0.0;
            }
            rank += 1;
        }
    }

    #[test]
    fn redundant_columns_are_in_the_span_of_the_informative_ones() {
        let set = Classification::default().generate().unwrap();
        assert_eq!(rank(&set), 2 + 8, "2 informative and 8 of noise");
        let set = Classification { redundant: 0, ..Classification::default() }.generate().unwrap();
        assert_eq!(rank(&set), 20);
    }

    #[test]
    fn shape_balance_and_flips_are_as_asked() {
        let set = Classification { flip_y: 0.0, ..Classification::default() }.generate().unwrap();
        assert_eq!((set.values.len(), set.labels.len()), (20_000, 1000));
        assert_eq!(set.labels.iter().filter(|&&l| l == 1).count(), 500);
        assert!(set.values.iter().all(|x| x.is_finite()));
        let flipped = Classification { flip_y: 0.5, ..Classification::default() }.generate().unwrap();
        let changed = set.labels.iter().zip(&flipped.labels).filter(|(a, b)| a != b).count();
        // A quarter of 1000 with a standard deviation of 14.
        assert!((180..=320).contains(&changed), "{changed}");
    }

    #[test]
    fn clusters_sit_at_the_corners() {
        let wide = Classification {
            class_sep: 1000.0,
            flip_y: 0.0,
            redundant: 0,
            features: 3,
            informative: 3,
            clusters_per_class: 4,
            ..Classification::default()
        };
        let set = wide.generate().unwrap();
        let mut corners = std::collections::BTreeMap::new();
        for (row, label) in set.values.chunks(3).zip(&set.labels) {
            assert!(row.iter().all(|x| (x.abs() - 1000.0).abs() < 20.0), "{row:?}");
            let corner: Vec<bool> = row.iter().map(|x| *x > 0.0).collect();
            assert_eq!(corners.insert(corner, *label).unwrap_or(*label), *label);
        }
        assert_eq!(corners.len(), 8);
    }

    #[test]
    fn the_csv_is_the_same_for_the_same_seed() {
        let csv = Classification::default().generate().unwrap().to_csv();
        assert_eq!(csv, Classification::default().generate().unwrap().to_csv());
        assert_ne!(csv, Classification { seed: 2, ..Classification::default() }.generate().unwrap().to_csv());
        let parsed = CsvText::parse(&csv).unwrap();
        assert!(parsed.header.starts_with("x00,x01,") && parsed.header.ends_with(",x19,label"));
        assert_eq!(parsed.rows.len(), 1000);
    }

    #[test]
    fn impossible_sets_are_refused() {
        let base = Classification::default();
        for wrong in [
            Classification { samples: 0, ..base.clone() },
            Classification { informative: 0, ..base.clone() },
            Classification { redundant: 19, ..base.clone() },
            Classification { clusters_per_class: 3, ..base.clone() },
            Classification { classes: 1, ..base.clone() },
            Classification { flip_y: 1.5, ..base.clone() },
            Classification { class_sep: f64::NAN, ..base },
        ] {
            assert!(wrong.generate().is_err(), "{wrong:?}");
        }
    }
}
