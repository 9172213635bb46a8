//! What does not fit in a pool is refused before anything is written.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use vdisk_service::model::ImageId;

use crate::NONE;
use crate::common::{Lab, MIB, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_does_not_fit_is_refused_before_it_writes() {
    let mount = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"])
        .arg(mount.path())
        .status();
    let small = mount.path().to_owned();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("skipped: a tmpfs cannot be mounted here");
        return;
    }
    let outcome = tokio::spawn(async move { into(&small).await }).await;
    Command::new("umount").arg(mount.path()).status().unwrap();
    outcome.unwrap();
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
