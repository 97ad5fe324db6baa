//! No crate in two versions, unless `xtask/allowed-duplicates.txt` says why.
//!
//! Cargo keeps one version of each compatible line (1.x, 0.17.x), so two versions are two incompatible ones. The
//! newest needs no entry; each older one does.

use std::collections::{BTreeMap, BTreeSet};

use super::graph::Graph;

const LIST: &str = "xtask/allowed-duplicates.txt";

/// The duplicates that `allowed` does not list, and the lines of it that no duplicate needs. Lines are
/// "crate line: reason", for example "rand 0.8: tch 0.24"; "#" starts a comment.
pub(super) fn problems(graph: &Graph, allowed: &str) -> Vec<String> {
    let (allowed, mut problems) = parse(allowed);
    let mut versions: BTreeMap<&str, BTreeSet<(u64, u64, u64, &str)>> = BTreeMap::new();
    for package in graph.third_party() {
        versions.entry(&package.name).or_default().insert(ordered(&package.version));
    }
    let mut used = BTreeSet::new();
    for (name, versions) in versions {
        let mut newest_first = versions.iter().rev().map(|(.., version)| *version);
        let newest = newest_first.next().unwrap_or_default();
        for older in newest_first {
            let entry = (name.to_owned(), compatible_line(older));
            if allowed.contains(&entry) {
                used.insert(entry);
            } else {
                problems.push(format!(
                    "{name} comes in {older} and in {newest}: bring its users to one version (`cargo tree -i {name}@{older}` \
                     shows them), or add the line \"{name} {}: reason\" to {LIST}",
                    entry.1
                ));
            }
        }
    }
    let unused = allowed.difference(&used);
    problems.extend(unused.map(|(name, line)| {
        format!("{LIST} allows {name} {line}, which is no duplicate any more: remove the line")
    }));
    problems
}

type Entry = (String, String);

fn parse(list: &str) -> (BTreeSet<Entry>, Vec<String>) {
    let (mut entries, mut problems) = (BTreeSet::new(), Vec::new());
    for (number, line) in (1..).zip(list.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let entry = line.split_once(':').filter(|(_, reason)| !reason.trim().is_empty());
        match entry.and_then(|(entry, _)| entry.split_once(' ')) {
            Some((name, version)) => {
                if !entries.insert((name.to_owned(), version.trim().to_owned())) {
                    problems.push(format!("{LIST}:{number}: {name} {version} is listed twice"));
                }
            }
            None => {
                problems.push(format!("{LIST}:{number}: expected \"crate line: reason\", found \"{line}\""))
            }
        }
    }
    (entries, problems)
}

/// "1", "0.17" or "0.0.3": the part of a version within which cargo keeps one.
fn compatible_line(version: &str) -> String {
    let (major, minor, patch, _) = ordered(version);
    match (major, minor) {
        (0, 0) => format!("0.0.{patch}"),
        (0, _) => format!("0.{minor}"),
        _ => major.to_string(),
    }
}

/// A version with its numbers in front, to sort by.
fn ordered(version: &str) -> (u64, u64, u64, &str) {
    let core = version.split(['-', '+']).next().unwrap_or(version);
    let mut numbers = core.split('.').map(|number| number.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next(), version)
}

#[cfg(test)]
mod tests {
    use super::super::graph::sample::graph;
    use super::*;

    fn with(allowed: &str) -> Vec<String> {
        problems(&graph(&["rand 0.8.8", "rand 0.10.4", "syn 2.0.1", "once 1.0.0"], &[]), allowed)
    }

    #[test]
    fn an_older_version_needs_an_entry_with_a_reason() {
        let found = with("");
        assert_eq!(found.len(), 1, "{found:?}");
        // 0.10 is newer than 0.8, which sorting as text would not see.
        assert!(found[0].starts_with("rand comes in 0.8.8 and in 0.10.4"), "{}", found[0]);
        assert_eq!(with("# old\n\nrand 0.8: tch 0.24 uses it\n"), Vec::<String>::new());
        assert_eq!(with("rand 0.8:\n").len(), 2);
        assert_eq!(with("rand 0.8\n").len(), 2);
    }

    #[test]
    fn entries_that_nothing_needs_are_errors() {
        let found = with("rand 0.8: tch\nrand 0.10: the newest one\nsyn 1: gone\nrand 0.8: tch\n");
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].contains(":4: rand 0.8 is listed twice"));
        assert!(found[1].contains("allows rand 0.10") && found[2].contains("allows syn 1,"));
    }

    #[test]
    fn compatible_lines_are_cargos() {
        for (version, line) in
            [("1.2.3", "1"), ("0.17.14", "0.17"), ("0.0.3", "0.0.3"), ("0.23.0-rc.1+x", "0.23")]
        {
            assert_eq!(compatible_line(version), line);
        }
    }
}
