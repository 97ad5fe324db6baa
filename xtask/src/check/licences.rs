//! Every crate of others may be used, changed and passed on by anybody, in source and in a binary.

use super::graph::Graph;
use super::spdx;

/// Permissive licences, and public-domain dedications. Weak copyleft (MPL-2.0) is not here: nothing needs it so far.
const ACCEPTED: [&str; 12] = [
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "0BSD",
    "BSL-1.0",
    "CC0-1.0",
    // The Unicode tables in ICU and in unicode-ident.
    "Unicode-3.0",
    // The list of certificate authorities in webpki-roots.
    "CDLA-Permissive-2.0",
];

pub(super) fn problems(graph: &Graph) -> Vec<String> {
    let verdicts = graph.third_party().filter_map(|package| {
        let (name, version) = (&package.name, &package.version);
        let Some(licence) = &package.licence else {
            return Some(format!("{name} {version} names no licence in its manifest: read what it ships, or replace it"));
        };
        match spdx::satisfied(licence, &|simple| ACCEPTED.contains(&simple)) {
            Ok(true) => None,
            Ok(false) => Some(format!(
                "{name} {version} is licensed {licence}, which we do not accept: replace it, or accept the licence in \
                 xtask/src/check/licences.rs"
            )),
            Err(error) => Some(format!("{name} {version}: {error}")),
        }
    });
    verdicts.collect()
}

#[cfg(test)]
mod tests {
    use super::super::graph::sample::licensed;
    use super::*;

    #[test]
    fn unaccepted_missing_and_odd_licences_are_named_and_ours_are_not_asked() {
        let graph = licensed(
            &[
                ("ours 0.0.0", None),
                ("fine 1.0.0", Some("MIT OR GPL-3.0-only")),
                ("copyleft 2.0.0", Some("AGPL-3.0-only")),
                ("silent 3.0.0", None),
                ("odd 4.0.0", Some("see the file")),
            ],
            &[],
        );
        let problems = problems(&graph);
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems[0].contains("copyleft 2.0.0") && problems[0].contains("AGPL-3.0-only"));
        assert!(problems[1].contains("silent 3.0.0"));
        assert!(problems[2].contains("odd 4.0.0"));
    }
}
