//! Hearing of changes as they are committed, by `LISTEN` and `NOTIFY`.

use super::fault;
use crate::error::StoreError;
use crate::fleet::Note;
use sqlx::postgres::{PgListener, PgPool};

/// Hears what programs on this database tell each other.
#[derive(Debug)]
pub struct Listener {
    listener: PgListener,
    at: String,
}

impl Listener {
    pub(super) async fn begin(pool: &PgPool, at: &str) -> Result<Self, StoreError> {
        let listening = async {
            let mut listener = PgListener::connect_with(pool).await?;
            listener.listen("undertone").await?;
            Ok(listener)
        };
        let listener = listening.await.map_err(|e| fault(at, e))?;
        Ok(Self { listener, at: at.to_owned() })
    }

    /// The next change. When the connection broke, what was said meanwhile is not heard: that is told as [`Note::Missed`], and the next
    /// call connects again.
    ///
    /// # Errors
    /// [`StoreError`] if the database cannot be reached. Calling again later tries again.
    pub async fn next(&mut self) -> Result<Note, StoreError> {
        match self.listener.try_recv().await {
            Ok(Some(note)) => Ok(Note::parse(note.payload())),
            Ok(None) => Ok(Note::Missed),
            Err(e) => Err(fault(&self.at, e)),
        }
    }
}
