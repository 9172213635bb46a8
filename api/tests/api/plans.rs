//! Dry runs: both transports tell the same, and nothing is queued.

use reqwest::StatusCode;
use serde_json::{Value, json};
use tonic::transport::Channel;
use vdisk_api::proto;
use vdisk_api::proto::plan_job_request::Request;
use vdisk_api::proto::plan_service_client::PlanServiceClient;

use crate::server::Server;

const SIZE: u64 = 1 << 20;

/// The plan that gRPC tells.
async fn asked(client: &PlanServiceClient<Channel>, request: Request) -> proto::JobPlan {
    let request = proto::PlanJobRequest { request: Some(request) };
    client.clone().plan_job(request).await.unwrap().into_inner()
}

fn amount(amount: Option<proto::Amount>) -> Value {
    amount.map_or(Value::Null, |amount| {
        let bound = match amount.bound() {
            proto::Bound::Exact => "exact",
            proto::Bound::AtMost => "at_most",
            proto::Bound::Unspecified => "",
        };
        json!({"bytes": amount.bytes, "bound": bound})
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_job_can_be_asked_for_over_both_transports() {
    let server = Server::start().await;
    let base = server.upload("base", "raw", vec![7; SIZE as usize]).await;
    let body = json!({"name": "overlay", "format": "qcow2", "backing": base});
    let overlay = server.post("/v1/images", body).await.expect(StatusCode::CREATED).id();
    let body = json!({"name": "disk", "format": "qcow2", "virtual_size": SIZE});
    let disk = server.post("/v1/images", body).await.expect(StatusCode::CREATED).id();
    let channel = Channel::from_shared(server.url.clone())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let client = PlanServiceClient::new(channel);
    let id = || overlay.clone();
    let compress = proto::CompressImageRequest {
        id: disk.clone(),
        algorithm: proto::CompressionAlgorithm::Zlib.into(),
        ..Default::default()
    };
    let cases = [
        (
            format!("/v1/images/{overlay}/convert"),
            json!({"name": "copy", "format": "raw"}),
            Request::Convert(proto::ConvertImageRequest {
                id: id(),
                name: "copy".to_owned(),
                format: "raw".to_owned(),
                ..Default::default()
            }),
        ),
        (
            format!("/v1/images/{disk}/compress"),
            json!({"algorithm": "zlib"}),
            Request::Compress(compress),
        ),
        (
            format!("/v1/images/{overlay}/rebase"),
            json!({"backing": null}),
            Request::Rebase(proto::RebaseImageRequest {
                id: id(),
                target: Some(proto::rebase_image_request::Target::NoBacking(true)),
                ..Default::default()
            }),
        ),
        (
            format!("/v1/images/{overlay}/commit"),
            json!({"drop": true}),
            Request::Commit(proto::CommitImageRequest {
                id: id(),
                drop: true,
                ..Default::default()
            }),
        ),
        (
            format!("/v1/images/{overlay}/flatten"),
            json!({}),
            Request::Flatten(proto::FlattenImageRequest {
                id: id(),
                ..Default::default()
            }),
        ),
        (
            format!("/v1/images/{overlay}/check"),
            json!({}),
            Request::Check(proto::CheckImageRequest {
                id: id(),
                ..Default::default()
            }),
        ),
        (
            format!("/v1/images/{disk}/resize"),
            json!({"virtual_size": 2 * SIZE}),
            Request::Resize(proto::ResizeImageRequest {
                id: disk.clone(),
                virtual_size: Some(2 * SIZE),
                ..Default::default()
            }),
        ),
        (
            format!("/v1/images/{overlay}/compare"),
            json!({"other": base}),
            Request::Compare(proto::CompareImagesRequest {
                id: id(),
                other: base.clone(),
                ..Default::default()
            }),
        ),
        (
            "/v1/images/import".to_owned(),
            json!({"name": "fetched", "source": {"url": "http://example.org/disk.img"}}),
            Request::Import(proto::ImportImageRequest {
                name: "fetched".to_owned(),
                source: Some(proto::import_image_request::Source::Url(
                    "http://example.org/disk.img".to_owned(),
                )),
                ..Default::default()
            }),
        ),
        (
            "/v1/pools/default/scan?dry_run=true".to_owned(),
            json!({}),
            Request::Scan(proto::ScanPoolRequest {
                name: "default".to_owned(),
            }),
        ),
    ];
    for (path, body, request) in cases {
        let mut body = body;
        if !path.contains('?') {
            body["dry_run"] = json!(true);
        }
        let plan = server.post(&path, body).await.expect(StatusCode::OK).body;
        let told = asked(&client, request).await;
        let kind = told.kind().as_str_name().trim_start_matches("JOB_KIND_").to_lowercase();
        assert_eq!(plan["kind"], kind, "{path}");
        assert_eq!(plan["image_ids"], json!(told.image_ids), "{path}");
        for (field, found) in [
            ("read", told.read),
            ("write", told.write),
            ("target_size", told.target_size),
            ("space_needed", told.space_needed),
        ] {
            assert_eq!(plan[field], amount(found), "{path} {field}");
        }
        assert_eq!(plan["losses"].as_array().unwrap().len(), told.losses.len(), "{path}");
    }
    let jobs = server.get("/v1/jobs").await.body;
    let kinds: Vec<&Value> = jobs["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| &job["kind"])
        .collect();
    assert!(kinds.is_empty(), "{kinds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_is_refused_as_the_request_would_be() {
    let server = Server::start().await;
    let disk = server.upload("disk", "raw", vec![7; SIZE as usize]).await;
    let convert = format!("/v1/images/{disk}/convert");
    for (body, status, field) in [
        (
            json!({"name": "x", "format": "no-such", "dry_run": true}),
            422,
            "format",
        ),
        (json!({"name": "x", "format": "raw", "dry_run": "yes"}), 422, "dry_run"),
        (json!({"format": "raw", "dry_run": true}), 422, "name"),
    ] {
        let refused = server.post(&convert, body.clone()).await;
        assert_eq!(
            (refused.status.as_u16(), &refused.body["field"]),
            (status, &json!(field)),
            "{body}"
        );
    }
    let body = json!({"name": "up", "format": "raw", "source": {"upload": true}, "dry_run": true});
    let refused = server.post("/v1/images/import", body).await;
    assert_eq!(refused.body["field"], "dry_run");
}
