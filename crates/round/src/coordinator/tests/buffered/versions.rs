//! What clients at work began from: how long it is kept, and what it costs in the state.

use super::*;

/// What a client at work was offered stays readable and durable until nobody works from it, and no longer.
#[test]
fn a_version_is_kept_as_long_as_somebody_works_from_it() {
    let blob = |n: u8| BlobRef { digest: Digest::of(&[100, n]), bytes: 5 };
    let carried = |n: u8| Carried {
        broadcast: Some(Broadcast {
            version: Digest::of(&[200, n]),
            whole: Some(blob(n)),
            delta: Some(Delta { base: Digest::of(&[201, n]), blob: blob(n + 50) }),
            frozen: Some(Frozen { digest: Digest::of(b"values"), blob: blob(99) }),
        }),
        ..Carried::default()
    };
    let mut w = world(RULE, NONE, 3, &["a", "b", "slow"]);
    w.state.carried = carried(0);
    w.feed(Input::Sessions).unwrap();
    for round in 1..=2 {
        w.send("a", round, 1).unwrap();
        w.send("b", round, 1).unwrap();
        let key = w.key(round, 1);
        let model = model(round as u8);
        w.feed(Input::Released { key: key.clone(), model, carried: carried(round as u8) }).unwrap();
        // Of the first version the slow one is still at work; of the second nobody is.
        let gone: &[u8] = if round == 1 { &[] } else { &[1, 51] };
        let gone: BTreeSet<_> = gone.iter().map(|n| blob(*n).digest).collect();
        let versions = (0..=2).flat_map(|n| [blob(n).digest, blob(n + 50).digest]);
        // What is frozen is of all of them.
        let versions = versions.chain([blob(99).digest]).collect();
        let discarded: BTreeSet<_> = w.discarded().intersection(&versions).copied().collect();
        assert_eq!(discarded, gone, "round {round}");
        w.feed(Input::Published { key, sent_bytes: 0 }).unwrap();
        w.feed(Input::Sessions).unwrap();
    }
    let readable = |client: &str, n: u8| w.state.readable(&name(client), &blob(n).digest);
    assert_eq!((readable("slow", 0), readable("slow", 50), readable("slow", 2)), (Some(5), Some(5), None));
    assert_eq!((readable("a", 2), readable("a", 52), readable("a", 0)), (Some(5), Some(5), None));
    assert_eq!((readable("slow", 99), readable("a", 99)), (Some(5), Some(5)));
    for n in [0, 50, 2, 52, 99] {
        assert!(w.state.blobs().contains(&blob(n).digest));
    }
    w.feed(Input::Connected { client: name("slow") }).unwrap();
    let again = w.effects.iter().find_map(|e| match e {
        Effect::Offer { broadcast, .. } => *broadcast,
        _ => None,
    });
    assert_eq!(again, carried(0).broadcast, "asked again from the same bytes");
    w.send("slow", 1, 1).unwrap();
    assert!(w.discarded().is_superset(&BTreeSet::from([blob(0).digest, blob(50).digest])));
    assert!(!w.discarded().contains(&blob(99).digest));
}

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

/// A version with all that it can have beside it.
fn broadcast(round: u8) -> Broadcast {
    let blob = |what: &str| BlobRef { digest: digest(&format!("{what} {round}")), bytes: 40_000_000_000 };
    Broadcast {
        version: digest(&format!("version {round}")),
        whole: Some(blob("whole")),
        delta: Some(Delta { base: digest("base"), blob: blob("delta") }),
        frozen: Some(Frozen { digest: digest("frozen"), blob: blob("frozen") }),
    }
}

fn state_bytes(w: &World) -> usize {
    serde_json::to_vec(&w.state).unwrap().len()
}

/// Every step writes the whole state: a client at work is a line of numbers, whatever the model is sent as.
#[test]
fn the_state_has_a_bound_for_each_client_at_work() {
    // Of which the name, in quotes, is 12.
    const MOST: usize = 80;
    let rule = |places: u32| RULE.replace("concurrency = 3", &format!("concurrency = {places}"));
    let clients: Vec<String> = (0..300).map(|i| format!("client-{i:03}")).collect();
    let clients: Vec<&str> = clients.iter().map(String::as_str).collect();
    let begun = |places: u32| {
        let mut w = world(&rule(places), NONE, 3, &clients);
        w.now_ms = 1_700_000_000_000;
        w.state = JobState::new(w.state.model, w.now_ms);
        w.state.carried.broadcast = Some(broadcast(0));
        w.feed(Input::Sessions).unwrap();
        assert_eq!(w.at_work().len(), places as usize);
        w
    };
    let (few, many) = (state_bytes(&begun(50)), state_bytes(&begun(250)));
    let each = (many - few) / 200;
    assert!(each <= MOST, "{each} bytes for each client at work");
    // Away, with times of today: the longest that a record gets.
    let mut w = begun(250);
    let here = std::mem::take(&mut w.trainers);
    w.feed(Input::Sessions).unwrap();
    let away = (state_bytes(&w) - many) / 250;
    assert!(away <= 36, "{away} bytes more for each client that is away");
    w.trainers = here;
    w.feed(Input::Sessions).unwrap();
    // Each round that somebody was asked in adds one version, and one that nobody works from any more goes.
    let before = state_bytes(&w);
    let first: Vec<_> = w.at_work().iter().map(|(c, ..)| c.to_string()).collect();
    w.send(&first[0], 1, 1).unwrap();
    w.send(&first[1], 1, 1).unwrap();
    let carried = Carried { broadcast: Some(broadcast(1)), ..Carried::default() };
    let key = w.key(1, 1);
    w.feed(Input::Released { key: key.clone(), model: model(1), carried }).unwrap();
    w.feed(Input::Published { key, sent_bytes: 0 }).unwrap();
    w.feed(Input::Sessions).unwrap();
    let rounds: BTreeSet<_> = w.at_work().iter().map(|(_, round, _)| *round).collect();
    assert_eq!(rounds, [1, 2].into());
    let version = serde_json::to_vec(&broadcast(0)).unwrap().len() + 200;
    assert!(state_bytes(&w) < before + version + 2 * MOST, "{} after {before}", state_bytes(&w));
    assert_eq!(w.state.pool.broadcasts().count(), 2);
    let read: JobState = serde_json::from_slice(&serde_json::to_vec(&w.state).unwrap()).unwrap();
    assert_eq!(read, w.state);
}

/// A state that was written before versions had a table of their own.
#[test]
fn an_older_state_is_read_and_goes_on() {
    let mut w = world(RULE, NONE, 3, &["a", "b", "slow"]);
    w.state.carried.broadcast = Some(broadcast(0));
    w.feed(Input::Sessions).unwrap();
    let mut old = serde_json::to_value(&w.state).unwrap();
    let version = old["pool"].as_object_mut().unwrap().remove("versions").unwrap()["1"].clone();
    for work in old["pool"]["at_work"].as_object_mut().unwrap().values_mut() {
        let work = work.as_object_mut().unwrap();
        work.insert("model".into(), version["model"].clone());
        work.insert("broadcast".into(), version["broadcast"].clone());
    }
    assert_eq!(serde_json::from_value::<JobState>(old.clone()).unwrap(), w.state);
    w.state = serde_json::from_value(old.clone()).unwrap();
    let offered = |w: &World| w.state.readable(&name("slow"), &broadcast(0).delta.unwrap().blob.digest);
    assert_eq!(offered(&w), Some(40_000_000_000));
    w.send("a", 1, 1).unwrap();
    w.send("b", 1, 1).unwrap();
    w.finish(1, 1);
    assert!(offered(&w).is_some(), "the slow one still works from it");
    w.send("slow", 1, 1).unwrap();
    assert!(
        w.discarded().is_superset(&broadcast(0).blobs().collect()),
        "nobody does any more: {:?}",
        w.effects
    );
    // What no version of the program can have written is not guessed at.
    let mut lost = serde_json::to_value(&w.state).unwrap();
    lost["pool"]["versions"] = serde_json::json!({});
    let e = serde_json::from_value::<JobState>(lost).unwrap_err().to_string();
    assert!(e.contains("is not there"), "{e}");
    old["pool"]["at_work"]["a"]["model"]["bytes"] = 1.into();
    let e = serde_json::from_value::<JobState>(old).unwrap_err().to_string();
    assert!(e.contains("another model"), "{e}");
}
