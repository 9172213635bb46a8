//! The process that things happen to.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vdisk_service::fault::{self, Action, Plan, Reached, Side, Step};
use vdisk_service::{Service, ServiceConfig};

use crate::act::{act, restart};
use crate::common::{Folder, Lab, quick_config};
use crate::prepare::prepare;
use crate::scene::{Ids, Scene, Verb};
use crate::verify::{always, leftovers, verify};

/// The variable that makes this program the process of a case.
pub const CASE: &str = "VDISK_TEST_CASE";
/// Said when everything is made ready.
pub const READY: &str = "ready";
const IDS: &str = "ids.json";

/// A point as the parent names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Point {
    pub step: Step,
    pub after: bool,
    pub nth: u64,
}

impl Point {
    pub fn plan(self, action: Action) -> Plan {
        let side = if self.after { Side::After } else { Side::Before };
        Plan {
            step: self.step,
            side,
            nth: self.nth,
            action,
        }
    }
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} {} {}",
            if self.after { "after" } else { "before" },
            self.step,
            self.nth
        )
    }
}

/// What a process does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Case {
    pub verb: Verb,
    pub dir: PathBuf,
    /// Whether another process made ready, and died.
    pub goes_on: bool,
    pub what: What,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum What {
    /// Says which points are reached.
    Count,
    /// Dies at a point.
    Die(Point),
    /// Fails at a point twice, and does it a third time.
    FailTwice(Point),
    /// Waits for whatever the parent does to it.
    Live,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case() {
    let Ok(case) = std::env::var(CASE) else { return };
    end_with_the_first_panic();
    let case: Case = serde_json::from_str(&case).unwrap();
    match case.what {
        What::FailTwice(point) => fail_twice(&case, point).await,
        What::Count => {
            let mut scene = ready(&case, &[]).await;
            let outcome = act(&mut scene, 0).await;
            if case.verb.trouble().is_empty() {
                outcome.unwrap();
            }
            scene.lab().service.shutdown(std::time::Duration::from_secs(5)).await;
            println!("{}", serde_json::to_string(&points(fault::disarm())).unwrap());
        }
        What::Die(point) => {
            let mut scene = ready(&case, &[point.plan(Action::Kill)]).await;
            drop(act(&mut scene, 0).await);
            // Not reached this time: the parent takes it for a kill at the end.
            scene.lab().service.shutdown(std::time::Duration::from_secs(5)).await;
        }
        What::Live => {
            let mut scene = ready(&case, &[]).await;
            drop(act(&mut scene, 0).await);
            println!("through");
            std::future::pending::<()>().await;
        }
    }
}

/// Nothing that is still waited for, a paused job for one, holds up the bad news.
pub fn end_with_the_first_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        tell(info);
        std::process::exit(101);
    }));
}

fn points(reached: Reached) -> Vec<(Step, bool, u64)> {
    reached
        .into_iter()
        .map(|((step, side), count)| (step, side == Side::After, count))
        .collect()
}

/// Everything made ready and armed.
async fn ready(case: &Case, plans: &[Plan]) -> Scene {
    let plans: Vec<Plan> = plans.iter().copied().chain(case.verb.trouble()).collect();
    let arm = || match case.what {
        What::Live => {}
        _ => fault::arm(&plans),
    };
    if case.goes_on {
        // The start itself may be where it happens.
        arm();
        println!("{READY}");
    }
    let mut scene = open(case).await;
    if !case.goes_on {
        scene.ids = prepare(case.verb, scene.lab()).await;
        std::fs::write(case.dir.join(IDS), serde_json::to_vec(&scene.ids).unwrap()).unwrap();
        arm();
        println!("{READY}");
    }
    scene
}

/// How the service of a case is configured: it reaches the servers of this program.
pub fn case_config(dir: &Path) -> ServiceConfig {
    ServiceConfig {
        import_from_private: true,
        webhooks_anywhere: true,
        // A start takes over at once what the process before had: a lapse is only what a busy machine brings about.
        lease: std::time::Duration::from_secs(15),
        ..quick_config(dir)
    }
}

/// The service on the folder of a case, with what is known of it.
pub async fn open(case: &Case) -> Scene {
    let lab = Some(Lab {
        dir: Folder::Lent(case.dir.clone()),
        service: Service::open(case_config(&case.dir)).await.unwrap(),
    });
    let ids =
        std::fs::read(case.dir.join(IDS)).map_or_else(|_| Ids::new(), |ids| serde_json::from_slice(&ids).unwrap());
    Scene {
        verb: case.verb,
        lab,
        ids,
    }
}

/// Twice the step fails: what is left is sound. The third time it works.
async fn fail_twice(case: &Case, point: Point) {
    let mut scene = ready(case, &[point.plan(Action::Fail)]).await;
    for round in 1..=2 {
        let outcome = act(&mut scene, round).await;
        fault::disarm();
        if let Err(error) = &outcome {
            eprintln!("round {round}: {error:?}");
        }
        always(&scene, true).await;
        if round == 1 {
            fault::arm(&[point.plan(Action::Fail)]);
        }
    }
    let third = act(&mut scene, 3).await;
    // A file that could not be removed stays until the next start.
    if !settles(&scene).await {
        println!("needs a start: {:?}", leftovers(&scene).await);
        restart(&mut scene).await;
    }
    third.unwrap();
    verify(&scene, true).await;
}

async fn settles(scene: &Scene) -> bool {
    for _ in 0..50 {
        if leftovers(scene).await.is_empty() {
            return true;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    false
}
