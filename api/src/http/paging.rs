//! Queries of lists: which part, and what of it.

use std::num::NonZeroU32;

use serde::Deserialize;
use utoipa::IntoParams;
use uuid::Uuid;
use vdisk_service::model::{ImageState, JobKind, JobState};
use vdisk_service::request::{ImageFilter, JobFilter, PageRequest};

/// Which part of a list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Paging {
    /// Items wanted; large wishes are cut.
    #[param(value_type = Option<u32>, minimum = 1)]
    pub page_size: Option<NonZeroU32>,
    /// `next_page_token` of the page before.
    pub page_token: Option<String>,
}

impl From<Paging> for PageRequest {
    fn from(paging: Paging) -> Self {
        Self {
            page_size: paging.page_size.map(NonZeroU32::get),
            page_token: paging.page_token,
        }
    }
}

/// Which images. Absent fields do not narrow the list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ImageQuery {
    /// Only this pool's.
    pub pool: Option<String>,
    /// Only this format's.
    pub format: Option<String>,
    /// Only the image of exactly this name.
    pub name: Option<String>,
    /// `key` (has the label) or `key=value`.
    pub label: Option<String>,
    /// Only those in this state.
    pub state: Option<ImageState>,
    /// Only overlays directly on this base.
    pub backing: Option<Uuid>,
    /// Items wanted; large wishes are cut.
    #[param(value_type = Option<u32>, minimum = 1)]
    pub page_size: Option<NonZeroU32>,
    /// `next_page_token` of the page before.
    pub page_token: Option<String>,
}

impl From<ImageQuery> for (ImageFilter, PageRequest) {
    fn from(query: ImageQuery) -> Self {
        let filter = ImageFilter {
            pool: query.pool,
            format: query.format,
            name: query.name,
            label: query.label,
            state: query.state,
            backing: query.backing,
        };
        (
            filter,
            PageRequest {
                page_size: query.page_size.map(NonZeroU32::get),
                page_token: query.page_token,
            },
        )
    }
}

/// Which jobs. Absent fields do not narrow the list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct JobQuery {
    /// Only those in this state.
    pub state: Option<JobState>,
    /// Only this kind.
    pub kind: Option<JobKind>,
    /// Only those that read or write this image.
    pub image: Option<Uuid>,
    /// Only this pool's.
    pub pool: Option<String>,
    /// Items wanted; large wishes are cut.
    #[param(value_type = Option<u32>, minimum = 1)]
    pub page_size: Option<NonZeroU32>,
    /// `next_page_token` of the page before.
    pub page_token: Option<String>,
}

impl From<JobQuery> for (JobFilter, PageRequest) {
    fn from(query: JobQuery) -> Self {
        let filter = JobFilter {
            state: query.state,
            kind: query.kind,
            image: query.image,
            pool: query.pool,
        };
        (
            filter,
            PageRequest {
                page_size: query.page_size.map(NonZeroU32::get),
                page_token: query.page_token,
            },
        )
    }
}
