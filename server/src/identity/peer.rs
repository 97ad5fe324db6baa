//! What a peer's certificate says.

use tonic::Request;
use undertone::{ApiError, Fault};
use undertone_core::id::{ClientId, ClientRole, OperatorId};
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

/// A caller whose certificate the TLS layer has verified against our CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Peer {
    /// A participant.
    Client(ClientId, ClientRole),
    /// An operator.
    Operator(OperatorId),
}

/// Who sent a request.
///
/// # Errors
/// `Unauthenticated` without a certificate of this deployment.
pub(crate) fn peer_of<T>(request: &Request<T>) -> Result<Peer, ApiError> {
    let none = || {
        ApiError::new(Fault::Unauthenticated, "this call needs a certificate of this deployment: enrol first")
    };
    let certificates = request.peer_certs().ok_or_else(none)?;
    let leaf = certificates.first().ok_or_else(none)?;
    peer_from_der(leaf).ok_or_else(|| {
        ApiError::new(
            Fault::Unauthenticated,
            "the certificate names neither a client nor an operator of Undertone",
        )
    })
}

fn peer_from_der(der: &[u8]) -> Option<Peer> {
    let (_, certificate) = parse_x509_certificate(der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => peer_from_uri(uri),
        _ => None,
    })
}

fn peer_from_uri(uri: &str) -> Option<Peer> {
    let mut parts = uri.strip_prefix("undertone:")?.split(':');
    let (kind, name, role) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    match kind {
        "client" => Some(Peer::Client(ClientId::new(name).ok()?, role.parse().ok()?)),
        "operator" if role == "admin" => Some(Peer::Operator(OperatorId::new(name).ok()?)),
        _ => None,
    }
}

/// The operator who sent a request.
///
/// # Errors
/// `Unauthenticated` without a certificate, `NotAllowed` for a participant.
pub(crate) fn require_operator<T>(request: &Request<T>) -> Result<OperatorId, ApiError> {
    match peer_of(request)? {
        Peer::Operator(name) => Ok(name),
        Peer::Client(name, _) => Err(ApiError::new(
            Fault::NotAllowed,
            format!("{name} is a participant; this call is for operators"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Authority, Subject};
    use time::OffsetDateTime;

    #[test]
    fn only_the_ca_writes_names() {
        let now = OffsetDateTime::now_utc();
        let (authority, _) = Authority::create("test", now).unwrap();
        // A request that asks for an operator's name gets what the coordinator says.
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        let uri = "undertone:operator:root:admin".to_owned();
        params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
        let csr = params.serialize_request(&key).unwrap();
        let signed = authority
            .client_certificate(
                csr.der(),
                &Subject { name: "cleveland", role: "trainer", serial: "0a" },
                std::time::Duration::from_secs(60),
                now,
            )
            .unwrap();
        let der = rustls_der(&signed.certificate_pem);
        assert_eq!(
            peer_from_der(&der),
            Some(Peer::Client(ClientId::new("cleveland").unwrap(), ClientRole::Trainer))
        );
    }

    fn rustls_der(pem: &str) -> Vec<u8> {
        use rustls::pki_types::{CertificateDer, pem::PemObject as _};
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
    }

    #[test]
    fn odd_names_are_nobody() {
        for uri in [
            "undertone:client:x",
            "undertone:client:x:king",
            "undertone:operator:x:viewer",
            "https://x",
            "undertone:client:x:trainer:more",
            "undertone:client:../x:trainer",
        ] {
            assert_eq!(peer_from_uri(uri), None, "{uri}");
        }
    }
}
