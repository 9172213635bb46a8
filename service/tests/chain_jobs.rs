//! Jobs that change chains in place: what holds when they end on the way, and what they refuse.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends")]

mod common;

use std::time::Duration;

use common::{Lab, MIB, NONE, OVERLAY, code, json, sample};
use serde_json::{Value, json};
use vdisk_service::model::{ImageId, Job, JobState, LossKind};
use vdisk_service::request::JobRequest;
use vdisk_service::{ErrorCode, Result, Service, ServiceConfig};

/// A raw base, and an overlay on it that shows other bytes all over.
struct Pair {
    lab: Lab,
    base: ImageId,
    overlay: ImageId,
    below: Vec<u8>,
    above: Vec<u8>,
}

impl Pair {
    async fn new() -> Self {
        let lab = Lab::new().await;
        let (below, above) = (vec![0x11; 4 << 20], vec![0x22; 4 << 20]);
        let base = lab.upload("base", Some("raw"), &below).await.unwrap().id;
        let source = lab.upload("source", Some("raw"), &above).await.unwrap().id;
        let request = json(json!({"name": "overlay", "format": OVERLAY, "backing": base}));
        let job = lab.service.convert_image(source, request, &NONE).await.unwrap();
        let overlay = lab.succeed(job).await.result_image_id().unwrap();
        Self {
            lab,
            base,
            overlay,
            below,
            above,
        }
    }

    /// The same, served by another start of the service.
    async fn with_workers(self, workers: usize) -> Self {
        let Lab { dir, service } = self.lab;
        service.shutdown(Duration::ZERO).await;
        drop(service);
        let config = ServiceConfig {
            workers,
            ..common::quick_config(dir.path())
        };
        let service = Service::open(config).await.unwrap();
        let lab = Lab { dir, service };
        Self { lab, ..self }
    }

    async fn commit(&self, request: Value) -> Result<Job> {
        self.lab.service.commit_image(self.overlay, json(request), &NONE).await
    }

    async fn generation(&self, image: ImageId) -> u64 {
        self.lab.service.image(image).await.unwrap().generation
    }

    async fn protect(&self, image: ImageId) {
        let protected = json(json!({"protected": true}));
        self.lab.service.update_image(image, protected).await.unwrap();
    }

    /// Waits until a job has written something.
    async fn under_way(&self, job: &Job) {
        while self.lab.service.job(job.id).await.unwrap().progress.done_bytes == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_a_cancelled_commit_has_written_to_is_another_image() {
    let pair = Pair::new().await;
    let before = pair.generation(pair.base).await;
    let job = pair.commit(json!({"drop": true, "rate_limit": MIB})).await.unwrap();
    pair.under_way(&job).await;
    pair.lab.service.cancel_job(job.id, &NONE).await.unwrap();
    let ended = pair.lab.finish(job).await;
    assert_eq!(ended.state, JobState::Cancelled);
    assert!(ended.steps.iter().any(|step| step.text.starts_with("ended on the way")));
    let now = pair.lab.data(pair.base).await;
    assert!(
        now != pair.below && now != pair.above,
        "the commit was not met on its way"
    );
    assert!(pair.generation(pair.base).await > before);
    assert!(pair.lab.data(pair.overlay).await == pair.above);
    // What others write to the base is noticed again.
    let file = pair.lab.pool().join(pair.base.to_string());
    std::fs::write(file, &pair.below).unwrap();
    let refused = pair.lab.service.read_data(pair.overlay, None).await.map(drop);
    assert_eq!(code(refused), ErrorCode::BaseChanged);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_makes_one_new_generation_of_the_base_and_none_of_the_overlay() {
    let pair = Pair::new().await;
    let before = (pair.generation(pair.base).await, pair.generation(pair.overlay).await);
    let job = pair.commit(json!({})).await.unwrap();
    pair.lab.succeed(job).await;
    let after = (pair.generation(pair.base).await, pair.generation(pair.overlay).await);
    assert_eq!(after, (before.0 + 1, before.1));
    assert!(pair.lab.data(pair.overlay).await == pair.above && pair.lab.data(pair.base).await == pair.above);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_internal_snapshots_take_from_below_is_not_changed_under_them() {
    let lab = Lab::new().await;
    let bytes = sample(1 << 20, 5);
    let base = lab.upload("base", Some("raw"), &bytes).await.unwrap().id;
    let other = lab.create("other", "raw", MIB).await.id;
    let overlay = lab.overlay("overlay", base).await.id;
    let service = &lab.service;
    service.create_snapshot(overlay, "before", &NONE).await.unwrap();
    let flatten = service
        .flatten_image(overlay, json(json!({"verify": true})), &NONE)
        .await;
    assert_eq!(lab.fail(flatten.unwrap()).await, ErrorCode::Unsupported);
    let rebase = service
        .rebase_image(overlay, json(json!({"backing": other})), &NONE)
        .await;
    assert_eq!(lab.fail(rebase.unwrap()).await, ErrorCode::Unsupported);
    let commit = service.commit_image(overlay, json(json!({})), &NONE).await;
    assert_eq!(lab.fail(commit.unwrap()).await, ErrorCode::Unsupported);
    for request in [
        JobRequest::Flatten(overlay, json(json!({}))),
        JobRequest::Rebase(overlay, json(json!({"backing": other}))),
        JobRequest::Commit(overlay, json(json!({}))),
    ] {
        assert_eq!(code(service.plan_job(request).await), ErrorCode::Unsupported);
    }
    service.apply_snapshot(overlay, "before", &NONE).await.unwrap();
    assert!(lab.data(overlay).await == bytes);
    // Snapshots that go with their image are said.
    let plan = service.plan_job(JobRequest::Commit(overlay, json(json!({"drop": true}))));
    let losses: Vec<_> = plan
        .await
        .unwrap()
        .losses
        .iter()
        .map(|loss| (loss.kind, loss.image_id))
        .collect();
    assert!(losses.contains(&(LossKind::Snapshots, overlay)), "{losses:?}");
    service.delete_snapshot(overlay, "before").await.unwrap();
    let flatten = service.flatten_image(overlay, json(json!({})), &NONE).await;
    lab.succeed(flatten.unwrap()).await;
    assert!(lab.data(overlay).await == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_was_protected_while_a_job_waited_is_not_changed() {
    for of_base in [true, false] {
        let pair = Pair::new().await.with_workers(0).await;
        let protected = if of_base { pair.base } else { pair.overlay };
        let job = pair.commit(json!({"drop": true})).await.unwrap();
        pair.protect(protected).await;
        let pair = pair.with_workers(2).await;
        assert_eq!(pair.lab.fail(job).await, ErrorCode::ImageProtected);
        assert!(pair.lab.data(pair.base).await == pair.below && pair.lab.data(pair.overlay).await == pair.above);
    }
}

/// The header names the new base when the process ends, and the job is cancelled before anybody goes on with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebase_that_nobody_goes_on_with_goes_back_to_the_base_on_record() {
    let pair = Pair::new().await;
    let other = pair.lab.create("other", "raw", 4 * MIB).await.id;
    let request = json(json!({"backing": other, "verify": true, "rate_limit": 2 * MIB}));
    let job = pair
        .lab
        .service
        .rebase_image(pair.overlay, request, &NONE)
        .await
        .unwrap();
    let compares = async || {
        let steps = pair.lab.service.job(job.id).await.unwrap().steps;
        steps.iter().any(|step| step.text.starts_with("comparing"))
    };
    while !compares().await {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let pair = pair.with_workers(0).await;
    assert!(!pair.lab.service.cancel_job(job.id, &NONE).await.unwrap().is_finished());
    let pair = pair.with_workers(2).await;
    assert_eq!(pair.lab.finish(job).await.state, JobState::Cancelled);
    assert_eq!(
        pair.lab.service.image(pair.overlay).await.unwrap().backing_id,
        Some(pair.base)
    );
    assert!(pair.lab.data(pair.overlay).await == pair.above);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_that_was_protected_during_a_commit_is_not_dropped() {
    let pair = Pair::new().await;
    let job = pair.commit(json!({"drop": true, "rate_limit": 2 * MIB})).await.unwrap();
    pair.under_way(&job).await;
    pair.protect(pair.overlay).await;
    assert_eq!(pair.lab.fail(job).await, ErrorCode::ImageProtected);
    assert!(pair.lab.data(pair.overlay).await == pair.above && pair.lab.data(pair.base).await == pair.above);
    assert_eq!(code(pair.commit(json!({})).await), ErrorCode::ImageProtected);
}

/// A commit on its way through two overlays that know their base by an id, which changes with its content.
async fn commit_under_way() -> (Pair, Job) {
    let lab = Lab::new().await;
    let above = vec![0x22; 4 << 20];
    let source = lab.upload("source", Some("raw"), &above).await.unwrap().id;
    let base = lab.create("base", "vmdk", 4 * MIB).await.id;
    let mut overlay = base;
    for name in ["middle", "top"] {
        let request = json(json!({"name": name, "format": "vmdk"}));
        let job = lab.service.convert_image(source, request, &NONE).await.unwrap();
        let made = lab.succeed(job).await.result_image_id().unwrap();
        let request = json(json!({"backing": overlay}));
        let job = lab.service.rebase_image(made, request, &NONE).await.unwrap();
        lab.succeed(job).await;
        overlay = made;
    }
    let pair = Pair {
        below: vec![0; 4 << 20],
        lab,
        base,
        overlay,
        above,
    };
    let request = json!({"base": base, "drop": true, "rate_limit": MIB});
    let job = pair.commit(request).await.unwrap();
    pair.under_way(&job).await;
    (pair, job)
}

#[tokio::test(flavor = "multi_thread")]
async fn overlays_that_know_their_base_by_an_id_open_after_a_cancelled_commit() {
    let (pair, job) = commit_under_way().await;
    pair.lab.service.cancel_job(job.id, &NONE).await.unwrap();
    assert_eq!(pair.lab.finish(job).await.state, JobState::Cancelled);
    assert!(
        pair.lab.data(pair.base).await != pair.below,
        "the commit was not met on its way"
    );
    assert!(pair.lab.data(pair.overlay).await == pair.above);
}

/// A worker that dies leaves the base with another id; so does the other tool here.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_goes_on_over_a_base_that_its_overlay_does_not_know_any_more() {
    for cancelled in [false, true] {
        let (pair, job) = commit_under_way().await;
        let pair = pair.with_workers(0).await;
        if !pair.lab.qemu_io(&pair.base.to_string(), "vmdk", "write -P 0x22 0 4k") {
            return;
        }
        let faster = json(json!({"rate_limit": 0}));
        pair.lab.service.update_job(job.id, faster).await.unwrap();
        if cancelled {
            pair.lab.service.cancel_job(job.id, &NONE).await.unwrap();
        }
        let pair = pair.with_workers(2).await;
        if cancelled {
            assert_eq!(pair.lab.finish(job).await.state, JobState::Cancelled);
            assert!(pair.lab.data(pair.overlay).await == pair.above);
        } else {
            pair.lab.succeed(job).await;
            assert!(pair.lab.data(pair.base).await == pair.above);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsafe_rebase_takes_a_base_that_was_changed_by_others_whatever_its_id() {
    let lab = Lab::new().await;
    let base = lab.create("base", "vmdk", MIB).await.id;
    let overlay = lab.create("overlay", "vmdk", MIB).await.id;
    let request = json(json!({"backing": base}));
    let job = lab.service.rebase_image(overlay, request, &NONE).await.unwrap();
    lab.succeed(job).await;
    if !lab.qemu_io(&base.to_string(), "vmdk", "write -P 7 0 64k") {
        return;
    }
    assert_eq!(code(lab.service.read_data(overlay, None).await), ErrorCode::BaseChanged);
    let request = json(json!({"backing": base, "mode": "unsafe"}));
    let job = lab.service.rebase_image(overlay, request, &NONE).await.unwrap();
    lab.succeed(job).await;
    assert_eq!(lab.data(overlay).await.len(), MIB as usize);
}

#[tokio::test(flavor = "multi_thread")]
async fn overlays_that_take_the_identity_of_their_base_are_made_in_one_step() {
    for format in ["vmdk", "vhdx"] {
        let lab = Lab::new().await;
        let (below, above) = (vec![0x11; 4 << 20], vec![0x22; 4 << 20]);
        let convert = async |bytes: &[u8], name: &str, backing: Option<ImageId>| {
            let source = lab.upload(&format!("of-{name}"), Some("raw"), bytes).await.unwrap().id;
            let request = json(json!({"name": name, "format": format, "backing": backing}));
            let job = lab.service.convert_image(source, request, &NONE).await.unwrap();
            lab.succeed(job).await.result_image_id().unwrap()
        };
        let base = convert(&below, "base", None).await;
        let request = json(json!({"name": "overlay", "format": format, "backing": base}));
        let overlay = lab.service.create_image(request, &NONE).await.unwrap().id;
        assert!(lab.data(overlay).await == below, "{format}");
        let copy = convert(&above, "copy", Some(overlay)).await;
        assert!(
            lab.data(copy).await == above && lab.data(overlay).await == below,
            "{format}"
        );
        assert_eq!(lab.service.image_chain(copy).await.unwrap().len(), 3);
    }
}

/// An image with these bytes over a base, or over none.
async fn converted(lab: &Lab, bytes: &[u8], request: Value) -> ImageId {
    let name = format!("of-{}", request["name"].as_str().unwrap());
    let source = lab.upload(&name, Some("raw"), bytes).await.unwrap().id;
    let job = lab.service.convert_image(source, json(request), &NONE).await.unwrap();
    lab.succeed(job).await.result_image_id().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_a_base_shows_on_its_first_one_what_it_showed() {
    for compat in ["0.10", "1.1"] {
        let lab = Lab::new().await;
        let mut bytes = vec![0; 4 << 20];
        bytes[65_536..131_072].fill(1);
        let request = json!({"name": "alone", "format": "qcow2", "options": {"compat": compat}});
        let alone = converted(&lab, &bytes, request).await;
        let base = lab.upload("base", Some("raw"), &vec![9; 4 << 20]).await.unwrap().id;
        let request = json(json!({"backing": base}));
        let job = lab.service.rebase_image(alone, request, &NONE).await.unwrap();
        lab.succeed(job).await;
        assert!(lab.data(alone).await == bytes, "{compat}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_of_an_image_that_was_committed_shows_what_it_showed() {
    let formats = ["qcow2", "qcow", "qed", "vmdk", "vhdx", "vpc"];
    let each = formats.map(|format| (format, false, false));
    for (format, empty, verify) in each.into_iter().chain([("vhdx", true, false), ("vhdx", false, true)]) {
        let lab = Lab::new().await;
        // A size that a VHD can have, too.
        let (below, above) = (vec![0x11; 4_212_736], vec![0x22; 4_212_736]);
        let request = json!({"name": "base", "format": format});
        let base = converted(&lab, &below, request).await;
        let request = json!({"name": "middle", "format": format, "backing": base});
        let middle = match empty {
            true => lab.service.create_image(json(request), &NONE).await.unwrap().id,
            false => converted(&lab, &above, request).await,
        };
        let request = json(json!({"name": "top", "format": format, "backing": middle}));
        let top = lab.service.create_image(request, &NONE).await.unwrap().id;
        let shown = lab.data(top).await;
        let request = json(json!({"verify": verify}));
        let job = lab.service.commit_image(middle, request, &NONE).await.unwrap();
        lab.succeed(job).await;
        for image in [base, middle, top] {
            assert!(
                lab.data(image).await == shown,
                "{format}, empty: {empty}, verify: {verify}"
            );
        }
    }
}

/// The layers of a new stack, the top first.
async fn stack(lab: &Lab, name: &str, layers: usize) -> Vec<ImageId> {
    let mut stack = vec![lab.create(name, OVERLAY, MIB).await.id];
    for number in 1..layers {
        let overlay = lab.overlay(&format!("{name}-{number}"), stack[0]).await;
        stack.insert(0, overlay.id);
    }
    stack
}

#[tokio::test(flavor = "multi_thread")]
async fn no_chain_gets_deeper_than_is_allowed() {
    let lab = Lab::with(|config| config.limits.chain_depth = 4).await;
    let (upper, lower, full) = (
        stack(&lab, "u", 3).await,
        stack(&lab, "l", 2).await,
        stack(&lab, "f", 4).await,
    );
    let rebase = |backing: ImageId| json(json!({"backing": backing}));
    let service = &lab.service;
    let refused = service.rebase_image(upper[2], rebase(lower[0]), &NONE).await;
    assert_eq!(code(refused), ErrorCode::LimitExceeded);
    let onto = |name: &str, backing: ImageId| json(json!({"name": name, "format": OVERLAY, "backing": backing}));
    let refused = service.convert_image(lower[0], onto("copy", full[0]), &NONE).await;
    assert_eq!(code(refused), ErrorCode::LimitExceeded);
    // One less is as deep as it may be.
    let job = service.rebase_image(upper[2], rebase(lower[1]), &NONE).await.unwrap();
    lab.succeed(job).await;
    assert_eq!(service.image_chain(upper[0]).await.unwrap().len(), 4);
    let job = service
        .convert_image(lower[0], onto("copy", full[1]), &NONE)
        .await
        .unwrap();
    let copy = lab.succeed(job).await.result_image_id().unwrap();
    assert_eq!(service.image_chain(copy).await.unwrap().len(), 4);
    lab.data(copy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_beside_each_other_register_every_file_once() {
    let lab = Lab::new().await;
    for number in 0..60 {
        std::fs::write(lab.pool().join(format!("disk{number}.raw")), vec![1; 512]).unwrap();
    }
    let (one, two) = (
        lab.service.scan_pool("default", &NONE).await.unwrap(),
        lab.service.scan_pool("default", &NONE).await.unwrap(),
    );
    let mut registered = 0;
    for job in [one, two] {
        let result = lab.succeed(job).await.result.unwrap();
        assert_eq!(result["skipped"], json!([]));
        registered += result["registered"].as_array().unwrap().len();
    }
    assert_eq!(registered, 60);
}
