//! A disk that a crash leaves as disks are left: what was not synced is there, or in part, or is not.

use crate::chance::Chance;
use std::collections::BTreeMap;

/// Files by name.
#[derive(Debug, Default)]
pub(crate) struct Disk(BTreeMap<String, File>);

#[derive(Debug, Default)]
struct File {
    bytes: Vec<u8>,
    /// So many of them survive a power loss.
    synced: usize,
}

impl Disk {
    /// The bytes of a file.
    pub(crate) fn read(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(|file| &file.bytes[..])
    }

    /// The names of all files.
    pub(crate) fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// Adds bytes at the end of a file, which is made if there is none. Not synced.
    pub(crate) fn append(&mut self, name: &str, bytes: &[u8]) {
        self.0.entry(name.to_owned()).or_default().bytes.extend(bytes);
    }

    /// Makes what a file holds survive a power loss.
    pub(crate) fn sync(&mut self, name: &str) {
        if let Some(file) = self.0.get_mut(name) {
            file.synced = file.bytes.len();
        }
    }

    /// The second half of replacing a file durably: the new one, which is whole and synced, takes the name of the old one.
    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        if let Some(file) = self.0.remove(from) {
            self.0.insert(to.to_owned(), file);
        }
    }

    /// Sees to it that there is no such file.
    pub(crate) fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// The machine loses power. Of what was not synced a part is there, or zeros in its place, or nothing.
    pub(crate) fn lose_power(&mut self, chance: &mut Chance) -> bool {
        let mut torn = false;
        for file in self.0.values_mut().filter(|file| file.synced < file.bytes.len()) {
            torn = true;
            let (synced, len) = (file.synced, file.bytes.len());
            let kept = synced + chance.below((len - synced) as u64 + 1) as usize;
            if chance.hits(5_000) {
                file.bytes.truncate(kept);
            } else {
                // The length was written, the data was not.
                file.bytes[kept..].fill(0);
            }
        }
        torn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_loss_takes_what_was_not_synced_and_nothing_else() {
        let (mut shorter, mut zeros) = (0, 0);
        for seed in 0..100 {
            let mut disk = Disk::default();
            disk.append("a", b"kept");
            disk.sync("a");
            disk.append("a", b"torn");
            disk.append("b", b"whole");
            disk.sync("b");
            assert!(disk.lose_power(&mut Chance::of(seed)));
            let (a, b) = (disk.read("a").unwrap(), disk.read("b").unwrap());
            assert!(a.starts_with(b"kept") && b == b"whole");
            shorter += usize::from(a.len() < 8);
            zeros += usize::from(a.len() == 8 && a.ends_with(b"\0"));
        }
        assert!(shorter > 20 && zeros > 20, "{shorter} {zeros}");
    }
}
