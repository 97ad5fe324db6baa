//! `undertone token`: inviting participants.

use super::Operator;
use super::client::role_name;
use crate::output::{Align, Table, distance, now_unix_s};
use crate::profile::{Connection, call_failed};
use anyhow::{Context as _, Result};
use clap::Subcommand;
use serde_json::json;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use undertone::{role_message, v1};
use undertone_core::duration::Span;
use undertone_core::id::{ClientId, ClientRole};

/// Invite participants with join tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a join token and print it, once: whoever holds it may enrol
    #[command(after_help = "\
The data owner then runs, on a machine of theirs:
  undertone-client enrol --dir ./client --token-file FILE")]
    Create {
        /// What the participant may do: trainer (trains on its own data) or evaluator (measures models)
        #[arg(long)]
        role: ClientRole,
        /// Name of the participant; without it, the participant chooses
        #[arg(long)]
        name: Option<ClientId>,
        /// How many participants may enrol with it
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// How long it can be used, for example 1h or 7d
        #[arg(long, default_value = "1h", value_name = "DURATION")]
        expires: Span,
        /// Write it to this new file (readable by you alone) instead of the screen
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// List the join tokens, and how often and how long they can still be used
    List,
    /// Make a token useless; who has enrolled with it stays enrolled
    Revoke {
        /// The token's id, as `undertone token list` shows it
        id: String,
    },
}

impl Command {
    /// Runs the command.
    ///
    /// # Errors
    /// If the server cannot be reached or refuses, or the file cannot be written.
    pub(crate) async fn run(self, operator: &Operator) -> Result<ExitCode> {
        let mut connection = operator.connect().await?;
        match self {
            Self::Create { role, name, uses, expires, out } => {
                let invitation = Invitation { role, name, uses, lifetime: expires };
                let token = create(&mut connection, &invitation).await?;
                show(operator, &token, out.as_deref())?;
            }
            Self::List => list(operator, &mut connection).await?,
            Self::Revoke { id } => {
                connection
                    .revoke_token(v1::RevokeTokenRequest { id: id.clone() })
                    .await
                    .map_err(call_failed)?;
                if operator.screen.json {
                    operator.screen.json(&json!({ "id": id, "revoked": true }))?;
                } else {
                    operator.screen.line(&format!("token {id} is revoked"))?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What a token allows.
#[derive(Debug)]
pub(crate) struct Invitation {
    /// What the participant may do.
    pub(crate) role: ClientRole,
    /// Its name; `None`: it chooses.
    pub(crate) name: Option<ClientId>,
    /// How many may come.
    pub(crate) uses: u32,
    /// Until when.
    pub(crate) lifetime: Span,
}

/// Makes a join token.
///
/// # Errors
/// If the server refuses.
pub(crate) async fn create(
    connection: &mut Connection,
    invitation: &Invitation,
) -> Result<v1::CreateTokenResponse> {
    let request = v1::CreateTokenRequest {
        role: role_message(invitation.role).into(),
        name: invitation.name.as_ref().map(ToString::to_string).unwrap_or_default(),
        uses: invitation.uses,
        // A part of a second is a second: a lifetime of zero would make no sense.
        lifetime_s: invitation.lifetime.0.as_secs().max(1),
    };
    Ok(connection.create_token(request).await.map_err(call_failed)?.into_inner())
}

/// Writes a token to a new file that only its owner can read.
///
/// # Errors
/// If the file is there already or cannot be written.
pub(crate) fn save(token: &str, file: &Path) -> Result<()> {
    let mut options = OpenOptions::new();
    options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .and_then(|mut f| writeln!(f, "{token}"))
        .with_context(|| format!("cannot write the token to {}", file.display()))
}

fn show(operator: &Operator, token: &v1::CreateTokenResponse, out: Option<&Path>) -> Result<()> {
    let screen = operator.screen;
    if let Some(file) = out {
        save(&token.token, file)?;
    }
    if screen.json {
        let mut value = json!({ "id": token.id, "expires_unix_s": token.expires_unix_s });
        match out {
            Some(file) => value["file"] = json!(file),
            None => value["token"] = json!(token.token),
        }
        return screen.json(&value);
    }
    let about = format!("token {}, expires {}", token.id, distance(token.expires_unix_s, now_unix_s()));
    match out {
        Some(file) => screen.line(&format!("{about}, written to {}", file.display())),
        None => {
            // Apart from the token, so that a pipe gets the token and nothing else.
            eprintln!("{about}; it is shown only this once:");
            screen.line(&token.token)
        }
    }
}

async fn list(operator: &Operator, connection: &mut Connection) -> Result<()> {
    let response = connection.list_tokens(v1::ListTokensRequest {}).await.map_err(call_failed)?;
    let tokens = response.into_inner().tokens;
    if operator.screen.json {
        let list = tokens.iter().map(|t| {
            json!({
                "id": t.id,
                "role": role_name(t.role),
                "name": (!t.name.is_empty()).then_some(&t.name),
                "uses_left": t.uses_left,
                "expires_unix_s": t.expires_unix_s,
            })
        });
        return operator.screen.json(&list.collect::<Vec<_>>());
    }
    let mut table = Table::new(&[
        ("TOKEN", Align::Left),
        ("ROLE", Align::Left),
        ("NAME", Align::Left),
        ("USES LEFT", Align::Right),
        ("EXPIRES", Align::Left),
    ]);
    let now = now_unix_s();
    for t in &tokens {
        let name = if t.name.is_empty() { "(any)".to_owned() } else { t.name.clone() };
        table.row([
            t.id.clone(),
            role_name(t.role),
            name,
            t.uses_left.to_string(),
            distance(t.expires_unix_s, now),
        ]);
    }
    operator
        .screen
        .table(&table, "there are no tokens: make one with `undertone token create --role trainer`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_saved_token_is_private_and_replaces_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        save("undertone-join-1.abc", &file).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "undertone-join-1.abc\n");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(format!("{:#}", save("x", &file).unwrap_err()).contains("exists"));
    }
}
