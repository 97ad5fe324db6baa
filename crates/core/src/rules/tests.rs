//! Rules against straightforward references, against attacks, and against what must not matter: the order of the rows,
//! threads and blocks.

mod attacks;
mod invariance;
mod references;
mod rescaling;

use super::*;

pub(super) fn grid() -> Grid {
    Grid::new(16).unwrap()
}

/// Uniform numbers, the same in each run.
pub(super) struct Draw(pub(super) u64);

impl Draw {
    /// In 0..2^32.
    pub(super) fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// In -most..=most.
    pub(super) fn unit(&mut self, most: i32) -> i32 {
        (i64::from(self.next()) % (2 * i64::from(most) + 1) - i64::from(most)) as i32
    }

    /// About normal, with a standard deviation of 1: twelve uniform numbers.
    pub(super) fn normal(&mut self) -> f64 {
        (0..12).map(|_| f64::from(self.next()) / f64::from(u32::MAX)).sum::<f64>() - 6.0
    }
}

/// Updates of values in -most..=most.
pub(super) fn updates(n: usize, values: usize, most: i32, seed: u64) -> Vec<Vec<i32>> {
    let mut draw = Draw(seed);
    (0..n).map(|_| (0..values).map(|_| draw.unit(most)).collect()).collect()
}

pub(super) fn equal_rows(updates: &[Vec<i32>]) -> MemoryRows {
    MemoryRows::new(updates.iter().map(|u| (u.clone(), 1)).collect()).unwrap()
}

/// Every rule of the table, for 11 updates or more.
pub(super) fn every_rule() -> Vec<Rule> {
    vec![
        Rule::Mean {},
        Rule::Median {},
        Rule::TrimmedMean(TrimmedMean { beta: 0.2 }),
        Rule::Krum(Krum { byzantine: 2 }),
        Rule::MultiKrum(MultiKrum { byzantine: 2, keep: None }),
        Rule::MultiKrum(MultiKrum { byzantine: 2, keep: Some(3) }),
        Rule::Bulyan(Bulyan { byzantine: 2 }),
        Rule::GeometricMedian(GeometricMedian::default()),
        Rule::NormBoundedMean(NormBoundedMean { bound: 0.5 }),
        Rule::CentredClipping(CentredClipping { radius: 0.5, iterations: 2 }),
    ]
}

#[test]
fn a_rule_is_written_as_a_table_with_a_kind() {
    let read = |text: &str| toml::from_str::<Rule>(text).map_err(|e| e.message().to_owned());
    assert_eq!(read("kind = \"mean\""), Ok(Rule::Mean {}));
    assert_eq!(read("kind = \"median\""), Ok(Rule::Median {}));
    assert_eq!(read("kind = \"trimmed-mean\"\nbeta = 0.1"), Ok(Rule::TrimmedMean(TrimmedMean { beta: 0.1 })));
    assert_eq!(read("kind = \"krum\"\nbyzantine = 2"), Ok(Rule::Krum(Krum { byzantine: 2 })));
    assert_eq!(
        read("kind = \"geometric-median\""),
        Ok(Rule::GeometricMedian(GeometricMedian { iterations: 3, smoothing: 1e-6 }))
    );
    for bad in [
        "kind = \"median\"\nbeta = 0.1",
        "kind = \"krum\"",
        "kind = \"krum\"\nbyzantine = 1\nkeep = 3",
        "kind = \"krum\"\nbyzantine = -1",
        "kind = \"mode\"",
        "beta = 0.1",
    ] {
        assert!(read(bad).is_err(), "{bad}");
    }
    for rule in every_rule() {
        assert_eq!(read(&toml::to_string(&rule).unwrap()), Ok(rule));
    }
}

#[test]
fn a_refusal_says_which_number_is_wrong_and_what_would_be_right() {
    let refused = |rule: Rule, least: usize, most: usize| rule.validate(least, most).unwrap_err();
    assert_eq!(
        refused(Rule::Krum(Krum { byzantine: 4 }), 10, 20),
        "krum with byzantine = 4 needs at least 2·4 + 3 = 11 updates, and a round may end with 10: raise min_clients \
         or lower byzantine"
    );
    assert!(refused(Rule::Bulyan(Bulyan { byzantine: 2 }), 10, 20).contains("4·2 + 3 = 11"));
    assert!(refused(Rule::Krum(Krum { byzantine: usize::MAX }), 10, 20).contains("krum"));
    assert!(refused(Rule::Krum(Krum { byzantine: 1 }), 10, 5000).contains("at most 1024"));
    let keep = |keep| Rule::MultiKrum(MultiKrum { byzantine: 2, keep: Some(keep) });
    assert!(refused(keep(9), 10, 20).contains("1 to 8"));
    assert!(refused(keep(0), 10, 20).contains("not 0"));
    assert_eq!(keep(8).validate(10, 20), Ok(()));
    for beta in [-0.1, 0.5, f64::NAN] {
        assert!(refused(Rule::TrimmedMean(TrimmedMean { beta }), 1, 20).contains("below 0.5"));
    }
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(refused(Rule::NormBoundedMean(NormBoundedMean { bound: bad }), 1, 2).contains("positive"));
        let clipping = CentredClipping { radius: bad, iterations: 1 };
        assert!(refused(Rule::CentredClipping(clipping), 1, 2).contains("positive"));
        let median = GeometricMedian { smoothing: bad, iterations: 1 };
        assert!(refused(Rule::GeometricMedian(median), 1, 2).contains("positive"));
    }
    assert!(refused(Rule::Mean {}, 0, 2).contains("at least one"));
    let rows = equal_rows(&updates(10, 3, 5, 1));
    let refused = Rule::Bulyan(Bulyan { byzantine: 2 }).aggregate(&rows, grid(), Tiling::new(1, 10), None);
    assert!(matches!(refused, Err(RuleError::Refused(_))), "the same at run time");
}

#[test]
fn a_trimmed_mean_of_any_number_keeps_something() {
    for n in 1..2000 {
        for beta in [0.0, 0.1, 0.29, 0.3, 1.0 / 3.0, 0.499_999_999_999] {
            assert!(2 * TrimmedMean { beta }.trim(n) < n);
        }
    }
    assert_eq!(TrimmedMean { beta: 0.29 }.trim(100), 29);
    assert_eq!(TrimmedMean { beta: 0.1 }.trim(9), 0);
}

/// Rows of which one cannot be read, or holds what was never received.
struct Broken {
    rows: MemoryRows,
    value: Option<i32>,
}

impl Rows for Broken {
    fn rows(&self) -> usize {
        self.rows.rows()
    }
    fn values(&self) -> usize {
        self.rows.values()
    }
    fn weight(&self, row: usize) -> u32 {
        self.rows.weight(row)
    }
    fn read(&self, row: usize, from: usize, out: &mut [i32]) -> Result<(), RowsError> {
        self.rows.read(row, from, out)?;
        if row == 7 && (from..from + out.len()).contains(&700) {
            match self.value {
                Some(value) => out[700 - from] = value,
                None => return Err(RowsError { row, reason: "the disk is on fire".into() }),
            }
        }
        Ok(())
    }
}

#[test]
fn a_row_that_cannot_be_read_or_is_damaged_is_named_by_every_rule() {
    let rows = equal_rows(&updates(12, 1500, 1 << 20, 3));
    for threads in [1, 3] {
        for rule in every_rule() {
            let tiling = Tiling::with_block(threads, 256);
            let found = rule.aggregate(&Broken { rows: rows.clone(), value: None }, grid(), tiling, None);
            assert_eq!(
                found,
                Err(RuleError::Rows(RowsError { row: 7, reason: "the disk is on fire".into() }))
            );
            for value in [i32::MIN, -(1 << 30), 1 << 30, i32::MAX] {
                let damaged = Broken { rows: rows.clone(), value: Some(value) };
                let found = rule.aggregate(&damaged, grid(), tiling, None);
                assert_eq!(found, Err(RuleError::OutOfRange { row: 7, index: 700 }), "{rule:?}");
            }
        }
    }
}

#[test]
fn only_the_mean_does_without_the_updates_and_only_clipping_takes_a_centre() {
    for rule in every_rule() {
        assert_eq!(rule.needs_all_rows(), rule != Rule::Mean {});
        assert_eq!(rule.needs_centre(), matches!(rule, Rule::CentredClipping(_)));
    }
    let rows = equal_rows(&updates(3, 5, 9, 1));
    let clipping = Rule::CentredClipping(CentredClipping { radius: 1.0, iterations: 1 });
    let found = clipping.aggregate(&rows, grid(), Tiling::new(1, 3), Some(&[0.0; 4]));
    assert_eq!(found, Err(RuleError::Centre { found: 4, wanted: 5 }));
}
