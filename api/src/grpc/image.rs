use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use tonic::{Request, Response, Status, Streaming};
use vdisk_service::model::{ImageId, Job as ServiceJob};
use vdisk_service::request::MapRequest;

use super::convert::{id_of, page, structure, token};
use super::{Answer, Api, call, status, upload};
use crate::access::limits::not_idle;
use crate::access::untaken::not_ignored;
use crate::proto::image_service_server::ImageService;
use crate::proto::*;

/// A verb that queues a job: reads the id, the request and the call, and answers with the job.
macro_rules! verb {
    ($api:expr, $request:expr, $method:ident) => {{
        let call = call(&$request)?;
        let request = $request.into_inner();
        let id = image_id(&request.id)?;
        let request = request.try_into().map_err(status::of)?;
        job($api.0.service.$method(id, request, &call).await)
    }};
}

#[tonic::async_trait]
impl ImageService for Api {
    type DownloadFileStream = BoxStream<'static, Result<DownloadResponse, Status>>;
    type DownloadDataStream = BoxStream<'static, Result<DownloadResponse, Status>>;
    type GetMapStream = BoxStream<'static, Result<Extent, Status>>;

    async fn create_image(&self, request: Request<CreateImageRequest>) -> Answer<Image> {
        let call = call(&request)?;
        let request = request.into_inner().try_into().map_err(status::of)?;
        Ok(Response::new(
            self.0
                .service
                .create_image(request, &call)
                .await
                .map_err(status::of)?
                .into(),
        ))
    }

    async fn import_image(&self, request: Request<ImportImageRequest>) -> Answer<ImportImageResponse> {
        let call = call(&request)?;
        let request = request.into_inner().try_into().map_err(status::of)?;
        Ok(Response::new(
            self.0
                .service
                .import_image(request, &call)
                .await
                .map_err(status::of)?
                .into(),
        ))
    }

    async fn list_images(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        let mut request = request.into_inner();
        let page = page(request.page.take());
        let filter = request.try_into().map_err(status::of)?;
        let page = self
            .0
            .service
            .list_images(&filter, &page)
            .await
            .map_err(status::of)?
            .map(Into::into);
        Ok(Response::new(ListImagesResponse {
            items: page.items,
            next_page_token: token(page.next_page_token),
        }))
    }

    async fn get_image(&self, request: Request<GetImageRequest>) -> Answer<Image> {
        let id = image_id(&request.into_inner().id)?;
        Ok(Response::new(
            self.0.service.image(id).await.map_err(status::of)?.into(),
        ))
    }

    async fn update_image(&self, request: Request<UpdateImageRequest>) -> Answer<Image> {
        let request = request.into_inner();
        let id = image_id(&request.id)?;
        Ok(Response::new(
            self.0
                .service
                .update_image(id, request.try_into().map_err(status::of)?)
                .await
                .map_err(status::of)?
                .into(),
        ))
    }

    async fn delete_image(&self, request: Request<DeleteImageRequest>) -> Answer<()> {
        let id = image_id(&request.into_inner().id)?;
        self.0.service.delete_image(id).await.map_err(status::of)?;
        Ok(Response::new(()))
    }

    async fn upload_file(&self, request: Request<Streaming<UploadFileRequest>>) -> Answer<UploadFileResponse> {
        let mut messages = request.into_inner();
        let (id, part) = upload::start(&mut messages).await?;
        let metrics = Arc::clone(&self.0.metrics);
        let chunks = not_idle(upload::chunks(messages)).inspect_ok(move |bytes| metrics.received(bytes.len()));
        let service = self.0.service.clone();
        // As over HTTP: what arrived is put away even if the client goes.
        let ended = tokio::spawn(async move { service.upload(id, part, chunks).await }).await;
        let ended = ended.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(ended.map_err(status::of)?.into()))
    }

    async fn get_upload_status(&self, request: Request<GetUploadStatusRequest>) -> Answer<UploadFileResponse> {
        let id = image_id(&request.into_inner().id)?;
        Ok(Response::new(
            self.0.service.upload_status(id).await.map_err(status::of)?.into(),
        ))
    }

    async fn download_file(&self, request: Request<DownloadRequest>) -> Answer<Self::DownloadFileStream> {
        let (id, range) = upload::wanted(request.into_inner()).map_err(status::of)?;
        let download = self.0.service.read_file(id, range).await.map_err(status::of)?;
        Ok(Response::new(upload::messages(download, &self.0.metrics)))
    }

    async fn download_data(&self, request: Request<DownloadRequest>) -> Answer<Self::DownloadDataStream> {
        let (id, range) = upload::wanted(request.into_inner()).map_err(status::of)?;
        let download = self.0.service.read_data(id, range).await.map_err(status::of)?;
        Ok(Response::new(upload::messages(download, &self.0.metrics)))
    }

    async fn get_image_info(&self, request: Request<GetImageInfoRequest>) -> Answer<ImageInfo> {
        let id = image_id(&request.into_inner().id)?;
        let info = self.0.service.image_info(id).await.map_err(status::of)?;
        Ok(Response::new(ImageInfo {
            info: Some(structure(info)),
        }))
    }

    async fn inspect_image(&self, request: Request<InspectImageRequest>) -> Answer<Inspection> {
        let id = image_id(&request.into_inner().id)?;
        let report = self.0.service.inspect_image(id).await.map_err(status::of)?;
        Ok(Response::new(report.into()))
    }

    async fn get_chain(&self, request: Request<GetChainRequest>) -> Answer<Chain> {
        let id = image_id(&request.into_inner().id)?;
        let layers = self.0.service.image_chain(id).await.map_err(status::of)?;
        Ok(Response::new(Chain {
            layers: layers.into_iter().map(Into::into).collect(),
        }))
    }

    async fn list_dependents(&self, request: Request<ListDependentsRequest>) -> Answer<ListImagesResponse> {
        let request = request.into_inner();
        let (id, page) = (image_id(&request.id)?, page(request.page));
        let page = self
            .0
            .service
            .image_dependents(id, &page)
            .await
            .map_err(status::of)?
            .map(Into::into);
        Ok(Response::new(ListImagesResponse {
            items: page.items,
            next_page_token: token(page.next_page_token),
        }))
    }

    async fn get_map(&self, request: Request<GetMapRequest>) -> Answer<Self::GetMapStream> {
        let request = request.into_inner();
        let id = image_id(&request.id)?;
        let request: MapRequest = request.try_into().map_err(status::of)?;
        let extents = self
            .0
            .service
            .image_map_stream(id, &request)
            .await
            .map_err(status::of)?;
        Ok(Response::new(
            not_ignored(extents)
                .map(|extent| extent.map(Into::into).map_err(status::of))
                .boxed(),
        ))
    }

    async fn measure_image(&self, request: Request<MeasureImageRequest>) -> Answer<MeasureReport> {
        // As over HTTP, the key is checked for its form alone: measuring changes nothing.
        call(&request)?;
        let request = request.into_inner();
        let id = image_id(&request.id)?;
        let report = self
            .0
            .service
            .measure_image(id, request.into())
            .await
            .map_err(status::of)?;
        Ok(Response::new(report.into()))
    }

    async fn convert_image(&self, request: Request<ConvertImageRequest>) -> Answer<Job> {
        verb!(self, request, convert_image)
    }

    async fn compress_image(&self, request: Request<CompressImageRequest>) -> Answer<Job> {
        verb!(self, request, compress_image)
    }

    async fn rebase_image(&self, request: Request<RebaseImageRequest>) -> Answer<Job> {
        verb!(self, request, rebase_image)
    }

    async fn commit_image(&self, request: Request<CommitImageRequest>) -> Answer<Job> {
        verb!(self, request, commit_image)
    }

    async fn check_image(&self, request: Request<CheckImageRequest>) -> Answer<Job> {
        verb!(self, request, check_image)
    }

    async fn resize_image(&self, request: Request<ResizeImageRequest>) -> Answer<Job> {
        verb!(self, request, resize_image)
    }

    async fn compare_images(&self, request: Request<CompareImagesRequest>) -> Answer<Job> {
        verb!(self, request, compare_images)
    }

    async fn flatten_image(&self, request: Request<FlattenImageRequest>) -> Answer<Job> {
        verb!(self, request, flatten_image)
    }

    async fn encrypt_image(&self, request: Request<EncryptImageRequest>) -> Answer<Job> {
        verb!(self, request, encrypt_image)
    }

    async fn decrypt_image(&self, request: Request<DecryptImageRequest>) -> Answer<Job> {
        verb!(self, request, decrypt_image)
    }

    async fn rekey_image(&self, request: Request<RekeyImageRequest>) -> Answer<Job> {
        verb!(self, request, rekey_image)
    }

    async fn list_snapshots(&self, request: Request<ListSnapshotsRequest>) -> Answer<ListSnapshotsResponse> {
        let id = image_id(&request.into_inner().image_id)?;
        let items = self.0.service.snapshots(id).await.map_err(status::of)?;
        Ok(Response::new(ListSnapshotsResponse {
            items: items.into_iter().map(Into::into).collect(),
        }))
    }

    async fn create_snapshot(&self, request: Request<CreateSnapshotRequest>) -> Answer<Snapshot> {
        let call = call(&request)?;
        let request = request.into_inner();
        let id = image_id(&request.image_id)?;
        let snapshot = self
            .0
            .service
            .create_snapshot(id, &request.name, &call)
            .await
            .map_err(status::of)?;
        Ok(Response::new(snapshot.into()))
    }

    async fn delete_snapshot(&self, request: Request<DeleteSnapshotRequest>) -> Answer<()> {
        let request = request.into_inner();
        let id = image_id(&request.image_id)?;
        self.0
            .service
            .delete_snapshot(id, &request.name)
            .await
            .map_err(status::of)?;
        Ok(Response::new(()))
    }

    async fn apply_snapshot(&self, request: Request<ApplySnapshotRequest>) -> Answer<Image> {
        let call = call(&request)?;
        let request = request.into_inner();
        let id = image_id(&request.image_id)?;
        Ok(Response::new(
            self.0
                .service
                .apply_snapshot(id, &request.name, &call)
                .await
                .map_err(status::of)?
                .into(),
        ))
    }
}

fn image_id(text: &str) -> Result<ImageId, Status> {
    id_of("image", text).map_err(status::of)
}

fn job(job: vdisk_service::Result<ServiceJob>) -> Answer<Job> {
    Ok(Response::new(job.map_err(status::of)?.into()))
}
