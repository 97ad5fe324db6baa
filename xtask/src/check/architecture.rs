//! Which crate may use which. The table is the picture in docs/ARCHITECTURE.md; cargo metadata is the fact.
//!
//! Only links count: what tests and build scripts use does not reach anybody else.

use super::graph::Graph;

/// A crate of ours and the crates of ours that it may link.
const ARROWS: [(&str, &[&str]); 11] = [
    ("undertone-core", &[]),
    ("undertone-privacy", &["undertone-core"]),
    ("undertone-data", &["undertone-core"]),
    ("undertone-round", &["undertone-core", "undertone-privacy"]),
    ("undertone-store", &["undertone-core"]),
    ("undertone-train", &["undertone-core", "undertone-data", "undertone-privacy"]),
    // A leaf: nothing links it.
    ("undertone-sim", &["undertone-core", "undertone-privacy", "undertone-round", "undertone-store"]),
    // The wire API.
    ("undertone", &["undertone-core"]),
    (
        "undertone-server",
        &["undertone", "undertone-core", "undertone-privacy", "undertone-round", "undertone-store"],
    ),
    (
        "undertone-client",
        &["undertone", "undertone-core", "undertone-data", "undertone-privacy", "undertone-round"],
    ),
    (
        "undertone-cli",
        &["undertone", "undertone-core", "undertone-data", "undertone-privacy", "undertone-round"],
    ),
];

/// Crates that are no part of the product: the test harness may link everything, the others nothing.
const OUTSIDE: [(&str, bool); 3] =
    [("undertone-harness", true), ("undertone-test-servers", false), ("xtask", false)];

/// Crates of ours and what they must not reach, through however many links.
const OUT_OF_REACH: [(&[&str], &[&str]); 2] = [
    // Pure: no I/O, no async runtime, no training.
    (
        &["undertone-core", "undertone-privacy", "undertone-round"],
        &["tokio", "tonic", "hyper", "rustls", "sqlx", "tch", "torch-sys"],
    ),
    // The trainer is a process of its own, so that nothing else loads libtorch.
    (&["undertone-server", "undertone-client", "undertone-cli"], &["tch", "torch-sys"]),
];

/// Crates that must not be there at all, whoever wants them: a second TLS provider makes rustls panic at its first
/// use, and OpenSSL would have to be installed.
const BANNED: [&str; 4] = ["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys"];

pub(super) fn problems(graph: &Graph) -> Vec<String> {
    [arrows(graph), reach(graph), banned(graph)].concat()
}

fn arrows(graph: &Graph) -> Vec<String> {
    let mut problems = Vec::new();
    for package in graph.ours() {
        let name = package.name.as_str();
        let allowed = match (
            ARROWS.iter().find(|(known, _)| *known == name),
            OUTSIDE.iter().find(|(known, _)| *known == name),
        ) {
            (Some((_, allowed)), _) => *allowed,
            (None, Some((_, true))) => continue,
            (None, Some((_, false))) => &[],
            (None, None) => {
                problems.push(format!(
                    "{name} has no row in the table of xtask/src/check/architecture.rs: say what it may link"
                ));
                continue;
            }
        };
        for linked in graph.links_of_ours(package).filter(|linked| !allowed.contains(&linked.name.as_str())) {
            problems
                .push(format!("{name} links {}, an arrow that the architecture does not have", linked.name));
        }
    }
    problems
}

fn reach(graph: &Graph) -> Vec<String> {
    let pairs = OUT_OF_REACH
        .iter()
        .flat_map(|(from, to)| from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to))));
    let chains = pairs.filter_map(|(from, to)| graph.chain(from, to));
    chains
        .map(|chain| {
            format!(
                "{} must not reach {}, but does: {}",
                chain[0],
                chain[chain.len() - 1],
                chain.join(" -> ")
            )
        })
        .collect()
}

fn banned(graph: &Graph) -> Vec<String> {
    let found = graph.third_party().filter(|package| BANNED.contains(&package.name.as_str()));
    found
        .map(|package| {
            let (name, version) = (&package.name, &package.version);
            format!("{name} {version} must not be in the tree: `cargo tree -i {name}` shows who brings it")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::graph::sample::graph;
    use super::*;

    #[test]
    fn arrows_of_the_table_pass_and_tests_may_use_anything() {
        let packages = [
            "undertone-core 0.0.0",
            "undertone-round 0.0.0",
            "undertone-store 0.0.0",
            "undertone-harness 0.0.0",
            "tokio 1.0.0",
        ];
        let links = [
            "undertone-round -> undertone-core",
            "undertone-store -> undertone-core",
            "undertone-store -> tokio",
            "undertone-round -> undertone-harness as dev",
            "undertone-harness -> undertone-store",
            "undertone-core -> tokio as dev",
        ];
        assert_eq!(problems(&graph(&packages, &links)), Vec::<String>::new());
    }

    #[test]
    fn an_arrow_upwards_is_found() {
        let packages = ["undertone-core 0.0.0", "undertone-round 0.0.0", "xtask 0.0.0"];
        let found =
            problems(&graph(&packages, &["undertone-core -> undertone-round", "xtask -> undertone-core"]));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("undertone-core links undertone-round"), "{found:?}");
        assert!(found[1].starts_with("xtask links undertone-core"), "{found:?}");
    }

    #[test]
    fn impurity_is_found_behind_a_crate_of_others() {
        let packages = [
            "undertone-privacy 0.0.0",
            "innocent 1.0.0",
            "tokio 1.0.0",
            "undertone-server 0.0.0",
            "tch 0.24.0",
        ];
        let links = ["undertone-privacy -> innocent", "innocent -> tokio", "undertone-server -> tch"];
        let found = problems(&graph(&packages, &links));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].ends_with("undertone-privacy -> innocent -> tokio"), "{found:?}");
        assert!(found[1].ends_with("undertone-server -> tch"), "{found:?}");
    }

    #[test]
    fn banned_crates_and_unknown_members_are_found() {
        let found = problems(&graph(&["undertone-new 0.0.0", "openssl-sys 0.9.1"], &[]));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].starts_with("undertone-new has no row") && found[1].starts_with("openssl-sys 0.9.1"),
            "{found:?}"
        );
    }
}
