//! Keys and certificates: whether clients will believe this coordinator, and nobody else can speak for it.

use super::{Check, Verdict};
use crate::config::ServerConfig;
use crate::health::host_of;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, RootCertStore};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use x509_parser::parse_x509_certificate;

/// A certificate that ends sooner than that is one to look at.
const SOON_S: i64 = 30 * 86_400;

pub(super) fn checks(config: &ServerConfig) -> Vec<Check> {
    let mut checks = vec![];
    let ca = certificate(config, "authority", "ca", &mut checks);
    let server = certificate(config, "certificate", "server", &mut checks);
    if let (Some(ca), Some(server)) = (ca, server) {
        checks.push(chain(config, &ca, &server));
    }
    checks
}

/// A certificate with its key; `None` if it is not there or makes no sense.
fn certificate(
    config: &ServerConfig,
    name: &'static str,
    file: &str,
    checks: &mut Vec<Check>,
) -> Option<CertificateDer<'static>> {
    let (path, key) = (config.pki.join(format!("{file}.crt")), config.pki.join(format!("{file}.key")));
    let restore = "put the file back from a backup (`undertone-server restore`), or make a new deployment";
    let der = match CertificateDer::from_pem_file(&path) {
        Ok(der) => der,
        Err(e) => {
            checks.push(Check::fail(name, format!("{}: {e}", path.display()), restore));
            return None;
        }
    };
    let Ok((_, parsed)) = parse_x509_certificate(&der) else {
        checks.push(Check::fail(name, format!("{} is no certificate", path.display()), restore));
        return None;
    };
    let now = UnixTime::now().as_secs() as i64;
    let (from, until) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    let until_text = parsed.validity().not_after.to_string();
    let shown = path.display();
    checks.push(if now > until {
        Check::fail(
            name,
            format!("{shown} ended {until_text}"),
            "issue a new one from the same CA; if it is the CA itself, make a new deployment and enrol everybody again",
        )
    } else if now < from {
        Check::fail(name, format!("{shown} begins later than now"), "set this machine's clock")
    } else if until - now < SOON_S {
        Check::warn(name, format!("{shown} ends {until_text}"), "issue a new one before that day")
    } else {
        Check::ok(name, format!("{shown} is valid until {until_text}"))
    });
    checks.push(key_of(name_of_key(file), &key, &parsed));
    Some(der)
}

fn name_of_key(file: &str) -> &'static str {
    if file == "ca" { "authority key" } else { "server key" }
}

/// Whether a key is there, is the certificate's, and is nobody else's to read.
fn key_of(
    name: &'static str,
    path: &Path,
    certificate: &x509_parser::certificate::X509Certificate<'_>,
) -> Check {
    let shown = path.display();
    let key = match std::fs::read_to_string(path) {
        Ok(pem) => rcgen::KeyPair::from_pem(&pem).map_err(|e| e.to_string()),
        Err(e) => Err(e.to_string()),
    };
    let key = match key {
        Ok(key) => key,
        Err(e) => return Check::fail(name, format!("{shown}: {e}"), "put the key back from a backup"),
    };
    if rcgen::PublicKeyData::subject_public_key_info(&key) != certificate.public_key().raw {
        return Check::fail(
            name,
            format!("{shown} is not the key of the certificate beside it"),
            "put both back from one backup",
        );
    }
    match std::fs::metadata(path).map(|meta| meta.permissions().mode() & 0o077) {
        Ok(0) => Check::ok(name, format!("{shown} is the certificate's, and for this user alone")),
        Ok(mode) => Check::warn(
            name,
            format!("{shown} is open to others (mode {mode:03o} for group and others)"),
            format!("chmod 600 {shown}, unless a mounted secret has to have it so"),
        ),
        Err(e) => Check::fail(name, format!("{shown}: {e}"), "put the key back from a backup"),
    }
}

/// Whether who comes by the public URL, with the CA of a join token, will believe the certificate: asked of what asks there.
fn chain(config: &ServerConfig, ca: &CertificateDer<'static>, server: &CertificateDer<'static>) -> Check {
    let name = "chain";
    let url = &config.public_url;
    let host = host_of(url).and_then(|host| ServerName::try_from(host).ok());
    let Some(host) = host else {
        return Check::fail(
            name,
            format!("public_url = \"{url}\" names no host"),
            "write https://HOST:PORT, as participants reach it",
        );
    };
    let mut roots = RootCertStore::empty();
    if let Err(e) = roots.add(ca.clone()) {
        return Check::fail(name, format!("ca.crt cannot be trusted: {e}"), "put it back from a backup");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = match WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build() {
        Ok(verifier) => verifier,
        Err(e) => {
            return Check::fail(name, format!("ca.crt cannot be trusted: {e}"), "put it back from a backup");
        }
    };
    match verifier.verify_server_cert(server, &[], &host, &[], UnixTime::now()) {
        Ok(_) => Check::ok(name, format!("server.crt is signed by ca.crt and is for {}", host.to_str())),
        Err(rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => Check::fail(
            name,
            format!("server.crt is not for the host of public_url = \"{url}\""),
            "write the host that it was made for (init --host), or issue a certificate for this one",
        ),
        Err(e) => Check {
            name,
            verdict: Verdict::Fail,
            found: format!("participants will refuse server.crt: {e}"),
            next: Some(
                "ca.crt and server.crt must be of one deployment: put both back from one backup".into(),
            ),
        },
    }
}
