//! What versions that are out there say and keep is understood by this one: what is recorded here is never changed, only added to.
//!
//! `UNDERTONE_WRITE_COMPAT=1 cargo test --workspace --test rounds compat` adds what is new: fields of messages, and the shapes of
//! documents that a coordinator keeps.

use prost::Message as _;
use prost_types::FileDescriptorSet;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use undertone::v1;
use undertone_core::id::ClientRole;
use undertone_harness::{Deployment, FaultyStorage, FnTrainer, SAMPLE_JOB};
use undertone_privacy::ledger::chain::Line;
use undertone_round::coordinator::JobState;
use undertone_round::event::{JobEvent, Outcome};
use undertone_round::job::JobSpec;

fn recorded(name: &str) -> (PathBuf, BTreeSet<String>) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/compat").join(name);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(_) if writes() => String::new(),
        Err(e) => panic!("{}: {e}: what is recorded belongs to this repository", path.display()),
    };
    (path, text.lines().map(str::to_owned).collect())
}

/// Whether what is new is to be added to what is recorded.
fn writes() -> bool {
    std::env::var_os("UNDERTONE_WRITE_COMPAT").is_some()
}

fn write(path: &PathBuf, lines: &BTreeSet<String>) {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(path, text).unwrap();
}

/// One line for each field of each message, and for each call of each service.
fn wire() -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(v1::DESCRIPTORS).unwrap();
    let ours = set.file.into_iter().filter(|file| file.package() == "undertone.v1");
    let mut lines = BTreeSet::new();
    for file in ours {
        for message in &file.message_type {
            for field in &message.field {
                let type_name = field.type_name().trim_start_matches('.');
                lines.insert(format!(
                    "{} {} {} {:?} {:?}{}{}{}",
                    message.name(),
                    field.number(),
                    field.name(),
                    field.r#type(),
                    field.label(),
                    if type_name.is_empty() { "" } else { " " },
                    type_name,
                    if field.proto3_optional() { " present or not" } else { "" },
                ));
            }
        }
        for values in &file.enum_type {
            for value in &values.value {
                lines.insert(format!("{} = {} {}", values.name(), value.number(), value.name()));
            }
        }
        for service in &file.service {
            for call in &service.method {
                let stream = |is: bool| if is { "stream " } else { "" };
                lines.insert(format!(
                    "{}/{} {}{} -> {}{}",
                    service.name(),
                    call.name(),
                    stream(call.client_streaming()),
                    call.input_type(),
                    stream(call.server_streaming()),
                    call.output_type()
                ));
            }
        }
    }
    lines
}

#[test]
fn no_field_of_the_wire_was_renumbered_reused_or_removed() {
    let (path, before) = recorded("wire.txt");
    let now = wire();
    if writes() {
        return write(&path, &before.union(&now).cloned().collect());
    }
    assert!(before.len() > 150, "{} lines are recorded", before.len());
    let gone: Vec<_> = before.difference(&now).collect();
    assert!(gone.is_empty(), "programs out there rely on these, which are gone or were changed: {gone:#?}");
    let new: Vec<_> = now.difference(&before).collect();
    assert!(new.is_empty(), "record what is new (see the top of this file): {new:#?}");
}

/// A client of a later version may say more than this one knows.
#[test]
fn what_a_newer_one_adds_is_passed_over() {
    let hello = v1::Hello { protocol_min: 1, protocol_max: 9, software: "later".into() };
    let kind = Some(v1::client_message::Kind::Hello(hello));
    let message = v1::ClientMessage { kind };
    let mut bytes = message.encode_to_vec();
    // Field 2000, a text.
    prost::encoding::string::encode(2000, &"what nobody knows yet".to_owned(), &mut bytes);
    assert_eq!(v1::ClientMessage::decode(&bytes[..]).unwrap(), message);
}

/// Whether all that was there is there still, with the same values; more may have come.
fn holds(now: &Value, before: &Value) -> bool {
    match (now, before) {
        (Value::Object(now), Value::Object(before)) => {
            before.iter().all(|(key, value)| now.get(key).is_some_and(|now| holds(now, value)))
        }
        (Value::Array(now), Value::Array(before)) => {
            now.len() == before.len() && now.iter().zip(before).all(|(now, before)| holds(now, before))
        }
        (now, before) => now == before,
    }
}

fn read_again<T: DeserializeOwned + Serialize>(document: &Value) {
    let read: T = serde_json::from_value(document.clone()).unwrap_or_else(|e| panic!("{e}: {document}"));
    let now = serde_json::to_value(read).unwrap();
    assert!(holds(&now, document), "{document}\nbecame\n{now}");
}

/// What a document is made of: its keys, and what says which kind it is.
fn shape(value: &Value) -> String {
    match value {
        Value::Object(keys) => {
            let named = ["phase", "kind", "outcome", "standing", "state"];
            let inside = keys.iter().map(|(key, value)| match value.as_str() {
                Some(text) if named.contains(&key.as_str()) => format!("{key}={text}"),
                _ => format!("{key}:{}", shape(value)),
            });
            // Clients and rounds are keys too: what they hold says enough.
            let inside: BTreeSet<String> = inside.collect();
            format!("{{{}}}", inside.into_iter().collect::<Vec<_>>().join(","))
        }
        Value::Array(list) => format!("[{}]", list.first().map(shape).unwrap_or_default()),
        _ => String::new(),
    }
}

/// Documents that a coordinator keeps while it works, of jobs of several kinds.
async fn documents() -> Vec<(&'static str, Value)> {
    let storage = FaultyStorage::new();
    let mut d = Deployment::start_on(&storage).await;
    for name in ["a", "b"] {
        d.trainer(name, FnTrainer::constant(1.0)).await;
    }
    d.evaluator("e", FnTrainer::constant(0.0)).await;
    d.wait_connected(3).await;
    let central = "unit = \"client\"\ntrust = \"central\"\nclip_norm = 1.0\nnoise_multiplier = 4.0\n\
                   delta = 1e-5\nbudget_epsilon = 9.0";
    let adaptive = format!("{central}\nadaptive_clip = {{ min = 0.1, max = 4.0, count_noise = 5.0 }}");
    let moments = "\n[aggregation]\nserver = { kind = \"adam\", learning_rate = 0.1 }\n";
    let mut documents = vec![];
    for job in [
        SAMPLE_JOB.to_owned(),
        SAMPLE_JOB.replace("unit = \"none\"", central),
        SAMPLE_JOB.replace("unit = \"none\"", &adaptive),
        SAMPLE_JOB.to_owned() + moments,
    ] {
        let mut operator = d.operator().await;
        let id = operator.submit(&job).await.unwrap();
        let events = operator.watch_to_end(&id).await;
        assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
        let spec = JobSpec::from_toml(&job, "job.toml").unwrap().to_document();
        documents.push(("job", serde_json::from_slice(&spec).unwrap()));
    }
    for step in storage.steps() {
        let parsed = |text: &str| serde_json::from_str(text).unwrap();
        documents.push(("state", parsed(&step.state)));
        documents.extend(step.events.iter().map(|event| ("event", parsed(&event.document))));
        documents.extend(step.ledger.iter().map(|line| ("line", parsed(&line.document))));
    }
    documents
}

/// The phase of a state, the kind of an event.
fn kind(what: &str, document: &Value) -> String {
    let named = match what {
        "state" => document["phase"]["phase"].as_str().or(document["phase"].as_str()),
        "event" => document["kind"].as_str(),
        what => Some(what),
    };
    named.unwrap_or_else(|| panic!("{document}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_older_coordinators_kept_is_read_by_this_one() {
    let (path, mut lines) = recorded("documents.jsonl");
    if writes() {
        let mut shapes: BTreeSet<String> = BTreeSet::new();
        let line = |what: &str, document: &Value| format!("{what}\t{document}");
        for known in &lines {
            let (what, document) = known.split_once('\t').unwrap();
            shapes.insert(format!("{what} {}", shape(&serde_json::from_str(document).unwrap())));
        }
        for (what, document) in documents().await {
            if shapes.insert(format!("{what} {}", shape(&document))) {
                lines.insert(line(what, &document));
            }
        }
        return write(&path, &lines);
    }
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in &lines {
        let (what, document) = line.split_once('\t').unwrap();
        let document: Value = serde_json::from_str(document).unwrap();
        match what {
            "state" => read_again::<JobState>(&document),
            "event" => read_again::<JobEvent>(&document),
            "line" => read_again::<Line>(&document),
            "job" => {
                // The document itself is what its digest is of.
                let text = document.to_string();
                let job = undertone_round::job::Job::from_document(text.as_bytes()).unwrap();
                assert!(holds(&serde_json::to_value(job.spec()).unwrap(), &document), "{text}");
            }
            other => panic!("{other}"),
        }
        found.entry(what.to_owned()).or_default().insert(kind(what, &document));
    }
    let has = |what: &str, kinds: &[&str]| {
        let found = &found[what];
        assert!(kinds.iter().all(|kind| found.contains(*kind)), "{what}: {found:?}");
    };
    has("state", &["collecting", "releasing", "publishing", "ended"]);
    has("event", &["offered", "received", "released", "evaluated", "ended"]);
    has("line", &["line"]);
    has("job", &["job"]);
    // What this version keeps is recorded: the next one is held against it.
    let shapes: BTreeSet<String> = lines
        .iter()
        .map(|line| line.split_once('\t').unwrap())
        .map(|(what, document)| format!("{what} {}", shape(&serde_json::from_str(document).unwrap())))
        .collect();
    for (what, document) in documents().await {
        let is_known = match what {
            // What is in them differs from run to run.
            "state" | "event" => found[what].contains(&kind(what, &document)),
            _ => shapes.contains(&format!("{what} {}", shape(&document))),
        };
        assert!(is_known, "record what is new (see the top of this file): {what} {document}");
    }
}

/// Whoever says no more than the first clients did takes part.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_the_first_protocol_takes_part() {
    let d = Deployment::start().await;
    let mut raw = d.raw("old", ClientRole::Trainer).await;
    let v1::server_message::Kind::Welcome(welcome) = raw.hello(1, 1).await.unwrap() else {
        panic!("no welcome");
    };
    assert_eq!((welcome.protocol, welcome.client.as_str()), (1, "old"));
    let mut operator = d.operator().await;
    let one = SAMPLE_JOB.replace("rounds = 2", "rounds = 1").replace("size = 2", "size = 1");
    let id = operator.submit(&one).await.unwrap();
    let attempt = raw.offer().await.attempt;
    let yes = v1::Answer { attempt: attempt.clone(), accepts: true, ..v1::Answer::default() };
    raw.say(v1::client_message::Kind::Answer(yes)).await;
    raw.upload(&attempt.unwrap(), &[1, 1], 1).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
}
