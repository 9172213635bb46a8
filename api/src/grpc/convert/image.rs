use vdisk_service::ServiceError;
use vdisk_service::model::{ChainLayer, Extent, Image, ImageState, MeasureReport, Snapshot};
use vdisk_service::request::{
    CreateImage, ImageFilter, ImportImage, ImportOutcome, ImportSource, MapLayer, MapRequest, UpdateImage, UploadStatus,
};

use super::value::{known, one_of, optional_id, secret_refs, sorted, timestamp};
use crate::proto;

impl From<Image> for proto::Image {
    fn from(image: Image) -> Self {
        Self {
            id: image.id.to_string(),
            name: image.name,
            pool: image.pool,
            format: image.format,
            state: state(image.state).into(),
            virtual_size: image.virtual_size,
            allocated_size: image.allocated_size,
            file_size: image.file_size,
            backing_id: image.backing_id.map(|id| id.to_string()),
            generation: image.generation,
            labels: image.labels.into_iter().collect(),
            protected: image.protected,
            encrypted: image.encrypted,
            secrets: image
                .secrets
                .into_iter()
                .map(|(role, id)| (role, id.to_string()))
                .collect(),
            uploaded_bytes: image.uploaded_bytes,
            problem: image.problem,
            created_at: timestamp(image.created_at),
            updated_at: timestamp(image.updated_at),
        }
    }
}

fn state(state: ImageState) -> proto::ImageState {
    match state {
        ImageState::Uploading => proto::ImageState::Uploading,
        ImageState::Ready => proto::ImageState::Ready,
        ImageState::Busy => proto::ImageState::Busy,
        ImageState::Missing => proto::ImageState::Missing,
        ImageState::Failed => proto::ImageState::Failed,
    }
}

fn state_filter(number: i32) -> Result<Option<ImageState>, ServiceError> {
    Ok(match known("state", number)? {
        proto::ImageState::Unspecified => None,
        proto::ImageState::Uploading => Some(ImageState::Uploading),
        proto::ImageState::Ready => Some(ImageState::Ready),
        proto::ImageState::Busy => Some(ImageState::Busy),
        proto::ImageState::Missing => Some(ImageState::Missing),
        proto::ImageState::Failed => Some(ImageState::Failed),
    })
}

impl TryFrom<proto::CreateImageRequest> for CreateImage {
    type Error = ServiceError;

    fn try_from(request: proto::CreateImageRequest) -> Result<Self, ServiceError> {
        Ok(Self {
            name: request.name,
            pool: request.pool,
            format: request.format,
            virtual_size: request.virtual_size,
            backing: optional_id("image", request.backing)?,
            options: sorted(request.options),
            labels: sorted(request.labels),
            secrets: secret_refs(request.secrets)?,
        })
    }
}

impl TryFrom<proto::ImportImageRequest> for ImportImage {
    type Error = ServiceError;

    fn try_from(request: proto::ImportImageRequest) -> Result<Self, ServiceError> {
        use proto::import_image_request::Source;
        let source = match one_of("source", request.source)? {
            Source::Upload(upload) => ImportSource::Upload(upload),
            Source::Url(url) => ImportSource::Url(url),
            Source::PoolFile(file) => ImportSource::PoolFile(file),
        };
        Ok(Self {
            name: request.name,
            pool: request.pool,
            format: request.format,
            source,
            target_format: request.target_format,
            backing: optional_id("image", request.backing)?,
            labels: sorted(request.labels),
        })
    }
}

impl From<ImportOutcome> for proto::ImportImageResponse {
    fn from(outcome: ImportOutcome) -> Self {
        use proto::import_image_response::Outcome;
        let outcome = match outcome {
            ImportOutcome::Uploading(image) => Outcome::Uploading(image.into()),
            ImportOutcome::Queued(job) => Outcome::Queued(job.into()),
        };
        Self { outcome: Some(outcome) }
    }
}

impl TryFrom<proto::ListImagesRequest> for ImageFilter {
    type Error = ServiceError;

    fn try_from(request: proto::ListImagesRequest) -> Result<Self, ServiceError> {
        Ok(Self {
            pool: request.pool,
            format: request.format,
            name: request.name,
            label: request.label,
            state: state_filter(request.state)?,
            backing: optional_id("image", request.backing)?,
        })
    }
}

impl TryFrom<proto::UpdateImageRequest> for UpdateImage {
    type Error = ServiceError;

    fn try_from(request: proto::UpdateImageRequest) -> Result<Self, ServiceError> {
        let secrets = request.secrets.map(|secrets| secret_refs(secrets.entries));
        Ok(Self {
            name: request.name,
            labels: request.labels.map(|labels| sorted(labels.entries)),
            protected: request.protected,
            secrets: secrets.transpose()?,
        })
    }
}

impl From<UploadStatus> for proto::UploadFileResponse {
    fn from(status: UploadStatus) -> Self {
        use proto::upload_file_response::Status;
        let status = match status {
            UploadStatus::Incomplete { received } => Status::Received(received),
            UploadStatus::Complete(image) => Status::Complete((*image).into()),
        };
        Self { status: Some(status) }
    }
}

impl From<ChainLayer> for proto::ChainLayer {
    fn from(layer: ChainLayer) -> Self {
        Self {
            image_id: layer.image_id.map(|id| id.to_string()),
            name: layer.name,
            format: layer.format,
            filename: layer.filename,
            virtual_size: layer.virtual_size,
            depth: layer.depth,
        }
    }
}

impl TryFrom<proto::GetMapRequest> for MapRequest {
    type Error = ServiceError;

    fn try_from(request: proto::GetMapRequest) -> Result<Self, ServiceError> {
        let layer = match known("layer", request.layer)? {
            proto::MapLayer::Unspecified | proto::MapLayer::All => MapLayer::All,
            proto::MapLayer::Top => MapLayer::Top,
        };
        Ok(Self {
            start: Some(request.start),
            length: request.length,
            limit: Some(request.limit).filter(|limit| *limit > 0),
            cursor: None,
            layer,
        })
    }
}

impl From<Extent> for proto::Extent {
    fn from(extent: Extent) -> Self {
        Self {
            start: extent.start,
            length: extent.length,
            depth: extent.depth,
            present: extent.present,
            zero: extent.zero,
            data: extent.data,
            compressed: extent.compressed,
            offset: extent.offset,
            filename: extent.filename,
            image_id: extent.image_id.map(|id| id.to_string()),
        }
    }
}

impl From<MeasureReport> for proto::MeasureReport {
    fn from(report: MeasureReport) -> Self {
        Self {
            required: report.required,
            fully_allocated: report.fully_allocated,
            bitmaps: report.bitmaps,
        }
    }
}

impl From<Snapshot> for proto::Snapshot {
    fn from(snapshot: Snapshot) -> Self {
        Self {
            id: snapshot.id,
            name: snapshot.name,
            created_at: timestamp(snapshot.created_at),
            vm_state_size: snapshot.vm_state_size,
            virtual_size: snapshot.virtual_size,
        }
    }
}
