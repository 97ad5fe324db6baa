//! Following a job: its events from the first on, then live, across broken connections.

use crate::narrator::Narrator;
use crate::output::{Screen, printable};
use crate::profile::{Connection, call_failed};
use anyhow::{Result, anyhow};
use serde_json::Value;
use std::error::Error as _;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;
use undertone::{ApiError, v1};
use undertone_round::event::{JobEvent, Outcome};

/// How long a broken connection is tried again.
const RECONNECT_FOR: Duration = Duration::from_secs(60);
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);
/// How often a listener hears that nothing happens.
const QUIET: Duration = Duration::from_millis(500);

/// What a listener hears.
#[derive(Debug)]
pub(crate) enum Heard<'a> {
    /// Something happened in the job.
    Event(&'a Happening),
    /// Nothing happened for a while.
    Quiet,
    /// The connection broke; it is being tried again.
    Interrupted(&'a ApiError),
}

/// One event as it came.
#[derive(Debug)]
pub(crate) struct Happening {
    sequence: u64,
    unix_ms: u64,
    document: Value,
    /// `None`: of a kind that this version does not know.
    pub(crate) event: Option<JobEvent>,
}

impl Happening {
    fn read(message: v1::JobEvent) -> Result<Self> {
        let document: Value = serde_json::from_str(&message.document)
            .map_err(|e| anyhow!("event {} of the job is not JSON: {e}", message.sequence))?;
        let event = serde_json::from_value(document.clone()).ok();
        Ok(Self { sequence: message.sequence, unix_ms: message.unix_ms, document, event })
    }

    /// The event for programs: the document with job, sequence and time.
    pub(crate) fn to_json(&self, job: &str) -> Value {
        let mut value = serde_json::json!({
            "job": job, "sequence": self.sequence, "unix_ms": self.unix_ms,
        });
        if let (Value::Object(all), Value::Object(fields)) = (&mut value, &self.document) {
            all.extend(fields.iter().map(|(k, v)| (k.clone(), v.clone())));
        }
        value
    }

    /// When, by the coordinator's clock, in milliseconds since 1970.
    pub(crate) fn unix_ms(&self) -> u64 {
        self.unix_ms
    }

    fn kind(&self) -> &str {
        self.document.get("kind").and_then(Value::as_str).unwrap_or("unnamed")
    }
}

/// Tells `listener` all that happened and happens in `job`, until it has ended.
///
/// # Errors
/// If the server refuses, or stays away for a minute; whatever the listener returns.
pub(crate) async fn follow(
    connection: &mut Connection,
    job: &str,
    mut listener: impl FnMut(Heard<'_>) -> Result<()>,
) -> Result<Outcome> {
    let mut after = 0;
    let mut give_up: Option<Instant> = None;
    loop {
        let broke = match connection.watch_job(v1::WatchJobRequest { job: job.to_owned(), after }).await {
            Err(status) => status,
            Ok(response) => {
                let mut events = response.into_inner();
                loop {
                    let next = match timeout(QUIET, events.message()).await {
                        Ok(next) => next,
                        Err(_) => {
                            listener(Heard::Quiet)?;
                            continue;
                        }
                    };
                    match next {
                        Ok(Some(message)) => {
                            give_up = None;
                            let happening = Happening::read(message)?;
                            after = happening.sequence;
                            listener(Heard::Event(&happening))?;
                            if let Some(JobEvent::Ended { outcome }) = happening.event {
                                return Ok(outcome);
                            }
                        }
                        Ok(None) => {
                            break Status::unavailable("the stream of events ended");
                        }
                        Err(status) => break status,
                    }
                }
            }
        };
        let error = ApiError::from(broke.clone());
        // With a source: not an answer of the server, but a broken connection.
        if !error.is_transient() && broke.source().is_none() {
            return Err(call_failed(broke));
        }
        match give_up {
            None => {
                listener(Heard::Interrupted(&error))?;
                give_up = Some(Instant::now() + RECONNECT_FOR);
            }
            Some(end) if Instant::now() > end => return Err(call_failed(broke)),
            Some(_) => {}
        }
        sleep(RECONNECT_PAUSE).await;
    }
}

/// Tells on the screen what is heard: one JSON event a line, or lines for people.
#[derive(Debug)]
pub(crate) struct Teller {
    job: String,
    narrator: Narrator,
    screen: Screen,
    as_json: bool,
}

impl Teller {
    /// For this job.
    pub(crate) fn new(job: &v1::JobSummary, screen: Screen, as_json: bool) -> Self {
        let narrator = Narrator::new(job.rounds_planned, job.epsilon_budget, screen.paint);
        Self { job: job.job.clone(), narrator, screen, as_json }
    }

    /// Tells it.
    ///
    /// # Errors
    /// If the output is closed.
    pub(crate) fn hear(&mut self, heard: &Heard<'_>) -> Result<()> {
        let (screen, now) = (self.screen, std::time::Instant::now());
        match heard {
            Heard::Event(happening) if self.as_json => screen.json(&happening.to_json(&self.job)),
            Heard::Event(happening) => match &happening.event {
                Some(event) => {
                    self.narrator.tell(event, now).iter().try_for_each(|line| screen.progress(line))
                }
                None => screen.progress(&format!(
                    "    (\"{}\" happened, which this version of undertone does not know: upgrade it)",
                    printable(happening.kind())
                )),
            },
            Heard::Quiet => self.narrator.ripe(now).iter().try_for_each(|line| screen.progress(line)),
            Heard::Interrupted(error) => {
                eprintln!("connection lost ({error}), trying again for up to {} s", RECONNECT_FOR.as_secs());
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_carries_job_place_and_time() {
        let message = |document: &str| v1::JobEvent { sequence: 7, unix_ms: 9, document: document.into() };
        let happening =
            Happening::read(message(r#"{"kind":"ended","outcome":{"outcome":"completed"}}"#)).unwrap();
        assert_eq!(happening.event, Some(JobEvent::Ended { outcome: Outcome::Completed }));
        let json = happening.to_json("heart-1");
        assert_eq!(
            (&json["job"], &json["sequence"], &json["kind"]),
            (&"heart-1".into(), &7.into(), &"ended".into())
        );
        let newer = Happening::read(message(r#"{"kind":"danced"}"#)).unwrap();
        assert_eq!((newer.event.is_none(), newer.kind()), (true, "danced"));
        assert!(Happening::read(message("{")).is_err());
    }
}
