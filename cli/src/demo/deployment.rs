//! A whole deployment on this machine: the server, the participants, the operator's connection.

use super::example::{Example, Site};
use super::process::{Arguments, Fleet, Programs};
use crate::command::client;
use crate::command::token::{self, Invitation};
use crate::profile::{Connection, Profile};
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use undertone_core::duration::Span;

const START_LIMIT: Duration = Duration::from_secs(10);
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

/// Where things are in the demo's folder.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    root: PathBuf,
}

impl Places {
    /// Below `root`, an absolute path.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The demo's folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The server's folder.
    pub(crate) fn deployment(&self) -> PathBuf {
        self.root.join("deployment")
    }

    /// The operator's profile.
    pub(crate) fn operator(&self) -> PathBuf {
        self.deployment().join("operator")
    }

    /// The folder of a participant: its key, its certificate and its own rows, nobody else's.
    pub(crate) fn client(&self, site: &Site) -> PathBuf {
        self.root.join("clients").join(site.name.as_str())
    }

    /// The rows of a participant.
    pub(crate) fn data(&self, site: &Site) -> PathBuf {
        self.client(site).join(site.file)
    }

    /// The job file.
    pub(crate) fn job(&self) -> PathBuf {
        self.root.join("job.toml")
    }
}

/// Makes a deployment called `name` on a free port of loopback.
///
/// # Errors
/// If the server's program fails.
pub(crate) async fn make(dir: &Path, name: &str, programs: &Programs) -> Result<()> {
    let init: Arguments<'_> =
        &[&"init", &"--dir", &dir, &"--name", &name, &"--listen", &"127.0.0.1:0", &"--host", &"localhost"];
    programs.run("undertone-server", init).await?;
    Ok(())
}

/// Starts the server of a deployment; gives the operator's connection.
///
/// # Errors
/// If it ends, or does not answer in time.
pub(crate) async fn start_server(dir: &Path, fleet: &mut Fleet) -> Result<Connection> {
    let run: Arguments<'_> = &[&"run", &"--dir", &dir];
    fleet.start("the server", "undertone-server", run, &dir.join("server.log"))?;
    let profile = Profile::load(&dir.join("operator"))?;
    let end = Instant::now() + START_LIMIT;
    loop {
        fleet.check()?;
        let error = match profile.connect().await {
            Ok(mut connection) => match client::list(&mut connection).await {
                Ok(_) => return Ok(connection),
                Err(e) => e,
            },
            Err(e) => e,
        };
        if Instant::now() > end {
            bail!("the server does not answer after {} s: {error:#}", START_LIMIT.as_secs());
        }
        sleep(PAUSE).await;
    }
}

/// Gives each participant its folder with its own rows, and enrols it with a join token of its own.
///
/// # Errors
/// If a file cannot be written, or a program fails.
pub(crate) async fn enrol_all(
    places: &Places,
    example: &Example,
    sampling_seed: Option<u64>,
    programs: &Programs,
    connection: &mut Connection,
) -> Result<()> {
    for (i, site) in sites(example).enumerate() {
        // Not the same draws at every site.
        let seed = sampling_seed.map(|s| s.wrapping_mul(1000).wrapping_add(i as u64));
        enrol(places, site, seed, programs, connection).await?;
    }
    Ok(())
}

async fn enrol(
    places: &Places,
    site: &Site,
    sampling_seed: Option<u64>,
    programs: &Programs,
    connection: &mut Connection,
) -> Result<()> {
    let dir = places.client(site);
    let write = |path: &Path, text: &str| {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    // Its key will lie here.
    let mut private = fs::DirBuilder::new();
    private
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .with_context(|| format!("cannot make {}", dir.display()))?;
    write(&places.data(site), &site.csv)?;
    let invitation =
        Invitation { role: site.role, name: Some(site.name.clone()), uses: 1, lifetime: Span::seconds(600) };
    let token_file = dir.join("join.token");
    token::save(&token::create(connection, &invitation).await?.token, &token_file)?;
    let enrol: Arguments<'_> = &[
        &"enrol",
        &"--dir",
        &dir,
        &"--token-file",
        &token_file,
        &"--data",
        &places.data(site),
        &"--declared-rows",
        &site.declared_rows().to_string(),
    ];
    programs.run("undertone-client", enrol).await.with_context(|| format!("cannot enrol {}", site.name))?;
    // Used up.
    fs::remove_file(&token_file).with_context(|| format!("cannot remove {}", token_file.display()))?;
    if let Some(seed) = sampling_seed {
        let config = dir.join("client.toml");
        let text =
            fs::read_to_string(&config).with_context(|| format!("cannot read {}", config.display()))?;
        write(&config, &format!("{text}\n[study]\nsampling_seed = {seed}\n"))?;
    }
    Ok(())
}

/// Starts all participants and waits until they are connected.
///
/// # Errors
/// If one stops, or they are not there in time.
pub(crate) async fn start_participants(
    places: &Places,
    example: &Example,
    fleet: &mut Fleet,
    connection: &mut Connection,
) -> Result<()> {
    for site in sites(example) {
        let dir = places.client(site);
        let run: Arguments<'_> = &[&"run", &"--dir", &dir];
        fleet.start(site.name.as_str(), "undertone-client", run, &dir.join("client.log"))?;
    }
    let end = Instant::now() + CONNECT_LIMIT;
    loop {
        fleet.check()?;
        let clients = client::list(connection).await?;
        let missing: Vec<&str> = clients.iter().filter(|c| !c.connected).map(|c| c.client.as_str()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("not connected after {} s: {}", CONNECT_LIMIT.as_secs(), missing.join(", "));
        }
        sleep(PAUSE).await;
    }
}

/// All participants, the evaluator last.
pub(crate) fn sites(example: &Example) -> impl Iterator<Item = &Site> {
    example.trainers.iter().chain([&example.evaluator])
}
