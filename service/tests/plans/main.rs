//! Dry runs: what is foreseen holds when the job is run, and nothing is changed by asking.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends")]

mod bounds;
#[path = "../common/mod.rs"]
mod common;
mod small_pool;

use common::{Lab, MIB, NONE, OVERLAY, code, import, json, sample};
use serde_json::{Value, json};
use vdisk_service::ErrorCode;
use vdisk_service::model::{Amount, Bound, Image, ImageId, Job, JobPlan, LossKind};
use vdisk_service::request::{ImportSource, JobRequest};

/// Data in every other 64 KiB.
const DATA: u64 = 2 * MIB;
const SIZE: u64 = 4 * MIB;

struct Images {
    lab: Lab,
    base: ImageId,
    overlay: ImageId,
    packed: ImageId,
}

/// A raw base, an overlay that holds one MiB of its own, and a qcow2 image with the base's content.
async fn images() -> Images {
    let lab = Lab::new().await;
    let bytes = sample(SIZE as usize, 1);
    let mut changed = bytes.clone();
    changed[..MIB as usize].fill(7);
    let base = lab.upload("base", Some("raw"), &bytes).await.unwrap().id;
    let other = lab.upload("changed", Some("raw"), &changed).await.unwrap().id;
    let convert = async |id, request: Value| {
        let job = lab.service.convert_image(id, json(request), &NONE).await.unwrap();
        lab.succeed(job).await.result_image_id().unwrap()
    };
    let overlay = convert(other, json!({"name": "overlay", "format": OVERLAY, "backing": base})).await;
    let packed = convert(base, json!({"name": "packed", "format": OVERLAY})).await;
    lab.service.delete_image(other).await.unwrap();
    Images {
        lab,
        base,
        overlay,
        packed,
    }
}

impl Images {
    /// The plan; asking leaves no trace.
    async fn plan(&self, request: JobRequest) -> JobPlan {
        let before = self.traces().await;
        let plan = self.lab.service.plan_job(request).await.unwrap();
        assert_eq!(self.traces().await, before);
        assert!(plan.space_free.is_some_and(|free| free > 0));
        plan
    }

    async fn traces(&self) -> (Vec<String>, usize, String) {
        let service = &self.lab.service;
        let jobs = service
            .list_jobs(&Default::default(), &Default::default())
            .await
            .unwrap()
            .items
            .len();
        let images = service
            .list_images(&Default::default(), &Default::default())
            .await
            .unwrap()
            .items;
        (self.lab.files(), jobs, format!("{images:?}"))
    }

    async fn image(&self, id: ImageId) -> Image {
        self.lab.service.image(id).await.unwrap()
    }

    async fn run(&self, job: vdisk_service::Result<Job>) -> Job {
        self.lab.succeed(job.unwrap()).await
    }
}

/// What came out is what was foreseen.
fn assert_holds(foreseen: Option<Amount>, found: u64) {
    let amount = foreseen.expect("a number");
    match amount.bound {
        Bound::Exact => assert_eq!(found, amount.bytes),
        Bound::AtMost => assert!(found <= amount.bytes, "{found} > {}", amount.bytes),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn converts_are_foreseen() {
    let images = images().await;
    for (format, compress, backing, read) in [
        ("raw", false, None, Amount::exact(DATA)),
        (OVERLAY, false, None, Amount::exact(DATA)),
        (OVERLAY, true, None, Amount::exact(DATA)),
        ("vmdk", false, None, Amount::exact(DATA)),
        (OVERLAY, false, Some(images.base), Amount::at_most(2 * DATA)),
    ] {
        let name = format!("{format}-{compress}-{}", backing.is_some());
        let request = json!({"name": name, "format": format, "compress": compress, "backing": backing});
        let plan = images
            .plan(JobRequest::Convert(images.packed, json(request.clone())))
            .await;
        assert_eq!(plan.read, Some(read), "{name}");
        assert!(plan.losses.is_empty(), "{name}: {plan:?}");
        let job = images
            .run(
                images
                    .lab
                    .service
                    .convert_image(images.packed, json(request), &NONE)
                    .await,
            )
            .await;
        let made = images.image(job.result_image_id().unwrap()).await;
        assert_holds(plan.target_size, made.file_size);
        assert_holds(plan.space_needed, made.allocated_size);
    }
    let exact = images
        .plan(JobRequest::Convert(
            images.packed,
            json(json!({"name": "r", "format": "raw"})),
        ))
        .await;
    assert_eq!(exact.target_size, Some(Amount::exact(SIZE)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_convert_loses_is_said() {
    let images = images().await;
    images
        .lab
        .service
        .create_snapshot(images.packed, "s1", &NONE)
        .await
        .unwrap();
    let request = json(json!({"name": "copy", "format": OVERLAY}));
    let plan = images.plan(JobRequest::Convert(images.packed, request)).await;
    let losses: Vec<_> = plan.losses.iter().map(|loss| (loss.kind, loss.image_id)).collect();
    assert_eq!(losses, [(LossKind::Snapshots, images.packed)]);
    // Compressing in place would lose it too, and is refused, before as after.
    let request = json(json!({"algorithm": "zlib"}));
    let refused = images
        .lab
        .service
        .plan_job(JobRequest::Compress(images.packed, request))
        .await;
    assert_eq!(code(refused), ErrorCode::Unsupported);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_in_place_are_foreseen() {
    let images = images().await;
    let service = &images.lab.service;
    let request = json!({"algorithm": "zlib"});
    let plan = images
        .plan(JobRequest::Compress(images.packed, json(request.clone())))
        .await;
    assert_eq!(plan.read, Some(Amount::exact(DATA)));
    images
        .run(service.compress_image(images.packed, json(request), &NONE).await)
        .await;
    assert_holds(plan.target_size, images.image(images.packed).await.file_size);

    let request = json!({"virtual_size": 2 * SIZE});
    let plan = images
        .plan(JobRequest::Resize(images.packed, json(request.clone())))
        .await;
    images
        .run(service.resize_image(images.packed, json(request), &NONE).await)
        .await;
    assert_holds(plan.target_size, images.image(images.packed).await.file_size);
    let shrink = json(json!({"virtual_size": MIB, "shrink": true}));
    let plan = images.plan(JobRequest::Resize(images.packed, shrink)).await;
    assert_eq!(plan.losses[0].kind, LossKind::Data);
    assert!(
        plan.losses[0].detail.starts_with(&format!("{} bytes", 3 * MIB / 2)),
        "{plan:?}"
    );

    let plan = images.plan(JobRequest::Check(images.packed, json(json!({})))).await;
    assert_eq!(plan.write, Some(Amount::exact(0)));
    let request = json(json!({"other": images.overlay}));
    let plan = images.plan(JobRequest::Compare(images.base, request)).await;
    assert_eq!((plan.write, plan.image_ids.len()), (Some(Amount::exact(0)), 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_a_chain_are_foreseen() {
    let images = images().await;
    let service = &images.lab.service;
    let request = json(json!({"backing": images.packed, "mode": "unsafe"}));
    let plan = images.plan(JobRequest::Rebase(images.overlay, request)).await;
    assert_eq!(plan.losses[0].kind, LossKind::Content);
    let request = json!({"backing": images.packed});
    let plan = images
        .plan(JobRequest::Rebase(images.overlay, json(request.clone())))
        .await;
    images
        .run(service.rebase_image(images.overlay, json(request), &NONE).await)
        .await;
    assert_holds(plan.target_size, images.image(images.overlay).await.file_size);

    let request = json!({"drop": true});
    let plan = images.plan(JobRequest::Commit(images.overlay, json(request))).await;
    let losses: Vec<_> = plan.losses.iter().map(|loss| (loss.kind, loss.image_id)).collect();
    assert_eq!(
        losses,
        [(LossKind::Content, images.packed), (LossKind::Image, images.overlay)]
    );
    assert_eq!(plan.write, Some(Amount::at_most(MIB)));
    let plan = images.plan(JobRequest::Commit(images.overlay, json(json!({})))).await;
    images
        .run(service.commit_image(images.overlay, json(json!({})), &NONE).await)
        .await;
    assert_holds(plan.target_size, images.image(images.packed).await.file_size);

    let plan = images.plan(JobRequest::Flatten(images.overlay, json(json!({})))).await;
    images
        .run(service.flatten_image(images.overlay, json(json!({})), &NONE).await)
        .await;
    assert_holds(plan.target_size, images.image(images.overlay).await.file_size);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_to_take_in_are_foreseen_and_requests_refused_as_ever() {
    let images = images().await;
    let service = &images.lab.service;
    std::fs::write(images.lab.pool().join("found.raw"), sample(MIB as usize, 3)).unwrap();
    let plan = images.plan(JobRequest::Scan("default".to_owned())).await;
    assert_eq!(plan.read, Some(Amount::at_most(MIB)));
    let request = |source| import("taken", Some("raw"), source);
    let file = request(ImportSource::PoolFile("found.raw".to_owned()));
    let plan = images.plan(JobRequest::Import(file)).await;
    assert_eq!(
        (plan.target_size, plan.write),
        (Some(Amount::exact(MIB)), Some(Amount::exact(0)))
    );
    let upload = service
        .plan_job(JobRequest::Import(request(ImportSource::Upload(true))))
        .await;
    assert_eq!(code(upload), ErrorCode::InvalidArgument);
    let taken = json(json!({"name": "base", "format": "raw"}));
    assert_eq!(
        code(service.plan_job(JobRequest::Convert(images.packed, taken)).await),
        ErrorCode::NameTaken
    );
    let nobody = json(json!({"name": "x", "format": "raw"}));
    assert_eq!(
        code(service.plan_job(JobRequest::Convert(uuid::Uuid::nil(), nobody)).await),
        ErrorCode::NotFound
    );
}
