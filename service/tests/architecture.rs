//! What this crate must not do, checked in its sources.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::path::{Path, PathBuf};

use vdisk_service::request::{Call, UploadPart, WaitUntil};
use vdisk_service::{Bytes, Service};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn it_knows_no_transport() {
    let manifest = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    for foreign in ["axum", "tonic", "prost", "tower", "hyper", "\nhttp"] {
        assert!(!manifest.contains(foreign), "the service depends on {foreign}");
    }
}

#[test]
fn all_sql_is_in_the_store() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 50);
    for file in files.iter().filter(|file| !file.starts_with(root.join("store"))) {
        let text = std::fs::read_to_string(file).unwrap();
        assert!(
            !text.contains("sqlx::"),
            "{} talks to the database itself",
            file.display()
        );
    }
}

#[test]
fn images_are_opened_in_one_place() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        assert!(
            !code.contains("FileStorage::open("),
            "{} opens a file by path",
            file.display()
        );
        assert!(
            !code.contains("FileStorage::create_new("),
            "{} creates a file by path",
            file.display()
        );
    }
}

/// Both transports run handlers on any thread: the futures of the service must be able to move.
#[test]
fn its_futures_can_move_between_threads() {
    fn movable<T: Send>(_: impl FnOnce(&Service) -> T) {}
    fn request<T: serde::de::DeserializeOwned>() -> T {
        serde_json::from_str("{}").unwrap()
    }
    static CALL: Call = Call { idempotency_key: None };
    let id = uuid::Uuid::nil();
    movable(move |s| {
        let s = s.clone();
        async move { s.convert_image(id, request(), &CALL).await }
    });
    movable(move |s| {
        let s = s.clone();
        async move { s.import_image(request(), &CALL).await }
    });
    movable(move |s| {
        let s = s.clone();
        async move { s.create_image(request(), &CALL).await }
    });
    movable(move |s| {
        let s = s.clone();
        async move { s.rebase_image(id, request(), &CALL).await }
    });
    movable(move |s| {
        let s = s.clone();
        async move { s.scan_pool("p", &CALL).await }
    });
    movable(move |s| {
        let s = s.clone();
        async move { s.cancel_job(id, &CALL).await }
    });
    movable(move |s| {
        let s = s.clone();
        async move { s.delete_image(id).await }
    });
    movable(move |s| {
        let s = s.clone();
        async move { s.read_data(id, None).await }
    });
    movable(move |s| {
        let s = s.clone();
        async move { s.subscribe(Default::default(), None).await }
    });
    movable(move |s| {
        let s = s.clone();
        async move { s.wait_job(id, WaitUntil::Finished, std::time::Duration::ZERO).await }
    });
    movable(move |s| {
        let s = s.clone();
        async move {
            s.upload(
                id,
                UploadPart::default(),
                futures::stream::iter([Ok::<_, String>(Bytes::new())]),
            )
            .await
        }
    });
}
