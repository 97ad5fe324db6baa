//! Walking through all updates block by block: the same columns of every row at a time, on several threads.
//!
//! Memory is rows · block values a thread, never rows · model. Threads take the next block when they are done with
//! one, so that which thread sees which block is chance: whatever a rule computes must be a function of the columns of
//! a block, or a sum of integers.

use super::RuleError;
use super::rows::Rows;
use std::sync::Mutex;
use std::thread;

/// Blocks begin at multiples of this, so that what is summed within a group of columns (in floating point, in a fixed
/// order) does not depend on the size of the blocks.
pub(crate) const GROUP: usize = 256;

/// How updates are walked through: results do not depend on it, speed and memory do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    threads: usize,
    block: usize,
}

/// Values that a thread holds by default: 2 MiB of them stay in the caches nearby, and 16,384 columns of one update are
/// a read of 64 KiB.
const VALUES_PER_THREAD: usize = 1 << 19;
const WIDEST_BLOCK: usize = 1 << 14;

impl Tiling {
    /// For `rows` updates on `threads` threads. Each thread takes 4·rows·block bytes, with blocks of 16,384 columns for
    /// up to 32 updates and narrower ones, not below 256, for more: 2 MiB to 2,048 updates, 64 MiB at 65,536.
    pub fn new(threads: usize, rows: usize) -> Self {
        Self::with_block(threads, (VALUES_PER_THREAD / rows.max(1)).min(WIDEST_BLOCK))
    }

    /// Blocks of `block` columns, rounded down to a multiple of 256, but not to zero.
    pub fn with_block(threads: usize, block: usize) -> Self {
        Self { threads: threads.max(1), block: (block / GROUP).max(1) * GROUP }
    }

    /// Threads.
    pub fn threads(self) -> usize {
        self.threads
    }

    /// Columns of a block.
    pub fn block(self) -> usize {
        self.block
    }
}

/// Values between the rows of a block. Without them rows would begin a power of two apart, on the same sets of the
/// caches: more than twice the time, in some runs.
const APART: usize = 80;

/// The same columns of all rows.
pub(crate) struct Block<'a> {
    /// The first column.
    pub(crate) from: usize,
    /// Columns.
    pub(crate) width: usize,
    stride: usize,
    values: &'a [i32],
}

impl<'a> Block<'a> {
    /// Each row's columns, in order.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &'a [i32]> {
        self.values.chunks(self.stride).map(|row| &row[..self.width])
    }
}

/// Calls `visit` for each block with the columns of `out` that belong to it, and gives back what each thread gathered.
/// `out` has a place for each column.
///
/// # Errors
/// [`RuleError::Rows`] and [`RuleError::OutOfRange`]; `out` is then of no use.
pub(crate) fn walk<T: Send, S: Send>(
    rows: &dyn Rows,
    tiling: Tiling,
    out: &mut [T],
    gather: impl Fn() -> S + Sync,
    visit: impl Fn(&mut S, &Block<'_>, &mut [T]) + Sync,
) -> Result<Vec<S>, RuleError> {
    assert_eq!(out.len(), rows.values(), "a place for each column");
    let threads = tiling.threads.min(out.len().div_ceil(tiling.block)).max(1);
    let ahead = Mutex::new(out.chunks_mut(tiling.block).enumerate());
    let work = || {
        let mut gathered = gather();
        let stride = tiling.block.min(rows.values()) + APART;
        let mut values = vec![0; rows.rows() * stride];
        loop {
            let next = ahead.lock().expect("nobody panics while holding it").next();
            let Some((nth, out)) = next else { return Ok(gathered) };
            let (from, width) = (nth * tiling.block, out.len());
            if let Err(e) = read(rows, from, width, stride, &mut values) {
                // The others find nothing more to do.
                ahead.lock().expect("nobody panics while holding it").by_ref().for_each(drop);
                return Err(e);
            }
            visit(&mut gathered, &Block { from, width, stride, values: &values }, out);
        }
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mine = work();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| match thread.join() {
            Ok(gathered) => gathered,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        std::iter::once(mine).chain(others.into_iter().map(join)).collect()
    })
}

/// [`walk`] without anything to write: what the threads gathered is all there is.
///
/// # Errors
/// [`RuleError::Rows`] and [`RuleError::OutOfRange`].
pub(crate) fn walk_only<S: Send>(
    rows: &dyn Rows,
    tiling: Tiling,
    gather: impl Fn() -> S + Sync,
    visit: impl Fn(&mut S, &Block<'_>) + Sync,
) -> Result<Vec<S>, RuleError> {
    walk(rows, tiling, &mut vec![(); rows.values()], gather, |gathered, block, _| visit(gathered, block))
}

/// Reads a block and checks it: what a disk gives back is believed only within the range that the sums count on.
fn read(
    rows: &dyn Rows,
    from: usize,
    width: usize,
    stride: usize,
    values: &mut [i32],
) -> Result<(), RuleError> {
    for (row, out) in values.chunks_mut(stride).enumerate() {
        let out = &mut out[..width];
        rows.read(row, from, out)?;
        // In range is 1 ..= 2^31 - 1 of u + 2^30; 0 has a predecessor with the high bit.
        let seen = out.iter().fold(0u32, |seen, &u| {
            let raised = u.wrapping_add(1 << 30) as u32;
            seen | raised | raised.wrapping_sub(1)
        });
        if seen >> 31 != 0 {
            let index = out.iter().position(|u| u.unsigned_abs() > crate::fixed::MAX_FIXED as u32);
            return Err(RuleError::OutOfRange { row, index: from + index.expect("one is out of range") });
        }
    }
    Ok(())
}
