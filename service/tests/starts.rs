//! What a service finds in its pools when it starts: names of any kind, files that were put aside, files of others.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends")]

mod common;

use std::path::Path;

use common::{Lab, NONE, OVERLAY, code, sample};
use serde_json::{Value, json};
use sqlx::Connection;
use uuid::Uuid;
use vdisk_service::ErrorCode;
use vdisk_service::model::{Image, ImageState};
use vdisk_service::request::ImportSource;

/// Bytes of a name that every file system we know takes.
const NAME_MAX: usize = 255;
/// What `.{file}.{job}.part` has beside the file's name: two dots, a UUID, the suffix.
const PART: usize = 2 + 36 + 5;

async fn scan(lab: &Lab) -> Value {
    let job = lab.service.scan_pool("default", &NONE).await.unwrap();
    lab.succeed(job).await.result.unwrap()
}

/// The image that a scan makes of a file with these bytes.
async fn found(lab: &Lab, file: &str, bytes: &[u8]) -> Image {
    std::fs::write(lab.pool().join(file), bytes).unwrap();
    let result = scan(lab).await;
    let id = result["registered"][0]["image_id"].as_str().unwrap().parse().unwrap();
    lab.service.image(id).await.unwrap()
}

/// A job that reads an image.
async fn read(lab: &Lab, image: &Image) {
    let request = common::json(json!({"name": "copy", "format": "raw"}));
    let job = lab.service.convert_image(image.id, request, &NONE).await.unwrap();
    let copy = lab.succeed(job).await.result_image_id().unwrap();
    lab.service.delete_image(copy).await.unwrap();
}

/// Renames in a pool while no service runs.
fn rename(pool: &Path, from: &str, to: &str) {
    std::fs::rename(pool.join(from), pool.join(to)).unwrap();
}

async fn stopped(lab: Lab) -> common::Folder {
    lab.service.shutdown(std::time::Duration::from_secs(5)).await;
    lab.dir
}

async fn started(dir: common::Folder) -> Lab {
    let service = vdisk_service::Service::open(common::quick_config(dir.path()))
        .await
        .unwrap();
    Lab { dir, service }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_becomes_an_image_only_if_jobs_can_name_what_they_make_beside_it() {
    let lab = Lab::new().await;
    let made = lab.create("made", OVERLAY, 1 << 20).await;
    let (longest, longer) = ("x".repeat(NAME_MAX - PART), "y".repeat(NAME_MAX - PART + 1));
    for name in [&longest, &longer, &"z".repeat(NAME_MAX)] {
        std::fs::copy(lab.pool().join(made.id.to_string()), lab.pool().join(name)).unwrap();
    }
    let import = common::import("long", None, ImportSource::PoolFile(longer.clone()));
    assert_eq!(
        code(lab.service.import_image(import, &NONE).await),
        ErrorCode::InvalidName
    );
    let result = scan(&lab).await;
    assert_eq!(result["registered"].as_array().unwrap().len(), 1, "{result}");
    assert_eq!(result["registered"][0]["file"], json!(longest));
    for (skipped, name) in result["skipped"]
        .as_array()
        .unwrap()
        .iter()
        .zip([&longer, &"z".repeat(NAME_MAX)])
    {
        assert_eq!(
            (&skipped["file"], &skipped["code"]),
            (&json!(name), &json!("invalid_name"))
        );
    }
    assert_eq!(result["skipped"].as_array().unwrap().len(), 2, "{result}");

    let id = result["registered"][0]["image_id"].as_str().unwrap().parse().unwrap();
    let job = lab
        .service
        .compress_image(id, common::json(json!({"algorithm": "zlib"})), &NONE)
        .await
        .unwrap();
    lab.succeed(job).await;
    let lab = lab.restart().await;
    assert_eq!(lab.service.image(id).await.unwrap().state, ImageState::Ready);
    lab.service.delete_image(id).await.unwrap();
    assert!(!lab.pool().join(longest).exists());
}

/// Databases have them from the time when they were taken.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_on_record_whose_name_is_too_long_can_be_used_and_deleted() {
    let lab = Lab::new().await;
    let bytes = sample(1 << 20, 3);
    let image = lab.upload("disk", Some("raw"), &bytes).await.unwrap();
    let (pool, long) = (lab.pool(), "x".repeat(NAME_MAX));
    let dir = stopped(lab).await;
    rename(&pool, &image.id.to_string(), &long);
    let database = dir.path().join("vdiskd.db").display().to_string();
    let mut database = sqlx::SqliteConnection::connect(&database).await.unwrap();
    sqlx::query("UPDATE images SET file = $1")
        .bind(&long)
        .execute(&mut database)
        .await
        .unwrap();
    database.close().await.unwrap();

    let lab = started(dir).await;
    assert_eq!(lab.service.image(image.id).await.unwrap().state, ImageState::Ready);
    read(&lab, &image).await;
    assert!(lab.data(image.id).await == bytes);
    let dir = stopped(lab).await;
    rename(&pool, &long, "../elsewhere");
    let lab = started(dir).await;
    assert_eq!(lab.service.image(image.id).await.unwrap().state, ImageState::Missing);
    let dir = stopped(lab).await;
    rename(&pool, "../elsewhere", &long);
    let lab = started(dir).await;
    assert_eq!(lab.service.image(image.id).await.unwrap().state, ImageState::Ready);
    lab.service.delete_image(image.id).await.unwrap();
    lab.assert_tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_looks_like_a_deleted_file_beside_an_image_is_left_alone() {
    let lab = Lab::new().await;
    let bytes = sample(1 << 20, 4);
    let image = found(&lab, "foo", &bytes).await;
    let others = [".foo.trash".to_owned(), format!(".{}.trash", image.id)];
    for name in &others {
        std::fs::write(lab.pool().join(name), b"another").unwrap();
    }
    read(&lab, &image).await;
    let lab = lab.restart().await;
    assert_eq!(lab.service.image(image.id).await.unwrap().state, ImageState::Ready);
    read(&lab, &image).await;
    assert!(lab.data(image.id).await == bytes);
    for name in &others {
        assert_eq!(std::fs::read(lab.pool().join(name)).unwrap(), b"another", "{name}");
    }
}

/// A deletion was recorded, its file could not be removed, and there is a new image of that name.
#[tokio::test(flavor = "multi_thread")]
async fn the_file_of_a_deleted_image_does_not_come_back_for_another_of_its_name() {
    let lab = Lab::new().await;
    let old = found(&lab, "foo", &sample(1 << 20, 5)).await;
    lab.service.delete_image(old.id).await.unwrap();
    let new = found(&lab, "foo", &sample(1 << 20, 6)).await;
    let trash = format!(".{}.trash", old.id);
    std::fs::write(lab.pool().join(&trash), sample(1 << 20, 5)).unwrap();
    let lab = lab.restart().await;
    assert!(lab.data(new.id).await == sample(1 << 20, 6));
    assert_eq!(lab.files(), ["foo"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_put_aside_comes_back_under_either_name() {
    // Also where the file is named as one of ours that the inventory does not have.
    for file in ["foo".to_owned(), Uuid::now_v7().to_string()] {
        let mut lab = Lab::new().await;
        let bytes = sample(1 << 20, 7);
        let image = found(&lab, &file, &bytes).await;
        for trash in [format!(".{}.trash", image.id), format!(".{file}.trash")] {
            let pool = lab.pool();
            // At a start, and before the first job on it.
            let dir = stopped(lab).await;
            rename(&pool, &file, &trash);
            lab = started(dir).await;
            assert_eq!(lab.service.image(image.id).await.unwrap().state, ImageState::Ready);
            assert!(lab.data(image.id).await == bytes, "{trash}");
            rename(&pool, &file, &trash);
            read(&lab, &image).await;
            assert!(lab.data(image.id).await == bytes, "{trash}");
            assert_eq!(lab.files(), [file.as_str()]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_files_of_others_stay() {
    let lab = Lab::new().await;
    let (others, ours) = ([".notes.trash", "..trash", ".x-1.trash"], Uuid::now_v7());
    let gone = [
        format!(".{ours}.trash"),
        format!(".{ours}-2.trash"),
        format!(".{ours}.upload"),
        format!(".{ours}.{}.part", Uuid::now_v7()),
    ];
    for name in others.into_iter().chain(gone.iter().map(String::as_str)) {
        std::fs::write(lab.pool().join(name), b"something").unwrap();
    }
    let lab = lab.restart().await;
    let mut stay = others;
    stay.sort_unstable();
    assert_eq!(lab.files(), stay);
}

/// Compress makes the new file beside the old one, under its name.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_job_made_beside_a_file_that_came_with_its_name_goes() {
    let lab = Lab::new().await;
    let made = lab.create("made", OVERLAY, 1 << 20).await;
    std::fs::copy(lab.pool().join(made.id.to_string()), lab.pool().join("foo")).unwrap();
    lab.service.delete_image(made.id).await.unwrap();
    let result = scan(&lab).await;
    let id = result["registered"][0]["image_id"].as_str().unwrap().parse().unwrap();
    let (pool, dir) = (lab.pool(), stopped(lab).await);
    let idle = vdisk_service::ServiceConfig {
        workers: 0,
        ..common::quick_config(dir.path())
    };
    let service = vdisk_service::Service::open(idle).await.unwrap();
    let job = service
        .compress_image(id, common::json(json!({"algorithm": "zlib"})), &NONE)
        .await
        .unwrap();
    let dir = stopped(Lab { dir, service }).await;
    let others = format!(".bar.{}.part", Uuid::now_v7());
    // So far it had come when its process ended.
    for name in [&format!(".foo.{}.part", job.id), &others] {
        std::fs::write(pool.join(name), b"half").unwrap();
    }
    let lab = started(dir).await;
    lab.succeed(job).await;
    assert_eq!(lab.files(), [others.as_str(), "foo"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_process_that_is_being_started_does_not_keep_the_data_folder() {
    // Each has a copy of every descriptor of ours until it runs its own program.
    tokio::spawn(async {
        loop {
            std::process::Command::new("/bin/true").status().unwrap();
            tokio::task::yield_now().await;
        }
    });
    let mut lab = Lab::new().await;
    for _ in 0..20 {
        lab = lab.restart().await;
    }
}
