//! What is in `deploy/` is read as those read it who will run it: configurations by the coordinator's own type, flags by the programs' own
//! help, names and folders against each other. Whether an engine does with it what is meant, no test here can say.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use undertone_server::ServerConfig;
use yaml_rust2::{Yaml, YamlLoader};

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy")
}

fn text(path: &str) -> String {
    let path = deploy().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn yaml(path: &str) -> Vec<Yaml> {
    YamlLoader::load_from_str(&text(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

const MANIFESTS: [&str; 6] = [
    "kubernetes/namespace.yaml",
    "kubernetes/configuration.yaml",
    "kubernetes/service.yaml",
    "kubernetes/coordinators.yaml",
    "kubernetes/disruption-budget.yaml",
    "kubernetes/autoscaling.yaml",
];

/// The configuration as the coordinator reads it in `folder`.
fn config(text: &str, folder: &str) -> ServerConfig {
    let here = tempfile::TempDir::new().unwrap();
    let file = here.path().join("server.toml");
    std::fs::write(&file, text).unwrap();
    ServerConfig::read(&file, Path::new(folder)).unwrap()
}

/// Every list of words that begins as a command of the coordinator does.
fn commands(node: &Yaml, found: &mut Vec<Vec<String>>) {
    match node {
        Yaml::Array(list) => {
            let words: Vec<_> = list.iter().filter_map(|word| word.as_str().map(str::to_owned)).collect();
            let words: Vec<_> =
                words.into_iter().skip_while(|word| word == "CMD" || word == "undertone-server").collect();
            if words.iter().any(|word| word == "--dir") {
                found.push(words);
            }
            list.iter().for_each(|node| commands(node, found));
        }
        Yaml::Hash(map) => map.values().for_each(|node| commands(node, found)),
        _ => {}
    }
}

/// Whether the coordinator has this command with these flags.
fn check_command(words: &[String]) {
    let help =
        Command::new(env!("CARGO_BIN_EXE_undertone-server")).arg(&words[0]).arg("--help").output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.contains(&format!("Usage: undertone-server {} ", words[0])), "{words:?}: no such command");
    let flags: BTreeSet<&str> = help.split_whitespace().map(|word| word.trim_end_matches(',')).collect();
    for flag in words.iter().filter(|word| word.starts_with("--")) {
        assert!(flags.contains(flag.as_str()), "{words:?}: {} has no {flag}", words[0]);
    }
}

#[test]
fn a_flag_that_is_not_there_would_be_found() {
    let words = ["run", "--dir", "x", "--no-such-flag"].map(str::to_owned);
    assert!(std::panic::catch_unwind(|| check_command(&words)).is_err());
    let words = ["serve", "--dir", "x"].map(str::to_owned);
    assert!(std::panic::catch_unwind(|| check_command(&words)).is_err());
}

#[test]
fn configurations_are_the_coordinators() {
    let compose = config(&text("compose/server.toml"), "/etc/undertone");
    assert_eq!(compose.pki, Path::new("/etc/undertone/pki"));
    let map = &yaml("kubernetes/configuration.yaml")[0];
    let cluster = config(map["data"]["server.toml"].as_str().unwrap(), "/etc/undertone");
    for config in [&compose, &cluster] {
        assert!(
            config.storage.database.is_some() && config.storage.bucket.is_some(),
            "several coordinators need both"
        );
        assert_eq!(config.storage.folder, Path::new("/var/lib/undertone"));
        assert_eq!(config.listen.port(), 7443);
        assert!(config.public_url.ends_with(":7443"));
    }
    assert!(
        !cluster.storage.database.unwrap().contains("sslmode"),
        "over a network the server proves who it is"
    );
}

#[test]
fn manifests_say_the_same_of_each_other() {
    let set = &yaml("kubernetes/coordinators.yaml")[0];
    let pod = &set["spec"]["template"];
    let labels = &pod["metadata"]["labels"];
    let container = &pod["spec"]["containers"][0];
    assert_eq!(&set["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(&yaml("kubernetes/disruption-budget.yaml")[0]["spec"]["selector"]["matchLabels"], labels);
    let services = yaml("kubernetes/service.yaml");
    assert_eq!(services.len(), 2);
    for service in &services {
        assert_eq!(&service["spec"]["selector"], labels);
    }
    assert_eq!(set["spec"]["serviceName"], services[1]["metadata"]["name"]);
    assert_eq!(services[0]["spec"]["ports"][0]["targetPort"], container["ports"][0]["name"]);
    assert_eq!(container["ports"][0]["containerPort"].as_i64(), Some(7443));
    let scaled = &yaml("kubernetes/autoscaling.yaml")[0]["spec"]["scaleTargetRef"];
    assert_eq!((&scaled["kind"], &scaled["name"]), (&set["kind"], &set["metadata"]["name"]));

    // What is mounted is there, and where the configuration looks for it.
    let mut volumes: BTreeSet<&str> =
        pod["spec"]["volumes"].as_vec().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
    volumes.insert(set["spec"]["volumeClaimTemplates"][0]["metadata"]["name"].as_str().unwrap());
    let mounts = container["volumeMounts"].as_vec().unwrap();
    let mounted: BTreeSet<&str> = mounts.iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(mounted, volumes);
    let map = &yaml("kubernetes/configuration.yaml")[0];
    let config = config(map["data"]["server.toml"].as_str().unwrap(), "/etc/undertone");
    let paths: BTreeSet<&str> = mounts.iter().map(|m| m["mountPath"].as_str().unwrap()).collect();
    for wanted in [Path::new("/etc/undertone"), &config.pki, &config.storage.folder] {
        assert!(paths.contains(wanted.to_str().unwrap()), "{} is not mounted", wanted.display());
    }
    assert_eq!(pod["spec"]["volumes"][0]["configMap"]["name"], map["metadata"]["name"]);
    let claim = &set["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"];
    let near = config.storage.bucket.unwrap().near_gib;
    let gib: u32 = claim.as_str().unwrap().strip_suffix("Gi").unwrap().parse().unwrap();
    assert!(gib > near, "no room for {near} GiB of what is in the bucket");

    // Everybody is in the list, but for what its first lines say.
    let list = &yaml("kubernetes/kustomization.yaml")[0]["resources"];
    let listed: BTreeSet<&str> = list.as_vec().unwrap().iter().map(|f| f.as_str().unwrap()).collect();
    let all: BTreeSet<&str> = MANIFESTS.iter().map(|f| f.strip_prefix("kubernetes/").unwrap()).collect();
    assert_eq!(all.difference(&listed).collect::<Vec<_>>(), [&"autoscaling.yaml"]);
}

#[test]
fn probes_leave_those_that_stand_by_alive() {
    let set = &yaml("kubernetes/coordinators.yaml")[0];
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    for (probe, alive) in [("livenessProbe", true), ("startupProbe", true), ("readinessProbe", false)] {
        let mut found = vec![];
        commands(&container[probe], &mut found);
        let [words] = found.as_slice() else { panic!("{probe}: {found:?}") };
        assert_eq!(words.contains(&"--alive".to_owned()), alive, "{probe}: {words:?}");
        let asks: i64 = words[1 + words.iter().position(|w| w == "--timeout").unwrap()].parse().unwrap();
        assert!(
            container[probe]["timeoutSeconds"].as_i64().unwrap() >= 2 * asks,
            "{probe} is cut off before it answers"
        );
    }
    // Its steps wait while its disk or its database is away: that is no reason to be killed.
    let patience = container["livenessProbe"]["failureThreshold"].as_i64().unwrap();
    assert!(patience * container["livenessProbe"]["periodSeconds"].as_i64().unwrap() >= 60);
}

#[test]
fn every_command_exists_with_its_flags() {
    let mut found = vec![];
    for path in MANIFESTS.into_iter().chain(["compose/compose.yaml"]) {
        yaml(path).iter().for_each(|node| commands(node, &mut found));
    }
    let containerfile = text("container/Containerfile");
    let lists = containerfile.lines().filter_map(|line| {
        let list = line.trim().strip_prefix("CMD ")?;
        Some(serde_json::from_str::<Vec<String>>(list).unwrap())
    });
    found.extend(
        lists.map(|words| words.into_iter().skip_while(|w| w == "undertone-server").collect::<Vec<_>>()),
    );
    for unit in ["undertone-server", "undertone-backup"] {
        let unit = text(&format!("systemd/{unit}.service"));
        let line = unit.lines().find(|line| line.starts_with("ExecStart=")).unwrap();
        let (_, words) = line.split_once("/usr/local/bin/undertone-server ").unwrap();
        found.push(words.split_whitespace().map(|word| word.trim_matches('\'').to_owned()).collect());
    }
    // Those of pages for people.
    for page in [text("README.md"), text("../docs/OPERATIONS.md")] {
        for line in page.lines().filter(|line| line.starts_with("undertone-server ")) {
            let command = line.split('#').next().unwrap();
            found.push(command.split_whitespace().skip(1).map(str::to_owned).collect());
        }
    }
    assert!(found.len() >= 12, "{found:#?}");
    found.iter().for_each(|words| check_command(words));
    let used: BTreeSet<&str> = found.iter().map(|words| words[0].as_str()).collect();
    assert_eq!(used, ["backup", "doctor", "health", "init", "restore", "run"].into());
}

#[test]
fn the_container_is_nobodys_root() {
    let containerfile = text("container/Containerfile");
    let user = containerfile.lines().rfind(|line| line.starts_with("USER ")).unwrap();
    let set = &yaml("kubernetes/coordinators.yaml")[0];
    let pod = &set["spec"]["template"]["spec"];
    let number = pod["securityContext"]["runAsUser"].as_i64().unwrap();
    assert_eq!(user, format!("USER {number}:{number}"));
    assert!(containerfile.contains(&format!("--uid {number} ")), "the user that is made");
    let container = &pod["containers"][0]["securityContext"];
    assert_eq!(container["readOnlyRootFilesystem"].as_bool(), Some(true));
    assert_eq!(container["allowPrivilegeEscalation"].as_bool(), Some(false));
    let rust = containerfile.lines().find_map(|line| line.strip_prefix("FROM rust:")).unwrap();
    let workspace = std::fs::read_to_string(deploy().parent().unwrap().join("Cargo.toml")).unwrap();
    let needed = workspace.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap();
    assert!(rust.starts_with(needed.trim_matches('"')), "{rust} is not the Rust that is needed, {needed}");
}

#[test]
fn compose_has_a_balancer_for_each_coordinator() {
    let compose = &yaml("compose/compose.yaml")[0];
    let proxy = text("compose/haproxy.cfg");
    let coordinators = ["north", "south"];
    for name in coordinators {
        assert!(proxy.contains(&format!("server {name} {name}:7443")), "{name}");
        let volumes = compose["services"][name]["volumes"].as_vec().unwrap();
        let own = format!("./state/{name}:/var/lib/undertone");
        assert!(volumes.iter().any(|v| v.as_str() == Some(&own)), "a folder of its own: {volumes:?}");
    }
    let config = config(&text("compose/server.toml"), "/etc/undertone");
    let hosts: BTreeSet<&str> =
        compose["services"].as_hash().unwrap().keys().map(|name| name.as_str().unwrap()).collect();
    let database = config.storage.database.unwrap();
    let host = database.split('@').nth(1).and_then(|rest| rest.split(':').next()).unwrap();
    assert!(hosts.contains(host), "{host} is no service of {hosts:?}");
    let endpoint = config.storage.bucket.unwrap().endpoint.unwrap();
    let host = endpoint.trim_start_matches("http://").split(':').next().unwrap();
    assert!(hosts.contains(host), "{host} is no service of {hosts:?}");
}

/// `systemd-analyze verify`, where it is installed.
#[test]
fn units_are_what_systemd_understands() {
    let units = [
        "undertone-server.service",
        "undertone-client.service",
        "undertone-backup.service",
        "undertone-backup.timer",
    ];
    for unit in units {
        let text = text(&format!("systemd/{unit}"));
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with(['#', '['])) {
            assert!(line.contains('='), "{unit}: {line}");
        }
        assert_eq!(unit.ends_with(".service"), text.contains("ExecStart="), "{unit}");
    }
    let server = text("systemd/undertone-server.service");
    assert!(server.contains("Restart=always\n"), "one that lost its place is to stand by");
    // With a program that exists, for the real ones are installed nowhere.
    let here = tempfile::TempDir::new().unwrap();
    for unit in units {
        let changed = text(&format!("systemd/{unit}"))
            .replace("/usr/local/bin/undertone-server", "/bin/true")
            .replace("/usr/local/bin/undertone-client", "/bin/true");
        std::fs::write(here.path().join(unit), changed).unwrap();
    }
    for unit in units {
        match Command::new("systemd-analyze").arg("verify").arg(here.path().join(unit)).output() {
            Ok(verified) => {
                let said = String::from_utf8_lossy(&verified.stderr);
                let ours: Vec<_> = said.lines().filter(|line| line.contains("undertone")).collect();
                assert!(ours.is_empty(), "{unit}: {said}");
            }
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::NotFound, "systemd-analyze: {e}"),
        }
    }
}
