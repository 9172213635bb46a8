use serde::Deserialize;

use crate::model::{ImageId, JobId, text_enum};

/// What goes with a call besides its request.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// `Idempotency-Key`: the same key with the same request gets the first answer again; with another request it is
    /// refused. 1 to 255 visible ASCII characters.
    pub idempotency_key: Option<String>,
}

/// Which part of a list.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PageRequest {
    /// Items wanted; cut to the configured maximum.
    pub page_size: Option<u32>,
    /// From the page before.
    pub page_token: Option<String>,
}

/// Which part of a map.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct MapRequest {
    /// First guest byte; 0 when absent.
    pub start: Option<u64>,
    /// Bytes; to the end when absent.
    pub length: Option<u64>,
    /// Extents in a page.
    pub limit: Option<u32>,
    /// From the page before; replaces `start`. Refused when the image has changed in between.
    pub cursor: Option<String>,
    /// Which layers answer.
    pub layer: MapLayer,
}

text_enum! {
    /// Which layers of a chain a map looks at.
    #[derive(Default)]
    MapLayer, "layer" {
        /// The whole chain.
        #[default]
        All = "all",
        /// The image itself; what it does not allocate is not present.
        Top = "top",
    }
}

/// Which events a subscription delivers.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// Only those of this job; the stream ends after the job's last event.
    pub job: Option<JobId>,
    /// Only those of this image.
    pub image: Option<ImageId>,
}
