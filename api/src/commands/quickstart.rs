//! The main job, told as it goes: a base image, an overlay on it, a conversion with its progress, the map.

use std::io::Write;
use std::time::Duration;

use clap::Args;
use futures::StreamExt;
use uuid::Uuid;
use vdisk_service::model::{Image, ImageId, Job, JobState};
use vdisk_service::request::{
    Call, ConvertRequest, CreateImage, ImportImage, ImportOutcome, ImportSource, MapRequest, UploadPart, UploadStatus,
    WaitUntil,
};
use vdisk_service::{Bytes, Service};

use super::{Configured, Failure, serve};
use crate::{server, telemetry};

/// Bytes of the example disk.
const DISK: u64 = 64 << 20;
/// Bytes of a block of it: every fourth block holds data, the rest is zeros.
const BLOCK: usize = 1 << 20;
/// How often progress is told.
const STEP: Duration = Duration::from_millis(500);

/// How to start.
#[derive(Args)]
pub struct Quickstart {
    /// End after the job instead of going on serving
    #[arg(long)]
    exit: bool,
    #[command(flatten)]
    configured: Configured,
}

/// Runs the main job on a service of its own, then serves (or, with `--exit`, ends).
///
/// # Errors
/// Those of `serve`, and a job that fails.
pub async fn run(options: Quickstart) -> Result<(), Failure> {
    let settings = options.configured.settings()?;
    let filter = if options.exit { "warn" } else { &settings.log };
    telemetry::start(settings.log_format, filter)?;
    let (listener, app) = serve::open(&settings).await?;
    let address = settings.url(listener.local_addr()?);
    let service = app.service.clone();
    let signal = serve::stop_signal()?;
    let told = tokio::sync::Notify::new();
    let stop = async {
        tokio::select! {
            () = signal => {}
            () = told.notified() => {}
        }
    };
    say(&format!(
        "vdiskd is listening on {address}, its files are in {}",
        settings.service.data_dir.display()
    ))?;
    let tour = async {
        let outcome = main_job(&service).await;
        if options.exit || outcome.is_err() {
            told.notify_one();
        } else {
            say(&format!(
                "\nThe page is at {address}/, the reference at {address}/docs. End with Ctrl-C."
            ))?;
        }
        outcome
    };
    let ((), outcome) = tokio::join!(server::serve(listener, app, stop, settings.grace), tour);
    outcome
}

async fn main_job(service: &Service) -> Result<(), Failure> {
    // Names of a second run must not meet those of the first.
    let run = Uuid::now_v7().simple().to_string().split_off(20);
    let base = upload_base(service, &format!("quickstart-base-{run}")).await?;
    let overlay = make_overlay(service, &base, &format!("quickstart-overlay-{run}")).await?;
    let job = convert(service, &overlay, &format!("quickstart-copy-{run}")).await?;
    let copy = watch(service, job).await?;
    show_map(service, copy).await
}

async fn upload_base(service: &Service, name: &str) -> Result<Image, Failure> {
    let request = ImportImage {
        name: name.to_owned(),
        pool: None,
        format: Some("raw".to_owned()),
        source: ImportSource::Upload(true),
        target_format: None,
        backing: None,
        labels: [("made-by".to_owned(), "quickstart".to_owned())].into(),
    };
    let ImportOutcome::Uploading(image) = service.import_image(request, &Call::default()).await? else {
        return Err("an upload was queued as a job".into());
    };
    let part = UploadPart {
        length: Some(DISK),
        ..UploadPart::default()
    };
    let blocks = DISK / BLOCK as u64;
    let body = futures::stream::iter(0..blocks).map(|block| Ok::<_, std::convert::Infallible>(block_of(block)));
    let UploadStatus::Complete(base) = service.upload(image.id, part, body).await? else {
        return Err("the upload is not complete".into());
    };
    say(&format!(
        "1. uploaded '{}': {} of {} MiB hold data",
        base.name,
        DISK >> 22,
        DISK >> 20
    ))?;
    Ok(*base)
}

/// Text that compresses as a file system's does, or zeros.
fn block_of(block: u64) -> Bytes {
    if !block.is_multiple_of(4) {
        return Bytes::from(vec![0; BLOCK]);
    }
    let lines = (0_u64..).map(|line| format!("block {block} line {line} of an example disk\n"));
    let mut bytes: Vec<u8> = lines.take(BLOCK / 32).flat_map(String::into_bytes).collect();
    bytes.resize(BLOCK, b'.');
    Bytes::from(bytes)
}

async fn make_overlay(service: &Service, base: &Image, name: &str) -> Result<Image, Failure> {
    let request = CreateImage {
        name: name.to_owned(),
        pool: None,
        format: "qcow2".to_owned(),
        virtual_size: None,
        backing: Some(base.id),
        options: Default::default(),
        labels: base.labels.clone(),
        secrets: Default::default(),
    };
    let overlay = service.create_image(request, &Call::default()).await?;
    say(&format!("2. made '{}', an overlay on it", overlay.name))?;
    Ok(overlay)
}

async fn convert(service: &Service, overlay: &Image, name: &str) -> Result<Job, Failure> {
    let request = ConvertRequest {
        name: name.to_owned(),
        pool: None,
        format: "qcow2".to_owned(),
        options: Default::default(),
        compress: true,
        snapshot: None,
        backing: None,
        secrets: Default::default(),
        labels: overlay.labels.clone(),
        rate_limit: None,
        priority: None,
    };
    let job = service.convert_image(overlay.id, request, &Call::default()).await?;
    say(&format!(
        "3. queued job {}: convert the chain to compressed '{name}'",
        job.id
    ))?;
    Ok(job)
}

async fn watch(service: &Service, mut job: Job) -> Result<ImageId, Failure> {
    while !job.is_finished() {
        job = service
            .wait_job(job.id, WaitUntil::VersionAfter(job.version), STEP)
            .await?;
        let total = job.progress.total_bytes.unwrap_or(0);
        say(&format!(
            "   {}: {} of {} KiB",
            job.state,
            job.progress.done_bytes >> 10,
            total >> 10
        ))?;
    }
    match (job.state, job.result_image_id(), job.error) {
        (JobState::Succeeded, Some(copy), _) => Ok(copy),
        (_, _, Some(error)) => Err(format!("the job failed with {}: {}", error.code, error.detail).into()),
        (state, ..) => Err(format!("the job ended as {state} without an image").into()),
    }
}

async fn show_map(service: &Service, copy: ImageId) -> Result<(), Failure> {
    let image = service.image(copy).await?;
    let request = MapRequest {
        limit: Some(6),
        ..MapRequest::default()
    };
    let map = service.image_map(copy, &request).await?;
    say(&format!(
        "4. '{}' takes {} KiB for {} MiB; its map starts so:",
        image.name,
        image.allocated_size >> 10,
        DISK >> 20
    ))?;
    for extent in &map.extents {
        let kind = if extent.compressed {
            "compressed"
        } else if extent.data {
            "data"
        } else {
            "zeros"
        };
        say(&format!("   {:>10} + {:<9} {kind}", extent.start, extent.length))?;
    }
    say(if map.next_cursor.is_some() {
        "   ..."
    } else {
        "   the end"
    })
}

fn say(line: &str) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}
