//! Files that a guest or another program changed: what the inventory says of them, what is built on them, and what jobs leave of them.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends")]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use common::{Lab, MIB, NONE, OVERLAY, code, json, new_image};
use serde_json::{Value, json};
use vdisk_service::model::{Image, ImageId, Job};
use vdisk_service::request::{ImportImage, ImportOutcome, ImportSource, MapRequest, UploadPart};
use vdisk_service::{ErrorCode, Result, Service};

/// Runs a command of qemu-img in the pool's folder; `false` where it is not installed.
fn qemu_img(lab: &Lab, command: &str) -> bool {
    let Some(mut qemu_img) = common::tool("qemu-img") else {
        return false;
    };
    let ran = qemu_img
        .args(command.split(' '))
        .current_dir(lab.pool())
        .output()
        .unwrap();
    assert!(ran.status.success(), "{command}: {ran:?}");
    true
}

fn grow(lab: &Lab, image: &Image, size: &str) -> bool {
    qemu_img(lab, &format!("resize -q -f {} {} {size}", image.format, image.id))
}

fn write(lab: &Lab, image: &Image, command: &str) -> bool {
    lab.qemu_io(&image.id.to_string(), &image.format, command)
}

async fn resize(lab: &Lab, image: ImageId, request: Value) -> Result<Job> {
    lab.service.resize_image(image, json(request), &NONE).await
}

async fn accept(lab: &Lab, image: ImageId, base: ImageId) {
    let request = json(json!({"backing": base, "mode": "unsafe"}));
    let job = lab.service.rebase_image(image, request, &NONE).await.unwrap();
    lab.succeed(job).await;
}

async fn refusal(lab: &Lab, image: ImageId) -> ErrorCode {
    code(lab.service.read_data(image, None).await)
}

/// As `touch` does: another time of the last change, the same content.
fn touch(lab: &Lab, image: ImageId) {
    let file = lab.pool().join(image.to_string());
    let file = std::fs::File::options().write(true).open(file).unwrap();
    file.set_modified(SystemTime::now()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resize_keeps_what_a_guest_wrote_behind_the_size_on_record() {
    let lab = Lab::new().await;
    let base = lab.upload("base", Some("raw"), &vec![b'B'; 8 << 20]).await.unwrap();
    let request = new_image("overlay", OVERLAY, Some(4 * MIB), Some(base.id));
    let overlay = lab.service.create_image(request, &NONE).await.unwrap();
    if !grow(&lab, &overlay, "6M") || !write(&lab, &overlay, "write -P 0x47 5M 512k") {
        return;
    }
    let job = resize(&lab, overlay.id, json!({"virtual_size": 8 * MIB})).await;
    lab.succeed(job.unwrap()).await;
    let mut expected = vec![0; 8 << 20];
    expected[..4 << 20].fill(b'B');
    expected[5 << 20..(5 << 20) + (512 << 10)].fill(0x47);
    assert!(lab.data(overlay.id).await == expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_are_those_of_the_file() {
    let lab = Lab::new().await;
    let image = lab.create("disk", OVERLAY, 4 * MIB).await;
    if !grow(&lab, &image, "6M") {
        return;
    }
    let behind = MapRequest {
        start: Some(5 * MIB),
        ..MapRequest::default()
    };
    let map = lab.service.image_map(image.id, &behind).await.unwrap();
    assert_eq!(map.extents.iter().map(|extent| extent.length).sum::<u64>(), MIB);
    let listed = lab.service.list_images(&Default::default(), &Default::default()).await;
    assert_eq!(listed.unwrap().items[0].virtual_size, 6 * MIB, "a look notices it");
    grow(&lab, &image, "7M");
    let seen = lab.service.image(image.id).await.unwrap();
    assert_eq!((seen.virtual_size, seen.generation), (7 * MIB, 1));
    assert!(write(&lab, &image, "write -P 3 0 1M"));
    let file = std::fs::metadata(lab.pool().join(image.id.to_string())).unwrap();
    assert_eq!(lab.service.image(image.id).await.unwrap().file_size, file.len());
    let shrinks = resize(&lab, image.id, json!({"virtual_size": 5 * MIB})).await;
    assert_eq!(code(shrinks), ErrorCode::InvalidArgument);
    let overlay = lab.overlay("overlay", image.id).await;
    assert_eq!(overlay.virtual_size, 7 * MIB);
    assert!(lab.data(overlay.id).await[..1 << 20].iter().all(|byte| *byte == 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_resize_leaves_the_image_what_it_was() {
    let lab = Lab::new().await;
    let mut request = new_image("disk", OVERLAY, Some(MIB), None);
    request.options.insert("compat".to_owned(), "0.10".to_owned());
    let image = lab.service.create_image(request, &NONE).await.unwrap().id;
    lab.service.create_snapshot(image, "one", &NONE).await.unwrap();
    let job = resize(&lab, image, json!({"virtual_size": 2 * MIB})).await.unwrap();
    assert_eq!(lab.fail(job).await, ErrorCode::Unsupported);
    let left = lab.service.image(image).await.unwrap();
    assert_eq!((left.virtual_size, left.generation), (MIB, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verified_commit_compares_all_that_the_guest_sees() {
    let lab = Lab::new().await;
    let base = lab.create("base", OVERLAY, 4 * MIB).await;
    let overlay = lab.overlay("overlay", base.id).await;
    if !grow(&lab, &overlay, "6M") || !write(&lab, &overlay, "write -P 7 0 6M") {
        return;
    }
    let copy = json(json!({"name": "copy", "format": "raw", "verify": true}));
    let job = lab.service.convert_image(overlay.id, copy, &NONE).await.unwrap();
    let digest = lab.succeed(job).await.result.unwrap()["digest"].clone();
    let commit = json(json!({"verify": true}));
    let job = lab.service.commit_image(overlay.id, commit, &NONE).await.unwrap();
    assert_eq!(lab.succeed(job).await.result.unwrap()["digest"], digest);
    assert!(lab.data(base.id).await == vec![7; 6 << 20]);
}

/// The ways to something that stands on a base: what is made, if anything.
const WAYS: [&str; 6] = ["create", "convert", "upload", "pool file", "scan", "rebase"];

async fn build(lab: &Lab, way: &str, base: &Image) -> Result<Option<ImageId>, ErrorCode> {
    let service = &lab.service;
    let name = format!("{}-{way}", base.name).replace(' ', "-");
    let told = |error: vdisk_service::ServiceError| error.code;
    let import = |source| {
        let mut request = common::import(&name, Some(OVERLAY), source);
        request.backing = Some(base.id);
        request
    };
    let overlay_file = || {
        let command = format!("create -q -f {OVERLAY} -b {} -F {} {name}.file", base.id, base.format);
        assert!(qemu_img(lab, &command));
        lab.pool().join(format!("{name}.file"))
    };
    let job = match way {
        "create" => {
            let request = new_image(&name, OVERLAY, None, Some(base.id));
            return Ok(Some(service.create_image(request, &NONE).await.map_err(told)?.id));
        }
        "upload" => {
            let file = overlay_file();
            let bytes = std::fs::read(&file).unwrap();
            std::fs::remove_file(file).unwrap();
            let outcome = service.import_image(import(ImportSource::Upload(true)), &NONE).await;
            let ImportOutcome::Uploading(image) = outcome.map_err(told)? else {
                panic!("an upload was asked for")
            };
            let part = UploadPart {
                length: Some(bytes.len() as u64),
                ..UploadPart::default()
            };
            service
                .upload(image.id, part, common::body(&bytes, 100_000))
                .await
                .map_err(told)?;
            return Ok(Some(image.id));
        }
        "pool file" => {
            overlay_file();
            let source = ImportSource::PoolFile(format!("{name}.file"));
            match service.import_image(import(source), &NONE).await.map_err(told)? {
                ImportOutcome::Queued(job) => job,
                ImportOutcome::Uploading(_) => panic!("a job was expected"),
            }
        }
        "convert" => {
            let request = json(json!({"name": name, "format": OVERLAY, "backing": base.id}));
            service.convert_image(base.id, request, &NONE).await.map_err(told)?
        }
        "rebase" => {
            let image = lab.create(&name, OVERLAY, MIB).await.id;
            let request = json(json!({"backing": base.id}));
            let job = service.rebase_image(image, request, &NONE).await.map_err(told)?;
            let ended = lab.finish(job).await;
            return ended.error.map_or(Ok(Some(image)), |error| Err(error.code()));
        }
        _ => {
            overlay_file();
            let job = service.scan_pool("default", &NONE).await.map_err(told)?;
            let result = lab.succeed(job).await.result.unwrap();
            let file = |list: &str| {
                let entries = result[list].as_array().unwrap().clone();
                entries
                    .into_iter()
                    .find(|entry| entry["file"] == format!("{name}.file"))
            };
            return match file("registered") {
                Some(entry) => Ok(Some(json(entry["image_id"].clone()))),
                None => {
                    let skipped = file("skipped").expect("it is listed");
                    Err(skipped["code"].as_str().unwrap().parse().unwrap())
                }
            };
        }
    };
    let ended = lab.finish(job).await;
    ended
        .error
        .map_or(Ok(ended.result.map(|made| json(made["image_id"].clone()))), |error| {
            Err(error.code())
        })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_built_on_a_base_that_a_guest_wrote_to_can_be_read() {
    let lab = Lab::new().await;
    for way in WAYS {
        let base = lab.create(&way.replace(' ', "-"), OVERLAY, MIB).await;
        if !write(&lab, &base, "write -P 9 0 512k") {
            return;
        }
        let made = build(&lab, way, &base).await.unwrap().unwrap();
        let data = lab.data(made).await;
        let written = way != "rebase";
        assert_eq!(data.contains(&9), written, "{way}");
        assert_eq!(lab.service.image(base.id).await.unwrap().generation, 2, "{way}");
        // What stands on it now is not to see another base.
        assert!(write(&lab, &base, "write -P 8 0 512k"));
        assert_eq!(refusal(&lab, made).await, ErrorCode::BaseChanged, "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_more_is_built_on_a_base_that_changed_under_its_overlays() {
    let lab = Lab::new().await;
    for way in WAYS {
        let base = lab.create(&way.replace(' ', "-"), OVERLAY, MIB).await;
        let overlay = lab.overlay(&format!("{}-first", base.name), base.id).await;
        if !write(&lab, &base, "write -P 9 0 512k") {
            return;
        }
        assert_eq!(build(&lab, way, &base).await, Err(ErrorCode::BaseChanged), "{way}");
        assert_eq!(build(&lab, "create", &overlay).await, Err(ErrorCode::BaseChanged));
        accept(&lab, overlay.id, base.id).await;
        let again = Image {
            name: format!("{}-again", base.name),
            ..base
        };
        lab.data(build(&lab, way, &again).await.unwrap().unwrap()).await;
        lab.data(overlay.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_built_on_a_base_whose_file_is_gone() {
    let lab = Lab::new().await;
    let base = lab.create("base", OVERLAY, MIB).await;
    let overlay = lab.overlay("overlay", base.id).await;
    std::fs::rename(lab.pool().join(base.id.to_string()), lab.dir.path().join("aside")).unwrap();
    for on in [&base, &overlay] {
        assert_eq!(build(&lab, "create", on).await, Err(ErrorCode::ImageNotReady));
        let upload = common::import("upload", Some(OVERLAY), ImportSource::Upload(true));
        let upload = ImportImage {
            backing: Some(on.id),
            ..upload
        };
        let refused = lab.service.import_image(upload, &NONE).await;
        assert_eq!(code(refused), ErrorCode::ImageNotReady);
    }
    std::fs::rename(lab.dir.path().join("aside"), lab.pool().join(base.id.to_string())).unwrap();
    lab.data(overlay.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_worker_while_its_base_changes_fails_and_leaves_nothing() {
    let lab = Lab::with(|config| config.workers = 1).await;
    let base = lab.upload("base", Some("raw"), &[5; 1 << 20]).await.unwrap().id;
    let source = lab
        .upload("source", Some("raw"), &common::sample(4 << 20, 3))
        .await
        .unwrap()
        .id;
    let image = lab.create("image", OVERLAY, MIB).await.id;
    let service = &lab.service;
    let slow = json(json!({"name": "slow", "format": "raw", "rate_limit": MIB}));
    let slow = service.convert_image(source, slow, &NONE).await.unwrap();
    lab.until_running(&slow).await;
    let onto = json(json!({"name": "onto", "format": OVERLAY, "backing": base}));
    let waiting = [
        service.convert_image(source, onto, &NONE).await.unwrap(),
        service
            .rebase_image(image, json(json!({"backing": base})), &NONE)
            .await
            .unwrap(),
    ];
    touch(&lab, base);
    service.cancel_job(slow.id, &NONE).await.unwrap();
    for job in waiting {
        assert_eq!(lab.fail(job).await, ErrorCode::BaseChanged);
    }
    assert!(lab.data(image).await == [0; 1 << 20]);
    lab.assert_tidy().await;
    // Nothing stands on it: now it is taken as it is.
    lab.data(lab.overlay("overlay", base).await.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chains_are_whole_after_a_copy_of_the_data_folder_took_its_place() {
    let lab = Lab::new().await;
    let base = lab
        .upload("base", Some("raw"), &common::sample(1 << 20, 2))
        .await
        .unwrap();
    let middle = lab.overlay("middle", base.id).await;
    let top = lab.overlay("top", middle.id).await;
    lab.service.shutdown(Duration::from_secs(5)).await;
    let Lab { dir, service } = lab;
    drop(service);
    let copy = dir.path().with_extension("copy");
    let copied = Command::new("cp").arg("-a").args([dir.path(), &copy]).status().unwrap();
    assert!(copied.success());
    std::fs::remove_dir_all(dir.path()).unwrap();
    std::fs::rename(&copy, dir.path()).unwrap();
    let service = Service::open(common::quick_config(dir.path())).await.unwrap();
    let lab = Lab { dir, service };
    for image in [middle.id, top.id] {
        assert!(lab.data(image).await == common::sample(1 << 20, 2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_as_it_is_now_is_accepted_for_one_layer_after_the_other() {
    let lab = Lab::new().await;
    let base = lab.upload("base", Some("raw"), &[5; 1 << 20]).await.unwrap().id;
    let middle = lab.overlay("middle", base).await.id;
    let top = lab.overlay("top", middle).await.id;
    // Nothing changed: nothing is another image afterwards.
    accept(&lab, middle, base).await;
    assert_eq!(lab.service.image(middle).await.unwrap().generation, 1);
    assert!(lab.data(top).await == [5; 1 << 20]);
    touch(&lab, base);
    assert_eq!(refusal(&lab, middle).await, ErrorCode::BaseChanged);
    accept(&lab, middle, base).await;
    assert!(lab.data(middle).await == [5; 1 << 20]);
    // What is above was made on what the base was.
    assert_eq!(refusal(&lab, top).await, ErrorCode::BaseChanged);
    accept(&lab, top, middle).await;
    assert!(lab.data(top).await == [5; 1 << 20]);
    let other = lab.create("other", "raw", MIB).await.id;
    let onto_other = json(json!({"backing": other, "mode": "unsafe"}));
    let refused = lab.service.rebase_image(middle, onto_other, &NONE).await;
    assert_eq!(code(refused), ErrorCode::ConflictDependents);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_hides_its_time_gives_another_etag() {
    let lab = Lab::new().await;
    let base = lab.create("base", "raw", MIB).await.id;
    let overlay = lab.overlay("overlay", base).await.id;
    let etag = async || {
        let content = lab.service.open_data(overlay).await.unwrap();
        let etag = content.etag.clone();
        content.close().await;
        etag
    };
    let before = etag().await;
    overwrite(&lab.pool().join(base.to_string()));
    assert_ne!(etag().await, before);
}

/// Other bytes at the old time.
fn overwrite(path: &Path) {
    let time = std::fs::metadata(path).unwrap().modified().unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    bytes[..4].copy_from_slice(b"EVIL");
    std::fs::write(path, bytes).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(time).unwrap();
}
