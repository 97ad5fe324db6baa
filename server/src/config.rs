//! `server.toml`.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use undertone_core::config::{ConfigError, parse_toml};
use undertone_core::duration::Span;
use undertone_privacy::ledger::population::Budgets;

/// The coordinator's configuration. Relative paths are relative to the file's folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// The deployment's name, for people.
    pub name: String,
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// The address that participants use, for example `https://fl.example.org:7443`; part of every join token.
    pub public_url: String,
    /// Where keys and certificates are.
    #[serde(default = "default_pki")]
    pub pki: PathBuf,
    /// Where state and blobs are.
    #[serde(default)]
    pub storage: Storage,
    /// Bounds.
    #[serde(default)]
    pub limits: Limits,
    /// What all jobs together may spend of the population's privacy; nothing here: each job has its own budget alone.
    #[serde(default)]
    pub budget: Budgets,
}

fn default_pki() -> PathBuf {
    "pki".into()
}

/// Where state and blobs are.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// Folder of the database and the blobs, or of what this machine keeps of them.
    pub folder: PathBuf,
    /// What an acknowledgement survives.
    pub durability: Durability,
    /// A PostgreSQL database for the state, `postgres://user@host:5432/database`, in place of a file in the folder. The password may
    /// stand in PGPASSWORD or in a password file. Any number of coordinators may share a database and a bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// A bucket for the blobs, in place of the folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket: Option<Bucket>,
}

impl Storage {
    /// The file of the state, where it is not in a database of its own.
    pub(crate) fn file(&self) -> PathBuf {
        self.folder.join("undertone.sqlite")
    }

    /// The folder of the blobs, where they are not in a bucket.
    pub(crate) fn blobs(&self) -> PathBuf {
        self.folder.join("blobs")
    }

    /// The folder in front of a bucket.
    pub(crate) fn near(&self) -> PathBuf {
        self.folder.join("near")
    }
}

/// The URL of the database may have a password in it.
impl std::fmt::Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Storage")
            .field("folder", &self.folder)
            .field("durability", &self.durability)
            .field("database", &self.database.as_ref().map(|_| "postgres://.."))
            .field("bucket", &self.bucket)
            .finish()
    }
}

/// A bucket of an S3-compatible store. What opens it stands in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or is the machine's own role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// `s3://bucket/prefix`.
    pub url: String,
    /// Where the store is reached, if it is not AWS: `https://minio.example:9000`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The region; AWS_REGION if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// How much of it stays in the folder at hand, in GiB.
    #[serde(default = "default_near")]
    pub near_gib: u32,
}

impl Bucket {
    /// As it is opened: with the key that is in the environment.
    pub(crate) fn config(&self) -> undertone_store::BucketConfig {
        undertone_store::BucketConfig {
            url: self.url.clone(),
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            key: None,
        }
    }
}

fn default_near() -> u32 {
    20
}

/// What an acknowledgement survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// A power loss.
    #[default]
    Disk,
    /// A crash of the process, but not of the machine; faster.
    Process,
}

impl Default for Storage {
    fn default() -> Self {
        Self { folder: "state".into(), durability: Durability::Disk, database: None, bucket: None }
    }
}

/// Bounds of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Uploads taken in at once; the rest wait without memory.
    pub uploads_in_flight: usize,
    /// What a client may send of an upload before somebody reads it, in KiB: 64 to 16384. More helps single clients over long, fat
    /// lines (256 KiB carry 40 Mbit/s over 50 ms), and each upload that is under way or waits for its place may take so much memory.
    pub upload_window_kib: u32,
    /// Updates of one round which together have at least so many MiB are summed by all the coordinators that took them in, each its
    /// own. Of use where several share a bucket.
    pub partial_sums_mib: u32,
    /// Participants connected at once.
    pub sessions: usize,
    /// Jobs that have not ended.
    pub open_jobs: usize,
    /// How long a participant's certificate is valid.
    pub certificate_lifetime: Span,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            uploads_in_flight: 16,
            upload_window_kib: 256,
            partial_sums_mib: 256,
            sessions: 20_000,
            open_jobs: 100,
            certificate_lifetime: Span::seconds(365 * 86_400),
        }
    }
}

impl ServerConfig {
    /// Reads `server.toml` in a deployment's folder.
    ///
    /// # Errors
    /// If it cannot be read, or holds an unknown key or a value that makes no sense.
    pub fn load(folder: &Path) -> Result<Self, ConfigError> {
        Self::read(&folder.join("server.toml"), folder)
    }

    /// Reads a file of that kind for the deployment in `folder`.
    ///
    /// # Errors
    /// As of [`Self::load`].
    pub fn read(file: &Path, folder: &Path) -> Result<Self, ConfigError> {
        let shown = file.display().to_string();
        let text = std::fs::read_to_string(file).map_err(|e| ConfigError {
            place: shown.clone(),
            problem: format!(
                "{e}: make a deployment with `undertone-server init --dir {}`",
                folder.display()
            ),
        })?;
        let mut config: Self = parse_toml(&text, &shown)?;
        if !config.public_url.starts_with("https://") {
            return Err(ConfigError {
                place: shown,
                problem: format!("public_url must start with https://, not \"{}\"", config.public_url),
            });
        }
        if config.limits.uploads_in_flight == 0 || config.limits.sessions == 0 || config.limits.open_jobs == 0
        {
            return Err(ConfigError {
                place: shown,
                problem: "a limit of zero would stop everything".into(),
            });
        }
        let window = config.limits.upload_window_kib;
        if !(64..=16_384).contains(&window) {
            return Err(ConfigError {
                place: shown,
                problem: format!("[limits] upload_window_kib = {window} is not 64 to 16384"),
            });
        }
        if let Err(problem) = config.budget.check() {
            return Err(ConfigError { place: shown, problem });
        }
        config.pki = folder.join(&config.pki);
        config.storage.folder = folder.join(&config.storage.folder);
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_refused_with_the_nearest() {
        let folder = std::env::temp_dir().join(format!("undertone-config-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let write = |text: &str| std::fs::write(folder.join("server.toml"), text).unwrap();
        write("name = \"x\"\nlistn = \"127.0.0.1:1\"\npublic_url = \"https://localhost:1\"\n");
        let e = ServerConfig::load(&folder).unwrap_err().to_string();
        assert!(e.contains("line 2") && e.contains("did you mean \"listen\"?"), "{e}");
        write("name = \"x\"\nlisten = \"127.0.0.1:1\"\npublic_url = \"http://localhost:1\"\n");
        assert!(ServerConfig::load(&folder).unwrap_err().to_string().contains("https://"));
        let good = "name = \"x\"\nlisten = \"127.0.0.1:1\"\npublic_url = \"https://localhost:1\"\n";
        for (budget, words) in [
            ("epsilon = 0.0\ndelta = 1e-6", "[budget.record] epsilon"),
            ("epsilon = 8.0\ndelta = 1.0", "[budget.record] delta"),
            ("epsilon = 8.0", "delta"),
        ] {
            write(&format!("{good}[budget.record]\n{budget}\n"));
            let e = ServerConfig::load(&folder).unwrap_err().to_string();
            assert!(e.contains(words), "{e}");
        }
        for window in [63, 16_385] {
            write(&format!("{good}[limits]\nupload_window_kib = {window}\n"));
            let e = ServerConfig::load(&folder).unwrap_err().to_string();
            assert!(e.contains(&format!("upload_window_kib = {window} is not 64 to 16384")), "{e}");
        }
        write(&format!("{good}[budget.record]\nepsilon = 8.0\ndelta = 1e-6\n"));
        assert_eq!(ServerConfig::load(&folder).unwrap().budget.record.unwrap().epsilon, 8.0);
        write(good);
        assert_eq!(ServerConfig::load(&folder).unwrap().pki, folder.join("pki"));
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(ServerConfig::load(&folder).unwrap_err().to_string().contains("undertone-server init"));
    }
}
