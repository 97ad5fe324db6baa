//! The thin gRPC ends: decode, check, hand over, answer.

mod enrolment;
mod files;
mod model_body;
mod operator;
mod participation;
mod pieces;
mod uploads;

pub(crate) use enrolment::EnrolmentService;
pub(crate) use model_body::RawBodies;
pub(crate) use operator::OperatorService;
pub(crate) use participation::ParticipationService;
