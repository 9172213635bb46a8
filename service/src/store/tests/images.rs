//! Images: names, reservations, bases, lists.

use uuid::Uuid;

use super::{add_image, code, facts, new_image, write};
use crate::error::ErrorCode;
use crate::model::{ImageId, ImageState};
use crate::request::{ImageFilter, UpdateImage};
use crate::store::Tx;
use crate::store::idempotency::{IdempotentRequest, Outcome};
use crate::store::testing::{TestStore, on_both_databases};

on_both_databases! {
    a_base_with_overlays_cannot_be_deleted,
    a_name_is_taken_once_in_a_pool,
    reserved_images_are_not_shown,
    what_was_reserved_goes_with_the_key_of_its_request,
    images_are_filtered_and_paged,
    publishing_needs_the_reservation,
    the_height_above_an_image_is_that_of_its_tallest_overlay,
}

async fn a_base_with_overlays_cannot_be_deleted(TestStore { store, .. }: TestStore) {
    let base = add_image(&store, "base", None).await;
    let overlay = add_image(&store, "overlay", Some(base)).await;
    let refused = write(&store, async |tx| tx.delete_image(base).await).await.unwrap_err();
    assert_eq!(
        (refused.code, refused.dependents),
        (ErrorCode::ConflictDependents, vec![overlay])
    );
    assert_eq!(
        store
            .chain(overlay, 8)
            .await
            .unwrap()
            .iter()
            .map(|l| l.image.id)
            .collect::<Vec<_>>(),
        [overlay, base]
    );
    assert_eq!(code(store.chain(overlay, 1).await), ErrorCode::LimitExceeded);
    write(&store, async |tx| tx.delete_image(overlay).await).await.unwrap();
    write(&store, async |tx| tx.delete_image(base).await).await.unwrap();
    assert_eq!(code(store.image(base).await), ErrorCode::NotFound);
}

async fn a_name_is_taken_once_in_a_pool(TestStore { store, .. }: TestStore) {
    let first = add_image(&store, "a", None).await;
    let second = add_image(&store, "b", None).await;
    let insert = write(&store, async |tx| {
        tx.insert_image(&new_image("a", Uuid::now_v7())).await
    })
    .await;
    assert_eq!(code(insert), ErrorCode::NameTaken);
    let rename = |name: &str| UpdateImage {
        name: Some(name.to_owned()),
        ..UpdateImage::default()
    };
    let renamed = write(&store, async |tx| tx.update_image(second, &rename("a")).await).await;
    assert_eq!(code(renamed), ErrorCode::NameTaken);
    write(&store, async |tx| tx.update_image(first, &rename("a")).await)
        .await
        .unwrap();
    let mut elsewhere = new_image("a", Uuid::now_v7());
    elsewhere.pool = "other".to_owned();
    write(&store, async |tx| tx.insert_image(&elsewhere).await)
        .await
        .unwrap();
}

async fn reserved_images_are_not_shown(TestStore { store, .. }: TestStore) {
    let holder = Uuid::now_v7();
    let image = new_image("soon", holder);
    write(&store, async |tx| tx.insert_image(&image).await).await.unwrap();
    assert_eq!(code(store.image(image.id).await), ErrorCode::NotFound);
    assert!(
        store
            .list_images(&ImageFilter::default(), None, 10)
            .await
            .unwrap()
            .is_empty()
    );
    write(&store, async |tx| tx.delete_reserved(holder).await)
        .await
        .unwrap();
    add_image(&store, "soon", None).await;
}

async fn what_was_reserved_goes_with_the_key_of_its_request(TestStore { store, .. }: TestStore) {
    let key = IdempotentRequest::new("key", "create", "", &()).unwrap();
    let recalled = async || write(&store, async |tx| tx.recall(Some(&key)).await).await.unwrap();
    let holder = Uuid::now_v7();
    // An image that came on record keeps its key.
    for published in [false, true] {
        let image = new_image("disk", holder);
        let outcome = Outcome::Image(image.id);
        write(&store, async |tx| {
            tx.insert_image(&image).await?;
            tx.remember(Some(&key), outcome).await
        })
        .await
        .unwrap();
        if published {
            let publish = async |tx: &mut Tx| tx.publish_image(image.id, holder, &image.file, &facts()).await;
            write(&store, publish).await.unwrap();
        }
        for (whose, left) in [(Uuid::now_v7(), true), (holder, published)] {
            write(&store, async |tx| tx.delete_reserved(whose).await).await.unwrap();
            assert_eq!(recalled().await, left.then_some(outcome));
        }
    }
}

async fn images_are_filtered_and_paged(TestStore { store, .. }: TestStore) {
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        ids.push(add_image(&store, name, None).await);
    }
    let overlay = add_image(&store, "d", Some(ids[0])).await;
    let found = async |filter: ImageFilter| -> Vec<ImageId> {
        let found = store.list_images(&filter, None, 10).await.unwrap();
        found.into_iter().map(|image| image.id).collect()
    };
    let all = ImageFilter::default;
    assert_eq!(
        found(ImageFilter {
            name: Some("b".to_owned()),
            ..all()
        })
        .await,
        [ids[1]]
    );
    assert_eq!(
        found(ImageFilter {
            label: Some("made-by=c".to_owned()),
            ..all()
        })
        .await,
        [ids[2]]
    );
    assert_eq!(
        found(ImageFilter {
            label: Some("made-by".to_owned()),
            ..all()
        })
        .await
        .len(),
        4
    );
    assert_eq!(
        found(ImageFilter {
            backing: Some(ids[0]),
            ..all()
        })
        .await,
        [overlay]
    );
    assert_eq!(
        found(ImageFilter {
            state: Some(ImageState::Busy),
            ..all()
        })
        .await,
        Vec::<ImageId>::new()
    );
    assert_eq!(
        found(ImageFilter {
            format: Some("qcow2".to_owned()),
            ..all()
        })
        .await,
        Vec::<ImageId>::new()
    );
    let page = store.list_images(&all(), Some(ids[0]), 2).await.unwrap();
    assert_eq!(page.iter().map(|image| image.id).collect::<Vec<_>>(), ids[1..]);
}

async fn publishing_needs_the_reservation(TestStore { store, .. }: TestStore) {
    let holder = Uuid::now_v7();
    let image = new_image("a", holder);
    write(&store, async |tx| tx.insert_image(&image).await).await.unwrap();
    let publish = async |by| {
        write(&store, async |tx| {
            tx.publish_image(image.id, by, &image.file, &facts()).await
        })
        .await
    };
    assert_eq!(code(publish(Uuid::now_v7()).await), ErrorCode::LeaseLost);
    publish(holder).await.unwrap();
    assert_eq!(code(publish(holder).await), ErrorCode::LeaseLost);
    let found = store.image(image.id).await.unwrap().image;
    assert_eq!(
        (found.state, found.generation, found.virtual_size),
        (ImageState::Ready, 1, 1 << 20)
    );
    write(&store, async |tx| tx.record_change(image.id, &facts(), true).await)
        .await
        .unwrap();
    assert_eq!(store.image(image.id).await.unwrap().image.generation, 2);
}

async fn the_height_above_an_image_is_that_of_its_tallest_overlay(TestStore { store, .. }: TestStore) {
    let base = add_image(&store, "base", None).await;
    add_image(&store, "alone", Some(base)).await;
    let middle = add_image(&store, "middle", Some(base)).await;
    let top = add_image(&store, "top", Some(middle)).await;
    for (image, height) in [(base, 2), (middle, 1), (top, 0)] {
        assert_eq!(write(&store, async |tx| tx.height(image).await).await.unwrap(), height);
    }
}
