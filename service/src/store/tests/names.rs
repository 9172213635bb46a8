//! Names and keys that stand for one thing each: of requests and of secrets.

use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use super::{code, write};
use crate::error::ErrorCode;
use crate::store::idempotency::{IdempotentRequest, Outcome};
use crate::store::secrets::SealedSecret;
use crate::store::testing::{TestStore, on_both_databases};

on_both_databases! {
    an_idempotency_key_stands_for_one_request,
    secrets_have_unique_names,
}

async fn an_idempotency_key_stands_for_one_request(TestStore { store, clock }: TestStore) {
    let same = IdempotentRequest::new("key-1", "convert", "image", &json!({"a": 1})).unwrap();
    let other = IdempotentRequest::new("key-1", "convert", "image", &json!({"a": 2})).unwrap();
    let outcome = Outcome::Job(Uuid::now_v7());
    assert_eq!(
        write(&store, async |tx| tx.recall(Some(&same)).await).await.unwrap(),
        None
    );
    write(&store, async |tx| tx.remember(Some(&same), outcome).await)
        .await
        .unwrap();
    assert_eq!(
        write(&store, async |tx| tx.recall(Some(&same)).await).await.unwrap(),
        Some(outcome)
    );
    assert_eq!(
        code(write(&store, async |tx| tx.recall(Some(&other)).await).await),
        ErrorCode::IdempotencyConflict
    );
    clock.advance(3_600_001);
    write(&store, async |tx| tx.prune_idempotency(Duration::from_secs(3600)).await)
        .await
        .unwrap();
    assert_eq!(
        write(&store, async |tx| tx.recall(Some(&other)).await).await.unwrap(),
        None
    );
    for bad in ["", "two words", &"x".repeat(256)] {
        assert!(IdempotentRequest::new(bad, "", "", &()).is_err(), "{bad}");
    }
}

async fn secrets_have_unique_names(TestStore { store, .. }: TestStore) {
    let sealed = SealedSecret {
        sealed: "AAAA".to_owned(),
        key_id: "k".to_owned(),
    };
    let id = Uuid::now_v7();
    write(&store, async |tx| tx.insert_secret(id, "s", &sealed).await)
        .await
        .unwrap();
    let twice = write(&store, async |tx| tx.insert_secret(Uuid::now_v7(), "s", &sealed).await).await;
    assert_eq!(code(twice), ErrorCode::NameTaken);
    assert_eq!(store.sealed_secret(id).await.unwrap().sealed, "AAAA");
    assert_eq!(
        store.list_secrets(None, 10).await.unwrap(),
        [store.secret(id).await.unwrap()]
    );
    write(&store, async |tx| tx.delete_secret(id).await).await.unwrap();
    assert_eq!(
        code(write(&store, async |tx| tx.delete_secret(id).await).await),
        ErrorCode::NotFound
    );
}
