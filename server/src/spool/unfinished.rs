//! Uploads that are not whole yet: what they are called, which of them there are, and how they end.
//!
//! A client has one of an attempt: another claim ends the one before, so that nobody fills the disk with halves.

use super::Claim;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use undertone_core::digest::{Digest, Digester};
use undertone_core::id::{AttemptKey, ClientId};
use undertone_store::{BlobError, Blobs};

/// The unfinished uploads, by attempt and client.
#[derive(Debug, Default)]
pub(crate) struct Unfinished(Mutex<HashMap<String, String>>);

impl Unfinished {
    /// Those that there are at a start.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub(crate) async fn of(blobs: &dyn Blobs) -> Result<Self, BlobError> {
        let names = blobs.unfinished().await?.into_iter().map(|(name, _)| name);
        let ours = names.filter_map(|name| Some((name.rsplit_once('-')?.0.to_owned(), name)));
        Ok(Self(Mutex::new(ours.collect())))
    }

    /// Begins or goes on with an upload; another one of the same client in the same attempt is forgotten.
    ///
    /// # Errors
    /// If that cannot be deleted.
    pub(super) async fn begin(&self, claim: &Claim, blobs: &Arc<dyn Blobs>) -> Result<(), BlobError> {
        let (whose, name) = (whose(&claim.key, &claim.client), claim.name());
        let before = self.0.lock().expect("no panic while locked").insert(whose, name.clone());
        match before {
            Some(before) if before != name => blobs.abandon(&before).await,
            _ => Ok(()),
        }
    }

    /// Forgets an upload that nobody goes on with.
    ///
    /// # Errors
    /// If what came of it cannot be deleted.
    pub(crate) async fn end(&self, claim: &Claim, blobs: &Arc<dyn Blobs>) -> Result<(), BlobError> {
        let name = claim.name();
        self.0.lock().expect("no panic while locked").retain(|_, begun| *begun != name);
        blobs.abandon(&name).await
    }

    fn forget(&self, key: &AttemptKey) {
        let prefix = attempt_name(key);
        self.0.lock().expect("no panic while locked").retain(|whose, _| !whose.starts_with(&prefix));
    }
}

/// How much of this upload is here.
pub(crate) async fn progress(claim: &Claim, blobs: &Arc<dyn Blobs>) -> Result<u64, BlobError> {
    let written = blobs.written(&claim.name()).await?;
    Ok(written.min(claim.bytes))
}

/// Forgets what is left of the uploads of an attempt that is over.
pub(crate) async fn abandon(
    key: &AttemptKey,
    unfinished: &Unfinished,
    blobs: &Arc<dyn Blobs>,
) -> Result<(), BlobError> {
    unfinished.forget(key);
    let prefix = attempt_name(key);
    for (name, _) in blobs.unfinished().await? {
        if name.starts_with(&prefix) {
            blobs.abandon(&name).await?;
        }
    }
    Ok(())
}

/// The part of an unfinished upload's name that all of an attempt share.
fn attempt_name(key: &AttemptKey) -> String {
    short(&Digest::of(key.to_string().as_bytes()))
}

/// The part that all of a client in an attempt share.
fn whose(key: &AttemptKey, client: &ClientId) -> String {
    format!("{}-{}", attempt_name(key), short(&Digest::of(client.as_str().as_bytes())))
}

fn short(digest: &Digest) -> String {
    digest.to_string()[..32].to_owned()
}

impl Claim {
    /// A digest of all that is claimed: another update, or the same with another weight, is another upload. Kept for ever with
    /// the records of accepted updates: what goes in, and how, never changes.
    pub(crate) fn fingerprint(&self) -> Digest {
        let mut all = Digester::new();
        all.field(b"undertone claim v1");
        all.field(self.key.to_string().as_bytes());
        all.field(self.client.as_str().as_bytes());
        all.field(self.digest.as_bytes());
        all.field(&self.bytes.to_le_bytes());
        all.field(&self.weight.to_le_bytes());
        all.field(&[self.within.map_or(0, |within| 1 + u8::from(within))]);
        all.field(&self.number.unwrap_or(0).to_le_bytes());
        all.finish()
    }

    pub(super) fn name(&self) -> String {
        format!("{}-{}", whose(&self.key, &self.client), short(&self.fingerprint()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use undertone_core::id::{Attempt, JobId, Round};
    use undertone_store::MemoryBlobs;

    fn claim(text: &str) -> Claim {
        Claim {
            key: AttemptKey { job: JobId::new("a-job").unwrap(), round: Round(3), attempt: Attempt(2) },
            client: ClientId::new("basel").unwrap(),
            digest: Digest::of(text.as_bytes()),
            bytes: 8,
            weight: 7,
            within: None,
            number: None,
        }
    }

    /// Records in the field hold it.
    #[test]
    fn a_fingerprint_is_for_ever_and_of_all_that_is_claimed() {
        let base = claim("x");
        assert_eq!(
            base.fingerprint().to_string(),
            "310bb7812548e0d1cd398a260236490677cafd15e294e800f424fa39109f2cfd"
        );
        let others = [
            claim("y"),
            Claim { bytes: 9, ..base.clone() },
            Claim { weight: 8, ..base.clone() },
            Claim { within: Some(false), ..base.clone() },
            Claim { within: Some(true), ..base.clone() },
            Claim { number: Some(1), ..base.clone() },
            Claim { client: ClientId::new("bern").unwrap(), ..base.clone() },
            Claim { key: AttemptKey { round: Round(4), ..base.key.clone() }, ..base.clone() },
        ];
        let all: std::collections::HashSet<_> =
            others.iter().chain([&base]).map(|claim| claim.fingerprint()).collect();
        assert_eq!(all.len(), 9);
    }

    #[tokio::test]
    async fn a_client_has_one_of_an_attempt_also_after_a_restart() {
        let blobs: Arc<dyn Blobs> = Arc::new(MemoryBlobs::new());
        let names = async || {
            let mut names: Vec<_> =
                blobs.unfinished().await.unwrap().into_iter().map(|(name, _)| name).collect();
            names.sort();
            names
        };
        let half = async |unfinished: &Unfinished, claim: &Claim| {
            unfinished.begin(claim, &blobs).await.unwrap();
            let mut writer = blobs.resume(&claim.name(), &mut |_| {}).await.unwrap();
            writer.write(bytes::Bytes::from_static(b"half")).await.unwrap();
            writer.settle().await.unwrap();
        };
        let unfinished = Unfinished::default();
        let (one, two, three) = (claim("1"), claim("2"), claim("3"));
        let other = Claim { client: ClientId::new("bern").unwrap(), ..one.clone() };
        half(&unfinished, &one).await;
        half(&unfinished, &one).await;
        half(&unfinished, &other).await;
        half(&unfinished, &two).await;
        let mut wanted = vec![two.name(), other.name()];
        wanted.sort();
        assert_eq!(names().await, wanted);
        let again = Unfinished::of(&*blobs).await.unwrap();
        half(&again, &three).await;
        let mut wanted = vec![three.name(), other.name()];
        wanted.sort();
        assert_eq!(names().await, wanted);
        abandon(&one.key, &again, &blobs).await.unwrap();
        assert!(names().await.is_empty() && again.0.lock().unwrap().is_empty());
    }
}
