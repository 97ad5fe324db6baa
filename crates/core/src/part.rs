//! The part of a model that is trained and sent: some of its tensors, the others stay as they are.

use crate::digest::Digest;
use crate::layout::{LayoutError, ModelLayout, TensorSpec};
use crate::limits::{MAX_TENSOR_NAME_BYTES, MAX_TENSOR_PATTERNS};
use std::ops::Range;

/// Tensors of a model, in the model's order. The values of a part are theirs, one tensor behind the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    layout: ModelLayout,
    /// Where the part's values lie in the whole model: ascending, not touching, none of them empty.
    ranges: Vec<Range<usize>>,
    whole_len: usize,
}

/// A stretch of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Where it lies in the whole model.
    pub range: Range<usize>,
    /// Whether it is of the part; else it is frozen.
    pub is_trained: bool,
}

/// Why patterns name no part of a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartError {
    /// No pattern, or too many.
    #[error("tensors must be 1 to {MAX_TENSOR_PATTERNS} names, not {0}: leave it out to train all of them")]
    Number(usize),
    /// Not a pattern.
    #[error(
        "tensors: \"{0:.64}\" is no name of at most {MAX_TENSOR_NAME_BYTES} bytes, with * only at its beginning and its end"
    )]
    NotAPattern(String),
    /// A pattern that names none of the model's tensors.
    #[error("tensors: \"{pattern}\" names no tensor of the model: {nearest}")]
    NoSuchTensor {
        /// The pattern.
        pattern: String,
        /// The names that come nearest, in words.
        nearest: String,
    },
    /// Tensors without a value.
    #[error("tensors: what is named holds no value to train")]
    Empty,
    /// The part is no layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// Most names in a suggestion.
const MOST_NAMES: usize = 3;

/// Checks what can be said of patterns without the model.
///
/// # Errors
/// [`PartError::Number`] or [`PartError::NotAPattern`].
pub fn check_patterns(patterns: &[String]) -> Result<(), PartError> {
    if patterns.is_empty() || patterns.len() > MAX_TENSOR_PATTERNS {
        return Err(PartError::Number(patterns.len()));
    }
    match patterns.iter().find(|p| !is_pattern(p)) {
        Some(bad) => Err(PartError::NotAPattern(bad.clone())),
        None => Ok(()),
    }
}

fn is_pattern(text: &str) -> bool {
    let inner = text.strip_prefix('*').unwrap_or(text);
    let inner = inner.strip_suffix('*').unwrap_or(inner);
    !text.is_empty() && text.len() <= MAX_TENSOR_NAME_BYTES && !inner.contains('*')
}

/// Whether a name is what the pattern says: the same, or the same but for what stands for `*` at either end.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (None, None) => name == pattern,
        (Some(end), None) => name.ends_with(end),
        (None, Some(start)) => name.starts_with(start),
        (Some(rest), Some(_)) => name.contains(rest.strip_suffix('*').unwrap_or_default()),
    }
}

impl ModelLayout {
    /// All of the model.
    pub fn whole(&self) -> Part {
        let ranges = std::iter::once(0..self.len()).filter(|range| !range.is_empty()).collect();
        Part { layout: self.clone(), ranges, whole_len: self.len() }
    }

    /// The tensors that at least one of `patterns` names: a name, or a name with `*` for anything at its beginning or its
    /// end.
    ///
    /// # Errors
    /// [`PartError`]; a pattern that names nothing is a slip of the pen and refused.
    pub fn part(&self, patterns: &[String]) -> Result<Part, PartError> {
        check_patterns(patterns)?;
        if let Some(pattern) =
            patterns.iter().find(|pattern| !self.tensors().iter().any(|t| matches(pattern, &t.name)))
        {
            let nearest = nearest(pattern, self.tensors());
            return Err(PartError::NoSuchTensor { pattern: pattern.clone(), nearest });
        }
        let mut tensors = Vec::new();
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for (tensor, range) in self.ranges() {
            if !patterns.iter().any(|pattern| matches(pattern, &tensor.name)) {
                continue;
            }
            tensors.push(tensor.clone());
            match ranges.last_mut() {
                _ if range.is_empty() => {}
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range),
            }
        }
        if ranges.is_empty() {
            return Err(PartError::Empty);
        }
        Ok(Part { layout: ModelLayout::new(tensors)?, ranges, whole_len: self.len() })
    }
}

/// The names that come nearest to a pattern, in words.
fn nearest(pattern: &str, tensors: &[TensorSpec]) -> String {
    let names = nearest_names(pattern.trim_matches('*'), tensors.iter().map(|t| t.name.as_str()));
    let names: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    if names.is_empty() { "it has none".into() } else { format!("the nearest are {}", names.join(", ")) }
}

/// The names that come nearest to one, the nearest first; equally near ones in the order given.
pub(crate) fn nearest_names<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut names: Vec<(f64, &str)> = names.map(|name| (strsim::jaro_winkler(wanted, name), name)).collect();
    names.sort_by(|a, b| b.0.total_cmp(&a.0));
    names.into_iter().take(MOST_NAMES).map(|(_, name)| name.to_owned()).collect()
}

impl Part {
    /// The part's tensors, as a layout of its own.
    pub fn layout(&self) -> &ModelLayout {
        &self.layout
    }

    /// The number of its values.
    pub fn len(&self) -> usize {
        self.layout.len()
    }

    /// Whether it holds no value.
    pub fn is_empty(&self) -> bool {
        self.layout.is_empty()
    }

    /// Whether it is all of the model.
    pub fn is_whole(&self) -> bool {
        self.len() == self.whole_len
    }

    /// The number of values of the whole model.
    pub fn whole_len(&self) -> usize {
        self.whole_len
    }

    /// Digest of the names and shapes of the part's tensors.
    pub fn digest(&self) -> Digest {
        self.layout.digest()
    }

    /// Where the part's values lie in the whole model, in order.
    pub fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }

    /// The number of values of the model that are not the part's: they stay as they are.
    pub fn frozen_len(&self) -> usize {
        self.whole_len - self.len()
    }

    /// The whole model in order: stretches of the part and of what is frozen, none of them empty.
    pub fn segments(&self) -> Vec<Segment> {
        let mut segments = Vec::with_capacity(2 * self.ranges.len() + 1);
        let mut add = |range: Range<usize>, is_trained| {
            if !range.is_empty() {
                segments.push(Segment { range, is_trained });
            }
        };
        let mut end = 0;
        for range in &self.ranges {
            add(end..range.start, false);
            add(range.clone(), true);
            end = range.end;
        }
        add(end..self.whole_len, false);
        segments
    }

    /// Where in the part the value stands that stands at `place` in the whole model; `None` if it is not of the part.
    pub fn place(&self, place: usize) -> Option<usize> {
        let mut before = 0;
        for range in &self.ranges {
            if range.contains(&place) {
                return Some(before + place - range.start);
            }
            before += range.len();
        }
        None
    }

    /// Where in the whole model these values of the part lie, in order.
    pub fn places(&self, values: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let mut before = 0;
        self.ranges.iter().filter_map(move |range| {
            let first = before;
            before += range.len();
            let (from, to) = (values.start.max(first), values.end.min(before));
            (from < to).then(|| range.start + from - first..range.start + to - first)
        })
    }

    /// The part's values out of the whole model's.
    ///
    /// # Panics
    /// If `whole` does not have [`Part::whole_len`] values.
    pub fn gather(&self, whole: &[f32]) -> Vec<f32> {
        let mut values = Vec::with_capacity(self.len());
        self.gather_into(whole, &mut values);
        values
    }

    /// The same, behind what is in `values`.
    ///
    /// # Panics
    /// As [`gather`](Self::gather).
    pub fn gather_into(&self, whole: &[f32], values: &mut Vec<f32>) {
        assert_eq!(whole.len(), self.whole_len, "values do not fit the model");
        self.ranges.iter().for_each(|range| values.extend_from_slice(&whole[range.clone()]));
    }

    /// Puts the part's values where they lie in the whole model; the others stay.
    ///
    /// # Panics
    /// If `values` or `whole` do not have [`Part::len`] and [`Part::whole_len`] values.
    pub fn scatter(&self, values: &[f32], whole: &mut [f32]) {
        assert_eq!((values.len(), whole.len()), (self.len(), self.whole_len), "values do not fit the part");
        let mut rest = values;
        for range in &self.ranges {
            let (now, later) = rest.split_at(range.len());
            whole[range.clone()].copy_from_slice(now);
            rest = later;
        }
    }

    /// Lets `work` change the part's values where they lie; no copy is made of a whole model.
    ///
    /// # Panics
    /// If `whole` does not have [`Part::whole_len`] values.
    pub fn change<T>(&self, whole: &mut [f32], work: impl FnOnce(&mut [f32]) -> T) -> T {
        if self.is_whole() {
            assert_eq!(whole.len(), self.whole_len, "values do not fit the model");
            return work(whole);
        }
        let mut values = self.gather(whole);
        let result = work(&mut values);
        self.scatter(&values, whole);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layout() -> ModelLayout {
        let t = |name: &str, shape: &[usize]| TensorSpec { name: name.into(), shape: shape.into() };
        let tensors = vec![
            t("body.weight", &[2, 3]),
            t("body.bias", &[2]),
            t("head.weight", &[2]),
            t("head.bias", &[1]),
        ];
        ModelLayout::new(tensors).unwrap()
    }

    fn part(patterns: &[&str]) -> Result<Part, PartError> {
        layout().part(&patterns.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn patterns_name_tensors() {
        for (patterns, names, ranges) in [
            (&["head.*"][..], &["head.weight", "head.bias"][..], &[(8, 11)][..]),
            (&["*.bias"], &["body.bias", "head.bias"], &[(6, 8), (10, 11)]),
            (&["head.bias", "body.weight"], &["body.weight", "head.bias"], &[(0, 6), (10, 11)]),
            (&["*ody.w*"], &["body.weight"], &[(0, 6)]),
            (&["head.weight", "head.*"], &["head.weight", "head.bias"], &[(8, 11)]),
            (&["*"], &["body.weight", "body.bias", "head.weight", "head.bias"], &[(0, 11)]),
        ] {
            let found = part(patterns).unwrap();
            let tensors: Vec<_> = found.layout().tensors().iter().map(|t| t.name.as_str()).collect();
            let lie: Vec<_> = found.ranges().iter().map(|range| (range.start, range.end)).collect();
            assert_eq!((tensors.as_slice(), lie.as_slice()), (names, ranges), "{patterns:?}");
            assert_eq!(found.is_whole(), patterns == ["*"]);
            assert_eq!(found.len(), found.ranges().iter().map(Range::len).sum::<usize>());
        }
        assert_eq!(part(&["*"]).unwrap(), layout().whole());
        assert_ne!(part(&["head.*"]).unwrap().digest(), part(&["*.bias"]).unwrap().digest());
        assert_eq!(layout().whole().digest(), layout().digest());
    }

    #[test]
    fn what_names_nothing_is_refused_with_the_nearest_names() {
        let e = part(&["head.*", "haed.bias"]).unwrap_err().to_string();
        assert!(
            e.contains("\"haed.bias\" names no tensor") && e.contains("nearest are \"head.bias\""),
            "{e}"
        );
        for bad in [&[][..], &[""], &["a*b"], &["**b"]] {
            assert!(matches!(part(bad), Err(PartError::Number(0) | PartError::NotAPattern(_))), "{bad:?}");
        }
        let scalarless = ModelLayout::new(vec![TensorSpec { name: "none".into(), shape: vec![0] }]).unwrap();
        assert_eq!(scalarless.part(&["none".into()]), Err(PartError::Empty));
    }

    proptest! {
        #[test]
        fn values_come_back_to_their_places(
            lens in prop::collection::vec((0usize..5, any::<bool>()), 1..8), seed in 0f32..100.0,
        ) {
            let spec = |(i, len): (usize, usize)| TensorSpec { name: format!("t{i}."), shape: vec![len] };
            let layout = ModelLayout::new(lens.iter().map(|l| l.0).enumerate().map(spec).collect()).unwrap();
            let patterns: Vec<String> =
                (0..lens.len()).filter(|&i| lens[i].1).map(|i| format!("t{i}.")).collect();
            let wanted: Vec<bool> = lens.iter().flat_map(|&(len, chosen)| vec![chosen; len]).collect();
            let Ok(part) = layout.part(&patterns) else {
                prop_assert!(patterns.is_empty() || !wanted.contains(&true));
                return Ok(());
            };
            let whole: Vec<f32> = (0..layout.len()).map(|i| i as f32 + seed).collect();
            let values = part.gather(&whole);
            let kept: Vec<f32> = whole.iter().zip(&wanted).filter(|(_, w)| **w).map(|(v, _)| *v).collect();
            prop_assert_eq!(&values, &kept);
            for (i, value) in whole.iter().enumerate() {
                prop_assert_eq!(part.place(i).map(|at| values[at]), wanted[i].then_some(*value));
            }
            let mut covered = vec![];
            for Segment { range, is_trained } in part.segments() {
                prop_assert!(range.start == covered.len() && !range.is_empty());
                covered.extend(vec![is_trained; range.len()]);
            }
            prop_assert_eq!(&covered, &wanted);
            prop_assert_eq!(part.frozen_len(), wanted.iter().filter(|w| !**w).count());
            for cut in 0..=part.len() {
                let places = part.places(0..cut).chain(part.places(cut..part.len()));
                let found: Vec<f32> = places.flat_map(|place| whole[place].to_vec()).collect();
                prop_assert_eq!(&found, &values);
            }
            let mut changed = whole.clone();
            part.change(&mut changed, |values| values.iter_mut().for_each(|v| *v = -*v - 1.0));
            let moved = |(v, w): (&f32, &bool)| if *w { -*v - 1.0 } else { *v };
            prop_assert_eq!(&changed, &whole.iter().zip(&wanted).map(moved).collect::<Vec<_>>());
            part.scatter(&values, &mut changed);
            prop_assert_eq!(changed, whole);
        }
    }
}
