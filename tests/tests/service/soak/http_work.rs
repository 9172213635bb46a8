//! Rounds over HTTP: a disk, a copy, an overlay, everything that can be done to them, and away with it.

use std::sync::Arc;

use reqwest::Method;
use serde_json::{Value, json};

use super::Soak;
use super::calls::Calls;

const SIZE: usize = 2 << 20;

/// Bytes that differ from round to round.
fn content(round: u64) -> Vec<u8> {
    let mut state = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state >> 60
    });
    words.take(SIZE / 8).flat_map(u64::to_le_bytes).collect()
}

pub async fn work(soak: Arc<Soak>) {
    let calls = Calls::new(&soak.url);
    while soak.goes_on() {
        round(&soak, &calls, soak.round()).await;
        soak.rest().await;
    }
}

async fn round(soak: &Soak, calls: &Calls, round: u64) {
    let (bytes, other) = (content(round), content(round + 1_000_000));
    let disk = calls.upload(&format!("disk-{round}"), &bytes).await;
    let base = calls.upload(&format!("base-{round}"), &other).await;
    let verb = |id: &str, verb: &str| format!("/v1/images/{id}/{verb}");
    let convert = async |name: &str, body: Value| {
        let mut body = body;
        body["name"] = json!(format!("{name}-{round}"));
        let job = calls.run(soak, &verb(&disk, "convert"), body).await;
        job["result"]["image_id"].as_str().unwrap().to_owned()
    };
    let copy = convert("copy", json!({"format": "qcow2", "verify": true})).await;
    calls
        .run(soak, &verb(&copy, "compress"), json!({"algorithm": "zlib"}))
        .await;
    calls
        .run(soak, &verb(&copy, "resize"), json!({"virtual_size": SIZE * 2}))
        .await;
    calls
        .run(
            soak,
            &verb(&copy, "resize"),
            json!({"virtual_size": SIZE, "shrink": true}),
        )
        .await;
    let overlay = convert("overlay", json!({"format": "qcow2", "backing": base})).await;
    same(calls, &overlay, &bytes).await;
    calls
        .run(soak, &verb(&overlay, "rebase"), json!({"backing": copy}))
        .await;
    let compared = calls
        .run(soak, &verb(&overlay, "compare"), json!({"other": disk}))
        .await;
    assert_eq!(compared["result"]["identical"], true, "{compared}");
    let end = if round.is_multiple_of(2) {
        json!({"drop": true})
    } else {
        json!({"verify": true})
    };
    calls.run(soak, &verb(&overlay, "commit"), end).await;
    if round % 2 == 1 {
        calls.run(soak, &verb(&overlay, "flatten"), json!({})).await;
        same(calls, &overlay, &bytes).await;
    }
    cancel(soak, calls, &disk, round).await;
    same(calls, &copy, &bytes).await;
    same(calls, &base, &other).await;
    let checked = calls.run(soak, &verb(&copy, "check"), json!({"repair": "all"})).await;
    assert_eq!(checked["result"]["corruptions"], 0, "{checked}");
    for id in [&overlay, &copy, &base, &disk] {
        calls.delete(id).await;
    }
}

/// A job that is held, let go and cancelled: it ends, and nothing is left of it, unless it was through already.
async fn cancel(soak: &Soak, calls: &Calls, disk: &str, round: u64) {
    let request = json!({"name": format!("cancelled-{round}"), "format": "raw", "rate_limit": 1 << 20});
    let job = calls.queue(soak, &format!("/v1/images/{disk}/convert"), request).await;
    for verb in ["pause", "resume", "cancel"] {
        calls
            .ask(Method::POST, &format!("/v1/jobs/{job}/{verb}"), &Value::Null)
            .await;
    }
    let ended = calls.ended(&job).await;
    match ended["result"]["image_id"].as_str() {
        Some(image) => calls.delete(image).await,
        None => assert_eq!(ended["state"], "cancelled", "{ended}"),
    }
}

async fn same(calls: &Calls, id: &str, bytes: &[u8]) {
    assert!(calls.data(id).await == bytes, "image {id} has another content");
}
