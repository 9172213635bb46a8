//! The inventory: create, change, delete, the rules of the graph.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends")]

mod common;

use common::{Lab, MIB, OVERLAY, code, json, new_image};
use serde_json::json;
use vdisk_service::ErrorCode;
use vdisk_service::model::ImageState;
use vdisk_service::request::{Call, ImageFilter, PageRequest, UpdateImage};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_made_shown_and_deleted() {
    let lab = Lab::new().await;
    let image = lab.create("disk", "raw", 10 * MIB).await;
    assert_eq!(
        (image.state, image.virtual_size, image.generation),
        (ImageState::Ready, 10 * MIB, 1)
    );
    assert_eq!(lab.files(), [image.id.to_string()]);
    assert_eq!(lab.service.image(image.id).await.unwrap(), image);
    let info = lab.service.image_info(image.id).await.unwrap();
    assert_eq!(
        (&info["virtual-size"], &info["format"]),
        (&json!(10 * MIB), &json!("raw"))
    );
    lab.service.delete_image(image.id).await.unwrap();
    assert_eq!(code(lab.service.image(image.id).await), ErrorCode::NotFound);
    assert!(lab.files().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn new_files_are_not_for_everybody() {
    use std::os::unix::fs::MetadataExt;
    let lab = Lab::new().await;
    let created = lab.create("created", "qcow2", MIB).await.id;
    let uploaded = lab.upload("uploaded", Some("raw"), &[1; 4096]).await.unwrap().id;
    let request = json(json!({"name": "converted", "format": "raw"}));
    let job = lab.service.convert_image(created, request, &Call::default()).await;
    let converted = lab.succeed(job.unwrap()).await.result_image_id().unwrap();
    for image in [created, uploaded, converted] {
        let name = lab.service.image(image).await.unwrap().name;
        let file = lab
            .files()
            .into_iter()
            .find(|file| file.starts_with(&image.to_string()));
        let mode = std::fs::metadata(lab.pool().join(file.unwrap())).unwrap().mode();
        assert_eq!(mode & 0o7, 0, "{name}: {mode:o}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_and_leave_nothing() {
    let lab = Lab::new().await;
    lab.create("taken", "raw", MIB).await;
    let create = async |name: &str, format: &str, size| {
        code(
            lab.service
                .create_image(new_image(name, format, size, None), &Call::default())
                .await,
        )
    };
    for name in ["", ".x", "-x", "a/b", "../x", "a\0b", "日本", &"x".repeat(300)] {
        assert_eq!(create(name, "raw", Some(MIB)).await, ErrorCode::InvalidName, "{name:?}");
    }
    assert_eq!(create("taken", "raw", Some(MIB)).await, ErrorCode::NameTaken);
    assert_eq!(create("x", "nonsense", Some(MIB)).await, ErrorCode::Unsupported);
    assert_eq!(create("x", "raw", None).await, ErrorCode::InvalidArgument);
    assert_eq!(create("x", "raw", Some(u64::MAX)).await, ErrorCode::LimitExceeded);
    let mut request = new_image("x", "raw", Some(MIB), None);
    request.options.insert("colour".to_owned(), "red".to_owned());
    assert_eq!(
        code(lab.service.create_image(request, &Call::default()).await),
        ErrorCode::InvalidArgument
    );
    let request = new_image("x", OVERLAY, None, Some(uuid::Uuid::now_v7()));
    assert_eq!(
        code(lab.service.create_image(request, &Call::default()).await),
        ErrorCode::NotFound
    );
    let mut request = new_image("x", "raw", Some(MIB), None);
    request.pool = Some("elsewhere".to_owned());
    assert_eq!(
        code(lab.service.create_image(request, &Call::default()).await),
        ErrorCode::NotFound
    );
    lab.assert_tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_with_overlays_stays() {
    let lab = Lab::new().await;
    let base = lab.create("base", "raw", 4 * MIB).await;
    let overlay = lab.overlay("overlay", base.id).await;
    let top = lab.overlay("top", overlay.id).await;
    assert_eq!((overlay.virtual_size, overlay.backing_id), (4 * MIB, Some(base.id)));
    let refused = lab.service.delete_image(base.id).await.unwrap_err();
    assert_eq!(
        (refused.code, refused.dependents),
        (ErrorCode::ConflictDependents, vec![overlay.id])
    );
    let resize = lab
        .service
        .resize_image(base.id, json(json!({"virtual_size": 8 * MIB})), &Call::default())
        .await;
    assert_eq!(code(resize), ErrorCode::ConflictDependents);
    let chain = lab.service.image_chain(top.id).await.unwrap();
    assert_eq!(
        chain.iter().map(|l| (l.image_id, l.depth)).collect::<Vec<_>>(),
        [(Some(top.id), 0), (Some(overlay.id), 1), (Some(base.id), 2)]
    );
    let dependents = lab
        .service
        .image_dependents(base.id, &PageRequest::default())
        .await
        .unwrap();
    assert_eq!(
        dependents.items.iter().map(|image| image.id).collect::<Vec<_>>(),
        [overlay.id]
    );
    for image in [top.id, overlay.id, base.id] {
        lab.service.delete_image(image).await.unwrap();
    }
    lab.assert_tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn protected_images_are_not_changed_or_deleted() {
    let lab = Lab::new().await;
    let image = lab.create("disk", "raw", MIB).await;
    let protect = |protected| UpdateImage {
        protected: Some(protected),
        ..UpdateImage::default()
    };
    assert!(
        lab.service
            .update_image(image.id, protect(true))
            .await
            .unwrap()
            .protected
    );
    assert_eq!(
        code(lab.service.delete_image(image.id).await),
        ErrorCode::ImageProtected
    );
    let resize = lab
        .service
        .resize_image(image.id, json(json!({"virtual_size": 2 * MIB})), &Call::default())
        .await;
    assert_eq!(code(resize), ErrorCode::ImageProtected);
    lab.service.update_image(image.id, protect(false)).await.unwrap();
    lab.service.delete_image(image.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_page_and_filter() {
    let lab = Lab::new().await;
    for number in 0..5 {
        lab.create(&format!("disk{number}"), "raw", MIB).await;
    }
    let mut token = None;
    let mut names = Vec::new();
    loop {
        let page = PageRequest {
            page_size: Some(2),
            page_token: token,
        };
        let page = lab.service.list_images(&ImageFilter::default(), &page).await.unwrap();
        names.extend(page.items.into_iter().map(|image| image.name));
        token = page.next_page_token;
        if token.is_none() {
            break;
        }
    }
    assert_eq!(names, ["disk0", "disk1", "disk2", "disk3", "disk4"]);
    let page = PageRequest {
        page_token: Some("nonsense".to_owned()),
        ..PageRequest::default()
    };
    assert_eq!(
        code(lab.service.list_images(&ImageFilter::default(), &page).await),
        ErrorCode::InvalidArgument
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_gives_the_same_image_again() {
    let lab = Lab::new().await;
    let call = Call {
        idempotency_key: Some("k1".to_owned()),
    };
    let first = lab
        .service
        .create_image(new_image("a", "raw", Some(MIB), None), &call)
        .await
        .unwrap();
    let again = lab
        .service
        .create_image(new_image("a", "raw", Some(MIB), None), &call)
        .await
        .unwrap();
    assert_eq!(first, again);
    let other = lab
        .service
        .create_image(new_image("b", "raw", Some(MIB), None), &call)
        .await;
    assert_eq!(code(other), ErrorCode::IdempotencyConflict);
    // A request that came to nothing does not use its key up.
    let call = Call {
        idempotency_key: Some("k2".to_owned()),
    };
    assert_eq!(
        code(
            lab.service
                .create_image(new_image("a", "raw", Some(MIB), None), &call)
                .await
        ),
        ErrorCode::NameTaken
    );
    lab.service
        .create_image(new_image("c", "raw", Some(MIB), None), &call)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_services_do_not_share_a_data_folder() {
    let lab = Lab::new().await;
    let second = vdisk_service::Service::open(common::quick_config(lab.dir.path())).await;
    assert_eq!(code(second), ErrorCode::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_vanished_makes_its_image_missing() {
    let lab = Lab::new().await;
    let image = lab.create("disk", "raw", MIB).await;
    let (file, aside) = (lab.pool().join(image.id.to_string()), lab.dir.path().join("aside"));
    std::fs::rename(&file, &aside).unwrap();
    let lab = lab.restart().await;
    assert_eq!(lab.service.image(image.id).await.unwrap().state, ImageState::Missing);
    assert_eq!(code(lab.service.image_info(image.id).await), ErrorCode::ImageNotReady);
    std::fs::rename(&aside, lab.pool().join(image.id.to_string())).unwrap();
    let lab = lab.restart().await;
    assert_eq!(lab.service.image(image.id).await.unwrap().state, ImageState::Ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_changed_behind_our_back_is_noticed() {
    let lab = Lab::new().await;
    let base = lab.create("base", "raw", MIB).await;
    let overlay = lab.overlay("overlay", base.id).await;
    let path = lab.pool().join(base.id.to_string());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[0] = 1;
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(
        code(lab.service.read_data(overlay.id, None).await),
        ErrorCode::BaseChanged
    );
    let request = json(json!({"backing": base.id, "mode": "unsafe"}));
    let job = lab
        .service
        .rebase_image(overlay.id, request, &Call::default())
        .await
        .unwrap();
    lab.succeed(job).await;
    assert_eq!(lab.data(overlay.id).await[0], 1);
    assert_eq!(lab.service.image(base.id).await.unwrap().generation, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_no_database_stores_is_refused() {
    let lab = Lab::new().await;
    let image = lab.create("disk", "raw", MIB).await.id;
    for change in [json!({"labels": {"a": "b\0c"}}), json!({"secrets": {"a\0": image}})] {
        let refused = lab.service.update_image(image, json(change)).await;
        assert_eq!(code(refused), ErrorCode::InvalidArgument);
    }
    for filter in [
        json!({"label": "\0"}),
        json!({"name": "\0"}),
        json!({"pool": "\0"}),
        json!({"format": "\0"}),
    ] {
        let refused = lab.service.list_images(&json(filter), &Default::default()).await;
        assert_eq!(code(refused), ErrorCode::InvalidArgument);
    }
    let filter = json(json!({"pool": "\0"}));
    let refused = lab.service.list_jobs(&filter, &Default::default()).await;
    assert_eq!(code(refused), ErrorCode::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_a_pool_that_is_not_configured_are_missing() {
    let lab = Lab::new().await;
    let image = lab.create("disk", "raw", MIB).await.id;
    lab.service.shutdown(std::time::Duration::from_secs(5)).await;
    let Lab { dir, service } = lab;
    drop(service);
    let mut config = common::quick_config(dir.path());
    config.default_pool = "other".to_owned();
    let service = vdisk_service::Service::open(config).await.unwrap();
    let found = service.image(image).await.unwrap();
    assert_eq!(found.state, ImageState::Missing);
    assert_eq!(found.problem.as_deref(), Some("its pool is not configured"));
    service.shutdown(std::time::Duration::from_secs(5)).await;
    drop(service);
    let service = vdisk_service::Service::open(common::quick_config(dir.path()))
        .await
        .unwrap();
    assert_eq!(service.image(image).await.unwrap().state, ImageState::Ready);
    let mut none = common::quick_config(&dir.path().join("second"));
    none.max_attempts = 0;
    assert_eq!(
        code(vdisk_service::Service::open(none).await),
        ErrorCode::InvalidArgument
    );
}
