//! How many transfers of each client were refused, for the operator to see. In memory: what costs a client its place in a
//! round is an event of the job, and durable; this also counts what may be sent again.

use std::collections::BTreeMap;
use std::sync::Mutex;
use undertone_core::id::ClientId;
use undertone_core::limits::clip_text;

/// Refusals since the coordinator started, at most one entry for each enrolled client.
#[derive(Default)]
pub(crate) struct Refusals(Mutex<BTreeMap<ClientId, Refused>>);

/// Those of one client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Refused {
    /// How many uploads.
    pub(crate) uploads: u64,
    /// How many downloads.
    pub(crate) downloads: u64,
    /// Why the last one was.
    pub(crate) last: String,
}

impl Refusals {
    /// Counts one more upload.
    pub(crate) fn note(&self, client: &ClientId, reason: &str) {
        tracing::info!(%client, reason, "an upload was refused");
        self.count(client, reason, |refused| refused.uploads += 1);
    }

    /// Counts one more download.
    pub(crate) fn note_download(&self, client: &ClientId, reason: &str) {
        tracing::info!(%client, reason, "a download was refused");
        self.count(client, reason, |refused| refused.downloads += 1);
    }

    fn count(&self, client: &ClientId, reason: &str, one_more: impl FnOnce(&mut Refused)) {
        let mut all = self.0.lock().expect("no panic while locked");
        let refused = all.entry(client.clone()).or_default();
        one_more(refused);
        refused.last = clip_text(reason).to_owned();
    }

    /// What was counted of this client.
    pub(crate) fn of(&self, client: &ClientId) -> Refused {
        self.0.lock().expect("no panic while locked").get(client).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_its_own_count() {
        let (refusals, name) = (Refusals::default(), |n: &str| ClientId::new(n).unwrap());
        refusals.note(&name("a"), "too long");
        refusals.note(&name("a"), "too late");
        refusals.note(&name("b"), &"x".repeat(100_000));
        assert_eq!(refusals.of(&name("a")), Refused { uploads: 2, downloads: 0, last: "too late".into() });
        refusals.note_download(&name("a"), "too many");
        assert_eq!(refusals.of(&name("a")), Refused { uploads: 2, downloads: 1, last: "too many".into() });
        assert_eq!(refusals.of(&name("b")).uploads, 1);
        assert!(refusals.of(&name("b")).last.len() < 10_000, "a reason is clipped");
        assert_eq!(refusals.of(&name("c")), Refused::default());
    }
}
