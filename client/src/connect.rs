//! Reaching the coordinator, and saying in words why it did not work.

use crate::identity::Identity;
use rustls::{AlertDescription, CertificateError};
use std::error::Error;
use std::time::Duration;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use undertone::limits::{FRAME_BYTES, MAX_MESSAGE_BYTES};
use undertone::v1::participation_client::ParticipationClient;

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The address makes no sense.
    #[error("\"{0}\" is not a server address: write for example \"https://fl.example.org:7443\"")]
    BadAddress(String),
    /// Nobody answers there, or not in time. Trying again may help.
    #[error("cannot reach {server}: {problem}")]
    Unreachable {
        /// The address.
        server: String,
        /// What happened.
        problem: String,
    },
    /// Whoever answers is not the coordinator of this deployment.
    #[error(
        "{server} is not the coordinator that this client enrolled with ({problem}): check the address; if the \
         deployment was made anew, enrol again with a new token"
    )]
    Stranger {
        /// The address.
        server: String,
        /// What is wrong with its certificate.
        problem: String,
    },
    /// The coordinator does not accept this client's certificate.
    #[error(
        "{server} does not accept this client's certificate ({problem}): it is of another deployment, expired or \
         revoked; enrol again with a new token"
    )]
    NotAccepted {
        /// The address.
        server: String,
        /// What it said.
        problem: String,
    },
}

impl ConnectError {
    /// Whether trying the same again later may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
// A ping now and then finds dead links and keeps firewalls' tables warm. The timeout is generous: a machine that
// trains on all its cores may be slow to answer, and nobody is thrown out for training long.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(90);
/// Enough in flight for long links; flat memory all the same.
const WINDOW_BYTES: u32 = 4 << 20;

/// How to reach `server`, trusting `ca` (PEM) and nobody else.
pub(crate) fn endpoint(
    server: &str,
    ca: &str,
    identity: Option<&Identity>,
) -> Result<Endpoint, ConnectError> {
    let bad = || ConnectError::BadAddress(server.to_owned());
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)).timeout(CONNECT_TIMEOUT);
    if let Some(identity) = identity {
        tls = tls.identity(tonic::transport::Identity::from_pem(&identity.certificate, &identity.key));
    }
    let endpoint = Endpoint::from_shared(server.to_owned()).map_err(|_| bad())?;
    if endpoint.uri().scheme_str() != Some("https") || endpoint.uri().host().is_none() {
        return Err(bad());
    }
    Ok(endpoint
        .tls_config(tls)
        .map_err(|_| bad())?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .max_frame_size(FRAME_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(2 * WINDOW_BYTES))
}

/// Connects.
pub(crate) async fn connect(endpoint: &Endpoint) -> Result<Channel, ConnectError> {
    endpoint.connect().await.map_err(|e| explain(&endpoint.uri().to_string(), &e))
}

/// The participant's service over `channel`.
pub(crate) fn participation(channel: Channel) -> ParticipationClient<Channel> {
    ParticipationClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// Finds the TLS failure in an error, if it is one.
pub(crate) fn explain(server: &str, error: &(dyn Error + 'static)) -> ConnectError {
    let server = server.trim_end_matches('/').to_owned();
    match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(e)) => {
            ConnectError::Stranger { server, problem: certificate_problem(e) }
        }
        Some(rustls::Error::AlertReceived(alert)) if is_about_our_certificate(*alert) => {
            ConnectError::NotAccepted { server, problem: format!("TLS alert {alert:?}") }
        }
        _ => ConnectError::Unreachable { server, problem: innermost(error) },
    }
}

/// Whether an error of a call, deep down, is the coordinator's refusal of our certificate: with TLS 1.3 it only
/// shows when the first answer is read.
pub(crate) fn certificate_refused(server: &str, error: &(dyn Error + 'static)) -> Option<ConnectError> {
    tls_error(error)?;
    Some(explain(server, error)).filter(|e| !e.is_transient())
}

fn certificate_problem(e: &CertificateError) -> String {
    match e {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate is signed by another deployment".into()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate is for another host name".into()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired; is this machine's clock right?".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet; is this machine's clock right?".into()
        }
        other => format!("its certificate is invalid: {other:?}"),
    }
}

fn is_about_our_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
            | AlertDescription::CertificateRequired
    )
}

fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(e) = next {
        if let Some(tls) = e.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        // An io::Error does not name the error that it wraps as its source, only that one's source.
        if let Some(inner) = e.downcast_ref::<std::io::Error>().and_then(|e| e.get_ref()) {
            return tls_error(inner);
        }
        next = e.source();
    }
    None
}

fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
        let identity = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let ca = identity.cert.pem();
        assert!(endpoint("https://localhost:7443", &ca, None).is_ok());
        for bad in ["localhost:7443", "http://localhost:7443", "https://", "", "https://exa mple:1"] {
            assert!(matches!(endpoint(bad, &ca, None), Err(ConnectError::BadAddress(_))), "{bad:?}");
        }
    }

    #[test]
    fn tls_failures_are_found_inside_io_errors() {
        let inside = |e: rustls::Error| std::io::Error::other(std::io::Error::other(e));
        let e = inside(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer));
        assert!(matches!(explain("https://h:1/", &e), ConnectError::Stranger { .. }));
        let e = inside(rustls::Error::AlertReceived(AlertDescription::UnknownCA));
        assert!(matches!(certificate_refused("h", &e), Some(ConnectError::NotAccepted { .. })));
        let e = inside(rustls::Error::AlertReceived(AlertDescription::InternalError));
        assert!(explain("h", &e).is_transient());
        assert_eq!(certificate_refused("h", &std::io::Error::other("reset")), None);
    }

    #[tokio::test]
    async fn a_closed_port_is_unreachable() {
        let ca = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap().cert.pem();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let endpoint = endpoint(&format!("https://127.0.0.1:{port}"), &ca, None).unwrap();
        let e = connect(&endpoint).await.unwrap_err();
        assert!(e.is_transient() && e.to_string().contains(&port.to_string()), "{e}");
    }
}
