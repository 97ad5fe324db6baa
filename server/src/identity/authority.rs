//! The deployment's certificate authority.
//!
//! A name in our certificates is a URI in the subject alternative name: `undertone:client:NAME:ROLE` or
//! `undertone:operator:NAME:ROLE`. Only the CA writes it, so a signing request cannot claim a name.

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use std::path::Path;
use time::{Duration, OffsetDateTime};
use undertone_core::digest::Digest;

/// Why a certificate cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file of the pki folder.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The certificate library refused.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The machine gave no randomness.
    #[error("the operating system gave no randomness: {0}")]
    Randomness(getrandom::Error),
}

/// Signs certificates with the deployment's CA key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
    ca_der: Vec<u8>,
}

/// A key and its certificate, PEM.
pub struct KeyAndCertificate {
    /// The private key.
    pub key_pem: String,
    /// The certificate.
    pub certificate_pem: String,
}

/// A participant's new certificate.
pub struct SignedRequest {
    /// PEM.
    pub certificate_pem: String,
    /// Seconds since 1970.
    pub expires_unix_s: u64,
}

/// Who a participant's certificate is for.
pub struct Subject<'a> {
    /// The name that the coordinator gives it.
    pub name: &'a str,
    /// Its role.
    pub role: &'a str,
    /// The serial number, from [`new_serial`].
    pub serial: &'a str,
}

/// A new serial number, hex.
///
/// # Errors
/// If the machine gives no randomness.
pub fn new_serial() -> Result<String, IdentityError> {
    Ok(HEXLOWER.encode(random_serial()?.as_ref()))
}

const CA_LIFETIME: Duration = Duration::days(3650);
/// Certificates begin a little early: clocks differ.
const EARLY: Duration = Duration::hours(1);

impl Authority {
    /// Makes a new CA; returns it with its private key as PEM.
    ///
    /// # Errors
    /// If the machine gives no randomness.
    pub fn create(deployment: &str, now: OffsetDateTime) -> Result<(Self, String), IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("{deployment} (Undertone deployment CA)"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = now - EARLY;
        params.not_after = now + CA_LIFETIME;
        params.serial_number = Some(random_serial()?);
        let certificate = params.self_signed(&key)?;
        let key_pem = key.serialize_pem();
        let authority = Self {
            ca_pem: certificate.pem(),
            ca_der: certificate.der().to_vec(),
            issuer: Issuer::new(params, key),
        };
        Ok((authority, key_pem))
    }

    /// Opens the CA of a pki folder (`ca.crt`, `ca.key`).
    ///
    /// # Errors
    /// If a file is missing or no PEM.
    pub fn open(pki: &Path) -> Result<Self, IdentityError> {
        let ca_pem = read(&pki.join("ca.crt"))?;
        let key = KeyPair::from_pem(&read(&pki.join("ca.key"))?)?;
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key)?;
        let ca_der = first_der(&ca_pem)?;
        Ok(Self { issuer, ca_pem, ca_der })
    }

    /// The CA certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The CA certificate, DER.
    pub fn ca_der(&self) -> &[u8] {
        &self.ca_der
    }

    /// A certificate for the coordinator under these host names or addresses.
    ///
    /// # Errors
    /// If a name is no host name.
    pub fn server_certificate(
        &self,
        hosts: &[String],
        now: OffsetDateTime,
    ) -> Result<KeyAndCertificate, IdentityError> {
        let mut params = CertificateParams::new(hosts.to_vec())?;
        params.distinguished_name.push(DnType::CommonName, "undertone-server");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_after = now + CA_LIFETIME;
        self.with_new_key(params, now)
    }

    /// A certificate for an operator.
    ///
    /// # Errors
    /// If the machine gives no randomness.
    pub fn operator_certificate(
        &self,
        name: &str,
        role: &str,
        now: OffsetDateTime,
    ) -> Result<KeyAndCertificate, IdentityError> {
        let mut params = named(name, format!("undertone:operator:{name}:{role}"))?;
        params.not_after = now + CA_LIFETIME;
        self.with_new_key(params, now)
    }

    fn with_new_key(
        &self,
        mut params: CertificateParams,
        now: OffsetDateTime,
    ) -> Result<KeyAndCertificate, IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        params.not_before = now - EARLY;
        params.serial_number = Some(random_serial()?);
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(KeyAndCertificate { key_pem: key.serialize_pem(), certificate_pem: certificate.pem() })
    }

    /// Reads a signing request (its signature is verified) and returns the digest of its public key.
    ///
    /// # Errors
    /// If it is no valid request.
    pub fn key_digest(&self, csr_der: &[u8]) -> Result<Digest, IdentityError> {
        let request = CertificateSigningRequestParams::from_der(&csr_der.into())?;
        Ok(Digest::of(rcgen::PublicKeyData::der_bytes(&request.public_key)))
    }

    /// Signs the public key of a participant's request under the name that the coordinator gives it.
    ///
    /// # Errors
    /// If the request is invalid.
    pub fn client_certificate(
        &self,
        csr_der: &[u8],
        subject: &Subject<'_>,
        lifetime: std::time::Duration,
        now: OffsetDateTime,
    ) -> Result<SignedRequest, IdentityError> {
        let request = CertificateSigningRequestParams::from_der(&csr_der.into())?;
        let Subject { name, role, serial } = subject;
        let mut params = named(name, format!("undertone:client:{name}:{role}"))?;
        params.not_before = now - EARLY;
        params.not_after = now + lifetime;
        let serial = HEXLOWER_PERMISSIVE.decode(serial.as_bytes()).unwrap_or_default();
        params.serial_number = Some(SerialNumber::from(serial));
        let expires_unix_s = params.not_after.unix_timestamp() as u64;
        let certificate = params.signed_by(&request.public_key, &self.issuer)?;
        Ok(SignedRequest { certificate_pem: certificate.pem(), expires_unix_s })
    }
}

fn named(name: &str, uri: String) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn random_serial() -> Result<SerialNumber, IdentityError> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(IdentityError::Randomness)?;
    // A serial is a positive integer.
    bytes[0] &= 0x7f;
    Ok(SerialNumber::from_slice(&bytes))
}

fn read(path: &Path) -> Result<String, IdentityError> {
    std::fs::read_to_string(path)
        .map_err(|source| IdentityError::File { path: path.display().to_string(), source })
}

fn first_der(pem: &str) -> Result<Vec<u8>, rcgen::Error> {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map(|der| der.to_vec())
        .map_err(|_| rcgen::Error::CouldNotParseCertificate)
}
