//! Exact squared distances between updates, and between updates and a real centre.
//!
//! Updates are multiplied in tiles of 64 columns, each in the cheapest arithmetic that is exact for it:
//!
//! - magnitudes up to 5792 in integers of 16 bits with sums of 32, as 64·5792² < 2^31 (eight products an instruction);
//! - larger ones in f64, if the largest magnitudes of the two rows multiply to at most 2^47, so that every partial
//!   sum is an integer of at most 64·2^47 = 2^53;
//! - larger ones still (whoever sends them) in f64 again, one row split into two halves, whose products with any row
//!   are at most 2^45.
//!
//! Tiles are added as i128. So a distance is the same integer on every machine, whatever the order, the threads or the
//! blocks, and nothing cancels.

use super::RuleError;
use super::blocks::{Block, GROUP, Tiling, walk_only};
use super::rows::Rows;

/// Most rows whose distances are computed: a million products a thread are 16 MiB.
pub(super) const MOST_ROWS: usize = 1024;

/// Columns of a tile.
const TILE: usize = 64;
/// Rows of a tile that are multiplied in f64 with [`ACROSS`] others at a time: what fits 16 registers.
const DOWN: usize = 2;
const ACROSS: usize = 4;
/// Columns at a time, for vectors of two.
const LANES: usize = 2;

/// Largest magnitude of which 64 products sum to less than 2^31.
const SMALL: u32 = 5792;
/// Largest product of two magnitudes of which 64 are summed exactly in f64.
const EXACT: f64 = (1u64 << 47) as f64;

/// Squared distances between rows, in squared units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Distances {
    rows: usize,
    squared: Vec<u128>,
}

impl Distances {
    /// Between all rows.
    ///
    /// # Errors
    /// [`RuleError`] of reading, and if there are more than [`MOST_ROWS`] rows.
    pub(super) fn between(rows: &dyn Rows, tiling: Tiling) -> Result<Self, RuleError> {
        let n = rows.rows();
        if n > MOST_ROWS {
            let text = format!("distances are computed between at most {MOST_ROWS} updates, not {n}");
            return Err(RuleError::Refused(text));
        }
        let products = walk_only(rows, tiling, || Products::of(n), |products, block| products.add(block))?;
        let products = products.into_iter().reduce(|mut all, one| {
            all.sums.iter_mut().zip(&one.sums).for_each(|(a, b)| *a += b);
            all
        });
        let products = products.expect("there is at least one thread");
        let squared = (0..n * n).map(|at| {
            let (i, j) = (at / n, at % n);
            let (i, j) = (i.min(j), i.max(j));
            let squared = products.at(i, i) + products.at(j, j) - 2 * products.at(i, j);
            u128::try_from(squared).expect("a sum of squares")
        });
        Ok(Self { rows: n, squared: squared.collect() })
    }

    /// Between two rows.
    pub(super) fn squared(&self, i: usize, j: usize) -> u128 {
        self.squared[i * self.rows + j]
    }
}

/// Inner products of rows, for i ≤ j.
struct Products {
    /// Rows, filled up with empty ones to whole groups.
    padded: usize,
    sums: Vec<i128>,
    small: Vec<[i16; TILE]>,
    tile: Vec<[f64; TILE]>,
    largest: Vec<f64>,
}

impl Products {
    fn of(rows: usize) -> Self {
        let padded = rows.next_multiple_of(ACROSS);
        Self {
            padded,
            sums: vec![0; padded * padded],
            small: vec![[0; TILE]; padded],
            tile: vec![[0.0; TILE]; padded],
            largest: vec![0.0; padded],
        }
    }

    fn at(&self, i: usize, j: usize) -> i128 {
        self.sums[i * self.padded + j]
    }

    fn add(&mut self, block: &Block<'_>) {
        for from in (0..block.width).step_by(TILE) {
            let columns = from..block.width.min(from + TILE);
            let mut most = 0;
            for (largest, row) in self.largest.iter_mut().zip(block.rows()) {
                let here = row[columns.clone()].iter().fold(0, |most, unit| unit.unsigned_abs().max(most));
                *largest = f64::from(here);
                most = most.max(here);
            }
            if most <= SMALL {
                for (tile, row) in self.small.iter_mut().zip(block.rows()) {
                    fill(tile, &row[columns.clone()], |unit| unit as i16);
                }
                self.add_small();
            } else {
                for (tile, row) in self.tile.iter_mut().zip(block.rows()) {
                    fill(tile, &row[columns.clone()], f64::from);
                }
                self.add_large();
            }
        }
    }

    fn add_small(&mut self) {
        for (i, a) in self.small.iter().enumerate() {
            for (sum, b) in self.sums[i * self.padded + i..].iter_mut().zip(&self.small[i..]) {
                *sum += i128::from(small_product(a, b));
            }
        }
    }

    fn add_large(&mut self) {
        for i in (0..self.padded).step_by(DOWN) {
            let (down, _) = self.tile[i..i + DOWN].as_chunks::<DOWN>();
            for j in (i / ACROSS * ACROSS..self.padded).step_by(ACROSS) {
                let most = |rows: &[f64]| rows.iter().fold(0.0, |most: f64, &one| most.max(one));
                let exact = most(&self.largest[i..i + DOWN]) * most(&self.largest[j..j + ACROSS]) <= EXACT;
                let (across, _) = self.tile[j..j + ACROSS].as_chunks::<ACROSS>();
                let multiply = if exact { products } else { large_products };
                for (down, found) in multiply(&down[0], &across[0]).into_iter().enumerate() {
                    let sums = &mut self.sums[(i + down) * self.padded + j..][..ACROSS];
                    sums.iter_mut().zip(found).for_each(|(sum, product)| *sum += product);
                }
            }
        }
    }
}

/// Converts a row's columns; what is missing to a whole tile is zero.
fn fill<T: Default + Copy>(tile: &mut [T; TILE], units: &[i32], convert: impl Fn(i32) -> T) {
    tile[units.len()..].fill(T::default());
    tile.iter_mut().zip(units).for_each(|(value, &unit)| *value = convert(unit));
}

/// The inner product of two rows of magnitudes up to [`SMALL`]. Written so that a compiler finds the instruction that
/// multiplies eight pairs and adds neighbours.
fn small_product(a: &[i16; TILE], b: &[i16; TILE]) -> i32 {
    a.iter().zip(b).fold(0, |sum: i32, (&a, &b)| sum.wrapping_add(i32::from(a) * i32::from(b)))
}

type Rows64<const N: usize> = [[f64; TILE]; N];
type Found = [[i128; ACROSS]; DOWN];

/// Inner products of [`DOWN`] rows with [`ACROSS`] others, whose partial sums all are at most 2^53.
#[inline(never)]
fn products(down: &Rows64<DOWN>, across: &Rows64<ACROSS>) -> Found {
    let mut sums = [[[0.0; LANES]; ACROSS]; DOWN];
    for at in (0..TILE).step_by(LANES) {
        for i in 0..DOWN {
            for j in 0..ACROSS {
                for lane in 0..LANES {
                    sums[i][j][lane] += down[i][at + lane] * across[j][at + lane];
                }
            }
        }
    }
    // The lanes' sum is an integer of at most 2^53 as well: the bound is over all 64 columns.
    sums.map(|sums| sums.map(|lanes| i128::from(lanes.into_iter().sum::<f64>() as i64)))
}

/// The same for rows of any magnitude: a = 2^15·high + low, where high is at most 2^15 and low at most 2^14. Adding and
/// subtracting 1.5·2^67, whose unit in the last place is 2^15, rounds to a multiple of that.
fn large_products(down: &Rows64<DOWN>, across: &Rows64<ACROSS>) -> Found {
    const UNIT: f64 = (1u64 << 15) as f64;
    const UNIT_PLACE: f64 = 1.5 * UNIT * (1u64 << 52) as f64;
    let mut high = [[0.0; TILE]; DOWN];
    let mut low = [[0.0; TILE]; DOWN];
    for ((high, low), a) in high.iter_mut().zip(&mut low).zip(down) {
        for ((high, low), a) in high.iter_mut().zip(low).zip(a) {
            let rounded = (a + UNIT_PLACE) - UNIT_PLACE;
            (*high, *low) = (rounded / UNIT, a - rounded);
        }
    }
    let mut all: Found = products(&low, across);
    for (all, high) in all.iter_mut().flatten().zip(products(&high, across).into_iter().flatten()) {
        *all += high << 15;
    }
    all
}

/// Squared distances of each row from a real centre, in squared units.
///
/// The squares of a group of 256 columns are summed in floating point in a fixed order, and the groups, rounded
/// down to 2^-20, as integers: 2^24 groups, of the largest model, of at most 2^70 and 20 bits more stay below 2^114.
pub(super) fn from_centre(rows: &dyn Rows, tiling: Tiling, centre: &[f64]) -> Result<Vec<f64>, RuleError> {
    const FRACTION: f64 = (1u64 << 20) as f64;
    let sums = walk_only(
        rows,
        tiling,
        || vec![0u128; rows.rows()],
        |sums, block| {
            let centre = &centre[block.from..block.from + block.width];
            for (sum, row) in sums.iter_mut().zip(block.rows()) {
                for (units, centre) in row.chunks(GROUP).zip(centre.chunks(GROUP)) {
                    *sum += (squared_distance(units, centre) * FRACTION) as u128;
                }
            }
        },
    )?;
    Ok((0..rows.rows()).map(|row| sums.iter().map(|s| s[row]).sum::<u128>() as f64 / FRACTION).collect())
}

fn squared_distance(units: &[i32], centre: &[f64]) -> f64 {
    let mut lanes = [0.0; 8];
    let mut add = |units: &[i32], centre: &[f64]| {
        for ((lane, &unit), centre) in lanes.iter_mut().zip(units).zip(centre) {
            let apart = f64::from(unit) - centre;
            *lane += apart * apart;
        }
    };
    let (units, last_units) = units.as_chunks::<8>();
    let (centre, last_centre) = centre.as_chunks::<8>();
    units.iter().zip(centre).for_each(|(units, centre)| add(units, centre));
    add(last_units, last_centre);
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

/// Squared L2 norms of the rows, exact, in squared units.
pub(super) fn squared_norms(rows: &dyn Rows, tiling: Tiling) -> Result<Vec<u128>, RuleError> {
    let sums = walk_only(
        rows,
        tiling,
        || vec![0u128; rows.rows()],
        |sums, block| {
            for (sum, row) in sums.iter_mut().zip(block.rows()) {
                for units in row.chunks(GROUP) {
                    // Squares are at most 2^60, and 256 halves of 32 bits sum to at most 2^40.
                    let (mut high, mut low) = (0, 0);
                    for &unit in units {
                        let square = u64::from(unit.unsigned_abs()) * u64::from(unit.unsigned_abs());
                        high += square >> 32;
                        low += square & 0xffff_ffff;
                    }
                    *sum += (u128::from(high) << 32) + u128::from(low);
                }
            }
        },
    )?;
    Ok((0..rows.rows()).map(|row| sums.iter().map(|s| s[row]).sum()).collect())
}
