//! The service and a guest that runs on one of its images: nothing of it is written, and nothing is read that may be half written.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};

use common::{Lab, MIB, code, json, tool};
use serde_json::json as value;
use vdisk_service::model::{Image, Job};
use vdisk_service::request::{Call, MapRequest};
use vdisk_service::{ErrorCode, Result};

/// A qemu-io that has an image of the pool open for writing, as a guest has.
struct Guest(Child);

impl Guest {
    fn on(lab: &Lab, image: &Image) -> Option<Self> {
        let mut program = tool("qemu-io")?;
        let file = lab.pool().join(image.id.to_string());
        let program = program.args(["-f", &image.format]).arg(file);
        let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // An answer means that the image is open and locked.
        child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.contains("MiB"), "qemu-io said '{line}'");
        Some(Self(child))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How a verb ended: at once, or in its job.
async fn ended(lab: &Lab, queued: Result<Job>) -> Option<ErrorCode> {
    match queued {
        Ok(job) => lab.finish(job).await.error.map(|error| error.code()),
        Err(error) => Some(error.code),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_a_running_guest_are_left_alone() {
    let lab = Lab::new().await;
    let base = lab.create("base", "qcow2", MIB).await.id;
    let top = lab.overlay("top", base).await;
    let other = lab.create("other", "qcow2", MIB).await.id;
    let Some(guest) = Guest::on(&lab, &top) else { return };
    let file = lab.pool().join(top.id.to_string());
    let before = std::fs::read(&file).unwrap();
    let (service, none, top) = (&lab.service, &Call::default(), top.id);

    assert_eq!(code(service.image_info(top).await), ErrorCode::ImageBusy);
    assert_eq!(
        code(service.image_map(top, &MapRequest::default()).await),
        ErrorCode::ImageBusy
    );
    assert_eq!(code(service.read_data(top, None).await), ErrorCode::ImageBusy);
    assert_eq!(code(service.read_file(top, None).await), ErrorCode::ImageBusy);
    assert_eq!(code(service.snapshots(top).await), ErrorCode::ImageBusy);
    assert_eq!(
        code(service.create_snapshot(top, "s", none).await),
        ErrorCode::ImageBusy
    );
    let measure = json(value!({"format": "raw"}));
    assert_eq!(code(service.measure_image(top, measure).await), ErrorCode::ImageBusy);
    let to = |name: &str| json(value!({"name": name, "format": "raw"}));
    let verbs = [
        ("check", service.check_image(top, json(value!({})), none).await),
        (
            "repair",
            service.check_image(top, json(value!({"repair": "all"})), none).await,
        ),
        ("convert", service.convert_image(top, to("a"), none).await),
        (
            "compare",
            service.compare_images(top, json(value!({"other": other})), none).await,
        ),
    ];
    for (verb, queued) in verbs {
        assert_eq!(ended(&lab, queued).await, Some(ErrorCode::ImageBusy), "{verb}");
    }
    assert_eq!(code(service.delete_image(top).await), ErrorCode::ImageBusy);
    assert!(std::fs::read(&file).unwrap() == before, "something was written");

    // Its base can be read by anybody, and written by nobody.
    service.image_info(base).await.unwrap();
    service.image_map(base, &MapRequest::default()).await.unwrap();
    lab.data(base).await;
    let copy = service.convert_image(base, to("b"), none).await;
    assert_eq!(ended(&lab, copy).await, None);
    let resize = json(value!({"virtual_size": 2 * MIB}));
    assert_eq!(
        code(service.resize_image(base, resize, none).await),
        ErrorCode::ConflictDependents
    );
    let snapshot = code(service.create_snapshot(base, "s", none).await);
    assert!(
        [ErrorCode::ConflictDependents, ErrorCode::ImageBusy].contains(&snapshot),
        "{snapshot}"
    );

    drop(guest);
    service.image_info(top).await.expect("nobody holds it any more");
    let check = service.check_image(top, json(value!({})), none).await;
    assert_eq!(ended(&lab, check).await, None);
}

/// Each of these keeps the image to itself, so each has one of its own, and a guest on it.
#[tokio::test(flavor = "multi_thread")]
async fn verbs_that_write_wait_for_no_guest_and_harm_none() {
    let lab = Lab::with(|config| config.workers = 6).await;
    let base = lab.create("base", "qcow2", MIB).await.id;
    let other = lab.create("other", "qcow2", MIB).await.id;
    let (service, none) = (&lab.service, &Call::default());
    let mut queued = Vec::new();
    for verb in ["resize", "commit", "flatten", "rebase", "rebase-unsafe", "compress"] {
        let image = lab.overlay(verb, base).await;
        let Some(guest) = Guest::on(&lab, &image) else { return };
        let file = lab.pool().join(image.id.to_string());
        let before = std::fs::read(&file).unwrap();
        let id = image.id;
        let job = match verb {
            "resize" => {
                service
                    .resize_image(id, json(value!({"virtual_size": 2 * MIB})), none)
                    .await
            }
            "commit" => service.commit_image(id, json(value!({})), none).await,
            "flatten" => service.flatten_image(id, json(value!({})), none).await,
            "compress" => {
                service
                    .compress_image(id, json(value!({"algorithm": "zlib"})), none)
                    .await
            }
            "rebase" => service.rebase_image(id, json(value!({"backing": other})), none).await,
            _ => {
                let unsafely = json(value!({"backing": other, "mode": "unsafe"}));
                service.rebase_image(id, unsafely, none).await
            }
        };
        // A base with other overlays takes no commit, guest or not.
        let refused = if verb == "commit" {
            ErrorCode::ConflictDependents
        } else {
            ErrorCode::ImageBusy
        };
        queued.push((verb, job, refused, file, before, guest));
    }
    for (verb, job, refused, file, before, _guest) in queued {
        assert_eq!(ended(&lab, job).await, Some(refused), "{verb}");
        assert!(std::fs::read(&file).unwrap() == before, "{verb} wrote");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_committed_under_a_guest() {
    let lab = Lab::new().await;
    let base = lab.create("base", "qcow2", MIB).await.id;
    let top = lab.overlay("top", base).await;
    let Some(_guest) = Guest::on(&lab, &top) else { return };
    let commit = lab
        .service
        .commit_image(top.id, json(value!({"drop": true})), &Call::default())
        .await;
    assert_eq!(ended(&lab, commit).await, Some(ErrorCode::ImageBusy));
    assert!(lab.pool().join(top.id.to_string()).exists());
}
