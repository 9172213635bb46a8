//! The gRPC transport.

use futures::{StreamExt, TryStreamExt};
use prost_types::value::Kind;
use serde_json::{Map, Value, json};
use tonic::transport::Channel;
use vdisk_api::proto::image_service_client::ImageServiceClient;
use vdisk_api::proto::job_service_client::JobServiceClient;
use vdisk_api::proto::{self, download_response, import_image_request, rebase_image_request, upload_file_request};

use crate::client::{Client, Conversion, Ended, Refusal};

pub struct Grpc {
    images: ImageServiceClient<Channel>,
    jobs: JobServiceClient<Channel>,
}

impl Grpc {
    pub async fn connect(url: &str) -> Self {
        let channel = Channel::from_shared(url.to_owned()).unwrap().connect().await.unwrap();
        Self {
            images: ImageServiceClient::new(channel.clone()),
            jobs: JobServiceClient::new(channel),
        }
    }

    async fn image(&self, id: &str) -> proto::Image {
        self.images
            .clone()
            .get_image(proto::GetImageRequest { id: id.to_owned() })
            .await
            .unwrap()
            .into_inner()
    }
}

/// Protobuf names an enum's values with the enum in front: `JOB_STATE_RUNNING` is `running`.
fn short(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap().to_lowercase()
}

fn event_name(event: proto::EventType) -> String {
    short(event.as_str_name(), "EVENT_TYPE_").replacen('_', ".", 1)
}

fn object(fields: prost_types::Struct) -> Value {
    Value::Object(
        fields
            .fields
            .into_iter()
            .map(|(name, value)| (name, dynamic(value)))
            .collect::<Map<_, _>>(),
    )
}

fn dynamic(value: prost_types::Value) -> Value {
    match value.kind {
        Some(Kind::BoolValue(flag)) => json!(flag),
        Some(Kind::NumberValue(number)) if number.fract() == 0.0 => json!(number as i64),
        Some(Kind::NumberValue(number)) => json!(number),
        Some(Kind::StringValue(text)) => json!(text),
        Some(Kind::ListValue(list)) => Value::Array(list.values.into_iter().map(dynamic).collect()),
        Some(Kind::StructValue(fields)) => object(fields),
        Some(Kind::NullValue(_)) | None => Value::Null,
    }
}

async fn collect(stream: tonic::Streaming<proto::DownloadResponse>) -> Vec<u8> {
    let (mut bytes, mut announced) = (Vec::new(), None);
    let mut stream = stream;
    while let Some(message) = stream.message().await.unwrap() {
        match message.part.unwrap() {
            download_response::Part::Start(start) => announced = Some(start.length),
            download_response::Part::Chunk(chunk) => bytes.extend_from_slice(&chunk),
        }
    }
    assert_eq!(announced, Some(bytes.len() as u64), "the start announces the length");
    bytes
}

impl Client for Grpc {
    async fn upload(&self, name: &str, format: &str, bytes: Vec<u8>, sha256: [u8; 32]) -> String {
        let mut images = self.images.clone();
        let request = proto::ImportImageRequest {
            name: name.to_owned(),
            format: Some(format.to_owned()),
            source: Some(import_image_request::Source::Upload(true)),
            ..Default::default()
        };
        let outcome = images
            .import_image(request)
            .await
            .unwrap()
            .into_inner()
            .outcome
            .unwrap();
        let proto::import_image_response::Outcome::Uploading(image) = outcome else {
            panic!("a job: {outcome:?}");
        };
        let start = proto::UploadStart {
            id: image.id.clone(),
            total: Some(bytes.len() as u64),
            sha256: Some(sha256.to_vec()),
            ..Default::default()
        };
        let start = upload_file_request::Part::Start(start);
        let chunks: Vec<_> = bytes
            .chunks(1 << 20)
            .map(|chunk| upload_file_request::Part::Chunk(chunk.to_vec().into()))
            .collect();
        let parts = std::iter::once(start)
            .chain(chunks)
            .map(|part| proto::UploadFileRequest { part: Some(part) });
        let status = images
            .upload_file(futures::stream::iter(parts.collect::<Vec<_>>()))
            .await
            .unwrap()
            .into_inner()
            .status;
        assert!(
            matches!(status, Some(proto::upload_file_response::Status::Complete(_))),
            "{status:?}"
        );
        image.id
    }

    async fn state(&self, id: &str) -> String {
        short(self.image(id).await.state().as_str_name(), "IMAGE_STATE_")
    }

    async fn info(&self, id: &str) -> Value {
        let request = proto::GetImageInfoRequest { id: id.to_owned() };
        object(
            self.images
                .clone()
                .get_image_info(request)
                .await
                .unwrap()
                .into_inner()
                .info
                .unwrap(),
        )
    }

    async fn map(&self, id: &str) -> Vec<(u64, u64)> {
        let request = proto::GetMapRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let extents = self.images.clone().get_map(request).await.unwrap().into_inner();
        extents
            .map_ok(|extent| (extent.start, extent.length))
            .try_collect()
            .await
            .unwrap()
    }

    async fn chain(&self, id: &str) -> Vec<String> {
        let request = proto::GetChainRequest { id: id.to_owned() };
        let layers = self
            .images
            .clone()
            .get_chain(request)
            .await
            .unwrap()
            .into_inner()
            .layers;
        layers.into_iter().map(|layer| layer.name).collect()
    }

    async fn overlay(&self, name: &str, backing: &str) -> String {
        let request = proto::CreateImageRequest {
            name: name.to_owned(),
            format: "qcow2".to_owned(),
            backing: Some(backing.to_owned()),
            ..Default::default()
        };
        self.images.clone().create_image(request).await.unwrap().into_inner().id
    }

    async fn convert(&self, image: &str, to: Conversion<'_>) -> String {
        let request = proto::ConvertImageRequest {
            id: image.to_owned(),
            name: to.name.to_owned(),
            format: to.format.to_owned(),
            compress: to.compress,
            backing: to.backing.map(str::to_owned),
            rate_limit: to.rate_limit,
            ..Default::default()
        };
        self.images
            .clone()
            .convert_image(request)
            .await
            .unwrap()
            .into_inner()
            .id
    }

    async fn rebase(&self, image: &str, backing: Option<&str>) -> String {
        let target = match backing {
            Some(base) => rebase_image_request::Target::Backing(base.to_owned()),
            None => rebase_image_request::Target::NoBacking(true),
        };
        let request = proto::RebaseImageRequest {
            id: image.to_owned(),
            target: Some(target),
            ..Default::default()
        };
        self.images.clone().rebase_image(request).await.unwrap().into_inner().id
    }

    async fn commit(&self, image: &str, drop: bool) -> String {
        let request = proto::CommitImageRequest {
            id: image.to_owned(),
            drop,
            ..Default::default()
        };
        self.images.clone().commit_image(request).await.unwrap().into_inner().id
    }

    async fn done_bytes(&self, job: &str) -> u64 {
        let request = proto::GetJobRequest { id: job.to_owned() };
        self.jobs
            .clone()
            .get_job(request)
            .await
            .unwrap()
            .into_inner()
            .progress
            .unwrap()
            .done_bytes
    }

    async fn watch(&self, job: &str) -> Ended {
        let mut jobs = self.jobs.clone();
        let request = proto::WatchJobsRequest {
            job_id: Some(job.to_owned()),
            ..Default::default()
        };
        let events = jobs.watch_jobs(request).await.unwrap().into_inner();
        let seen = events.map(|event| event_name(event.unwrap().r#type())).collect().await;
        let request = proto::WaitJobRequest {
            id: job.to_owned(),
            timeout: None,
        };
        let job = jobs.wait_job(request).await.unwrap().into_inner();
        let result = job.result.clone().map(object).unwrap_or_default();
        let progress = job.progress.unwrap();
        Ended {
            state: short(job.state().as_str_name(), "JOB_STATE_"),
            image_id: result["image_id"].as_str().map(str::to_owned),
            error: job.error.map(|error| error.detail),
            seen,
            done_bytes: progress.done_bytes,
            total_bytes: progress.total_bytes,
            attempt: job.attempt.into(),
        }
    }

    async fn data(&self, id: &str) -> Vec<u8> {
        let request = proto::DownloadRequest {
            id: id.to_owned(),
            range: None,
        };
        collect(self.images.clone().download_data(request).await.unwrap().into_inner()).await
    }

    async fn file(&self, id: &str) -> Vec<u8> {
        let request = proto::DownloadRequest {
            id: id.to_owned(),
            range: None,
        };
        collect(self.images.clone().download_file(request).await.unwrap().into_inner()).await
    }

    async fn delete(&self, id: &str) -> Result<(), Refusal> {
        let refused = match self
            .images
            .clone()
            .delete_image(proto::DeleteImageRequest { id: id.to_owned() })
            .await
        {
            Ok(_) => return Ok(()),
            Err(refused) => refused,
        };
        let info = tonic_types::StatusExt::get_details_error_info(&refused).unwrap();
        let dependents = info.metadata.get("dependents").map_or("", String::as_str);
        Err(Refusal {
            code: info.reason,
            dependents: dependents
                .split(',')
                .filter(|id| !id.is_empty())
                .map(str::to_owned)
                .collect(),
        })
    }

    async fn image_count(&self) -> usize {
        let page = proto::PageRequest {
            page_size: 1000,
            ..Default::default()
        };
        let request = proto::ListImagesRequest {
            page: Some(page),
            ..Default::default()
        };
        self.images
            .clone()
            .list_images(request)
            .await
            .unwrap()
            .into_inner()
            .items
            .len()
    }
}
