//! The dependency graph as cargo resolves it for one platform.

use std::collections::{BTreeMap, VecDeque};

use anyhow::{Context, Result};
use serde_json::Value;

/// Packages and who depends on whom. A package is named by its index.
pub(super) struct Graph {
    packages: Vec<Package>,
}

pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    /// The SPDX expression in its manifest.
    pub(super) licence: Option<String>,
    /// Is it a member of this workspace?
    pub(super) ours: bool,
    dependencies: Vec<Dependency>,
}

struct Dependency {
    on: usize,
    /// Linked into the package, as opposed to used by its build script or its tests.
    normal: bool,
}

impl Graph {
    /// Reads what `cargo metadata --format-version 1` prints. Only packages that the resolver kept are taken.
    pub(super) fn from_metadata(metadata: &Value) -> Result<Self> {
        let nodes = array(&metadata["resolve"]["nodes"], "resolve.nodes")?;
        let described: BTreeMap<&str, &Value> = array(&metadata["packages"], "packages")?
            .iter()
            .map(|package| Ok((text(package, "id")?, package)))
            .collect::<Result<_>>()?;
        let members = array(&metadata["workspace_members"], "workspace_members")?;
        let index: BTreeMap<&str, usize> = nodes
            .iter()
            .enumerate()
            .map(|(index, node)| Ok((text(node, "id")?, index)))
            .collect::<Result<_>>()?;
        let packages = nodes.iter().map(|node| {
            let id = text(node, "id")?;
            let package =
                described.get(id).with_context(|| format!("cargo metadata does not describe {id}"))?;
            let dependencies = array(&node["deps"], "deps")?.iter().map(|dependency| {
                let on = text(dependency, "pkg")?;
                let on = *index.get(on).with_context(|| format!("cargo metadata does not resolve {on}"))?;
                let normal =
                    array(&dependency["dep_kinds"], "dep_kinds")?.iter().any(|kind| kind["kind"].is_null());
                Ok(Dependency { on, normal })
            });
            Ok(Package {
                name: text(package, "name")?.to_owned(),
                version: text(package, "version")?.to_owned(),
                licence: package["license"].as_str().map(str::to_owned),
                ours: members.iter().any(|member| member.as_str() == Some(id)),
                dependencies: dependencies.collect::<Result<_>>()?,
            })
        });
        Ok(Self { packages: packages.collect::<Result<_>>()? })
    }

    pub(super) fn ours(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| package.ours)
    }

    pub(super) fn third_party(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| !package.ours)
    }

    /// The packages of ours that `package` links directly.
    pub(super) fn links_of_ours<'a>(&'a self, package: &'a Package) -> impl Iterator<Item = &'a Package> {
        let linked = package.dependencies.iter().filter(|dependency| dependency.normal);
        linked.map(|dependency| &self.packages[dependency.on]).filter(|dependency| dependency.ours)
    }

    /// The shortest chain of links from the package called `from` to one called `to`, both ends included.
    pub(super) fn chain(&self, from: &str, to: &str) -> Option<Vec<&str>> {
        let start = self.packages.iter().position(|package| package.name == from)?;
        let mut came_from = vec![None; self.packages.len()];
        let mut queue = VecDeque::from([start]);
        while let Some(here) = queue.pop_front() {
            if self.packages[here].name == to {
                let back = std::iter::successors(Some(here), |&index| came_from[index]);
                let mut chain: Vec<&str> = back.map(|index| self.packages[index].name.as_str()).collect();
                chain.reverse();
                return Some(chain);
            }
            for next in self.packages[here].dependencies.iter().filter(|dependency| dependency.normal) {
                if next.on != start && came_from[next.on].is_none() {
                    came_from[next.on] = Some(here);
                    queue.push_back(next.on);
                }
            }
        }
        None
    }
}

fn array<'a>(value: &'a Value, name: &str) -> Result<&'a Vec<Value>> {
    value.as_array().with_context(|| format!("cargo metadata has no list `{name}`"))
}

fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str> {
    value[name].as_str().with_context(|| format!("cargo metadata has an entry without `{name}`"))
}

/// Graphs for the tests of the checks, in the form that cargo prints.
#[cfg(test)]
pub(super) mod sample {
    use serde_json::{Value, json};

    use super::Graph;

    /// `packages` are "name version", ours if the version is 0.0.0; `links` are "from -> to", with a kind after a
    /// blank unless it is a normal one, between packages named "name version" or just "name".
    pub(in super::super) fn graph(packages: &[&str], links: &[&str]) -> Graph {
        licensed(&packages.iter().map(|&package| (package, Some("MIT"))).collect::<Vec<_>>(), links)
    }

    pub(in super::super) fn licensed(packages: &[(&str, Option<&str>)], links: &[&str]) -> Graph {
        let id = |package: &str| {
            packages
                .iter()
                .find(|(known, _)| *known == package || known.split(' ').next() == Some(package))
                .expect("a listed package")
                .0
        };
        let deps = |from: &str| -> Vec<Value> {
            let parsed = links.iter().map(|link| {
                let (link, kind) =
                    link.split_once(" as ").map_or((*link, None), |(link, kind)| (link, Some(kind)));
                let (from, to) = link.split_once(" -> ").expect("an arrow");
                (id(from), json!({"pkg": id(to), "dep_kinds": [{"kind": kind}]}))
            });
            parsed.filter(|(start, _)| *start == from).map(|(_, dependency)| dependency).collect()
        };
        let describe = |(package, licence): &(&str, Option<&str>)| {
            let (name, version) = package.split_once(' ').expect("a version");
            json!({"id": package, "name": name, "version": version, "license": licence})
        };
        let metadata = json!({
            "packages": packages.iter().map(describe).collect::<Vec<_>>(),
            "workspace_members": packages.iter().filter(|(package, _)| package.ends_with(" 0.0.0")).map(|(package, _)| package).collect::<Vec<_>>(),
            "resolve": {"nodes": packages.iter().map(|(package, _)| json!({"id": package, "deps": deps(package)})).collect::<Vec<_>>()},
        });
        Graph::from_metadata(&metadata).expect("a well-formed sample")
    }
}

#[cfg(test)]
mod tests {
    use super::sample::graph;

    #[test]
    fn chains_follow_links_and_no_other_dependencies() {
        let graph = graph(
            &["core 0.0.0", "round 0.0.0", "tokio 1.0.0", "proptest 1.0.0"],
            &[
                "round -> core",
                "core -> round as dev",
                "core -> proptest as dev",
                "proptest -> tokio",
                "round -> tokio as build",
            ],
        );
        assert_eq!(graph.chain("round", "core"), Some(vec!["round", "core"]));
        assert_eq!(graph.chain("proptest", "tokio"), Some(vec!["proptest", "tokio"]));
        assert_eq!(graph.chain("round", "tokio"), None);
        assert_eq!(graph.chain("nobody", "core"), None);
    }

    #[test]
    fn the_shortest_chain_is_named() {
        let graph = graph(
            &["a 1.0.0", "b 1.0.0", "c 1.0.0", "d 1.0.0"],
            &["a -> b", "b -> c", "c -> d", "a -> c", "c -> a"],
        );
        assert_eq!(graph.chain("a", "d"), Some(vec!["a", "c", "d"]));
    }
}
