//! What does not fit in a pool is refused before anything is written.

use std::path::Path;
use std::time::Duration;

use e2e::small_disk::SmallDisk;
use serde_json::{Value, json};
use vdisk_service::model::ImageId;

use crate::NONE;
use crate::common::{Lab, MIB, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_does_not_fit_is_refused_before_it_writes() {
    let place = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&place.path().join("small"), 16) else {
        return;
    };
    into(disk.path()).await;
}

async fn into(small: &Path) {
    let pools = |config: &mut vdisk_service::ServiceConfig| {
        let default = config.data_dir.join("pools/default");
        config.pools = [("default".to_owned(), default), ("small".to_owned(), small.to_owned())].into();
    };
    let lab = Lab::with(pools).await;
    let empty = lab.create("empty", "raw", 64 * MIB).await.id;
    let free = lab.service.pool("small").await.unwrap().free;
    // All but 64 KiB of the pool: data that fits, in a file with tables that does not.
    let len = (free / (64 << 10) - 1) * (64 << 10);
    let full = lab
        .upload("full", Some("raw"), &vec![b'x'; len as usize])
        .await
        .unwrap()
        .id;
    for (source, format, options) in [
        (empty, "raw", json!({"preallocation": "full"})),
        (empty, "raw", json!({"preallocation": "falloc"})),
        (empty, "qcow2", json!({"preallocation": "full"})),
        (full, "qcow2", json!({})),
        (full, "qcow2", json!({"cluster_size": "512"})),
        (full, "qed", json!({})),
        (full, "vdi", json!({})),
        (full, "vhdx", json!({})),
        (full, "vmdk", json!({})),
        (full, "parallels", json!({})),
    ] {
        refused(
            &lab,
            source,
            json!({"name": "x", "pool": "small", "format": format, "options": options}),
        )
        .await;
    }
    let request = json!({"name": "fits", "pool": "small", "format": "raw"});
    let job = lab.service.convert_image(full, json(request), &NONE).await.unwrap();
    lab.succeed(job).await;
    lab.service.shutdown(Duration::from_secs(5)).await;
}

async fn refused(lab: &Lab, source: ImageId, request: Value) {
    let job = lab
        .service
        .convert_image(source, json(request.clone()), &NONE)
        .await
        .unwrap();
    let job = lab.finish(job).await;
    let error = job.error.unwrap_or_else(|| panic!("{request} succeeded"));
    assert_eq!(error.code(), vdisk_service::ErrorCode::InsufficientStorage, "{request}");
    // The step that is noted when there is room.
    assert!(
        job.steps.iter().all(|step| step.text != "copying"),
        "{request}: {:?}",
        job.steps
    );
}
