//! Rounds over gRPC: images, snapshots and jobs, each asked for again with the same key until there is an answer.

use std::sync::Arc;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;
use vdisk_api::proto::image_service_client::ImageServiceClient;
use vdisk_api::proto::job_service_client::JobServiceClient;
use vdisk_api::proto::{self, JobState};

use super::Soak;

const SIZE: u64 = 4 << 20;
const TRIES: u32 = 600;

pub struct Work {
    soak: Arc<Soak>,
    images: ImageServiceClient<Channel>,
    jobs: JobServiceClient<Channel>,
}

pub async fn work(soak: Arc<Soak>) {
    let channel = Endpoint::from_shared(soak.url.clone()).unwrap().connect_lazy();
    let (images, jobs) = (ImageServiceClient::new(channel.clone()), JobServiceClient::new(channel));
    let work = Work {
        soak: soak.clone(),
        images,
        jobs,
    };
    while soak.goes_on() {
        work.round(soak.round()).await;
        soak.rest().await;
    }
}

/// Asks until there is an answer other than that the program is away or an earlier try still holds the image.
async fn again<M: Clone, T>(
    message: M,
    ask: impl AsyncFn(Request<M>) -> Result<Response<T>, Status>,
) -> Result<T, Status> {
    let key = Uuid::now_v7().to_string();
    for _ in 0..TRIES {
        let mut request = Request::new(message.clone());
        request.metadata_mut().insert("idempotency-key", key.parse().unwrap());
        match ask(request).await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) if is_passing(&status) => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(status) => return Err(status),
        }
    }
    panic!("no answer");
}

fn is_passing(status: &Status) -> bool {
    let away = matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Aborted
    );
    // A connection that broke in the middle of an answer.
    away || (status.code() == Code::Internal && status.metadata().is_empty())
}

/// Whatever an earlier try of the same request has done already.
fn done_if<T>(outcome: Result<T, Status>, code: Code) {
    if let Err(status) = outcome {
        assert_eq!(status.code(), code, "{status}");
    }
}

impl Work {
    async fn round(&self, round: u64) {
        let (disk, overlay) = (format!("grpc-{round}"), format!("grpc-overlay-{round}"));
        let disk = self.create(&disk, None).await;
        let overlay = self.create(&overlay, Some(&disk)).await;
        self.snapshots(&overlay).await;
        let request = proto::ConvertImageRequest {
            id: overlay.clone(),
            name: format!("grpc-copy-{round}"),
            format: "vmdk".to_owned(),
            ..Default::default()
        };
        let convert = again(request, async |request| {
            self.images.clone().convert_image(request).await
        });
        let copy = self.succeeded(convert.await.unwrap()).await;
        let copy = match copy.result.unwrap().fields["image_id"].kind.clone() {
            Some(prost_types::value::Kind::StringValue(id)) => id,
            other => panic!("{other:?}"),
        };
        let request = proto::CommitImageRequest {
            id: overlay.clone(),
            ..Default::default()
        };
        let commit = again(request, async |request| self.images.clone().commit_image(request).await);
        self.succeeded(commit.await.unwrap()).await;
        let request = proto::FlattenImageRequest {
            id: overlay.clone(),
            verify: true,
            ..Default::default()
        };
        let flatten = again(request, async |request| {
            self.images.clone().flatten_image(request).await
        });
        self.succeeded(flatten.await.unwrap()).await;
        let request = proto::CheckImageRequest {
            id: disk.clone(),
            ..Default::default()
        };
        let check = again(request, async |request| self.images.clone().check_image(request).await);
        self.succeeded(check.await.unwrap()).await;
        for id in [copy, overlay, disk] {
            let delete = again(proto::DeleteImageRequest { id }, async |request| {
                self.images.clone().delete_image(request).await
            });
            done_if(delete.await, Code::NotFound);
        }
    }

    async fn create(&self, name: &str, backing: Option<&str>) -> String {
        let request = proto::CreateImageRequest {
            name: name.to_owned(),
            format: "qcow2".to_owned(),
            virtual_size: Some(SIZE),
            backing: backing.map(str::to_owned),
            ..Default::default()
        };
        let image = again(request, async |request| self.images.clone().create_image(request).await);
        image.await.unwrap().id
    }

    async fn snapshots(&self, id: &str) {
        let (image_id, name) = (id.to_owned(), "before".to_owned());
        let create = proto::CreateSnapshotRequest {
            image_id: image_id.clone(),
            name: name.clone(),
        };
        done_if(
            again(create, async |request| {
                self.images.clone().create_snapshot(request).await
            })
            .await,
            Code::AlreadyExists,
        );
        let apply = proto::ApplySnapshotRequest {
            image_id: image_id.clone(),
            name: name.clone(),
        };
        again(apply, async |request| self.images.clone().apply_snapshot(request).await)
            .await
            .unwrap();
        let delete = proto::DeleteSnapshotRequest { image_id, name };
        done_if(
            again(delete, async |request| {
                self.images.clone().delete_snapshot(request).await
            })
            .await,
            Code::NotFound,
        );
    }

    async fn succeeded(&self, job: proto::Job) -> proto::Job {
        self.soak.accept(&job.id);
        loop {
            let wait = proto::WaitJobRequest {
                id: job.id.clone(),
                timeout: None,
            };
            let now = again(wait, async |request| self.jobs.clone().wait_job(request).await)
                .await
                .unwrap();
            match now.state() {
                JobState::Queued | JobState::Running | JobState::Paused => {}
                JobState::Succeeded => return now,
                _ => panic!("{now:?}"),
            }
        }
    }
}
