//! Whole rounds in one process: coordinator, CA, clients, mutual TLS.

mod aggregation;
mod bad_transfers;
mod bad_updates;
mod buffered;
mod central_noise;
mod checkpoints;
#[path = "../compat/mod.rs"]
mod compat;
mod cut_lines;
mod downlink;
mod downlink_parts;
mod enrolment;
mod happy;
mod hung_up;
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

use std::sync::Arc;
use std::time::Duration;
use undertone_client::ClientConfig;
use undertone_core::id::ClientRole;
use undertone_harness::{Deployment, FaultyStorage, SAMPLE_JOB, Wire};

/// The sample job with a change.
fn job(from: &str, to: &str) -> String {
    assert!(SAMPLE_JOB.contains(from), "{from}");
    SAMPLE_JOB.replace(from, to)
}

/// A trainer that is enrolled, and the line that it has to its coordinator.
async fn behind_a_line(d: &Deployment, name: &str) -> (ClientConfig, Arc<Wire>) {
    let mut config = d.enrol(name, ClientRole::Trainer).await;
    let line = Arc::new(Wire::to(&config.server).await);
    config.server = line.url();
    (config, line)
}

/// Waits until a fault was met once more.
async fn met(storage: &FaultyStorage, before: u32) {
    for _ in 0..600 {
        if storage.hits() > before {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the fault was never met");
}
