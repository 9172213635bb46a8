//! What must be true when a verb is through, whatever happened on the way.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use vdisk_service::model::{Image, ImageState, JobState};

use crate::common::{NONE, OVERLAY, json};
use crate::images::{SIZE, base, changed, other, sized};
use crate::scene::{Scene, Verb};

/// Everything: what the verb is for, and what always holds.
pub async fn verify(scene: &Scene, failures_wanted: bool) {
    // A step that fails may be one that was to give space back.
    if !failures_wanted {
        no_leaks(scene).await;
    }
    always(scene, failures_wanted).await;
    outcome(scene).await;
    no_leftovers(scene).await;
}

/// What holds at any time between requests.
pub async fn always(scene: &Scene, failures_wanted: bool) {
    let jobs = scene
        .lab()
        .service
        .list_jobs(&Default::default(), &Default::default())
        .await
        .unwrap()
        .items;
    for job in jobs {
        // One whose request got an error for an answer may have been queued all the same.
        let job = scene.lab().finish(job).await;
        let unwanted = job.state == JobState::Failed && !failures_wanted;
        assert!(!unwanted, "a job failed: {job:?}");
    }
    for image in images(scene)
        .await
        .iter()
        .filter(|image| image.state == ImageState::Ready)
    {
        scene.lab().data(image.id).await;
        if image.format == OVERLAY {
            sound(scene, image).await;
        }
    }
    if let Some((name, before, after)) = contents(scene.verb) {
        // What a start could not bring back is missing until the next one.
        if failures_wanted && scene.verb == Verb::Start && is_missing(scene, name).await {
            return;
        }
        let found = content(scene, name).await;
        assert!(
            found == before || found == after,
            "'{name}' has neither the old content nor the new"
        );
    }
}

/// Images that a job wrote into have no space that nobody uses, whatever became of the attempts before the one that succeeded.
async fn no_leaks(scene: &Scene) {
    use Verb::{Commit, CommitDrop, Flatten, Grow, Rebase, RebaseUnsafe, Repair, Shrink};
    if !matches!(
        scene.verb,
        Commit | CommitDrop | Flatten | Rebase | RebaseUnsafe | Grow | Shrink | Repair
    ) {
        return;
    }
    for image in images(scene).await.iter().filter(|image| image.format == OVERLAY) {
        let service = &scene.lab().service;
        let job = service.check_image(image.id, json(json!({})), &NONE).await.unwrap();
        let found = scene.lab().succeed(job).await.result.unwrap();
        assert_eq!(found["leaks"], json!(0), "{image:?}: {found}");
    }
}

/// Files and records go together, and nothing half made lies about.
pub async fn no_leftovers(scene: &Scene) {
    // A request is answered before the last of its locks is let go, a job before its slot is cleared.
    let mut files = leftovers(scene).await;
    for _ in 0..6_000 {
        if files.is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        files = leftovers(scene).await;
    }
    assert!(files.is_empty(), "left over or missing: {files:?}");
}

/// Files that should not be there, and records whose file is not.
pub async fn leftovers(scene: &Scene) -> BTreeSet<String> {
    let files: BTreeSet<String> = scene
        .lab()
        .files()
        .into_iter()
        .filter(|file| file != "found.raw")
        .collect();
    let mut wanted = BTreeSet::new();
    for image in images(scene).await {
        match image.state {
            ImageState::Failed | ImageState::Missing => {}
            ImageState::Uploading => drop(wanted.insert(format!(".{}.upload", image.id))),
            _ => {
                let own = files.iter().find(|file| file.starts_with(&image.id.to_string()));
                // A file that was taken over keeps its name.
                wanted.extend(
                    own.cloned()
                        .or((image.name != "made" && image.name != "found.raw").then(|| image.id.to_string())),
                );
            }
        }
    }
    files.symmetric_difference(&wanted).cloned().collect()
}

/// A death in the middle of a change of snapshots leaves the mark that tells the next writer to count anew; until then the copied flags may
/// lag behind.
async fn sound(scene: &Scene, image: &Image) {
    let service = &scene.lab().service;
    let check = async |request: Value| {
        let job = service.check_image(image.id, json(request), &NONE).await.unwrap();
        scene.lab().succeed(job).await.result.unwrap()
    };
    if service.image_info(image.id).await.unwrap()["dirty-flag"] == json!(true) {
        check(json!({"repair": "all"})).await;
    }
    let found = check(json!({})).await;
    assert_eq!(
        (&found["corruptions"], &found["check-errors"]),
        (&json!(0), &json!(0)),
        "{image:?}: {found}"
    );
}

/// The image that a verb changes in place, what it shows before and after.
fn contents(verb: Verb) -> Option<(&'static str, Vec<u8>, Vec<u8>)> {
    Some(match verb {
        Verb::SnapshotCreate | Verb::SnapshotDelete => ("disk", base(), base()),
        Verb::SnapshotApply => ("disk", changed(), base()),
        Verb::Compress | Verb::Check | Verb::Repair => ("disk", changed(), changed()),
        Verb::Rebase | Verb::Commit | Verb::Flatten => ("overlay", changed(), changed()),
        Verb::RebaseUnsafe => ("overlay", changed(), unsafe_rebased()),
        Verb::Grow => ("disk", changed(), sized(changed(), SIZE * 2)),
        Verb::Shrink => ("disk", changed(), sized(changed(), SIZE / 2)),
        Verb::Start => ("kept", base(), base()),
        Verb::Decrypt | Verb::KeyAdd | Verb::KeyChange | Verb::KeyErase | Verb::RotateMasterKey => {
            ("closed", base(), base())
        }
        Verb::Cancel | Verb::Steer | Verb::HandBack | Verb::ConvertQcow2 => ("base", base(), base()),
        Verb::ConvertRaw | Verb::ConvertCompressed => ("overlay", changed(), changed()),
        Verb::ConvertOnto | Verb::Compare => ("changed", changed(), changed()),
        _ => return None,
    })
}

/// The overlay holds what differs from the base; elsewhere the other base shows through.
fn unsafe_rebased() -> Vec<u8> {
    let mut bytes = other();
    bytes[SIZE / 4..SIZE * 5 / 8].copy_from_slice(&changed()[SIZE / 4..SIZE * 5 / 8]);
    bytes
}

async fn outcome(scene: &Scene) {
    match scene.verb {
        Verb::Create | Verb::CreateFails | Verb::CreatePreallocated => {
            assert!(content(scene, "made").await == vec![0; SIZE]);
        }
        Verb::CreateOverlay
        | Verb::Upload
        | Verb::UploadInParts
        | Verb::UploadDamaged
        | Verb::UploadNotRecorded
        | Verb::Import => {
            assert!(content(scene, "made").await == base());
        }
        Verb::ImportConverted
        | Verb::ImportFetched
        | Verb::ConvertQcow2
        | Verb::Steer
        | Verb::HandBack
        | Verb::Encrypt
        | Verb::Decrypt => {
            assert!(content(scene, "made").await == base());
        }
        Verb::Update => {
            let image = named(scene, "renamed").await.unwrap();
            assert_eq!(image.labels.get("a").map(String::as_str), Some("b"));
        }
        Verb::UploadRefused => assert_eq!(named(scene, "made").await.unwrap().state, ImageState::Failed),
        Verb::Delete | Verb::DeleteFails => assert!(named(scene, "base").await.is_none()),
        Verb::SnapshotCreate | Verb::SnapshotDelete | Verb::SnapshotApply => {
            let snapshots = scene.lab().service.snapshots(scene.id("disk")).await.unwrap();
            assert_eq!(snapshots.len(), usize::from(scene.verb != Verb::SnapshotDelete));
        }
        Verb::Scan => assert!(content(scene, "found.raw").await == base()),
        Verb::ConvertRaw | Verb::ConvertCompressed | Verb::ConvertOnto => {
            assert!(content(scene, "made").await == changed())
        }
        Verb::Cancel => {
            // Cancelled, or through before it heard of it.
            let jobs = scene
                .lab()
                .service
                .list_jobs(&Default::default(), &Default::default())
                .await
                .unwrap()
                .items;
            let made = jobs
                .iter()
                .any(|job| job.state == JobState::Succeeded && job.request["name"] == "made");
            assert_eq!(named(scene, "made").await.is_some(), made);
        }
        Verb::Secret => {
            let secrets = scene
                .lab()
                .service
                .list_secrets(&Default::default())
                .await
                .unwrap()
                .items;
            assert_eq!(
                secrets.iter().map(|secret| secret.name.as_str()).collect::<Vec<_>>(),
                ["new"]
            );
        }
        Verb::Token => {
            let tokens = scene
                .lab()
                .service
                .list_tokens(&Default::default())
                .await
                .unwrap()
                .items;
            assert_eq!(
                tokens.iter().map(|token| token.name.as_str()).collect::<Vec<_>>(),
                ["kept"]
            );
        }
        Verb::Audit => {
            let entries = scene.lab().service.list_audit(&Default::default()).await.unwrap().items;
            let mut rounds: Vec<u32> = entries.iter().filter_map(|entry| entry.target.parse().ok()).collect();
            // Round 0 is that of a process that died and of the one after it.
            rounds.retain(|round| *round > 0);
            rounds.sort_unstable();
            let last = rounds.last().copied().unwrap_or(0);
            assert_eq!(
                rounds,
                (1..=last).collect::<Vec<_>>(),
                "entries are lost or there twice"
            );
        }
        Verb::Webhook | Verb::WebhookDown => assert_eq!(scene.lab().service.list_webhooks().await.unwrap().len(), 1),
        Verb::Start => {
            assert_eq!(named(scene, "gone").await.unwrap().state, ImageState::Missing);
            assert_eq!(named(scene, "kept").await.unwrap().state, ImageState::Ready);
        }
        _ => in_place(scene).await,
    }
}

async fn in_place(scene: &Scene) {
    if let Some((name, _, after)) = contents(scene.verb) {
        assert!(content(scene, name).await == after, "'{name}' has not the new content");
    }
    let backing = async |name: &str| named(scene, name).await.unwrap().backing_id;
    match scene.verb {
        Verb::Rebase | Verb::RebaseUnsafe => assert_eq!(backing("overlay").await, Some(scene.id("other"))),
        Verb::Flatten => assert_eq!(backing("overlay").await, None),
        Verb::KeyAdd | Verb::KeyChange | Verb::KeyErase => keys(scene).await,
        Verb::RotateMasterKey => {
            assert!(
                !scene.lab().dir.path().join("master.key.next").exists(),
                "two master keys"
            );
        }
        Verb::Commit | Verb::CommitDrop => {
            assert!(content(scene, "base").await == changed());
            assert_eq!(named(scene, "overlay").await.is_some(), scene.verb == Verb::Commit);
        }
        Verb::Repair => {
            let job = scene
                .lab()
                .service
                .check_image(scene.id("disk"), json(json!({})), &NONE)
                .await
                .unwrap();
            assert_eq!(scene.lab().succeed(job).await.result.unwrap()["clean"], true);
        }
        _ => {}
    }
}

/// How many keys open the image, and which one it names.
async fn keys(scene: &Scene) {
    let image = named(scene, "closed").await.unwrap();
    let info = scene.lab().service.image_info(image.id).await.unwrap();
    let slots = info["format-specific"]["data"]["slots"].as_array().unwrap();
    let active = slots.iter().filter(|slot| slot["active"] == true).count();
    assert_eq!(active, if scene.verb == Verb::KeyAdd { 2 } else { 1 }, "{info}");
    let own = if scene.verb == Verb::KeyChange { "new" } else { "key" };
    assert_eq!(image.secrets["key-secret"], scene.id(own));
}

async fn images(scene: &Scene) -> Vec<Image> {
    scene
        .lab()
        .service
        .list_images(&Default::default(), &Default::default())
        .await
        .unwrap()
        .items
}

async fn named(scene: &Scene, name: &str) -> Option<Image> {
    images(scene).await.into_iter().find(|image| image.name == name)
}

async fn is_missing(scene: &Scene, name: &str) -> bool {
    let image = named(scene, name).await;
    image.is_some_and(|image| image.state == ImageState::Missing)
}

async fn content(scene: &Scene, name: &str) -> Vec<u8> {
    let image = named(scene, name).await.unwrap_or_else(|| panic!("no image '{name}'"));
    assert_eq!(image.state, ImageState::Ready, "{image:?}");
    scene.lab().data(image.id).await
}
