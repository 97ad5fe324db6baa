//! Where it is: the port, the name, the folder.

use super::Check;
use crate::config::ServerConfig;
use crate::health::{self, Standing, host_of};
use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long somebody who listens is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// A disk that takes so long makes every acknowledgement wait.
const SLOW: Duration = Duration::from_millis(100);

pub(super) async fn checks(config: &ServerConfig) -> Vec<Check> {
    let mut checks = vec![port(config).await, name(config).await];
    checks.extend(folder(&config.storage.folder));
    checks
}

async fn port(config: &ServerConfig) -> Check {
    let (name, listen) = ("port", config.listen);
    match health::ask(config, PATIENCE).await {
        Standing::Serving => {
            Check::ok(name, format!("{listen}: a coordinator of this deployment serves here"))
        }
        Standing::NotServing => Check::fail(
            name,
            format!("{listen}: the coordinator here does not serve, for it does not reach its database"),
            "see what is said of the database below",
        ),
        Standing::NobodyThere => match TcpListener::bind(listen) {
            Ok(_) => Check::ok(name, format!("{listen} is free: no coordinator runs here, or it stands by")),
            Err(e) => {
                Check::fail(name, format!("cannot listen on {listen}: {e}"), "change `listen` in server.toml")
            }
        },
        Standing::Wrong(why) => {
            Check::fail(name, why, format!("end what listens on {listen}, or change `listen` in server.toml"))
        }
    }
}

async fn name(config: &ServerConfig) -> Check {
    let name = "address";
    let host = host_of(&config.public_url).unwrap_or_default();
    let found = tokio::time::timeout(PATIENCE, tokio::net::lookup_host((host.as_str(), 0))).await;
    let has_one = found.is_ok_and(|found| found.is_ok_and(|mut addresses| addresses.next().is_some()));
    if has_one {
        return Check::ok(name, format!("{} has an address here", config.public_url));
    }
    Check::warn(
        name,
        format!("{host} of public_url has no address here"),
        "add it to the name service that participants use; join tokens name it",
    )
}

/// Whether the folder takes what it is given, and keeps it.
pub(super) fn folder(folder: &Path) -> Vec<Check> {
    let name = "folder";
    let shown = folder.display();
    let owner = format!("let this user own it: chown -R $(id -un) {shown}");
    match fs::symlink_metadata(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return vec![Check::warn(
                name,
                format!("{shown} is not there"),
                "the first start makes it; after that, mount it or restore a backup",
            )];
        }
        Err(e) => return vec![Check::fail(name, format!("{shown}: {e}"), owner)],
        Ok(_) => {}
    }
    let probe = folder.join(format!("doctor-{}", std::process::id()));
    let begun = Instant::now();
    let written = File::create(&probe).and_then(|mut file| {
        file.write_all(&[0x55; 4096])?;
        file.sync_all()?;
        File::open(folder)?.sync_all()
    });
    let took = begun.elapsed();
    let removed = if probe.exists() { fs::remove_file(&probe) } else { Ok(()) };
    match written.and(removed) {
        Err(e) => vec![Check::fail(name, format!("{shown} cannot be written: {e}"), owner)],
        Ok(()) if took > SLOW => vec![Check::warn(
            name,
            format!("{shown} can be written, and takes {} ms to make 4 KiB durable", took.as_millis()),
            "every acknowledgement waits for that: take a faster disk",
        )],
        Ok(()) => {
            vec![Check::ok(
                name,
                format!("{shown} makes 4 KiB durable in {:.1} ms", took.as_secs_f64() * 1e3),
            )]
        }
    }
}
