//! What goes down beside a model, and how long it is kept.

use super::*;

/// A version is offered, readable and kept as long as its model is the newest, and no longer.
#[test]
fn a_broadcast_goes_with_its_model() {
    let blob = |n: u8| BlobRef { digest: Digest::of(&[100, n]), bytes: 5 };
    let broadcast = |n: u8, delta: bool| Broadcast {
        version: Digest::of(&[200, n]),
        whole: Some(blob(n)),
        delta: delta.then(|| Delta { base: Digest::of(&[200, n - 1]), blob: blob(n + 50) }),
        frozen: None,
    };
    let mut w = World::new(NONE);
    w.state.carried.broadcast = Some(broadcast(0, false));
    w.feed(Input::Sessions).unwrap();
    let offers = |w: &World| -> Vec<Option<Broadcast>> {
        let sent = w.effects.iter().filter_map(|e| match e {
            Effect::Offer { broadcast, .. } => Some(*broadcast),
            _ => None,
        });
        sent.collect()
    };
    assert_eq!(offers(&w), [Some(broadcast(0, false)); 3]);
    let readable = |w: &World, digest| w.state.readable(&name("a"), &digest);
    assert_eq!(readable(&w, blob(0).digest), Some(5));
    assert_eq!(readable(&w, model(0).digest), None, "the model's own bits are not for those who train");
    w.feed(Input::Connected { client: name("a") }).unwrap();
    assert_eq!(offers(&w), [Some(broadcast(0, false))], "a repeated offer brings the same bytes");
    w.deliver(&["a", "b", "c"], 1, 1);
    let Some(Effect::Release { carried, .. }) = w.effects.last() else { panic!("{:?}", w.effects) };
    assert_eq!(carried.broadcast, Some(broadcast(0, false)), "what the next one starts from");
    let carried = Carried { broadcast: Some(broadcast(1, true)), ..Carried::default() };
    let key = w.key(1, 1);
    w.feed(Input::Released { key: key.clone(), model: model(1), carried }).unwrap();
    let old = Effect::Discard { blob: blob(0).digest };
    assert!(w.effects.contains(&old), "{:?}", w.effects);
    assert!(w.state.blobs().contains(&blob(1).digest) && w.state.blobs().contains(&blob(51).digest));
    w.feed(Input::Published { key, sent_bytes: 0 }).unwrap();
    w.feed(Input::Sessions).unwrap();
    assert_eq!(offers(&w), [Some(broadcast(1, true)); 3]);
    assert_eq!((readable(&w, blob(1).digest), readable(&w, blob(51).digest)), (Some(5), Some(5)));
    assert_eq!(readable(&w, blob(0).digest), None);
    // An attempt that fails and is made again goes on with it.
    w.now_ms += 100_000;
    w.feed(Input::Tick).unwrap();
    w.now_ms += 10_000;
    w.feed(Input::Sessions).unwrap();
    assert_eq!(offers(&w), [Some(broadcast(1, true)); 3]);
    w.feed(Input::Cancel { by: "op".into(), reason: "enough".into() }).unwrap();
    for n in [1, 51] {
        assert!(w.effects.contains(&Effect::Discard { blob: blob(n).digest }), "{:?}", w.effects);
    }
}

/// Where the whole version is the model's own file, that is what may be fetched, and it is never discarded.
#[test]
fn a_broadcast_of_the_models_own_file() {
    let delta = Delta { base: Digest::of(b"base"), blob: BlobRef { digest: Digest::of(b"delta"), bytes: 3 } };
    let mut w = World::new(NONE);
    w.state.carried.broadcast =
        Some(Broadcast { version: Digest::of(b"version"), whole: None, delta: Some(delta), frozen: None });
    w.feed(Input::Sessions).unwrap();
    assert_eq!(w.state.readable(&name("a"), &model(0).digest), Some(9));
    assert_eq!(w.state.readable(&name("a"), &delta.blob.digest), Some(3));
    w.feed(Input::Cancel { by: "op".into(), reason: "enough".into() }).unwrap();
    assert!(w.effects.contains(&Effect::Discard { blob: delta.blob.digest }));
    assert!(!w.effects.contains(&Effect::Discard { blob: model(0).digest }));
}

/// What is not trained is one blob for all versions: readable and kept as long as the job goes on, discarded with it.
#[test]
fn what_is_frozen_outlives_its_versions() {
    let blob = |n: u8| BlobRef { digest: Digest::of(&[100, n]), bytes: 5 };
    let frozen = Frozen { digest: Digest::of(b"values"), blob: blob(99) };
    let broadcast = |n: u8| {
        let version = Digest::of(&[200, n]);
        Some(Broadcast { version, whole: Some(blob(n)), delta: None, frozen: Some(frozen) })
    };
    let mut w = World::new(NONE);
    w.state.carried.broadcast = broadcast(0);
    for round in 1..=2 {
        w.feed(Input::Sessions).unwrap();
        let readable = |digest| w.state.readable(&name("a"), &digest);
        assert_eq!((readable(blob(99).digest), readable(blob(round - 1).digest)), (Some(5), Some(5)));
        assert_eq!(
            readable(model(round - 1).digest),
            Some(9),
            "a client that knows of no parts takes the file"
        );
        w.deliver(&["a", "b", "c"], round.into(), 1);
        let carried = Carried { broadcast: broadcast(round), ..Carried::default() };
        let key = w.key(round.into(), 1);
        w.feed(Input::Released { key: key.clone(), model: model(round), carried }).unwrap();
        assert!(w.effects.contains(&Effect::Discard { blob: blob(round - 1).digest }), "{:?}", w.effects);
        assert!(!w.effects.contains(&Effect::Discard { blob: blob(99).digest }), "{:?}", w.effects);
        assert!(w.state.blobs().contains(&blob(99).digest));
        w.feed(Input::Published { key, sent_bytes: 0 }).unwrap();
    }
    assert!(w.state.is_over());
    assert!(w.effects.contains(&Effect::Discard { blob: blob(99).digest }), "{:?}", w.effects);
}
