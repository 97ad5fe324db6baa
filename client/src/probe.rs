//! Asking the coordinator in plain TLS what it thinks of our certificate.
//!
//! With TLS 1.3 a refusal of the client's certificate arrives after the handshake, and a call that was under way by
//! then often ends as "transport error" or "operation was canceled", the alert lost on the way up. Handshaking once
//! more with nothing on top and reading one byte brings the alert itself.

use crate::connect::{ConnectError, explain};
use crate::identity::Identity;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::Uri;

const PROBE_WITHIN: Duration = Duration::from_secs(10);
/// How long a coordinator may take to refuse; one that accepts says nothing before we do.
const ALERT_WITHIN: Duration = Duration::from_secs(2);

/// Why the coordinator at `uri` will never take this certificate; `None` if it may.
pub(crate) async fn certificate_refused(uri: &Uri, identity: &Identity) -> Option<ConnectError> {
    let config = Arc::new(config(identity)?);
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().unwrap_or(443);
    let name = ServerName::try_from(host.clone()).ok()?;
    let handshake = async {
        let tcp = TcpStream::connect((host.as_str(), port)).await?;
        let mut tls = TlsConnector::from(config).connect(name, tcp).await?;
        let mut byte = [0];
        match tokio::time::timeout(ALERT_WITHIN, tls.read(&mut byte)).await {
            Ok(Err(e)) => Err(e),
            Ok(Ok(_)) | Err(_) => Ok(()),
        }
    };
    match tokio::time::timeout(PROBE_WITHIN, handshake).await {
        Ok(Err(e)) => Some(explain(&uri.to_string(), &e)).filter(|e| !e.is_transient()),
        Ok(Ok(())) | Err(_) => None,
    }
}

fn config(identity: &Identity) -> Option<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(identity.ca.as_bytes()).ok()?).ok()?;
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(identity.certificate.as_bytes()).collect::<Result<_, _>>().ok()?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).ok()?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .ok()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .ok()?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Some(config)
}
