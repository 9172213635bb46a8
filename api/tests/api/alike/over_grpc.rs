//! The scenario's steps over gRPC, with answers in the words of HTTP.

use prost_types::value::Kind;
use prost_types::{Struct, Value as Dynamic};
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_types::StatusExt;
use vdisk_api::proto::image_service_client::ImageServiceClient;
use vdisk_api::proto::job_service_client::JobServiceClient;
use vdisk_api::proto::pool_service_client::PoolServiceClient;
use vdisk_api::proto::secret_service_client::SecretServiceClient;
use vdisk_api::proto::token_service_client::TokenServiceClient;
use vdisk_api::proto::webhook_service_client::WebhookServiceClient;
use vdisk_api::proto::*;

use super::{Door, Make, Outcome, Verb};
use crate::server::Server;

pub struct OverGrpc(Channel);

type Refusal = (String, Option<String>, usize);

fn refusal(status: Status) -> Refusal {
    let info = status
        .get_details_error_info()
        .unwrap_or_else(|| panic!("no details: {status:?}"));
    assert_eq!(info.domain, "vdisk.v1");
    assert_eq!(status.metadata().get("vdisk-error-code").unwrap(), info.reason.as_str());
    let dependents = info.metadata.get("dependents").map_or(0, |ids| ids.split(',').count());
    (info.reason, info.metadata.get("field").cloned(), dependents)
}

fn dynamic(value: Dynamic) -> Value {
    match value.kind {
        Some(Kind::BoolValue(flag)) => json!(flag),
        Some(Kind::NumberValue(number)) if number.fract() == 0.0 => json!(number as i64),
        Some(Kind::NumberValue(number)) => json!(number),
        Some(Kind::StringValue(text)) => json!(text),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(dynamic).collect(),
        Some(Kind::StructValue(fields)) => object(fields),
        Some(Kind::NullValue(_)) | None => Value::Null,
    }
}

fn object(fields: Struct) -> Value {
    Value::Object(
        fields
            .fields
            .into_iter()
            .map(|(name, value)| (name, dynamic(value)))
            .collect(),
    )
}

fn short(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap().to_lowercase()
}

/// HTTP leaves some absent fields out and shows others as null.
fn with_present(mut value: Value, optional: &[(&str, Option<Value>)]) -> Value {
    for (name, found) in optional {
        if let Some(found) = found {
            value[*name] = found.clone();
        }
    }
    value
}

fn image(image: Image) -> Value {
    let state = short(image.state().as_str_name(), "IMAGE_STATE_");
    let value = json!({"id": image.id, "name": image.name, "pool": image.pool, "format": image.format, "state": state,
        "virtual_size": image.virtual_size, "file_size": image.file_size, "backing_id": image.backing_id,
        "generation": image.generation, "labels": image.labels, "protected": image.protected,
        "encrypted": image.encrypted});
    with_present(value, &[("problem", image.problem.map(Value::from))])
}

fn job(job: Job) -> Value {
    let progress = job.progress.unwrap_or_default();
    json!({"id": job.id, "kind": short(job.kind().as_str_name(), "JOB_KIND_"),
        "state": short(job.state().as_str_name(), "JOB_STATE_"), "image_ids": job.image_ids, "pool": job.pool,
        "progress": {"done_bytes": progress.done_bytes, "total_bytes": progress.total_bytes},
        "priority": job.priority, "rate_limit": job.rate_limit, "attempt": job.attempt,
        "cancel_requested": job.cancel_requested, "request": object(job.request.unwrap_or_default()),
        "result": job.result.map(object),
        "error": job.error.map(|error| json!({"code": error.code, "detail": error.detail}))})
}

fn extent(extent: Extent) -> Value {
    let value = json!({"start": extent.start, "length": extent.length, "depth": extent.depth, "present": extent.present,
        "zero": extent.zero, "data": extent.data, "compressed": extent.compressed});
    let optional = [
        ("offset", extent.offset.map(Value::from)),
        ("filename", extent.filename.map(Value::from)),
        ("image_id", extent.image_id.map(Value::from)),
    ];
    with_present(value, &optional)
}

fn snapshot(snapshot: Snapshot) -> Value {
    json!({"id": snapshot.id, "name": snapshot.name, "vm_state_size": snapshot.vm_state_size,
        "virtual_size": snapshot.virtual_size})
}

fn pairs(pairs: &[(&str, &str)]) -> std::collections::HashMap<String, String> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

impl OverGrpc {
    pub async fn connect(server: &Server) -> Self {
        Self(
            Channel::from_shared(server.url.clone())
                .unwrap()
                .connect()
                .await
                .unwrap(),
        )
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.0.clone())
    }

    fn jobs(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.0.clone())
    }

    async fn ended(&self, queued: Result<tonic::Response<Job>, Status>) -> Outcome {
        let id = queued.map_err(refusal)?.into_inner().id;
        let request = WaitJobRequest { id, timeout: None };
        let done = self.jobs().wait_job(request).await.map_err(refusal)?;
        Ok(job(done.into_inner()))
    }
}

fn unwrapped<T, V>(answer: Result<tonic::Response<T>, Status>, shown: impl FnOnce(T) -> V) -> Result<V, Refusal> {
    answer.map(|answer| shown(answer.into_inner())).map_err(refusal)
}

impl Door for OverGrpc {
    async fn create(&self, make: &Make<'_>) -> Outcome {
        let mut request = Request::new(CreateImageRequest {
            name: make.name.to_owned(),
            format: make.format.to_owned(),
            virtual_size: make.size,
            backing: make.backing.map(str::to_owned),
            options: pairs(make.options),
            ..Default::default()
        });
        if let Some(key) = make.key {
            request.metadata_mut().insert("idempotency-key", key.parse().unwrap());
        }
        unwrapped(self.images().create_image(request).await, image)
    }

    async fn image(&self, id: &str) -> Outcome {
        unwrapped(
            self.images().get_image(GetImageRequest { id: id.to_owned() }).await,
            image,
        )
    }

    async fn images(&self, label: Option<&str>, page_size: u32) -> Outcome {
        let request = ListImagesRequest {
            label: label.map(str::to_owned),
            page: Some(PageRequest {
                page_size,
                page_token: String::new(),
            }),
            ..Default::default()
        };
        let page = self.images().list_images(request).await.map_err(refusal)?.into_inner();
        let items: Vec<_> = page.items.into_iter().map(image).collect();
        let next = Some(page.next_page_token).filter(|token| !token.is_empty());
        Ok(json!({"items": items, "next_page_token": next}))
    }

    async fn update(
        &self,
        id: &str,
        name: Option<&str>,
        label: Option<(&str, &str)>,
        protected: Option<bool>,
    ) -> Outcome {
        let request = UpdateImageRequest {
            id: id.to_owned(),
            name: name.map(str::to_owned),
            labels: label.map(|label| Labels {
                entries: pairs(&[label]),
            }),
            protected,
            ..Default::default()
        };
        unwrapped(self.images().update_image(request).await, image)
    }

    async fn delete(&self, id: &str) -> Outcome {
        let request = DeleteImageRequest { id: id.to_owned() };
        unwrapped(self.images().delete_image(request).await, |()| Value::Null)
    }

    async fn info(&self, id: &str) -> Outcome {
        let request = GetImageInfoRequest { id: id.to_owned() };
        unwrapped(self.images().get_image_info(request).await, |info| {
            object(info.info.unwrap())
        })
    }

    async fn chain(&self, id: &str) -> Outcome {
        let chain = unwrapped(
            self.images().get_chain(GetChainRequest { id: id.to_owned() }).await,
            |chain| chain,
        )?;
        let layer = |layer: ChainLayer| {
            json!({"image_id": layer.image_id, "name": layer.name, "format": layer.format, "filename": layer.filename,
                "virtual_size": layer.virtual_size, "depth": layer.depth})
        };
        let layers: Vec<_> = chain.layers.into_iter().map(layer).collect();
        Ok(json!({"layers": layers}))
    }

    async fn map(&self, id: &str, start: u64) -> Outcome {
        let request = GetMapRequest {
            id: id.to_owned(),
            start,
            ..Default::default()
        };
        let mut extents = self.images().get_map(request).await.map_err(refusal)?.into_inner();
        let mut found = Vec::new();
        while let Some(next) = extents.message().await.map_err(refusal)? {
            found.push(extent(next));
        }
        Ok(json!(found))
    }

    async fn measure(&self, id: &str, format: &str) -> Outcome {
        let request = MeasureImageRequest {
            id: id.to_owned(),
            format: format.to_owned(),
            ..Default::default()
        };
        unwrapped(self.images().measure_image(request).await, |report| {
            let value = json!({"required": report.required, "fully_allocated": report.fully_allocated});
            with_present(value, &[("bitmaps", report.bitmaps.map(Value::from))])
        })
    }

    async fn run(&self, id: &str, verb: Verb<'_>) -> Outcome {
        let (mut images, id) = (self.images(), id.to_owned());
        let queued = match verb {
            Verb::Convert { name, format, snapshot } => {
                let (name, format, snapshot) = (name.to_owned(), format.to_owned(), snapshot.map(str::to_owned));
                let request = ConvertImageRequest {
                    id,
                    name,
                    format,
                    snapshot,
                    ..Default::default()
                };
                images.convert_image(request).await
            }
            Verb::Rebase { backing } => {
                let target = match backing {
                    Some(backing) => rebase_image_request::Target::Backing(backing.to_owned()),
                    None => rebase_image_request::Target::NoBacking(true),
                };
                images
                    .rebase_image(RebaseImageRequest {
                        id,
                        target: Some(target),
                        ..Default::default()
                    })
                    .await
            }
            Verb::Commit => {
                images
                    .commit_image(CommitImageRequest {
                        id,
                        ..Default::default()
                    })
                    .await
            }
            Verb::Check => {
                images
                    .check_image(CheckImageRequest {
                        id,
                        ..Default::default()
                    })
                    .await
            }
            Verb::Resize { size, shrink } => {
                let request = ResizeImageRequest {
                    id,
                    virtual_size: Some(size),
                    shrink,
                    ..Default::default()
                };
                images.resize_image(request).await
            }
            Verb::Compare { other } => {
                let request = CompareImagesRequest {
                    id,
                    other: other.to_owned(),
                    ..Default::default()
                };
                images.compare_images(request).await
            }
            Verb::Flatten => {
                images
                    .flatten_image(FlattenImageRequest {
                        id,
                        ..Default::default()
                    })
                    .await
            }
            Verb::CompressZlib => {
                let algorithm = CompressionAlgorithm::Zlib.into();
                images
                    .compress_image(CompressImageRequest {
                        id,
                        algorithm,
                        ..Default::default()
                    })
                    .await
            }
        };
        self.ended(queued).await
    }

    async fn snapshot(&self, id: &str, name: &str) -> Outcome {
        let request = CreateSnapshotRequest {
            image_id: id.to_owned(),
            name: name.to_owned(),
        };
        unwrapped(self.images().create_snapshot(request).await, snapshot)
    }

    async fn snapshots(&self, id: &str) -> Outcome {
        let request = ListSnapshotsRequest {
            image_id: id.to_owned(),
        };
        unwrapped(self.images().list_snapshots(request).await, |list| {
            list.items.into_iter().map(snapshot).collect()
        })
    }

    async fn apply(&self, id: &str, name: &str) -> Outcome {
        let request = ApplySnapshotRequest {
            image_id: id.to_owned(),
            name: name.to_owned(),
        };
        unwrapped(self.images().apply_snapshot(request).await, image)
    }

    async fn drop_snapshot(&self, id: &str, name: &str) -> Outcome {
        let request = DeleteSnapshotRequest {
            image_id: id.to_owned(),
            name: name.to_owned(),
        };
        unwrapped(self.images().delete_snapshot(request).await, |()| Value::Null)
    }

    async fn job(&self, id: &str) -> Outcome {
        unwrapped(self.jobs().get_job(GetJobRequest { id: id.to_owned() }).await, job)
    }

    async fn cancel(&self, id: &str) -> Outcome {
        unwrapped(
            self.jobs().cancel_job(CancelJobRequest { id: id.to_owned() }).await,
            job,
        )
    }

    async fn secret(&self, name: &str, value: &str) -> Outcome {
        let mut secrets = SecretServiceClient::new(self.0.clone());
        let (name, value) = (name.to_owned(), value.as_bytes().to_vec());
        let request = CreateSecretRequest {
            name,
            value,
            ..Default::default()
        };
        unwrapped(
            secrets.create_secret(request).await,
            |secret| json!({"id": secret.id, "name": secret.name}),
        )
    }

    async fn drop_secret(&self, id: &str) -> Outcome {
        let mut secrets = SecretServiceClient::new(self.0.clone());
        let request = DeleteSecretRequest { id: id.to_owned() };
        unwrapped(secrets.delete_secret(request).await, |()| Value::Null)
    }

    async fn pool(&self, name: &str) -> Outcome {
        let mut pools = PoolServiceClient::new(self.0.clone());
        unwrapped(
            pools.get_pool(GetPoolRequest { name: name.to_owned() }).await,
            |pool| json!({"name": pool.name, "image_count": pool.image_count, "default": pool.default}),
        )
    }

    async fn token(&self, name: &str, days: u32) -> Outcome {
        let mut tokens = TokenServiceClient::new(self.0.clone());
        let (name, role) = (name.to_owned(), Role::Reader.into());
        let request = CreateTokenRequest {
            name,
            role,
            expires_in_days: Some(days),
        };
        unwrapped(tokens.create_token(request).await, |made| {
            let record = made.record.unwrap();
            json!({"id": record.id, "name": record.name, "role": short(record.role().as_str_name(), "ROLE_")})
        })
    }

    async fn webhook(&self, url: &str, secret: &str) -> Outcome {
        let mut webhooks = WebhookServiceClient::new(self.0.clone());
        let (url, secret) = (url.to_owned(), secret.as_bytes().to_vec());
        let request = CreateWebhookRequest {
            url,
            events: vec!["job.state".to_owned()],
            secret,
        };
        unwrapped(
            webhooks.create_webhook(request).await,
            |made| json!({"id": made.id, "url": made.url, "events": made.events}),
        )
    }

    async fn data(&self, id: &str, first: u64, length: u64) -> Outcome {
        let range = Some(ByteRange {
            offset: first,
            length: Some(length),
        });
        let request = DownloadRequest {
            id: id.to_owned(),
            range,
        };
        let mut parts = self
            .images()
            .download_data(request)
            .await
            .map_err(refusal)?
            .into_inner();
        let mut bytes = Vec::new();
        while let Some(message) = parts.message().await.map_err(refusal)? {
            if let Some(download_response::Part::Chunk(chunk)) = message.part {
                bytes.extend_from_slice(&chunk);
            }
        }
        Ok(json!({"bytes": bytes}))
    }

    async fn import_url(&self, name: &str, url: &str) -> Outcome {
        let request = ImportImageRequest {
            name: name.to_owned(),
            source: Some(import_image_request::Source::Url(url.to_owned())),
            ..Default::default()
        };
        let made = self.images().import_image(request).await.map_err(refusal)?.into_inner();
        let Some(import_image_response::Outcome::Queued(queued)) = made.outcome else {
            panic!("an import of a URL is a job");
        };
        self.ended(Ok(tonic::Response::new(queued))).await
    }
}
