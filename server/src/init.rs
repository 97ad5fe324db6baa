//! `undertone-server init`: a deployment in a folder.

use crate::config::{Limits, ServerConfig, Storage};
use crate::identity::{Authority, IdentityError};
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use time::OffsetDateTime;
use undertone_privacy::ledger::population::Budgets;

/// What a new deployment is made from.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// The folder; made if it is not there, refused if it holds a deployment.
    pub folder: PathBuf,
    /// Name for people.
    pub name: String,
    /// Address to listen on. Port 0: a free port is picked now and written down.
    pub listen: SocketAddr,
    /// Host names and addresses that participants may use; the first goes into join tokens.
    pub hosts: Vec<String>,
}

/// Why a deployment could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is one already.
    #[error(
        "{0} already holds a deployment (server.toml or pki/ca.key): choose another folder, or start it with `undertone-server run`"
    )]
    Exists(PathBuf),
    /// No host name.
    #[error("name at least one host (--host) under which participants reach the coordinator")]
    NoHost,
    /// A file.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No free port.
    #[error("cannot listen on {address}: {source}")]
    Port {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Certificates.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Makes the CA, the coordinator's certificate, an operator's profile and `server.toml`.
///
/// # Errors
/// [`InitError`].
pub fn init(options: &InitOptions) -> Result<ServerConfig, InitError> {
    let folder = &options.folder;
    // A CA key without a server.toml is an old deployment too: overwriting it would orphan its clients.
    if folder.join("server.toml").exists() || folder.join("pki/ca.key").exists() {
        return Err(InitError::Exists(folder.clone()));
    }
    let host = options.hosts.first().ok_or(InitError::NoHost)?;
    let mut listen = options.listen;
    if listen.port() == 0 {
        let probe = TcpListener::bind(listen).and_then(|l| l.local_addr());
        listen = probe.map_err(|source| InitError::Port { address: listen, source })?;
    }
    let public_url = match host.parse::<std::net::Ipv6Addr>() {
        Ok(v6) => format!("https://[{v6}]:{}", listen.port()),
        Err(_) => format!("https://{host}:{}", listen.port()),
    };
    let now = OffsetDateTime::now_utc();
    let (authority, ca_key) = Authority::create(&options.name, now)?;
    let server = authority.server_certificate(&options.hosts, now)?;
    let operator = authority.operator_certificate("admin", "admin", now)?;

    let (pki, profile) = (folder.join("pki"), folder.join("operator"));
    for dir in [folder, &pki, &profile, &folder.join("state")] {
        private_folder(dir).map_err(|source| InitError::File { path: dir.clone(), source })?;
    }
    write(&pki.join("ca.crt"), authority.ca_pem(), 0o644)?;
    write(&pki.join("ca.key"), &ca_key, 0o600)?;
    write(&pki.join("server.crt"), &server.certificate_pem, 0o644)?;
    write(&pki.join("server.key"), &server.key_pem, 0o600)?;
    write(&profile.join("ca.crt"), authority.ca_pem(), 0o644)?;
    write(&profile.join("operator.crt"), &operator.certificate_pem, 0o644)?;
    write(&profile.join("operator.key"), &operator.key_pem, 0o600)?;
    let profile_text = format!(
        "# How the `undertone` command reaches this deployment. Whoever holds this folder is its operator.\n\
         server = \"{public_url}\"\nca = \"ca.crt\"\ncertificate = \"operator.crt\"\nkey = \"operator.key\"\n"
    );
    write(&profile.join("operator.toml"), &profile_text, 0o600)?;

    let config = ServerConfig {
        name: options.name.clone(),
        listen,
        public_url,
        pki: "pki".into(),
        storage: Storage::default(),
        limits: Limits::default(),
        budget: Budgets::default(),
    };
    let text = toml::to_string(&config).expect("the configuration is plain data");
    let text = format!(
        "# The coordinator's configuration; `undertone-server run --help` explains it.\n{}\n{BUDGET_HINT}",
        // Empty tables say nothing.
        text.replace("\n[budget]\n", "")
    );
    // Last: a folder with a server.toml is a whole deployment.
    write(&folder.join("server.toml"), &text, 0o644)?;
    Ok(ServerConfig { pki, storage: Storage { folder: folder.join("state"), ..config.storage }, ..config })
}

/// How a budget for all jobs together is written.
const BUDGET_HINT: &str = "\
# What all jobs together may spend; without it each job has its own budget alone. `undertone ledger show` tells what is
# spent. Jobs that promise nothing at a level with a budget are refused.
# [budget.record]
# epsilon = 10.0
# delta = 1e-6
# [budget.client]
# epsilon = 10.0
# delta = 1e-6
";

/// For the owner only: keys, state and the operator's profile are nobody else's.
fn private_folder(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), InitError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(mode);
    options
        .open(path)
        .and_then(|mut f| f.write_all(text.as_bytes()).and_then(|()| f.sync_all()))
        .map_err(|source| InitError::File { path: path.to_owned(), source })
}
