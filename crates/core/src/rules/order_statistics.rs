//! Sums of the values in the middle of each column: what the median and the trimmed mean are made of.

use super::RuleError;
use super::blocks::{Block, Tiling, walk};
use super::network::{Line, Network, WIDTH, dress, undress};
use super::rows::Rows;

/// Up to this many rows a network sorts; above, its n·log² n comparators cost more than choosing in each column.
pub(super) const MOST_LINES: usize = 512;

/// For each column the sum of its values without the `trim` least and the `trim` greatest.
///
/// # Panics
/// If nothing would be left.
pub(super) fn middle_sums(rows: &dyn Rows, tiling: Tiling, trim: usize) -> Result<Vec<i64>, RuleError> {
    let lines = rows.rows();
    assert!(2 * trim < lines, "trimming {trim} at both ends of {lines} leaves nothing");
    let mut sums = vec![0; rows.values()];
    if lines <= MOST_LINES {
        let network = Network::separating(lines, trim..lines - trim);
        let tile = || vec![[0.0; WIDTH]; lines];
        walk(rows, tiling, &mut sums, tile, |tile, block, sums| {
            for (nth, sums) in sums.chunks_mut(WIDTH).enumerate() {
                load(tile, block, nth * WIDTH);
                network.run(tile);
                add(sums, &tile[trim..lines - trim]);
            }
        })?;
    } else {
        let column = || vec![0; lines];
        walk(rows, tiling, &mut sums, column, |column, block, sums| {
            for (at, sum) in sums.iter_mut().enumerate() {
                column.iter_mut().zip(block.rows()).for_each(|(value, row)| *value = row[at]);
                *sum = chosen_sum(column, trim);
            }
        })?;
    }
    Ok(sums)
}

/// Dresses the columns `from ..` of a block, as many as there are up to [`WIDTH`], for a network.
pub(super) fn load(tile: &mut [Line], block: &Block<'_>, from: usize) {
    for (line, row) in tile.iter_mut().zip(block.rows()) {
        line.iter_mut().zip(&row[from..]).for_each(|(value, &unit)| *value = dress(unit));
    }
}

fn add(sums: &mut [i64], lines: &[Line]) {
    let mut whole = [0; WIDTH];
    for line in lines {
        whole.iter_mut().zip(line).for_each(|(sum, &value)| *sum += i64::from(undress(value)));
    }
    sums.copy_from_slice(&whole[..sums.len()]);
}

/// The sum of a column's middle, by choosing: linear in the column on average.
fn chosen_sum(column: &mut [i32], trim: usize) -> i64 {
    let mut middle = column;
    if trim > 0 {
        let (_, _, above) = middle.select_nth_unstable(trim - 1);
        let keep = above.len() - trim;
        above.select_nth_unstable(keep);
        middle = &mut above[..keep];
    }
    middle.iter().map(|&unit| i64::from(unit)).sum()
}
