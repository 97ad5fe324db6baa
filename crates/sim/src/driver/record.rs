//! A step as it is stored, and how steps are told.

use undertone_core::id::JobId;
use undertone_privacy::ledger::chain::Line;
use undertone_round::coordinator::{Accepted, Input, Step};
use undertone_round::event::JobEvent;
use undertone_store::{LedgerRow, NewEvent, ReleaseRecord, Transition, UploadRecord};

/// What a step changes, as one transaction.
pub(super) fn transition(id: &JobId, version: u64, step: &Step, lines: &[Line], unix_ms: u64) -> Transition {
    let json = |event: &JobEvent| serde_json::to_string(event).expect("plain data");
    let row =
        |line: &Line| LedgerRow { seq: line.seq, document: serde_json::to_string(line).expect("plain data") };
    let upload = |Accepted { key, update, claim }: &Accepted| UploadRecord {
        key: key.clone(),
        client: update.client.clone(),
        blob: update.blob,
        bytes: update.bytes,
        weight: update.weight,
        claim: Some(*claim),
    };
    let release = step.events.iter().find_map(|event| match event {
        JobEvent::Released { round, model, .. } => Some(ReleaseRecord {
            job: id.clone(),
            round: *round,
            model: *model,
            bytes: step.next.model.bytes,
            unix_ms,
            document: json(event),
        }),
        _ => None,
    });
    Transition {
        ended: step.next.is_over(),
        events: step.events.iter().map(|event| NewEvent { unix_ms, document: json(event) }).collect(),
        ledger: lines.iter().map(row).collect(),
        uploads: step.accepted.iter().map(upload).collect(),
        release,
        ..Transition::new(
            id.clone(),
            version,
            step.next.status(),
            serde_json::to_string(&step.next).expect("plain data"),
        )
    }
}

/// An input in a word.
pub(super) fn named(input: &Input) -> &'static str {
    match input {
        Input::Recovered => "recovered",
        Input::Sessions => "sessions",
        Input::Missed => "missed",
        Input::Connected { .. } => "connected",
        Input::Tick => "tick",
        Input::Answer { .. } => "answer",
        Input::Failure { .. } => "failure",
        Input::Update { .. } => "update",
        Input::BadUpdate { .. } => "bad update",
        Input::Released { .. } => "released",
        Input::ReleaseFailed { .. } => "release failed",
        Input::Published { .. } => "published",
        Input::Evaluation { .. } => "evaluation",
        Input::Cancel { .. } => "cancel",
    }
}

/// What an event is counted as.
pub(super) fn told(event: &JobEvent) -> &'static str {
    match event {
        JobEvent::Submitted { .. } => "event: submitted",
        JobEvent::Waiting { .. } => "event: waiting",
        JobEvent::Offered { .. } => "event: offered",
        JobEvent::Asked { .. } => "event: asked",
        JobEvent::Declined { .. } => "event: declined",
        JobEvent::Lost { .. } => "event: lost",
        JobEvent::Refused { .. } => "event: refused",
        JobEvent::Received { .. } => "event: received",
        JobEvent::Aborted { .. } => "event: aborted",
        JobEvent::Released { .. } => "event: released",
        JobEvent::Evaluated { .. } => "event: evaluated",
        JobEvent::NotEvaluated { .. } => "event: not evaluated",
        JobEvent::Ended { outcome } => match outcome.status() {
            "completed" => "end: completed",
            "budget-spent" => "end: budget spent",
            "failed" => "end: failed",
            "stopped-early" => "end: stopped early",
            _ => "end: cancelled",
        },
    }
}
