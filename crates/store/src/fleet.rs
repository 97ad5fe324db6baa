//! What coordinators of one deployment tell each other through their database.

use std::fmt;
use undertone_core::digest::Digest;
use undertone_core::id::{ClientId, ClientRole, JobId};

/// A participant that is connected to one of the coordinators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    /// Who.
    pub client: ClientId,
    /// As what.
    pub role: ClientRole,
    /// To which coordinator.
    pub replica: String,
    /// Tells its sessions at this coordinator apart.
    pub number: u64,
}

/// What a job's driver has for a participant that is connected to another coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mail {
    /// To whom.
    pub client: ClientId,
    /// About which job.
    pub job: JobId,
    /// The version of the job that it follows from: what it refers to is known from there on.
    pub version: u64,
    /// The message.
    pub message: String,
}

/// What came for a job at a coordinator that does not drive it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// What it is answered by.
    pub id: u64,
    /// What it is.
    pub input: String,
}

/// What a job's driver says of it besides its state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobStanding {
    /// Why nothing happens any more although it has not ended.
    pub halted: Option<String>,
    /// What it waits for, when that is a fault.
    pub waits_for: Option<String>,
}

/// A sum of those updates of an attempt that one coordinator has at hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialSum {
    /// Whose.
    pub replica: String,
    /// Whether it is made; if not, it is being made.
    pub made: bool,
    /// The blob that it is in, and its length, if there was something to sum.
    pub blob: Option<(Digest, u64)>,
}

/// What has changed: where to look. It comes at once, or, when a connection breaks, as [`Note::Missed`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A job made a step, or is new.
    Job(JobId),
    /// Something waits for a job's driver.
    Inbox(JobId),
    /// Something that this coordinator asked is answered.
    Answers(String),
    /// This coordinator has mail.
    Mail(String),
    /// This participant connected or left.
    Session(ClientId),
    /// Somebody was enrolled.
    Enrolled,
    /// A lease was given up.
    Lease,
    /// Anything of the above may have happened.
    Missed,
}

impl Note {
    /// As it travels.
    pub(crate) fn parse(text: &str) -> Self {
        let (kind, about) = text.split_once(' ').unwrap_or((text, ""));
        let job = |note: fn(JobId) -> Self| JobId::new(about).map_or(Self::Missed, note);
        match kind {
            "job" => job(Self::Job),
            "inbox" => job(Self::Inbox),
            "answers" => Self::Answers(about.into()),
            "mail" => Self::Mail(about.into()),
            "session" => ClientId::new(about).map_or(Self::Missed, Self::Session),
            "enrolled" => Self::Enrolled,
            "lease" => Self::Lease,
            // Of a newer version, perhaps: looking everywhere is never wrong.
            _ => Self::Missed,
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(id) => write!(f, "job {id}"),
            Self::Inbox(id) => write!(f, "inbox {id}"),
            Self::Answers(replica) => write!(f, "answers {replica}"),
            Self::Mail(replica) => write!(f, "mail {replica}"),
            Self::Session(client) => write!(f, "session {client}"),
            Self::Enrolled => f.write_str("enrolled"),
            Self::Lease => f.write_str("lease"),
            Self::Missed => f.write_str("missed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read_as_they_were_written() {
        let (job, client) = (JobId::new("a-1").unwrap(), ClientId::new("basel").unwrap());
        for note in [
            Note::Job(job.clone()),
            Note::Inbox(job),
            Note::Answers("x-1".into()),
            Note::Mail("x-1".into()),
            Note::Session(client),
            Note::Enrolled,
            Note::Lease,
            Note::Missed,
        ] {
            assert_eq!(Note::parse(&note.to_string()), note);
        }
        for other in ["", "job", "job !", "what else"] {
            assert_eq!(Note::parse(other), Note::Missed, "{other:?}");
        }
    }
}
