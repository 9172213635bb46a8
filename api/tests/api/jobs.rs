//! Jobs: waiting, watching, steering, two writers of one image.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::json;
use vdisk_api::proto;
use vdisk_api::proto::job_service_client::JobServiceClient;

use crate::server::{Answer, Server};

/// 32 MiB that do not compress to nothing.
fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    words.take(4 << 20).flat_map(u64::to_le_bytes).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_makes_an_image_and_says_so() {
    let server = Server::start().await;
    let source = server.upload("source", "raw", vec![7; 1 << 20]).await;
    let queued = server
        .post(
            &format!("/v1/images/{source}/convert"),
            json!({"name": "copy", "format": "raw"}),
        )
        .await;
    assert_eq!(queued.header("location"), format!("/v1/jobs/{}", queued.id()));
    let job = server.ended(queued).await;
    assert_eq!(
        (&job["state"], &job["progress"]["done_bytes"]),
        (&json!("succeeded"), &job["progress"]["total_bytes"])
    );
    let copy = job["result"]["image_id"].as_str().unwrap();
    assert_eq!(
        server.get(&format!("/v1/images/{copy}/data")).await.bytes,
        vec![7; 1 << 20]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_that_is_too_high_is_refused_by_its_name() {
    let server = Server::start().await;
    let source = server.upload("source", "raw", noise()).await;
    let convert = format!("/v1/images/{source}/convert");
    // One more than the largest whole number that a database keeps.
    let too_high = 1_u64 << 63;
    let queued = server
        .post(
            &convert,
            json!({"name": "copy", "format": "raw", "rate_limit": 1 << 20}),
        )
        .await;
    let job = format!("/v1/jobs/{}", queued.id());
    let request = server
        .request(Method::PATCH, &job)
        .json(&json!({"rate_limit": too_high}));
    let body = json!({"name": "other", "format": "raw", "rate_limit": too_high});
    for answer in [
        Answer::of(request.send().await.unwrap()).await,
        server.post(&convert, body).await,
    ] {
        answer.problem(422, "invalid_argument");
        assert_eq!(answer.body["field"], "rate_limit", "{answer:?}");
    }
    server
        .post(&format!("{job}/cancel"), json!({}))
        .await
        .expect(StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_leaves_nothing() {
    let server = Server::start().await;
    let source = server.upload("source", "raw", noise()).await;
    let body = json!({"name": "copy", "format": "raw", "rate_limit": 1 << 20});
    let job = server
        .post(&format!("/v1/images/{source}/convert"), body)
        .await
        .expect(StatusCode::ACCEPTED)
        .id();
    let cancelled = server
        .post(&format!("/v1/jobs/{job}/cancel"), json!({}))
        .await
        .expect(StatusCode::OK)
        .body;
    assert!(
        cancelled["cancel_requested"] == true || cancelled["state"] == "cancelled",
        "{cancelled}"
    );
    for _ in 0..100 {
        if server.get(&format!("/v1/jobs/{job}?wait=1s")).await.body["state"] == "cancelled" {
            break;
        }
    }
    assert_eq!(server.get(&format!("/v1/jobs/{job}")).await.body["state"], "cancelled");
    assert_eq!(
        server.get("/v1/images").await.body["items"].as_array().unwrap().len(),
        1
    );
    assert_eq!(files(&server), 1, "only the source's file is left");
    server
        .post(&format!("/v1/jobs/{job}/cancel"), json!({}))
        .await
        .expect(StatusCode::OK);
    server
        .delete(&format!("/v1/images/{source}"))
        .await
        .expect(StatusCode::NO_CONTENT);
}

/// Files below the pool, at any depth.
fn files(server: &Server) -> usize {
    fn count(folder: &std::path::Path) -> usize {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| if path.is_dir() { count(&path) } else { 1 }).sum()
    }
    count(&server.dir.path().join("data/pools"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_has_one_writer_at_a_time() {
    let server = Server::start().await;
    let id = server.upload("disk", "raw", noise()).await;
    let convert = json!({"name": "copy", "format": "raw", "rate_limit": 1 << 20});
    let reader = server
        .post(&format!("/v1/images/{id}/convert"), convert)
        .await
        .expect(StatusCode::ACCEPTED)
        .id();
    let resize = json!({"virtual_size": 64 << 20});
    server
        .post(&format!("/v1/images/{id}/resize"), resize)
        .await
        .problem(409, "image_busy");
    server
        .delete(&format!("/v1/images/{id}"))
        .await
        .problem(409, "image_busy");
    server
        .post(&format!("/v1/jobs/{reader}/cancel"), json!({}))
        .await
        .expect(StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_jobs_wait_until_they_are_resumed() {
    let server = Server::start().await;
    let id = server.upload("disk", "raw", noise()).await;
    let convert = json!({"name": "copy", "format": "raw", "rate_limit": 8 << 20});
    let queued = server.post(&format!("/v1/images/{id}/convert"), convert).await;
    let job = queued.id();
    let paused = server
        .post(&format!("/v1/jobs/{job}/pause"), json!({}))
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(paused["state"], "paused");
    let changed = server
        .patch(&format!("/v1/jobs/{job}"), json!({"rate_limit": 0, "priority": 3}))
        .await;
    assert_eq!(changed.expect(StatusCode::OK).body["priority"], 3);
    server
        .post(&format!("/v1/jobs/{job}/resume"), json!({}))
        .await
        .expect(StatusCode::OK);
    assert_eq!(server.ended(queued).await["state"], "succeeded");
    server
        .post(&format!("/v1/jobs/{job}/pause"), json!({}))
        .await
        .problem(409, "job_state_conflict");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_ends_when_the_time_is_over() {
    let server = Server::start_with(|config| config.workers = 0).await;
    let id = server.create("disk", json!({"virtual_size": 1 << 20})).await;
    let job = server
        .post(&format!("/v1/images/{id}/check"), json!({}))
        .await
        .expect(StatusCode::ACCEPTED)
        .id();
    let started = Instant::now();
    let waited = server
        .get(&format!("/v1/jobs/{job}?wait=300ms"))
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(waited["state"], "queued");
    assert!(
        (Duration::from_millis(300)..Duration::from_secs(60)).contains(&started.elapsed()),
        "{:?}",
        started.elapsed()
    );
    server
        .get(&format!("/v1/jobs/{job}?wait=soon"))
        .await
        .problem(422, "invalid_argument");
}

#[tokio::test(flavor = "multi_thread")]
async fn optional_bodies_may_be_left_out() {
    let server = Server::start().await;
    let id = server.upload("disk", "raw", vec![1; 4096]).await;
    let request = server.request(Method::POST, &format!("/v1/images/{id}/flatten"));
    let answer = crate::server::Answer::of(request.send().await.unwrap()).await;
    assert_ne!(answer.status, StatusCode::BAD_REQUEST, "{answer:?}");
    assert_ne!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{answer:?}");
}

/// The events of a body of server-sent events: id, type.
fn events(text: &str) -> Vec<(u64, String)> {
    let blocks = text.split("\n\n").filter(|block| block.contains("id:"));
    let field = |block: &str, name: &str| {
        let line = block
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_default();
        line.trim().to_owned()
    };
    blocks
        .map(|block| (field(block, "id:").parse().unwrap(), field(block, "event:")))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_can_be_watched_from_any_event_on() {
    let server = Server::start().await;
    let id = server.upload("disk", "raw", vec![1; 1 << 20]).await;
    let queued = server
        .post(
            &format!("/v1/images/{id}/convert"),
            json!({"name": "copy", "format": "raw"}),
        )
        .await;
    let path = format!("/v1/jobs/{}/events", queued.id());
    let text = server.get(&path).await.expect(StatusCode::OK).bytes;
    let all = events(&String::from_utf8(text).unwrap());
    assert_eq!(all[0].1, "job.queued");
    assert_eq!(all.last().unwrap().1, "job.state");
    assert!(all.windows(2).all(|pair| pair[0].0 < pair[1].0), "{all:?}");
    let request = server
        .request(Method::GET, &path)
        .header("last-event-id", all[0].0.to_string());
    let text = request.send().await.unwrap().text().await.unwrap();
    assert_eq!(events(&text), all[1..]);
    let last = all.last().unwrap().0.to_string();
    let behind = server
        .request(Method::GET, &path)
        .header("last-event-id", last)
        .send()
        .await;
    assert_eq!(behind.unwrap().status(), StatusCode::NO_CONTENT);
    let refused = server
        .request(Method::GET, &path)
        .header("last-event-id", "x")
        .send()
        .await
        .unwrap();
    crate::server::Answer::of(refused)
        .await
        .problem(422, "invalid_argument");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_number_beyond_all_events_is_refused() {
    let server = Server::start_with(|config| config.workers = 0).await;
    let id = server.create("disk", json!({"virtual_size": 1 << 20})).await;
    let job = server.post(&format!("/v1/images/{id}/check"), json!({})).await.id();
    let beyond = 1_u64 << 63;
    for path in ["/v1/events".to_owned(), format!("/v1/jobs/{job}/events")] {
        let refused = server.get(&format!("{path}?after={beyond}")).await;
        refused.problem(422, "invalid_argument");
        for seen in [beyond, u64::MAX] {
            let request = server
                .request(Method::GET, &path)
                .header("last-event-id", seen.to_string());
            Answer::of(request.send().await.unwrap())
                .await
                .problem(422, "invalid_argument");
        }
    }
    let mut jobs = JobServiceClient::connect(server.url.clone()).await.unwrap();
    let request = proto::WatchJobsRequest {
        after: Some(beyond),
        ..proto::WatchJobsRequest::default()
    };
    let refused = jobs.watch_jobs(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_ends_streams_and_polls() {
    let server = Server::start_with(|config| config.workers = 0).await;
    let id = server.create("disk", json!({"virtual_size": 1 << 20})).await;
    let job = server.post(&format!("/v1/images/{id}/check"), json!({})).await.id();
    let poll = server.request(Method::GET, &format!("/v1/jobs/{job}?wait=50s")).send();
    let stream = server.request(Method::GET, "/v1/events").send().await.unwrap();
    let poll = tokio::spawn(poll);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let started = Instant::now();
    server.stop().await;
    assert!(started.elapsed() < Duration::from_secs(40), "{:?}", started.elapsed());
    assert_eq!(poll.await.unwrap().unwrap().status(), StatusCode::OK);
    stream.bytes().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn steering_happens_once_for_each_key_over_both_transports() {
    let server = Server::start().await;
    let id = server.upload("disk", "raw", noise()).await;
    let convert = json!({"name": "copy", "format": "raw", "rate_limit": 1 << 20});
    let job = server
        .post(&format!("/v1/images/{id}/convert"), convert)
        .await
        .expect(StatusCode::ACCEPTED)
        .id();
    let steer = async |verb: &str, key: &str| {
        let request = server.request(Method::POST, &format!("/v1/jobs/{job}/{verb}"));
        Answer::of(request.header("idempotency-key", key).send().await.unwrap()).await
    };
    assert_eq!(
        steer("pause", "k1").await.expect(StatusCode::OK).body["state"],
        "paused"
    );
    assert_ne!(
        steer("resume", "k2").await.expect(StatusCode::OK).body["state"],
        "paused"
    );
    assert_ne!(
        steer("pause", "k1").await.expect(StatusCode::OK).body["state"],
        "paused"
    );
    steer("cancel", "k1").await.problem(409, "idempotency_conflict");
    steer("cancel", "a b").await.problem(422, "invalid_argument");

    let mut jobs = JobServiceClient::connect(server.url.clone()).await.unwrap();
    let keyed = |key: &str| {
        let mut request = tonic::Request::new(proto::PauseJobRequest { id: job.clone() });
        request.metadata_mut().insert("idempotency-key", key.parse().unwrap());
        request
    };
    let again = jobs.pause_job(keyed("k1")).await.unwrap().into_inner();
    assert_ne!(again.state(), proto::JobState::Paused);
    let other = jobs.pause_job(keyed("k2")).await.unwrap_err();
    assert_eq!(
        other.metadata().get("vdisk-error-code").unwrap(),
        "idempotency_conflict"
    );
    server
        .post(&format!("/v1/jobs/{job}/cancel"), json!({}))
        .await
        .expect(StatusCode::OK);
    for _ in 0..100 {
        if server.get(&format!("/v1/jobs/{job}?wait=1s")).await.body["state"] == "cancelled" {
            return;
        }
    }
    panic!("the job is not cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_show_jobs_as_they_are_shown_alone() {
    let server = Server::start().await;
    let id = server.upload("disk", "raw", vec![7; 1 << 20]).await;
    for verb in ["check", "flatten"] {
        let queued = server.post(&format!("/v1/images/{id}/{verb}"), json!({})).await;
        if queued.status == StatusCode::ACCEPTED {
            server.ended(queued).await;
        }
    }
    let copy = json!({"name": "copy", "format": "qcow2"});
    let queued = server.post(&format!("/v1/images/{id}/convert"), copy).await;
    server.ended(queued).await;
    for query in ["", "?page_size=1", "?kind=convert", &format!("?image={id}")] {
        let list = server
            .get(&format!("/v1/jobs{query}"))
            .await
            .expect(StatusCode::OK)
            .body;
        let items = list["items"].as_array().unwrap().clone();
        assert!(!items.is_empty(), "{query}");
        for item in items {
            let alone = server
                .get(&format!("/v1/jobs/{}", item["id"].as_str().unwrap()))
                .await
                .body;
            assert_eq!(item, alone, "{query}");
            assert!(!item["steps"].as_array().unwrap().is_empty(), "{item}");
        }
    }
}
