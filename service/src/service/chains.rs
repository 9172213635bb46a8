use futures::stream::BoxStream;
use serde_json::Value;

use super::{Service, waiting};
use crate::error::Result;
use crate::model::{ChainLayer, Extent, Image, ImageId, MapPage, MeasureReport, Page};
use crate::request::{MapRequest, MeasureRequest, PageRequest};

/// Extents in guest order, made as they are asked for.
pub type ExtentStream = BoxStream<'static, Result<Extent>>;

impl Service {
    /// Everything `qemu-img info --output=json` gives, under the same keys. File names are those inside the pool.
    ///
    /// # Errors
    /// `not_found`, `image_not_ready`, `image_busy`, `corrupt_image`.
    pub async fn image_info(&self, _id: ImageId) -> Result<Value> {
        Err(waiting("info"))
    }

    /// The backing chain, the image itself first.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn image_chain(&self, _id: ImageId) -> Result<Vec<ChainLayer>> {
        Err(waiting("chain"))
    }

    /// Images built directly on this one.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn image_dependents(&self, _id: ImageId, _page: &PageRequest) -> Result<Page<Image>> {
        Err(waiting("dependents"))
    }

    /// A page of where the image's data lies.
    ///
    /// # Errors
    /// `not_found`, `image_not_ready`, `image_busy`, `invalid_argument` (range, cursor), `corrupt_image`.
    pub async fn image_map(&self, _id: ImageId, _request: &MapRequest) -> Result<MapPage> {
        Err(waiting("map"))
    }

    /// Where the image's data lies, as a stream of bounded memory; `limit` ends it early.
    ///
    /// # Errors
    /// As [`Service::image_map`]; errors met on the way end the stream.
    pub async fn image_map_stream(&self, _id: ImageId, _request: &MapRequest) -> Result<ExtentStream> {
        Err(waiting("map"))
    }

    /// How large the image would be in a format.
    ///
    /// # Errors
    /// `not_found`, `image_not_ready`, `unsupported`, `invalid_argument`.
    pub async fn measure_image(&self, _id: ImageId, _request: MeasureRequest) -> Result<MeasureReport> {
        Err(waiting("measure"))
    }
}
