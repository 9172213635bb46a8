//! The gRPC side: the same port, the same codes.

use std::time::Duration;

use axum::body::Body;
use futures::StreamExt;
use prost::Message;
use serde_json::json;
use sha2::{Digest, Sha256};
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_types::StatusExt;
use tower::Service as _;
use vdisk_api::proto;
use vdisk_api::proto::image_service_client::ImageServiceClient;
use vdisk_api::proto::job_service_client::JobServiceClient;
use vdisk_api::vdisk_service::request::{ImageFilter, PageRequest};
use vdisk_api::vdisk_service::{Service, ServiceConfig};

use crate::server::Server;

pub async fn channel(server: &Server) -> Channel {
    Channel::from_shared(server.url.clone())
        .unwrap()
        .connect()
        .await
        .unwrap()
}

fn new_image(name: &str, backing: Option<&str>) -> proto::CreateImageRequest {
    proto::CreateImageRequest {
        name: name.to_owned(),
        format: "qcow2".to_owned(),
        virtual_size: backing.is_none().then_some(1 << 20),
        backing: backing.map(str::to_owned),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_transports_see_the_same_images() {
    let server = Server::start().await;
    let mut images = ImageServiceClient::new(channel(&server).await);
    let made = images.create_image(new_image("disk", None)).await.unwrap().into_inner();
    let seen = server.get(&format!("/v1/images/{}", made.id)).await.body;
    assert_eq!((&seen["name"], &seen["state"]), (&json!("disk"), &json!("ready")));
    assert_eq!(made.state(), proto::ImageState::Ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_carry_the_stable_code_and_what_goes_with_it() {
    let server = Server::start().await;
    let mut images = ImageServiceClient::new(channel(&server).await);
    let base = images.create_image(new_image("base", None)).await.unwrap().into_inner();
    let overlay = images
        .create_image(new_image("overlay", Some(&base.id)))
        .await
        .unwrap()
        .into_inner();
    let refused = images
        .delete_image(proto::DeleteImageRequest { id: base.id })
        .await
        .unwrap_err();
    let info = refused.get_details_error_info().unwrap();
    assert_eq!(
        (refused.code(), info.reason.as_str()),
        (Code::FailedPrecondition, "conflict_dependents")
    );
    assert_eq!(info.metadata["dependents"], overlay.id);
    assert_eq!(
        refused.metadata().get("vdisk-error-code").unwrap(),
        "conflict_dependents"
    );

    let taken = images.create_image(new_image("overlay", None)).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);
    for id in ["01890a5d-ac96-774b-bcce-b302099a8057", "../etc/passwd", ""] {
        let unknown = images
            .get_image(proto::GetImageRequest { id: id.to_owned() })
            .await
            .unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound, "{id}");
    }
    let bad = images.create_image(new_image("a/b", None)).await.unwrap_err();
    assert_eq!(bad.get_details_error_info().unwrap().reason, "invalid_name");
    let request = proto::ListImagesRequest {
        state: 99,
        ..Default::default()
    };
    assert_eq!(
        images.list_images(request).await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_keys_travel_as_metadata() {
    let server = Server::start().await;
    let mut images = ImageServiceClient::new(channel(&server).await);
    let mut made = Vec::new();
    for _ in 0..2 {
        let mut request = Request::new(new_image("disk", None));
        request.metadata_mut().insert("idempotency-key", "k1".parse().unwrap());
        made.push(images.create_image(request).await.unwrap().into_inner().id);
    }
    assert_eq!(made[0], made[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_must_begin_with_its_start() {
    let server = Server::start().await;
    let mut images = ImageServiceClient::new(channel(&server).await);
    let chunk = proto::UploadFileRequest {
        part: Some(proto::upload_file_request::Part::Chunk(vec![1; 10].into())),
    };
    let refused = images.upload_file(futures::stream::iter([chunk])).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let empty = images
        .upload_file(futures::stream::iter(Vec::<proto::UploadFileRequest>::new()))
        .await
        .unwrap_err();
    assert_eq!(empty.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_damaged_on_its_way_is_taken_once_more() {
    let server = Server::start().await;
    let mut images = ImageServiceClient::new(channel(&server).await);
    let id = server.import("disk", "raw").await;
    let message = |part| proto::UploadFileRequest { part: Some(part) };
    let sent = |bytes: &'static [u8]| {
        let start = proto::UploadStart {
            id: id.clone(),
            total: Some(3),
            sha256: Some(Sha256::digest(b"abc").to_vec()),
            ..Default::default()
        };
        futures::stream::iter([
            message(proto::upload_file_request::Part::Start(start)),
            message(proto::upload_file_request::Part::Chunk(bytes.into())),
        ])
    };
    let refused = images.upload_file(sent(b"abd")).await.unwrap_err();
    assert_eq!(refused.code(), Code::DataLoss);
    let answer = images.upload_file(sent(b"abc")).await.unwrap().into_inner();
    let complete = matches!(answer.status, Some(proto::upload_file_response::Status::Complete(_)));
    assert!(complete, "{answer:?}");
    assert_eq!(server.get(&format!("/v1/images/{id}/file")).await.bytes[..3], *b"abc");
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_everything_ends_with_the_server() {
    let server = Server::start().await;
    let mut jobs = JobServiceClient::new(channel(&server).await);
    let mut events = jobs
        .watch_jobs(proto::WatchJobsRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut images = ImageServiceClient::new(channel(&server).await);
    let made = images.create_image(new_image("disk", None)).await.unwrap().into_inner();
    let event = events.next().await.unwrap().unwrap();
    assert_eq!(
        (event.r#type(), event.image_id),
        (proto::EventType::ImageCreated, Some(made.id))
    );
    server.stop().await;
    while events.next().await.is_some_and(|event| event.is_ok()) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_calls_are_unimplemented_and_counted_together() {
    let server = Server::start().await;
    let mut client = tonic::client::Grpc::new(channel(&server).await);
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let path = http::uri::PathAndQuery::from_static("/vdisk.v1.ImageService/Explode");
    let refused = client.unary(Request::new(()), path, codec).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let metrics = String::from_utf8(server.get("/metrics").await.bytes).unwrap();
    assert!(metrics.contains("method=\"other\",code=\"Unimplemented\""), "{metrics}");
}

/// A call that has begun to change something comes to its end although the client has gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_client_goes_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::open(ServiceConfig::new(dir.path().join("data")))
        .await
        .unwrap();
    let mut routes = vdisk_api::router(vdisk_api::App::new(service.clone()));
    for number in 0..20 {
        let message = new_image(&format!("disk-{number}"), None).encode_to_vec();
        let mut framed = vec![0];
        framed.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        framed.extend(message);
        let request = http::Request::post("http://localhost/vdisk.v1.ImageService/CreateImage")
            .header("content-type", "application/grpc")
            .body(Body::from(framed))
            .unwrap();
        let mut call = routes.call(request);
        // As far as it gets at once, and no further.
        assert!(futures::poll!(&mut call).is_pending());
        drop(call);
    }
    for _ in 0..600 {
        let page = PageRequest::default();
        if service
            .list_images(&ImageFilter::default(), &page)
            .await
            .unwrap()
            .items
            .len()
            == 20
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("what was begun was not finished");
}

/// Chunks that take a while, so that the call can be given up on its way.
fn slowly(
    id: &str,
    total: Option<u64>,
    chunks: usize,
) -> impl futures::Stream<Item = proto::UploadFileRequest> + Send + 'static {
    let start = proto::UploadStart {
        id: id.to_owned(),
        total,
        ..Default::default()
    };
    let start = proto::UploadFileRequest {
        part: Some(proto::upload_file_request::Part::Start(start)),
    };
    let chunk = || proto::UploadFileRequest {
        part: Some(proto::upload_file_request::Part::Chunk(vec![7; 65_536].into())),
    };
    let chunks = futures::stream::iter((0..chunks).map(move |_| chunk()));
    futures::stream::iter([start]).chain(chunks.then(|chunk| async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        chunk
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_given_up_on_its_way_is_not_complete() {
    let server = Server::start().await;
    let mut images = ImageServiceClient::new(channel(&server).await);
    let id = server.import("disk", "raw").await;
    let state = async || server.get(&format!("/v1/images/{id}")).await.body;
    // As a client's deadline or its cancellation does: the stream is reset.
    let call = images.upload_file(slowly(&id, None, 10_000));
    assert!(tokio::time::timeout(Duration::from_millis(400), call).await.is_err());
    for _ in 0..2000 {
        if state().await["uploaded_bytes"].as_u64().is_some_and(|bytes| bytes > 0) {
            break;
        }
        assert_eq!(state().await["state"], "uploading");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let image = state().await;
    assert_eq!(image["state"], "uploading", "{image}");
    assert!(
        image["uploaded_bytes"].as_u64().is_some_and(|bytes| bytes > 0),
        "{image}"
    );
    let whole = images.upload_file(slowly(&id, None, 3)).await.unwrap().into_inner();
    match whole.status {
        Some(proto::upload_file_response::Status::Complete(image)) => assert_eq!(image.virtual_size, 3 * 65_536),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_out_is_not_zero() {
    let server = Server::start().await;
    let channel = channel(&server).await;
    let (mut images, mut jobs) = (ImageServiceClient::new(channel.clone()), JobServiceClient::new(channel));
    let id = images
        .create_image(new_image("disk", None))
        .await
        .unwrap()
        .into_inner()
        .id;
    let resize = proto::ResizeImageRequest {
        id: id.clone(),
        shrink: true,
        ..Default::default()
    };
    let refused = images.resize_image(resize).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let empty = proto::DownloadRequest {
        id: id.clone(),
        range: Some(proto::ByteRange {
            offset: 0,
            length: Some(0),
        }),
    };
    let refused = images.download_file(empty).await.unwrap_err();
    assert!(refused.message().contains("at least one byte"), "{refused}");
    let check = proto::CheckImageRequest {
        id,
        ..Default::default()
    };
    let job = images.check_image(check).await.unwrap().into_inner();
    let wait = proto::WaitJobRequest {
        id: job.id,
        timeout: Some(prost_types::Duration { seconds: -5, nanos: 0 }),
    };
    assert_eq!(jobs.wait_job(wait).await.unwrap_err().code(), Code::InvalidArgument);
}
