//! Requests of the verbs that queue jobs. The image's id is read apart from them.

use vdisk_service::ServiceError;
use vdisk_service::request::{
    CheckRequest, CommitRequest, CompareRequest, CompressRequest, CompressionAlgorithm, ConvertRequest, DecryptRequest,
    EncryptRequest, FlattenRequest, KeyChange, MeasureRequest, RebaseMode, RebaseRequest, RekeyRequest, Repair,
    ResizeRequest,
};

use super::value::{id_of, known, one_of, optional_id, secret_refs, sorted};
use crate::proto;

impl TryFrom<proto::ConvertImageRequest> for ConvertRequest {
    type Error = ServiceError;

    fn try_from(request: proto::ConvertImageRequest) -> Result<Self, ServiceError> {
        Ok(Self {
            name: request.name,
            pool: request.pool,
            format: request.format,
            options: sorted(request.options),
            compress: request.compress,
            snapshot: request.snapshot,
            backing: optional_id("image", request.backing)?,
            secrets: secret_refs(request.secrets)?,
            labels: sorted(request.labels),
            verify: request.verify,
            rate_limit: request.rate_limit,
            priority: request.priority,
        })
    }
}

impl TryFrom<proto::CompressImageRequest> for CompressRequest {
    type Error = ServiceError;

    fn try_from(request: proto::CompressImageRequest) -> Result<Self, ServiceError> {
        let algorithm = match known("algorithm", request.algorithm)? {
            proto::CompressionAlgorithm::Unspecified => None,
            proto::CompressionAlgorithm::Zlib => Some(CompressionAlgorithm::Zlib),
            proto::CompressionAlgorithm::Zstd => Some(CompressionAlgorithm::Zstd),
        };
        Ok(Self {
            algorithm: one_of("algorithm", algorithm)?,
            level: request.level,
            verify: request.verify,
            rate_limit: request.rate_limit,
            priority: request.priority,
        })
    }
}

impl TryFrom<proto::RebaseImageRequest> for RebaseRequest {
    type Error = ServiceError;

    fn try_from(request: proto::RebaseImageRequest) -> Result<Self, ServiceError> {
        use proto::rebase_image_request::Target;
        let backing = match one_of("target", request.target)? {
            Target::Backing(id) => Some(id_of("image", &id)?),
            Target::NoBacking(true) => None,
            Target::NoBacking(false) => {
                return Err(ServiceError::invalid(
                    "no_backing",
                    "no_backing must be true; else give backing",
                ));
            }
        };
        let mode = match known("mode", request.mode)? {
            proto::RebaseMode::Unspecified | proto::RebaseMode::Safe => RebaseMode::Safe,
            proto::RebaseMode::Unsafe => RebaseMode::Unsafe,
        };
        Ok(Self {
            backing,
            mode,
            verify: request.verify,
            rate_limit: request.rate_limit,
            priority: request.priority,
        })
    }
}

impl TryFrom<proto::CommitImageRequest> for CommitRequest {
    type Error = ServiceError;

    fn try_from(request: proto::CommitImageRequest) -> Result<Self, ServiceError> {
        Ok(Self {
            base: optional_id("image", request.base)?,
            drop: request.drop,
            verify: request.verify,
            rate_limit: request.rate_limit,
            priority: request.priority,
        })
    }
}

impl TryFrom<proto::CheckImageRequest> for CheckRequest {
    type Error = ServiceError;

    fn try_from(request: proto::CheckImageRequest) -> Result<Self, ServiceError> {
        let repair = match known("repair", request.repair)? {
            proto::Repair::Unspecified => None,
            proto::Repair::Leaks => Some(Repair::Leaks),
            proto::Repair::All => Some(Repair::All),
        };
        Ok(Self {
            repair,
            priority: request.priority,
        })
    }
}

impl TryFrom<proto::ResizeImageRequest> for ResizeRequest {
    type Error = ServiceError;

    fn try_from(request: proto::ResizeImageRequest) -> Result<Self, ServiceError> {
        Ok(Self {
            virtual_size: one_of("virtual_size", request.virtual_size)?,
            shrink: request.shrink,
            priority: request.priority,
        })
    }
}

impl TryFrom<proto::CompareImagesRequest> for CompareRequest {
    type Error = ServiceError;

    fn try_from(request: proto::CompareImagesRequest) -> Result<Self, ServiceError> {
        Ok(Self {
            other: id_of("image", &request.other)?,
            strict: request.strict,
            priority: request.priority,
        })
    }
}

impl TryFrom<proto::FlattenImageRequest> for FlattenRequest {
    type Error = ServiceError;

    fn try_from(request: proto::FlattenImageRequest) -> Result<Self, ServiceError> {
        Ok(Self {
            verify: request.verify,
            rate_limit: request.rate_limit,
            priority: request.priority,
        })
    }
}

impl TryFrom<proto::EncryptImageRequest> for EncryptRequest {
    type Error = ServiceError;

    fn try_from(request: proto::EncryptImageRequest) -> Result<Self, ServiceError> {
        Ok(Self {
            name: request.name,
            pool: request.pool,
            format: request.format.unwrap_or_else(|| "luks".to_owned()),
            options: sorted(request.options),
            secret: id_of("secret", &request.secret)?,
            snapshot: request.snapshot,
            labels: sorted(request.labels),
            verify: request.verify,
            rate_limit: request.rate_limit,
            priority: request.priority,
        })
    }
}

impl TryFrom<proto::DecryptImageRequest> for DecryptRequest {
    type Error = ServiceError;

    fn try_from(request: proto::DecryptImageRequest) -> Result<Self, ServiceError> {
        Ok(Self {
            name: request.name,
            pool: request.pool,
            format: request.format,
            options: sorted(request.options),
            secret: optional_id("secret", request.secret)?,
            compress: request.compress,
            snapshot: request.snapshot,
            labels: sorted(request.labels),
            verify: request.verify,
            rate_limit: request.rate_limit,
            priority: request.priority,
        })
    }
}

impl TryFrom<proto::RekeyImageRequest> for RekeyRequest {
    type Error = ServiceError;

    fn try_from(request: proto::RekeyImageRequest) -> Result<Self, ServiceError> {
        let change = match known("change", request.change)? {
            proto::KeyChange::Unspecified => None,
            proto::KeyChange::Add => Some(KeyChange::Add),
            proto::KeyChange::Change => Some(KeyChange::Change),
            proto::KeyChange::Erase => Some(KeyChange::Erase),
        };
        Ok(Self {
            change: one_of("change", change)?,
            new_secret: optional_id("secret", request.new_secret)?,
            old_secret: optional_id("secret", request.old_secret)?,
            slot: request.slot,
            iter_time: request.iter_time,
            iterations: request.iterations,
            force: request.force,
            priority: request.priority,
        })
    }
}

impl From<proto::MeasureImageRequest> for MeasureRequest {
    fn from(request: proto::MeasureImageRequest) -> Self {
        Self {
            format: request.format,
            options: sorted(request.options),
        }
    }
}
