//! Answers that several handlers share.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, StatusCode, header};
use serde::Serialize;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};
use vdisk_service::model::{
    self, AuditEntry, FormatInfo, Image, Job, JobPlan, Page, Pool, Secret, Snapshot, Token, Webhook,
};

/// An image as HTTP shows it: the record, and while it is uploading where its bytes go.
#[derive(Clone, Debug, Serialize)]
pub struct ImageBody {
    #[serde(flatten)]
    image: Image,
    #[serde(skip_serializing_if = "Option::is_none")]
    upload_url: Option<String>,
}

impl From<Image> for ImageBody {
    fn from(image: Image) -> Self {
        let uploading = image.state == model::ImageState::Uploading;
        Self {
            upload_url: uploading.then(|| format!("/v1/images/{}/file", image.id)),
            image,
        }
    }
}

impl PartialSchema for ImageBody {
    fn schema() -> RefOr<Schema> {
        let mut schema = Image::schema();
        if let RefOr::T(Schema::Object(object)) = &mut schema {
            let url = ObjectBuilder::new()
                .schema_type(Type::String)
                .format(Some(SchemaFormat::Custom("uri-reference".to_owned())))
                .description(Some("While uploading: where to PUT the file's bytes."));
            object.properties.insert("upload_url".to_owned(), url.into());
        }
        schema
    }
}

impl ToSchema for ImageBody {
    fn name() -> std::borrow::Cow<'static, str> {
        "Image".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        Image::schemas(schemas);
    }
}

macro_rules! list {
    ($(#[$doc:meta])* $name:ident, $item:ty, $from:ty) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Serialize, ToSchema)]
        pub struct $name {
            /// The items.
            pub items: Vec<$item>,
            /// Ask again with it for the items that follow; null on the last page.
            #[schema(required)]
            pub next_page_token: Option<String>,
        }

        impl From<Page<$from>> for $name {
            fn from(page: Page<$from>) -> Self {
                let page = page.map(<$item>::from);
                Self { items: page.items, next_page_token: page.next_page_token }
            }
        }

        impl From<Vec<$from>> for $name {
            fn from(items: Vec<$from>) -> Self {
                Page { items, next_page_token: None }.into()
            }
        }
    };
}

list!(
    /// A page of images.
    ImageList, ImageBody, Image
);
list!(
    /// A page of jobs.
    JobList, Job, Job
);
list!(
    /// A page of secrets.
    SecretList, Secret, Secret
);
list!(
    /// A page of tokens.
    TokenList, Token, Token
);
list!(
    /// A page of the audit log.
    AuditList, AuditEntry, AuditEntry
);
list!(
    /// Every webhook.
    WebhookList, Webhook, Webhook
);
list!(
    /// Every pool.
    PoolList, Pool, Pool
);
list!(
    /// Every format.
    FormatList, FormatInfo, FormatInfo
);
list!(
    /// Every snapshot of an image.
    SnapshotList, Snapshot, Snapshot
);

/// A list that the service gives whole or in pages, as the list that HTTP shows.
pub fn listed<T: From<F>, F>(list: F) -> Json<T> {
    Json(list.into())
}

/// 202 with a queued job and where to ask for it.
pub fn accepted(job: Job) -> Response {
    located(StatusCode::ACCEPTED, &format!("/v1/jobs/{}", job.id), Json(job))
}

/// 200 with what a job would do.
pub fn planned(plan: JobPlan) -> Response {
    Json(plan).into_response()
}

/// 201 with what was made and where it is.
pub fn created(place: &str, body: impl IntoResponse) -> Response {
    located(StatusCode::CREATED, place, body)
}

fn located(status: StatusCode, place: &str, body: impl IntoResponse) -> Response {
    let location: [(HeaderName, &str); 1] = [(header::LOCATION, place)];
    (status, location, body).into_response()
}
