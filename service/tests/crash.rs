//! A process that is killed, and one that is stopped, in the middle of a job: another start ends the job as if nothing
//! had happened.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends")]

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Lab, MIB, NONE, OVERLAY, json, quick_config, sample};
use e2e::small_disk::SmallDisk;
use serde_json::json;
use vdisk_service::model::{ImageId, ImageState, Job, JobState, SecretId};
use vdisk_service::request::UpdateJob;
use vdisk_service::{Result, Service};

const CHILD: &str = "VDISK_TEST_KILLED_SERVICE";
/// Slow enough to be met in the middle.
const SLOW: u64 = 8 * MIB;
const SIZE: usize = 4 << 20;

/// What one verb starts from, and what must be there when it is through.
struct Scene {
    lab: Lab,
    job: Job,
    /// The image to look at in the end; `None`: the one the job made.
    image: Option<ImageId>,
    expected: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Verb {
    Convert,
    Compress,
    Rebase,
    Commit,
    CommitAndDrop,
    Flatten,
    Resize,
    Repair,
    Encrypt,
    Decrypt,
    AddKey,
    ChangeKey,
    EraseKey,
}

const VERBS: [Verb; 13] = [
    Verb::Convert,
    Verb::Compress,
    Verb::Rebase,
    Verb::Commit,
    Verb::CommitAndDrop,
    Verb::Flatten,
    Verb::Resize,
    Verb::Repair,
    Verb::Encrypt,
    Verb::Decrypt,
    Verb::AddKey,
    Verb::ChangeKey,
    Verb::EraseKey,
];

/// Images made by a service that then goes away, with one job left in the queue.
async fn scene(verb: Verb) -> Scene {
    let lab = Lab::new().await;
    let bytes = sample(SIZE, 1);
    let mut expected = bytes.clone();
    expected[MIB as usize..2 << 20].copy_from_slice(&sample(1 << 20, 77));
    let base = lab.upload("base", Some("raw"), &bytes).await.unwrap();
    let other = lab.upload("other", Some("raw"), &sample(SIZE, 2)).await.unwrap();
    let changed = lab.upload("changed", Some("raw"), &expected).await.unwrap();
    let request = json(json!({"name": "overlay", "format": OVERLAY, "backing": base.id}));
    let made = lab.service.convert_image(changed.id, request, &NONE).await.unwrap();
    let overlay = lab.succeed(made).await.result_image_id().unwrap();
    let request = json(json!({"name": "packed", "format": OVERLAY}));
    let made = lab.service.convert_image(changed.id, request, &NONE).await.unwrap();
    let packed = lab.succeed(made).await.result_image_id().unwrap();
    let (old_key, new_key) = (secret(&lab, "old").await, secret(&lab, "new").await);
    let closed = closed(&lab, changed.id, old_key, new_key, verb).await;
    let lab = reopen(lab, 0).await;
    let (service, slow) = (&lab.service, Some(SLOW));
    let (job, image) = match verb {
        Verb::Convert => {
            let request = json(json!({"name": "copy", "format": OVERLAY, "rate_limit": slow}));
            (service.convert_image(overlay, request, &NONE).await, None)
        }
        Verb::Compress => {
            let request = json(json!({"algorithm": "zlib", "rate_limit": slow, "verify": true}));
            (service.compress_image(packed, request, &NONE).await, Some(packed))
        }
        Verb::Rebase => {
            let request = json(json!({"backing": other.id, "rate_limit": slow, "verify": true}));
            (service.rebase_image(overlay, request, &NONE).await, Some(overlay))
        }
        Verb::Commit | Verb::CommitAndDrop => {
            let drop = matches!(verb, Verb::CommitAndDrop);
            let request = json(json!({"drop": drop, "rate_limit": slow, "verify": true}));
            (service.commit_image(overlay, request, &NONE).await, Some(base.id))
        }
        Verb::Flatten => {
            let request = json(json!({"rate_limit": slow, "verify": true}));
            (service.flatten_image(overlay, request, &NONE).await, Some(overlay))
        }
        Verb::Resize => {
            expected.resize(SIZE + (1 << 20), 0);
            let request = json(json!({"virtual_size": expected.len()}));
            (service.resize_image(overlay, request, &NONE).await, Some(overlay))
        }
        Verb::Repair => {
            let request = json(json!({"repair": "all"}));
            (service.check_image(overlay, request, &NONE).await, Some(overlay))
        }
        Verb::Encrypt => {
            let request = json(json!({"name": "copy", "secret": new_key, "options": {"iter-time": 10},
                "rate_limit": slow, "verify": true}));
            (service.encrypt_image(overlay, request, &NONE).await, None)
        }
        Verb::Decrypt => {
            let request = json(json!({"name": "copy", "rate_limit": slow, "verify": true}));
            (service.decrypt_image(closed, request, &NONE).await, None)
        }
        // Costly keys: long enough to be met at work.
        Verb::AddKey => {
            let request = json(json!({"change": "add", "new_secret": new_key, "iter_time": 300}));
            (service.rekey_image(closed, request, &NONE).await, Some(closed))
        }
        Verb::ChangeKey => {
            let request = json(json!({"change": "change", "new_secret": new_key, "iter_time": 300}));
            (service.rekey_image(closed, request, &NONE).await, Some(closed))
        }
        Verb::EraseKey => {
            let request = json(json!({"change": "erase", "old_secret": new_key}));
            (service.rekey_image(closed, request, &NONE).await, Some(closed))
        }
    };
    let job = job.unwrap();
    Scene {
        lab,
        job,
        image,
        expected,
    }
}

async fn secret(lab: &Lab, value: &str) -> SecretId {
    let request = json(json!({"name": value, "value": value}));
    lab.service.create_secret(request, &NONE).await.unwrap().id
}

/// An encrypted image for the verbs that need one; one whose key is to be erased has it in the second slot.
async fn closed(lab: &Lab, source: ImageId, key: SecretId, second: SecretId, verb: Verb) -> ImageId {
    if !matches!(verb, Verb::Decrypt | Verb::AddKey | Verb::ChangeKey | Verb::EraseKey) {
        return source;
    }
    let request = json(json!({"name": "closed", "secret": key, "options": {"iter-time": 100}}));
    let made = lab.service.encrypt_image(source, request, &NONE).await.unwrap();
    let closed = lab.succeed(made).await.result_image_id().unwrap();
    if matches!(verb, Verb::EraseKey) {
        let request = json(json!({"change": "add", "new_secret": second, "iter_time": 100}));
        let added = lab.service.rekey_image(closed, request, &NONE).await.unwrap();
        lab.succeed(added).await;
    }
    closed
}

/// The slots that hold keys are those that the job was to leave.
async fn assert_keys(lab: &Lab, image: ImageId, verb: Verb) {
    let wanted = match verb {
        Verb::AddKey => 2,
        Verb::ChangeKey | Verb::EraseKey => 1,
        _ => return,
    };
    let info = lab.service.image_info(image).await.unwrap();
    let slots = info["format-specific"]["data"]["slots"].as_array().unwrap();
    assert_eq!(
        slots.iter().filter(|slot| slot["active"] == true).count(),
        wanted,
        "{verb:?}"
    );
}

async fn reopen(lab: Lab, workers: usize) -> Lab {
    let Lab { dir, service } = lab;
    service.shutdown(Duration::from_secs(5)).await;
    drop(service);
    let service = open(dir.path(), workers).await.unwrap();
    Lab { dir, service }
}

async fn open(dir: &Path, workers: usize) -> Result<Service> {
    let mut config = quick_config(dir);
    config.workers = workers;
    Service::open(config).await
}

/// This test program once more, as the process to be killed.
fn spawn_service(dir: &Path) -> Child {
    let name = "killed_jobs_end_well";
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Waits until another process has the job and is some way into it.
async fn wait_until_running(dir: &Path) {
    let log = dir.join("vdiskd.lock.running");
    for _ in 0..10_000 {
        if log.exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the other process did not start the job");
}

async fn serve_until_killed(dir: &Path) {
    let service = open(dir, 1).await.unwrap();
    loop {
        let jobs = service.list_jobs(&json(json!({})), &Default::default()).await.unwrap();
        // One that has ended meanwhile was running, too.
        if jobs.items.iter().all(|job| job.state != JobState::Queued) {
            std::fs::write(dir.join("vdiskd.lock.running"), b"").unwrap();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_jobs_end_well() {
    if let Ok(dir) = std::env::var(CHILD) {
        return serve_until_killed(Path::new(&dir)).await;
    }
    let kills: u64 = std::env::var("VDISK_TEST_KILLS")
        .ok()
        .and_then(|kills| kills.parse().ok())
        .unwrap_or(2);
    for verb in VERBS {
        for kill in 0..kills {
            // From the first moment to beyond the end of the slowest.
            kill_once(verb, Duration::from_millis(20 + kill * 700 / kills)).await;
        }
    }
}

async fn kill_once(verb: Verb, after: Duration) {
    let Scene {
        lab,
        job,
        image,
        expected,
    } = scene(verb).await;
    let Lab { dir, service } = lab;
    service.shutdown(Duration::from_secs(5)).await;
    drop(service);
    // Twice: the second process dies in the work of putting right what the first one left.
    for _ in 0..2 {
        let _ = std::fs::remove_file(dir.path().join("vdiskd.lock.running"));
        let mut child = spawn_service(dir.path());
        wait_until_running(dir.path()).await;
        tokio::time::sleep(after).await;
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let lab = Lab {
        service: open(dir.path(), 2).await.unwrap(),
        dir,
    };
    let _ = lab
        .service
        .update_job(
            job.id,
            UpdateJob {
                rate_limit: Some(0),
                priority: None,
            },
        )
        .await;
    let done = lab.succeed(job).await;
    let image = image.or(done.result_image_id()).unwrap();
    assert!(
        lab.data(image).await == expected,
        "{verb:?} killed after {after:?}: content"
    );
    assert_keys(&lab, image, verb).await;
    lab.assert_tidy().await;
    // Raw images have nothing to check.
    if let Ok(check) = lab.service.check_image(image, json(json!({})), &NONE).await {
        assert_eq!(
            lab.succeed(check).await.result.unwrap()["corruptions"],
            0,
            "{verb:?} killed after {after:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_rotation_of_the_master_key_is_ended() {
    let lab = Lab::new().await;
    let mut ids = Vec::new();
    for number in 0..400 {
        ids.push(secret(&lab, &format!("value-{number}")).await);
    }
    let lab = reopen(lab, 0).await;
    let job = lab.service.rotate_master_key(json(json!({})), &NONE).await.unwrap();
    let Lab { dir, service } = lab;
    service.shutdown(Duration::from_secs(5)).await;
    drop(service);
    for after in [0, 15, 30] {
        let _ = std::fs::remove_file(dir.path().join("vdiskd.lock.running"));
        let mut child = spawn_service(dir.path());
        wait_until_running(dir.path()).await;
        tokio::time::sleep(Duration::from_millis(after)).await;
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let service = open(dir.path(), 2).await.unwrap();
    let lab = Lab { dir, service };
    lab.succeed(job).await;
    assert!(!lab.dir.path().join("master.key.next").exists());
    let lab = lab.restart().await;
    for id in ids {
        // It opens, and then turns out to be no key of 32 bytes.
        let probe = json!({"name": "probe", "value": "AAAA", "format": "base64", "keyid": id, "iv": "AAAA"});
        let probed = lab.service.create_secret(json(probe), &NONE).await;
        assert_eq!(common::code(probed), vdisk_service::ErrorCode::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_service_hands_its_job_back() {
    let Scene { lab, job, expected, .. } = scene(Verb::Convert).await;
    let lab = reopen(lab, 1).await;
    lab.until_running(&job).await;
    let Lab { dir, service } = lab;
    service.shutdown(Duration::from_millis(50)).await;
    drop(service);
    let lab = Lab {
        service: open(dir.path(), 0).await.unwrap(),
        dir,
    };
    let waiting = lab.service.job(job.id).await.unwrap();
    assert_eq!((waiting.state, waiting.attempt), (JobState::Queued, 0));
    assert!(
        lab.files().iter().all(|name| !name.starts_with('.')),
        "{:?}",
        lab.files()
    );
    let lab = reopen(lab, 1).await;
    lab.service
        .update_job(
            job.id,
            UpdateJob {
                rate_limit: Some(0),
                priority: None,
            },
        )
        .await
        .unwrap();
    let copy = lab.succeed(job).await.result_image_id().unwrap();
    assert!(lab.data(copy).await == expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_the_job_and_frees_its_space() {
    let place = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&place.path().join("small"), 12) else {
        return;
    };
    fill_disk(disk.path()).await;
    full_of_others(disk.path()).await;
}

/// Database and pool on the same small disk: the failure must be recorded there too.
async fn fill_disk(small: &Path) {
    let lab = Lab {
        service: open(small, 1).await.unwrap(),
        dir: tempfile::tempdir().unwrap().into(),
    };
    let source = lab.upload("source", Some("raw"), &vec![1; 7 << 20]).await.unwrap();
    let free = lab.service.pool("default").await.unwrap().free;
    let freed = async || lab.service.pool("default").await.unwrap().free + (1 << 20) > free;
    let request = json(json!({"name": "copy", "format": OVERLAY}));
    let job = lab.service.convert_image(source.id, request, &NONE).await.unwrap();
    assert_eq!(lab.fail(job).await, vdisk_service::ErrorCode::InsufficientStorage);
    assert!(freed().await);
    let refused = lab.upload("more", Some("raw"), &vec![2; 7 << 20]).await;
    assert_eq!(common::code(refused), vdisk_service::ErrorCode::InsufficientStorage);
    assert!(freed().await);
    lab.service.delete_image(source.id).await.unwrap();
    lab.upload("fits", Some("raw"), &vec![3; 7 << 20]).await.unwrap();
    lab.service.shutdown(Duration::from_secs(5)).await;
}

/// Somebody else filled the disk to the last byte: images can be deleted all the same, with the room that was kept for this.
async fn full_of_others(small: &Path) {
    let mut config = quick_config(small);
    config.ballast_bytes = 1 << 20;
    let service = Service::open(config).await.unwrap();
    let lab = Lab {
        service,
        dir: tempfile::tempdir().unwrap().into(),
    };
    let mut made = Vec::new();
    for number in 0..4 {
        made.push(lab.create(&format!("disk-{number}"), "raw", 512).await.id);
    }
    let mut filler = std::fs::File::create(small.join("filler")).unwrap();
    while std::io::Write::write_all(&mut filler, &[1; 4096]).is_ok() {}
    // Until the log of the database needs more room than it has.
    let mut tries = 0;
    let labels = |number: u32| json!({"labels": {"a": format!("{number:0200}")}});
    while small.join("ballast").exists() {
        let updated = lab.service.update_image(made[0], json(labels(tries))).await;
        if let Err(error) = updated {
            assert_eq!(error.code, vdisk_service::ErrorCode::InsufficientStorage, "{error:?}");
        }
        tries += 1;
        assert!(tries < 20_000, "the database never needed room");
    }
    for id in made {
        lab.service.delete_image(id).await.unwrap();
    }
    lab.service.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_file_a_dead_job_put_aside_is_not_missing() {
    let lab = reopen(Lab::new().await, 0).await;
    let base = lab
        .upload("base", Some("raw"), &common::sample(1 << 20, 5))
        .await
        .unwrap();
    let overlay = lab.overlay("overlay", base.id).await;
    let commit = json(json!({"drop": true}));
    let job = lab.service.commit_image(overlay.id, commit, &NONE).await.unwrap();
    let file = overlay.id.to_string();
    let Lab { dir, service } = lab;
    service.shutdown(Duration::from_secs(5)).await;
    drop(service);
    // So far it had come, and no further.
    let pool = dir.path().join("pools/default");
    std::fs::rename(pool.join(&file), pool.join(format!(".{file}.trash"))).unwrap();
    let service = open(dir.path(), 0).await.unwrap();
    let lab = Lab { dir, service };
    assert_eq!(lab.service.image(overlay.id).await.unwrap().state, ImageState::Busy);
    lab.service.cancel_job(job.id, &NONE).await.unwrap();
    assert_eq!(lab.service.image(overlay.id).await.unwrap().state, ImageState::Ready);
    assert!(lab.data(overlay.id).await == common::sample(1 << 20, 5));
    lab.assert_tidy().await;
}
