//! The join token: one text that holds all a new participant needs.
//!
//! `undertone-join-1.` and base64url of: the server's address, the deployment's CA certificate, a secret, and a
//! checksum that tells a cut paste from a wrong token. With the CA inside, the very first connection is
//! authenticated too: nobody has to trust on first use.

use crate::limits::TOKEN_SECRET_BYTES;
use data_encoding::BASE64URL_NOPAD;
use std::fmt;
use undertone_core::digest::Digest;

const PREFIX: &str = "undertone-join-1.";
const MAX_PART: usize = 16 << 10;

/// A parsed join token. Its secret is not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Address of the coordinator, for example `https://fl.example.org:7443`.
    pub server: String,
    /// The deployment's CA certificate, DER.
    pub ca_der: Vec<u8>,
    /// What proves the invitation.
    pub secret: [u8; TOKEN_SECRET_BYTES],
}

/// A text that is not a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// Something else.
    #[error(
        "not a join token (they start with \"{PREFIX}\"): ask the operator for one (`undertone token create`)"
    )]
    NotAToken,
    /// Cut off or altered on the way.
    #[error("the join token is damaged (cut off in copying?): paste it whole, or use --token-file")]
    Damaged,
}

impl JoinToken {
    /// The text to hand over.
    pub fn encode(&self) -> String {
        let mut bytes = Vec::new();
        for part in [self.server.as_bytes(), &self.ca_der] {
            bytes.extend((part.len() as u16).to_le_bytes());
            bytes.extend(part);
        }
        bytes.extend(self.secret);
        let sum = Digest::of(&bytes);
        bytes.extend(&sum.as_bytes()[..4]);
        format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }

    /// Reads the text.
    ///
    /// # Errors
    /// [`InvalidToken`].
    pub fn decode(text: &str) -> Result<Self, InvalidToken> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(InvalidToken::NotAToken)?;
        if body.len() > 4 * MAX_PART {
            return Err(InvalidToken::Damaged);
        }
        let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| InvalidToken::Damaged)?;
        let (bytes, sum) = bytes.split_last_chunk::<4>().ok_or(InvalidToken::Damaged)?;
        if Digest::of(bytes).as_bytes()[..4] != sum[..] {
            return Err(InvalidToken::Damaged);
        }
        let mut rest = bytes;
        let mut part = || -> Option<&[u8]> {
            let (len, after) = rest.split_first_chunk::<2>()?;
            let (part, after) = after.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
            rest = after;
            Some(part)
        };
        let server = part().ok_or(InvalidToken::Damaged)?.to_vec();
        let ca_der = part().ok_or(InvalidToken::Damaged)?.to_vec();
        Ok(Self {
            server: String::from_utf8(server).map_err(|_| InvalidToken::Damaged)?,
            ca_der,
            secret: rest.try_into().map_err(|_| InvalidToken::Damaged)?,
        })
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("server", &self.server).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_and_a_cut_one_is_noticed() {
        let token =
            JoinToken { server: "https://localhost:7443".into(), ca_der: vec![7; 400], secret: [3; 32] };
        let text = token.encode();
        assert_eq!(JoinToken::decode(&format!(" {text}\n")), Ok(token.clone()));
        assert_eq!(JoinToken::decode(&text[..text.len() - 5]), Err(InvalidToken::Damaged));
        assert_eq!(JoinToken::decode("hello"), Err(InvalidToken::NotAToken));
        assert!(!format!("{token:?}").contains("3, 3"));
    }
}
