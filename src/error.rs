//! The one table between our errors and gRPC statuses.

use tonic::{Code, Status};
use undertone_core::limits::clip_text;

/// Whose turn it is to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The request makes no sense; sending it again will not help.
    BadRequest,
    /// What was asked for is not there.
    NotFound,
    /// What was to be made is there already.
    AlreadyExists,
    /// No certificate, or no valid token.
    Unauthenticated,
    /// A certificate that does not allow this.
    NotAllowed,
    /// Right request, wrong moment: the round is over, the job has ended, the version is not spoken.
    NotNow,
    /// Past a limit.
    TooMuch,
    /// The peer cannot be reached or is shutting down; trying again later may help.
    Unavailable,
    /// The server's own failure (disk, database): the operator must act.
    Internal,
}

const TABLE: [(Fault, Code); 9] = [
    (Fault::BadRequest, Code::InvalidArgument),
    (Fault::NotFound, Code::NotFound),
    (Fault::AlreadyExists, Code::AlreadyExists),
    (Fault::Unauthenticated, Code::Unauthenticated),
    (Fault::NotAllowed, Code::PermissionDenied),
    (Fault::NotNow, Code::FailedPrecondition),
    (Fault::TooMuch, Code::ResourceExhausted),
    (Fault::Unavailable, Code::Unavailable),
    (Fault::Internal, Code::Internal),
];

/// An error as it crosses the wire: whose fault, and a sentence that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Whose turn it is.
    pub fault: Fault,
    /// What happened and what to do.
    pub message: String,
}

impl ApiError {
    /// An error with its sentence.
    pub fn new(fault: Fault, message: impl Into<String>) -> Self {
        Self { fault, message: message.into() }
    }

    /// Whether trying the same again later may help.
    pub fn is_transient(&self) -> bool {
        self.fault == Fault::Unavailable
    }
}

impl From<ApiError> for Status {
    fn from(e: ApiError) -> Status {
        let code = TABLE.iter().find(|(f, _)| *f == e.fault).expect("the table names every fault").1;
        Status::new(code, clip_text(&e.message))
    }
}

impl From<Status> for ApiError {
    fn from(s: Status) -> ApiError {
        let fault = match s.code() {
            // A connection that breaks in mid-call shows up as one of these.
            Code::Cancelled | Code::Aborted | Code::DeadlineExceeded | Code::Unknown => Fault::Unavailable,
            code => TABLE.iter().find(|(_, c)| *c == code).map_or(Fault::Internal, |(f, _)| *f),
        };
        let message = clip_text(s.message());
        ApiError::new(fault, if message.is_empty() { s.code().description() } else { message })
    }
}

impl From<crate::InvalidMessage> for ApiError {
    fn from(e: crate::InvalidMessage) -> Self {
        Self::new(Fault::BadRequest, e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_survives_the_wire() {
        for (fault, _) in TABLE {
            let e = ApiError::new(fault, "disk full");
            assert_eq!(ApiError::from(Status::from(e.clone())), e);
        }
    }
}
