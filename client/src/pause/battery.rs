//! Whether the machine runs on its battery, as Linux tells in `/sys/class/power_supply`.

use super::{Condition, Look};
use std::path::{Path, PathBuf};

/// Holds while a battery of the machine discharges and no mains adapter is plugged in. Batteries of mice and headsets do
/// not count; a machine without a battery never waits.
pub(super) struct OnBattery {
    supplies: PathBuf,
}

impl Default for OnBattery {
    fn default() -> Self {
        Self { supplies: "/sys/class/power_supply".into() }
    }
}

impl Condition for OnBattery {
    fn holds(&mut self, _: &Look<'_>) -> Option<String> {
        let supplies = std::fs::read_dir(&self.supplies).ok()?;
        let mut discharging = None;
        for supply in supplies.flatten().map(|entry| entry.path()) {
            match read(&supply, "type").as_deref() {
                Some("Mains" | "USB") if read(&supply, "online").as_deref() == Some("1") => return None,
                Some("Battery")
                    if read(&supply, "status").as_deref() == Some("Discharging")
                        && read(&supply, "scope").as_deref() != Some("Device") =>
                {
                    discharging = supply.file_name().map(|name| name.to_string_lossy().into_owned());
                }
                _ => {}
            }
        }
        discharging.map(|name| format!("the machine runs on its battery ({name})"))
    }
}

fn read(supply: &Path, file: &str) -> Option<String> {
    Some(std::fs::read_to_string(supply.join(file)).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn the_mains_and_the_batteries_of_the_machine_count() {
        let dir = tempfile::tempdir().unwrap();
        let set = |supply: &str, file: &str, text: &str| {
            std::fs::create_dir_all(dir.path().join(supply)).unwrap();
            std::fs::write(dir.path().join(supply).join(file), format!("{text}\n")).unwrap();
        };
        let look = Look { since_computing: None, over: &AtomicBool::new(false) };
        let mut condition = OnBattery { supplies: dir.path().into() };
        assert_eq!(condition.holds(&look), None, "no battery");
        set("mouse", "type", "Battery");
        set("mouse", "status", "Discharging");
        set("mouse", "scope", "Device");
        assert_eq!(condition.holds(&look), None, "a mouse");
        set("BAT0", "type", "Battery");
        set("BAT0", "status", "Discharging");
        let why = condition.holds(&look).unwrap();
        assert!(why.contains("BAT0"), "{why}");
        set("AC", "type", "Mains");
        set("AC", "online", "1");
        assert_eq!(condition.holds(&look), None, "plugged in");
        set("AC", "online", "0");
        assert!(condition.holds(&look).is_some());
        set("BAT0", "status", "Full");
        assert_eq!(condition.holds(&look), None);
        assert_eq!(OnBattery { supplies: dir.path().join("none") }.holds(&look), None);
    }
}
