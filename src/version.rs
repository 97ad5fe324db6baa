//! Which wire protocol two programs speak.

/// The version of this build, for people.
pub const SOFTWARE: &str = env!("CARGO_PKG_VERSION");
/// The oldest wire protocol that this build speaks.
pub const PROTOCOL_MIN: u32 = 1;
/// The newest wire protocol that this build speaks.
pub const PROTOCOL_MAX: u32 = 1;

/// The newest protocol that both speak.
///
/// # Errors
/// A sentence that tells the side with the other range what to install.
pub fn negotiate(client_min: u32, client_max: u32, client_software: &str) -> Result<u32, String> {
    let common = client_max.min(PROTOCOL_MAX);
    if client_min <= client_max && common >= client_min.max(PROTOCOL_MIN) {
        return Ok(common);
    }
    let theirs = crate::version::range(client_min, client_max);
    let ours = crate::version::range(PROTOCOL_MIN, PROTOCOL_MAX);
    Err(if client_min > PROTOCOL_MAX {
        format!(
            "client {client_software} speaks wire protocol {theirs}, this coordinator ({SOFTWARE}) speaks {ours}: \
             install undertone-client {SOFTWARE}, or upgrade the coordinator"
        )
    } else {
        format!(
            "client {client_software} speaks wire protocol {theirs}, this coordinator ({SOFTWARE}) speaks {ours}: \
             install undertone-client {SOFTWARE}"
        )
    })
}

fn range(min: u32, max: u32) -> String {
    if min == max { min.to_string() } else { format!("{min} to {max}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_wins() {
        assert_eq!(negotiate(1, 1, "0.1.0"), Ok(1));
        assert_eq!(negotiate(1, 9, "3.0.0"), Ok(1));
    }

    #[test]
    fn strangers_are_told_what_to_install() {
        let newer = negotiate(7, 9, "3.0.0").unwrap_err();
        assert!(newer.contains(&format!("install undertone-client {SOFTWARE}")), "{newer}");
        assert!(negotiate(0, 0, "0.0.1").is_err());
        assert!(negotiate(3, 1, "odd").is_err());
    }
}
