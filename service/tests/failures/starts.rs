//! A single file that cannot be put right does not keep a service from starting.

use vdisk_service::fault::{self, Action, Plan, Side, Step};
use vdisk_service::model::ImageState;

use crate::begun::turn;
use crate::common::Lab;
use crate::prepare::prepare;
use crate::scene::{Scene, Verb};
use crate::verify::leftovers;

/// What is done to single files at a start.
const STEPS: [Step; 4] = [
    Step::BringBack,
    Step::RemoveStaged,
    Step::RemoveUpload,
    Step::RemoveTrash,
];

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_put_right_does_not_keep_the_service_from_starting() {
    let Some(_turn) = turn().await else { return };
    let lab = Lab::new().await;
    let ids = prepare(Verb::Start, &lab).await;
    let kept = ids.get("kept").copied().unwrap();
    let before = lab.files();
    let plans = STEPS.map(|step| Plan {
        step,
        side: Side::Before,
        nth: 1,
        action: Action::Fail,
    });
    fault::arm(&plans);
    let lab = lab.restart().await;
    let reached = fault::disarm();
    for step in STEPS {
        assert_eq!(reached.get(&(step, Side::Before)), Some(&1), "{step}");
    }
    assert_eq!(lab.files(), before);
    assert_eq!(lab.service.image(kept).await.unwrap().state, ImageState::Missing);

    let scene = Scene {
        verb: Verb::Start,
        lab: Some(lab.restart().await),
        ids,
    };
    assert_eq!(leftovers(&scene).await, std::collections::BTreeSet::new());
    assert_eq!(scene.lab().service.image(kept).await.unwrap().state, ImageState::Ready);
}
