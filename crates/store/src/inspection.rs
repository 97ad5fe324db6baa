//! What a database says of itself to whoever only looks: nothing is migrated, taken or changed.

use crate::error::StoreError;
use crate::sql::connection::{Sql, parsed, statement};
use crate::sql::schema::{self, Schema};
use crate::sql::{fleet, leases};
use std::collections::BTreeSet;
use std::time::Duration;

/// A database that can be used, as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// Which one, without secrets.
    pub at: String,
    /// The version of its program.
    pub version: String,
    /// The migrations that it has seen; none: nothing is in it yet.
    pub schema: Option<usize>,
    /// The migrations that this program knows.
    pub known: usize,
    /// Its clock, in milliseconds of Unix time.
    pub clock_ms: u64,
    /// How long it takes to make something durable, where that can be tried without changing anything.
    pub commit: Option<Duration>,
    /// The coordinators that are there, where several may be.
    pub coordinators: BTreeSet<String>,
    /// What a check of the whole file found.
    pub damage: Vec<String>,
}

impl Inspection {
    /// What both databases tell in the same way.
    pub(crate) async fn of(
        sql: &mut Sql<'_>,
        schema: &Schema,
        version: &'static str,
    ) -> Result<Self, StoreError> {
        let standing = schema::standing(sql, schema, schema.migrations).await?;
        let version = sql.first(statement(version), |row| parsed::<String>(row, "version")).await?;
        let known = schema.migrations.len();
        // Older databases have no leases.
        let coordinators = match standing == Some(known) {
            true => fleet::replicas(sql).await?,
            false => BTreeSet::new(),
        };
        Ok(Self {
            at: sql.at().to_owned(),
            version: version.unwrap_or_default(),
            schema: standing,
            known,
            clock_ms: leases::now_ms(sql).await?,
            commit: None,
            coordinators,
            damage: Vec::new(),
        })
    }
}
