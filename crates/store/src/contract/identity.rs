//! Tokens and clients.

use super::{client_id, joins, secret, token};
use crate::records::{EnrolRequest, MAX_NUMBER, TokenRecord};
use crate::{EnrolError, Store, StoreError};
use std::sync::Arc;
use undertone_core::digest::Digest;
use undertone_core::id::ClientRole;

pub(super) async fn tokens_come_and_go(store: &dyn Store) {
    let older = TokenRecord { created_unix_s: 500, ..token("z", 1) };
    let named = TokenRecord {
        name: Some(client_id("cleveland")),
        role: ClientRole::Evaluator,
        expires_unix_s: MAX_NUMBER,
        ..token("a", 4)
    };
    for token in [&named, &older] {
        store.create_token(token.clone()).await.unwrap();
    }
    assert_eq!(store.list_tokens().await.unwrap(), [older.clone(), named.clone()]);

    let same_id = TokenRecord { secret_digest: secret("other"), ..token("a", 1) };
    let same_secret = TokenRecord { id: "other".into(), ..token("a", 1) };
    for again in [same_id, same_secret] {
        let refused = store.create_token(again).await;
        assert!(matches!(refused, Err(StoreError::Exists { what: "token", .. })), "{refused:?}");
    }
    let too_many_left = TokenRecord { uses_left: 2, ..token("b", 1) };
    let too_far = TokenRecord { expires_unix_s: MAX_NUMBER + 1, ..token("b", 1) };
    for wrong in [too_many_left, too_far] {
        let refused = store.create_token(wrong).await;
        assert!(matches!(refused, Err(StoreError::OutOfRange { .. })), "{refused:?}");
    }

    assert!(store.delete_token("a").await.unwrap());
    assert!(!store.delete_token("a").await.unwrap());
    assert_eq!(store.list_tokens().await.unwrap(), [older]);
}

pub(super) async fn a_token_lets_in_whom_it_should(store: &dyn Store) {
    let named =
        TokenRecord { name: Some(client_id("cleveland")), role: ClientRole::Evaluator, ..token("named", 9) };
    for token in [token("free", 2), named] {
        store.create_token(token).await.unwrap();
    }
    let enrol = async |token: &str, now, request| store.enrol(secret(token), now, request).await;
    let nameless = |key| EnrolRequest { name: None, ..joins("x", key) };

    let got = enrol("none", 1_500, joins("x", "x")).await;
    assert!(matches!(got, Err(EnrolError::UnknownToken)), "{got:?}");
    let got = enrol("free", 2_000, joins("x", "x")).await;
    assert!(matches!(got, Err(EnrolError::Expired { expired_unix_s: 2_000 })), "{got:?}");
    let got = enrol("free", 1_500, nameless("x")).await;
    assert!(matches!(got, Err(EnrolError::NameMissing)), "{got:?}");
    let got = enrol("named", 1_500, joins("x", "x")).await;
    let cleveland = client_id("cleveland");
    assert!(
        matches!(&got, Err(EnrolError::NameMismatch { fixed, asked })
            if *fixed == cleveland && *asked == client_id("x")),
        "{got:?}"
    );
    assert_eq!(store.clients().await.unwrap(), []);

    let client = enrol("named", 1_500, nameless("c")).await.unwrap();
    assert_eq!(client.id, cleveland);
    assert_eq!(client.role, ClientRole::Evaluator);
    assert_eq!(client.key_digest, Digest::of(b"c"));
    assert_eq!(client.certificate_serial, "serial of c");
    assert_eq!((client.enrolled_unix_s, client.last_seen_unix_s), (1_500, None));
    assert_eq!((client.software.as_str(), client.token_id.as_str()), ("undertone-client 0.1.0", "named"));
    assert_eq!(store.client(&cleveland).await.unwrap(), Some(client));

    // Another key must not take over a name: neither by the token of the name nor by another.
    for (token, request) in [("named", nameless("thief")), ("free", joins("cleveland", "thief"))] {
        let got = enrol(token, 1_500, request).await;
        assert!(matches!(&got, Err(EnrolError::NameTaken(name)) if *name == cleveland), "{got:?}");
    }
    // Failures used nothing up.
    enrol("free", 1_999, joins("a", "a")).await.unwrap();
    enrol("free", 1_999, joins("b", "b")).await.unwrap();
    let got = enrol("free", 1_999, joins("d", "d")).await;
    assert!(matches!(got, Err(EnrolError::UsedUp { max_uses: 2 })), "{got:?}");
    let left: Vec<_> = store.list_tokens().await.unwrap().iter().map(|t| t.uses_left).collect();
    assert_eq!(left, [0, 8]);
}

pub(super) async fn a_lost_answer_strands_nobody(store: &dyn Store) {
    store.create_token(token("once", 1)).await.unwrap();
    let first = store.enrol(secret("once"), 1_500, joins("a", "key")).await.unwrap();
    // The same client again: later than the token lives, with another certificate, with and without its name.
    let mut again = EnrolRequest { certificate_serial: "another".into(), ..joins("a", "key") };
    assert_eq!(store.enrol(secret("once"), 9_000, again.clone()).await.unwrap(), first);
    again.name = None;
    assert_eq!(store.enrol(secret("once"), 9_000, again).await.unwrap(), first);
    assert_eq!(store.clients().await.unwrap(), [first]);
    // Neither another name for the key nor another key for the name.
    let got = store.enrol(secret("once"), 1_500, joins("b", "key")).await;
    assert!(matches!(got, Err(EnrolError::NameMismatch { .. })), "{got:?}");
    let got = store.enrol(secret("once"), 1_500, joins("a", "other key")).await;
    assert!(matches!(got, Err(EnrolError::UsedUp { .. })), "{got:?}");
}

pub(super) async fn one_use_is_one_client(store: Arc<dyn Store>) {
    store.create_token(token("once", 1)).await.unwrap();
    let racers: Vec<_> = (0..16)
        .map(|n| {
            let store = store.clone();
            let request = joins(&format!("c{n}"), &format!("key {n}"));
            tokio::spawn(async move { store.enrol(secret("once"), 1_500, request).await })
        })
        .collect();
    let mut winners = Vec::new();
    for racer in racers {
        match racer.await.unwrap() {
            Ok(client) => winners.push(client),
            Err(error) => assert!(matches!(error, EnrolError::UsedUp { max_uses: 1 }), "{error:?}"),
        }
    }
    assert_eq!(winners.len(), 1);
    assert_eq!(store.clients().await.unwrap(), winners);
}

pub(super) async fn clients_are_found_and_touched(store: &dyn Store) {
    store.create_token(token("t", 2)).await.unwrap();
    for name in ["b", "a"] {
        store.enrol(secret("t"), 1_500, joins(name, name)).await.unwrap();
    }
    let (a, b, none) = (client_id("a"), client_id("b"), client_id("none"));
    assert!(store.touch_client(&a, 1_700).await.unwrap());
    assert!(store.touch_client(&a, 1_600).await.unwrap());
    assert!(!store.touch_client(&none, 1_600).await.unwrap());
    assert_eq!(store.client(&none).await.unwrap(), None);
    assert_eq!(store.client(&a).await.unwrap().unwrap().last_seen_unix_s, Some(1_700));
    store.delete_token("t").await.unwrap();
    let ids: Vec<_> = store.clients().await.unwrap().into_iter().map(|c| c.id).collect();
    assert_eq!(ids, [a, b]);
}
