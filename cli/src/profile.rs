//! The operator's profile: a folder with an address, a certificate and a key; and the connection that it opens.

use crate::failure::bad_input;
use anyhow::{Context as _, Result, anyhow};
use serde::Deserialize;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::Status;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use undertone::limits::MAX_MESSAGE_BYTES;
use undertone::v1::operator_client::OperatorClient;
use undertone::{ApiError, Fault};
use undertone_core::config::parse_toml;

/// The profile's file in its folder.
const FILE: &str = "operator.toml";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// What speaks for an operator.
#[derive(Debug)]
pub(crate) struct Profile {
    folder: PathBuf,
    settings: Settings,
}

/// `operator.toml`. Paths are relative to the folder.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    server: String,
    #[serde(default = "default_ca")]
    ca: PathBuf,
    #[serde(default = "default_certificate")]
    certificate: PathBuf,
    #[serde(default = "default_key")]
    key: PathBuf,
}

fn default_ca() -> PathBuf {
    "ca.crt".into()
}

fn default_certificate() -> PathBuf {
    "operator.crt".into()
}

fn default_key() -> PathBuf {
    "operator.key".into()
}

/// A connection to the coordinator, as an operator.
pub(crate) type Connection = OperatorClient<Channel>;

impl Profile {
    /// Reads the profile in `folder`.
    ///
    /// # Errors
    /// If there is none, or its file makes no sense.
    pub(crate) fn load(folder: &Path) -> Result<Self> {
        let file = folder.join(FILE);
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(bad_input(format!(
                    "no operator's profile in {}: `undertone-server init` makes one (the folder operator/ of the \
                     deployment); name it with --operator DIR or in UNDERTONE_OPERATOR",
                    folder.display()
                )));
            }
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", file.display())),
        };
        let settings: Settings =
            parse_toml(&text, &file.display().to_string()).map_err(|e| bad_input(e.to_string()))?;
        if !settings.server.starts_with("https://") {
            return Err(bad_input(format!(
                "{}: server = \"{}\" must start with https:// (for example \"https://localhost:7443\")",
                file.display(),
                settings.server
            )));
        }
        Ok(Self { folder: folder.to_owned(), settings })
    }

    /// The coordinator's address.
    pub(crate) fn server(&self) -> &str {
        &self.settings.server
    }

    /// Opens the connection: mutual TLS, nothing trusted but the deployment's own CA.
    ///
    /// # Errors
    /// If a file of the profile is unreadable, the server does not answer or is another one.
    pub(crate) async fn connect(&self) -> Result<Connection> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.pem(&self.settings.ca)?))
            .identity(Identity::from_pem(
                self.pem(&self.settings.certificate)?,
                self.pem(&self.settings.key)?,
            ));
        let endpoint = Endpoint::from_shared(self.settings.server.clone())
            .and_then(|e| e.tls_config(tls))
            .map_err(|e| bad_input(format!("{}: {}", self.folder.join(FILE).display(), causes(&e))))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let channel = endpoint.connect().await.map_err(|e| self.unreachable(&causes(&e)))?;
        Ok(OperatorClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    fn pem(&self, file: &Path) -> Result<Vec<u8>> {
        let file = self.folder.join(file);
        std::fs::read(&file)
            .with_context(|| format!("cannot read {} of the operator's profile", file.display()))
    }

    /// Why a connection did not come about, from the text of its causes (tonic hides the types).
    fn unreachable(&self, causes: &str) -> anyhow::Error {
        let (server, folder) = (self.server(), self.folder.display());
        let has = |word: &str| causes.contains(word);
        if has("UnknownIssuer") || has("BadSignature") {
            anyhow!(
                "{server} is not the coordinator of this profile: its certificate comes from another deployment's CA \
                 than {folder}/{} (use the operator/ folder that its `undertone-server init` made)",
                self.settings.ca.display()
            )
        } else if has("not valid for name") {
            anyhow!(
                "the coordinator's certificate is not made out to the name in {server}: use a name that was given to \
                 `undertone-server init --host`"
            )
        } else if has("expired") || has("not valid yet") {
            anyhow!("the certificate of {server} is not valid at this time: check the clocks ({causes})")
        } else if has("Connection refused") {
            anyhow!("nothing listens at {server}: is the coordinator running (`undertone-server run`)?")
        } else {
            anyhow!("cannot reach the coordinator at {server}: {causes}")
        }
    }
}

/// A refusal or failure of a call, as a sentence for the operator.
pub(crate) fn call_failed(status: Status) -> anyhow::Error {
    // tonic gives a source to what it made itself: the connection broke, and nobody answered.
    if status.source().is_some() {
        // A client's certificate is judged after the handshake, so that a refusal breaks the first call.
        return anyhow!(
            "the connection to the coordinator broke: it was stopped just now, or does not accept the certificate of \
             this profile (of another deployment, or expired) ({})",
            causes(&status)
        );
    }
    let error = ApiError::from(status);
    match error.fault {
        Fault::BadRequest => bad_input(error.message),
        Fault::Unavailable => anyhow!("the coordinator is not available: {}", error.message),
        Fault::Internal => anyhow!("the coordinator failed: {} (its log tells more)", error.message),
        _ => error.into(),
    }
}

/// An error and its causes in one line, each said once.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(e) = next {
        let text = e.to_string();
        if !texts.iter().any(|t| t.contains(&text)) {
            texts.push(text);
        }
        next = e.source();
    }
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Profile> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), text).unwrap();
        Profile::load(folder.path())
    }

    #[test]
    fn a_profile_needs_only_an_address() {
        let profile = load("server = \"https://localhost:7443\"\n").unwrap();
        assert_eq!(profile.server(), "https://localhost:7443");
        assert_eq!(profile.settings.key, Path::new("operator.key"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let message = |r: Result<Profile>| r.unwrap_err().to_string();
        let e = message(load("server = \"https://x\"\ncertifcate = \"a\"\n"));
        assert!(e.contains("line 2") && e.contains("did you mean \"certificate\"?"), "{e}");
        let e = message(load("server = \"localhost:7443\"\n"));
        assert!(e.contains("must start with https://"), "{e}");
        let e = message(Profile::load(Path::new("/nonexistent/operator")));
        assert!(e.contains("undertone-server init"), "{e}");
    }
}
