//! Requests for snapshots whose answer was lost: the same key again does not do twice what was done once.

use tokio::sync::{Mutex, MutexGuard};
use vdisk_service::fault::{self, Action, Plan, Side, Step};
use vdisk_service::model::ImageId;
use vdisk_service::{ErrorCode, ServiceError};

use crate::common::{Lab, MIB, NONE, OVERLAY, code, with_key};

/// The turn of a test that sets points off in its own process, for which they are set off as a whole; most tests do it in processes
/// made for that. `None` where the build has no points.
pub async fn turn() -> Option<MutexGuard<'static, ()>> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
    if !fault::COMPILED {
        eprintln!("skipped: the points are not in this build");
        return None;
    }
    Some(ONE_AT_A_TIME.lock().await)
}

/// The next change of snapshots is carried out and does not come on record. The service starts anew, as after its death.
async fn cut_off<T>(lab: Lab, request: impl AsyncFnOnce(&Lab) -> Result<T, ServiceError>) -> Lab {
    fault::arm(&[Plan {
        step: Step::RecordSnapshot,
        side: Side::Before,
        nth: 1,
        action: Action::Fail,
    }]);
    let cut = request(&lab).await;
    fault::disarm();
    assert_eq!(code(cut), ErrorCode::Io);
    lab.restart().await
}

async fn names(lab: &Lab, image: ImageId) -> Vec<String> {
    let found = lab.service.snapshots(image).await.unwrap();
    found.into_iter().map(|snapshot| snapshot.name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_was_taken_is_the_answer_to_the_same_request() {
    let Some(_turn) = turn().await else { return };
    let lab = Lab::new().await;
    let image = lab.create("disk", OVERLAY, MIB).await.id;
    let call = with_key("one");
    let lab = cut_off(lab, async |lab| lab.service.create_snapshot(image, "one", &call).await).await;
    let found = lab.service.snapshot(image, "one").await.unwrap();
    // Others go on meanwhile.
    lab.service.create_snapshot(image, "two", &NONE).await.unwrap();
    for _ in 0..2 {
        assert_eq!(lab.service.create_snapshot(image, "one", &call).await.unwrap(), found);
    }
    assert_eq!(names(&lab, image).await, ["one", "two"]);
    let taken = lab.service.create_snapshot(image, "one", &NONE).await;
    assert_eq!(code(taken), ErrorCode::NameTaken);

    // One that somebody else took under that name is not it.
    let call = with_key("three");
    let lab = cut_off(lab, async |lab| {
        lab.service.create_snapshot(image, "three", &call).await
    })
    .await;
    lab.service.delete_snapshot(image, "three").await.unwrap();
    lab.service.create_snapshot(image, "three", &NONE).await.unwrap();
    let again = lab.service.create_snapshot(image, "three", &call).await;
    assert_eq!(code(again), ErrorCode::NameTaken);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_since_a_snapshot_was_applied_stays() {
    let Some(_turn) = turn().await else { return };
    let lab = Lab::new().await;
    let image = lab.create("disk", OVERLAY, MIB).await.id;
    lab.service.create_snapshot(image, "empty", &NONE).await.unwrap();
    let empty = lab.data(image).await;
    let wrote = lab.qemu_io(&image.to_string(), OVERLAY, "write -P 1 0 64k");

    // Nobody has changed anything since: done once more, it shows the same.
    let call = with_key("first");
    let before = lab.service.image(image).await.unwrap().generation;
    let lab = cut_off(lab, async |lab| lab.service.apply_snapshot(image, "empty", &call).await).await;
    assert!(lab.data(image).await == empty);
    let cut = lab.service.image(image).await.unwrap().generation;
    assert!(cut > before, "what reads it does not see that it shows something else");
    lab.service.apply_snapshot(image, "empty", &call).await.unwrap();
    assert!(lab.data(image).await == empty);

    // Another request has.
    let call = with_key("second");
    let lab = cut_off(lab, async |lab| lab.service.apply_snapshot(image, "empty", &call).await).await;
    lab.service.create_snapshot(image, "later", &NONE).await.unwrap();
    let again = lab.service.apply_snapshot(image, "empty", &call).await;
    assert_eq!(code(again), ErrorCode::IdempotencyConflict);

    // A guest has.
    let call = with_key("third");
    let lab = cut_off(lab, async |lab| lab.service.apply_snapshot(image, "empty", &call).await).await;
    if wrote && lab.qemu_io(&image.to_string(), OVERLAY, "write -P 2 0 64k") {
        let written = lab.data(image).await;
        for _ in 0..2 {
            let again = lab.service.apply_snapshot(image, "empty", &call).await;
            assert_eq!(code(again), ErrorCode::IdempotencyConflict);
        }
        assert!(lab.data(image).await == written && written != empty);
        lab.service
            .apply_snapshot(image, "empty", &with_key("fourth"))
            .await
            .unwrap();
        assert!(lab.data(image).await == empty);
    }
}
