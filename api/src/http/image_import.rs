use axum::Json;
use axum::extract::State;
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::Service;
use vdisk_service::model::{Job, JobPlan};
use vdisk_service::request::{ImportImage, ImportOutcome, JobRequest};

use super::documented::problems;
use super::extract::{IdempotencyKey, JobBody};
use super::problem::Answer;
use super::reply::{ImageBody, accepted, created, planned};
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(import_image))
}

problems!(ImportProblems: InvalidArgument, InvalidName, NameTaken, NotFound, Unsupported, LimitExceeded, Denied,
    IdempotencyConflict, ImageNotReady, ImageBusy, BaseChanged; MalformedBody, BodyTooLarge, UnsupportedMediaType);

/// Import an image.
///
/// With `source: {"upload": true}` the image is recorded and its `upload_url` takes the bytes; with
/// `source: {"pool_file": "NAME"}` a job takes a file in that lies in the pool's folder, with `source: {"url": "https://..."}` a job fetches it.
/// Jobs convert to `target_format` when that is another format; a file that lay in the pool then stays beside the new image.
#[utoipa::path(post, path = "/v1/images/import", operation_id = "import_image", tag = "images",
    params(IdempotencyKey), request_body = ImportImage,
    responses(
        (status = 200, description = "With `dry_run`: what the job would do.", body = JobPlan),
        (status = 201, description = "The image, waiting for its bytes.", body = ImageBody,
            headers(("Location", description = "The image."))),
        (status = 202, description = "The job that takes the file in.", body = Job,
            headers(("Location", description = "The job."))),
        ImportProblems))]
async fn import_image(
    State(service): State<Service>,
    IdempotencyKey(call): IdempotencyKey,
    JobBody { request, dry_run }: JobBody<ImportImage>,
) -> Answer<Response> {
    if dry_run {
        return Ok(planned(service.plan_job(JobRequest::Import(request)).await?));
    }
    Ok(match service.import_image(request, &call).await? {
        ImportOutcome::Uploading(image) => created(&format!("/v1/images/{}", image.id), Json(ImageBody::from(image))),
        ImportOutcome::Queued(job) => accepted(job),
    })
}
