//! `undertone client`: the participants.

use super::Operator;
use crate::output::{Align, Table, distance, moment, now_unix_s, printable};
use crate::profile::{Connection, call_failed};
use anyhow::Result;
use clap::Subcommand;
use serde_json::{Value, json};
use std::process::ExitCode;
use undertone::{client_role, v1};

/// See the participants.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List everyone who is enrolled, and who is connected now
    List,
}

impl Command {
    /// Runs the command.
    ///
    /// # Errors
    /// If the server cannot be reached or refuses.
    pub(crate) async fn run(self, operator: &Operator) -> Result<ExitCode> {
        match self {
            Self::List => print(operator, &list(&mut operator.connect().await?).await?)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Everyone who is enrolled.
///
/// # Errors
/// If the server refuses.
pub(crate) async fn list(connection: &mut Connection) -> Result<Vec<v1::ClientSummary>> {
    let response = connection.list_clients(v1::ListClientsRequest {}).await.map_err(call_failed)?;
    Ok(response.into_inner().clients)
}

fn print(operator: &Operator, clients: &[v1::ClientSummary]) -> Result<()> {
    if operator.screen.json {
        return operator.screen.json(&clients.iter().map(to_json).collect::<Vec<_>>());
    }
    let mut table = Table::new(&[
        ("CLIENT", Align::Left),
        ("ROLE", Align::Left),
        ("CONNECTED", Align::Left),
        ("LAST SEEN", Align::Left),
        ("ENROLLED", Align::Left),
        ("REFUSED", Align::Right),
        ("SOFTWARE", Align::Left),
    ]);
    let now = now_unix_s();
    for c in clients {
        table.row([
            c.client.clone(),
            role_name(c.role),
            if c.connected { "yes" } else { "no" }.into(),
            c.last_seen_unix_s.map_or("never".into(), |t| distance(t, now)),
            moment(c.enrolled_unix_s),
            (c.uploads_refused + c.downloads_refused).to_string(),
            c.software.clone(),
        ]);
    }
    operator
        .screen
        .table(&table, "nobody is enrolled: invite somebody with `undertone token create --role trainer`")?;
    for c in clients.iter().filter(|c| c.uploads_refused + c.downloads_refused > 0) {
        operator.screen.line(&format!(
            "{}: {} refused since the coordinator started, the last one: {}",
            printable(&c.client),
            refused(c),
            printable(&c.last_refusal)
        ))?;
    }
    Ok(())
}

/// What was refused, in words.
fn refused(c: &v1::ClientSummary) -> String {
    let counted = [(c.uploads_refused, "upload"), (c.downloads_refused, "download")];
    let words = counted.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    });
    words.collect::<Vec<_>>().join(" and ")
}

fn to_json(c: &v1::ClientSummary) -> Value {
    json!({
        "client": c.client,
        "role": role_name(c.role),
        "connected": c.connected,
        "enrolled_unix_s": c.enrolled_unix_s,
        "last_seen_unix_s": c.last_seen_unix_s,
        "software": c.software,
        "uploads_refused": c.uploads_refused,
        "downloads_refused": c.downloads_refused,
        "last_refusal": if c.last_refusal.is_empty() { None } else { Some(&c.last_refusal) },
    })
}

/// The word for a role; a number for one that this version does not know.
pub(crate) fn role_name(role: i32) -> String {
    client_role(role).map_or_else(|_| format!("role {role}"), |r| r.to_string())
}
