//! Certificate and key of this client.

use crate::folder::{Access, ClientFolder, sync_parent, write_durably};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What the client shows the coordinator, and what it knows the coordinator by. PEM.
#[derive(Clone)]
pub struct Identity {
    /// The deployment's CA.
    pub ca: String,
    /// The client's certificate.
    pub certificate: String,
    /// The client's key; not shown by `Debug`.
    pub(crate) key: String,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The client was never enrolled.
    #[error("{} holds no certificate: enrol first (`undertone-client enrol --dir {} --token TOKEN`)", .0.display(), .1.display())]
    NotEnrolled(PathBuf, PathBuf),
    /// A file is missing or cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Certificate and key do not make a pair, or are damaged.
    #[error("{} holds a certificate that does not work: {problem}; enrol anew with --force", dir.display())]
    Damaged {
        /// The folder.
        dir: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

pub(crate) const CA: &str = "ca.crt";
pub(crate) const CERTIFICATE: &str = "client.crt";
pub(crate) const KEY: &str = "client.key";

impl Identity {
    /// Reads the identity in the client's folder.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn load(folder: &ClientFolder) -> Result<Self, IdentityError> {
        let dir = folder.identity();
        if !dir.join(CERTIFICATE).exists() {
            return Err(IdentityError::NotEnrolled(dir, folder.dir().to_owned()));
        }
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path).map_err(|source| IdentityError::Unreadable { path, source })
        };
        let identity = Self { ca: read(CA)?, certificate: read(CERTIFICATE)?, key: read(KEY)? };
        identity.check().map_err(|problem| IdentityError::Damaged { dir, problem })?;
        Ok(identity)
    }

    /// Checks that certificate and key are a pair, so that a bad one is named here and not in a TLS alert.
    pub(crate) fn check(&self) -> Result<(), String> {
        use rustls::pki_types::pem::PemObject as _;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};
        let chain: Vec<_> = CertificateDer::pem_slice_iter(self.certificate.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|e| format!("client.crt is not PEM ({e})"))?;
        if chain.is_empty() {
            return Err("client.crt holds no certificate".into());
        }
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes())
            .map_err(|e| format!("client.key is not a PEM key ({e})"))?;
        CertificateDer::from_pem_slice(self.ca.as_bytes()).map_err(|e| format!("ca.crt is not PEM ({e})"))?;
        let provider = rustls::crypto::ring::default_provider();
        rustls::sign::CertifiedKey::from_der(chain, key, &provider)
            .map_err(|e| format!("certificate and key are not a pair ({e})"))?;
        Ok(())
    }

    /// Puts certificate and CA beside the key in `pending`, then moves that folder into the identity's place.
    pub(crate) fn install(&self, pending: &Path, folder: &ClientFolder) -> io::Result<()> {
        write_durably(&pending.join(CA), self.ca.as_bytes(), Access::Folder)?;
        write_durably(&pending.join(CERTIFICATE), self.certificate.as_bytes(), Access::Folder)?;
        let place = folder.identity();
        if place.exists() {
            std::fs::rename(&place, retired(folder))?;
        }
        std::fs::rename(pending, &place)?;
        sync_parent(&place)
    }
}

/// A free name for an identity that is being replaced: it is kept, the data owner may want it back.
fn retired(folder: &ClientFolder) -> PathBuf {
    (1u32..)
        .map(|n| folder.dir().join(format!("identity.old-{n}")))
        .find(|p| !p.exists())
        .expect("one of four billion names is free")
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// A DER certificate as PEM (RFC 7468).
pub(crate) fn pem_certificate(der: &[u8]) -> String {
    let body = data_encoding::BASE64.encode(der);
    let lines: Vec<&str> =
        body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("base64 is ASCII")).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> (rcgen::CertifiedKey<rcgen::KeyPair>, Identity) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let pem = pem_certificate(made.cert.der());
        let identity = Identity { ca: pem.clone(), certificate: pem, key: made.signing_key.serialize_pem() };
        (made, identity)
    }

    #[test]
    fn a_pair_is_told_from_a_mismatch_and_from_junk() {
        let (_, good) = made();
        good.check().unwrap();
        let (_, other) = made();
        assert!(Identity { key: other.key, ..good.clone() }.check().unwrap_err().contains("not a pair"));
        assert!(Identity { key: "junk".into(), ..good.clone() }.check().unwrap_err().contains("client.key"));
        assert!(Identity { certificate: "junk".into(), ..good }.check().unwrap_err().contains("client.crt"));
    }

    #[test]
    fn pem_is_what_others_write() {
        let (made, _) = made();
        assert_eq!(pem_certificate(made.cert.der()).replace('\r', ""), made.cert.pem().replace('\r', ""));
    }

    #[test]
    fn a_replaced_identity_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let folder = ClientFolder::new(dir.path());
        assert!(matches!(Identity::load(&folder), Err(IdentityError::NotEnrolled(..))));
        for n in 0..3 {
            let (_, identity) = made();
            let pending = dir.path().join("identity.new");
            std::fs::create_dir(&pending).unwrap();
            write_durably(&pending.join(KEY), identity.key.as_bytes(), Access::Owner).unwrap();
            identity.install(&pending, &folder).unwrap();
            assert_eq!(Identity::load(&folder).unwrap().certificate, identity.certificate);
            assert_eq!(dir.path().join(format!("identity.old-{n}")).exists(), n > 0);
        }
        std::fs::write(folder.identity().join(KEY), "junk").unwrap();
        assert!(matches!(Identity::load(&folder), Err(IdentityError::Damaged { .. })));
    }
}
