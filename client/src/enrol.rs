//! Enrolment: a join token and a key made here become a certificate.
//!
//! The key is on the disk before the call, so that a lost answer can be repeated: the same key is the same
//! participant.

use crate::config::{self, ClientConfig};
use crate::connect::{ConnectError, connect, endpoint};
use crate::folder::{Access, ClientFolder, create_private_dir, write_durably};
use crate::identity::{CERTIFICATE, Identity, KEY, pem_certificate};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use undertone::join_token::JoinToken;
use undertone::v1::EnrolRequest;
use undertone::v1::enrolment_client::EnrolmentClient;
use undertone::{ApiError, Fault, version};
use undertone_core::data_files::DataFiles;
use undertone_core::id::{ClientId, ClientRole};

/// What to enrol, and where.
#[derive(Debug, Clone)]
pub struct Enrolment {
    /// The client's folder; made if it is not there.
    pub dir: PathBuf,
    /// The invitation.
    pub token: JoinToken,
    /// The name to ask for; `None` if the token fixes one.
    pub name: Option<ClientId>,
    /// For the new `client.toml`: the data. A relative path that is not a file from here is one from `dir`.
    pub data: Option<DataFiles>,
    /// For the new `client.toml`: the rows that the owner declares.
    pub declared_rows: Option<u64>,
    /// Replace an identity that is there already.
    pub force: bool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    /// The participant's name.
    pub client: ClientId,
    /// What it does.
    pub role: ClientRole,
    /// When its certificate expires, in seconds since 1970.
    pub expires_unix_s: u64,
    /// Whether a `client.toml` was written; one that was there is left as it is.
    pub wrote_config: bool,
}

/// Why the client is not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// There is an identity already.
    #[error(
        "{} holds a certificate already: this client is enrolled; to replace it, add --force (the old one is kept \
         beside it)",
        .0.display()
    )]
    AlreadyEnrolled(PathBuf),
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The token is unknown, expired or used up.
    #[error("the coordinator does not accept this join token: {0}")]
    TokenRefused(String),
    /// Somebody else has the name.
    #[error("{0} (--name NAME)")]
    NameTaken(String),
    /// Any other refusal.
    #[error("the coordinator refused: {0}")]
    Refused(#[source] ApiError),
    /// The answer makes no sense.
    #[error("the coordinator's answer makes no sense ({0}): do both sides run the same version?")]
    BadAnswer(String),
    /// The disk.
    #[error("cannot write {}: {source}", path.display())]
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No key could be made.
    #[error("cannot make a key: {0}")]
    Key(String),
}

const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Enrols this machine: makes a key, trades the token for a certificate, stores both, and writes a commented
/// `client.toml` if there is none.
///
/// # Errors
/// [`EnrolError`]. Running it again is safe.
pub async fn enrol(request: Enrolment) -> Result<Enrolled, EnrolError> {
    let folder = ClientFolder::new(&request.dir);
    let disk = |path: &Path| {
        let path = path.to_owned();
        move |source| EnrolError::Disk { path, source }
    };
    if folder.identity().join(CERTIFICATE).exists() && !request.force {
        return Err(EnrolError::AlreadyEnrolled(folder.identity()));
    }
    let pending = folder.dir().join("identity.new");
    create_private_dir(&pending).map_err(disk(&pending))?;
    let key = pending_key(&pending.join(KEY))?;

    let ca = pem_certificate(&request.token.ca_der);
    let answer = call(&request, &ca, &key).await?;

    let bad = |problem: String| EnrolError::BadAnswer(problem);
    let client = ClientId::new(answer.client).map_err(|e| bad(e.to_string()))?;
    let role = undertone::client_role(answer.role).map_err(|e| bad(e.to_string()))?;
    let identity = Identity { ca, certificate: answer.certificate, key: key.serialize_pem() };
    identity.check().map_err(bad)?;
    identity.install(&pending, &folder).map_err(disk(&folder.identity()))?;

    let wrote_config = !folder.config().exists();
    if wrote_config {
        let data = request.data.as_ref().map(data_paths).transpose().map_err(disk(&folder.config()))?;
        let text =
            config::template(&request.token.server, &client, role, data.as_ref(), request.declared_rows);
        write_durably(&folder.config(), text.as_bytes(), Access::Folder).map_err(disk(&folder.config()))?;
    }
    Ok(Enrolled { client, role, expires_unix_s: answer.expires_unix_s, wrote_config })
}

/// What of an existing `client.toml` no longer fits after enrolling, for the data owner to mend.
pub fn config_mismatch(config: &ClientConfig, server: &str, enrolled: &Enrolled) -> Option<String> {
    let mut wrong = Vec::new();
    if config.server != server {
        wrong.push(format!("server = \"{server}\""));
    }
    if config.name != enrolled.client {
        wrong.push(format!("name = \"{}\"", enrolled.client));
    }
    if config.role != enrolled.role {
        wrong.push(format!("role = \"{}\"", enrolled.role));
    }
    (!wrong.is_empty()).then(|| {
        format!("{} was left as it is; set in it: {}", config.folder.config().display(), wrong.join(", "))
    })
}

/// Paths as they should stand in `client.toml`.
fn data_paths(typed: &DataFiles) -> io::Result<DataFiles> {
    let labels = typed.labels.as_deref().map(data_path).transpose()?;
    Ok(DataFiles { path: data_path(&typed.path)?, labels })
}

/// A path as it should stand in `client.toml`, where relative paths start at the client's folder.
fn data_path(typed: &Path) -> io::Result<PathBuf> {
    if typed.exists() { std::path::absolute(typed) } else { Ok(typed.to_owned()) }
}

/// The key of an enrolment that was begun before, or a new one, on the disk.
fn pending_key(path: &Path) -> Result<KeyPair, EnrolError> {
    if let Some(key) = std::fs::read_to_string(path).ok().and_then(|pem| KeyPair::from_pem(&pem).ok()) {
        return Ok(key);
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| EnrolError::Key(e.to_string()))?;
    write_durably(path, key.serialize_pem().as_bytes(), Access::Owner)
        .map_err(|source| EnrolError::Disk { path: path.to_owned(), source })?;
    Ok(key)
}

async fn call(
    request: &Enrolment,
    ca: &str,
    key: &KeyPair,
) -> Result<undertone::v1::EnrolResponse, EnrolError> {
    // Only the public key counts: names come from the token and from `name`.
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params
        .serialize_request(key)
        .map_err(|e| EnrolError::Key(format!("certificate signing request: {e}")))?;
    let channel = connect(&endpoint(&request.token.server, ca, None)?).await?;
    let mut message = tonic::Request::new(EnrolRequest {
        token_secret: request.token.secret.to_vec().into(),
        certificate_request: csr.der().to_vec().into(),
        name: request.name.as_ref().map(ToString::to_string).unwrap_or_default(),
        software: version::SOFTWARE.into(),
    });
    message.set_timeout(CALL_TIMEOUT);
    match EnrolmentClient::new(channel).enrol(message).await {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) => {
            let e = ApiError::from(status);
            Err(match e.fault {
                Fault::Unauthenticated => EnrolError::TokenRefused(e.message),
                Fault::AlreadyExists => EnrolError::NameTaken(e.message),
                Fault::Unavailable => EnrolError::Connect(ConnectError::Unreachable {
                    server: request.token.server.clone(),
                    problem: e.message,
                }),
                _ => EnrolError::Refused(e),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(dir: &Path, server: &str) -> Enrolment {
        let ca = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        Enrolment {
            dir: dir.to_owned(),
            token: JoinToken { server: server.into(), ca_der: ca.cert.der().to_vec(), secret: [7; 32] },
            name: None,
            data: None,
            declared_rows: None,
            force: false,
        }
    }

    #[tokio::test]
    async fn a_failed_call_leaves_the_key_for_the_next_try() {
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let request = request(dir.path(), &format!("https://127.0.0.1:{port}"));
        let key = dir.path().join("identity.new").join(KEY);
        let e = enrol(request.clone()).await.unwrap_err();
        assert!(matches!(e, EnrolError::Connect(ConnectError::Unreachable { .. })), "{e}");
        let first = std::fs::read(&key).unwrap();
        enrol(request).await.unwrap_err();
        assert_eq!(std::fs::read(&key).unwrap(), first);
        assert!(!dir.path().join("identity").exists());
        assert!(!dir.path().join("client.toml").exists());
    }

    #[tokio::test]
    async fn an_enrolled_client_is_not_replaced_unasked() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("identity")).unwrap();
        std::fs::write(dir.path().join("identity").join(CERTIFICATE), "x").unwrap();
        let e = enrol(request(dir.path(), "https://127.0.0.1:1")).await.unwrap_err();
        assert!(e.to_string().contains("--force"), "{e}");
    }

    #[test]
    fn a_path_typed_here_stays_the_file_that_was_meant() {
        assert!(data_path(Path::new("Cargo.toml")).unwrap().is_absolute());
        assert_eq!(data_path(Path::new("not-here.csv")).unwrap(), Path::new("not-here.csv"));
    }
}
