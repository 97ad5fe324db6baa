//! Whole rounds in one process: coordinator, CA, clients, mutual TLS.

mod aggregation;
mod bad_transfers;
mod bad_updates;
mod buffered;
mod central_noise;
mod checkpoints;
mod cut_lines;
mod downlink;
mod downlink_parts;
mod enrolment;
mod happy;
mod initial;
mod measuring;
mod own_model;
mod own_training;
mod participation;
mod parts;
mod privacy;
mod receipts;
mod rescaling;
mod restart;
mod resume;
mod sessions;
mod storage_faults;

use undertone_harness::SAMPLE_JOB;

/// The sample job with a change.
fn job(from: &str, to: &str) -> String {
    assert!(SAMPLE_JOB.contains(from), "{from}");
    SAMPLE_JOB.replace(from, to)
}
