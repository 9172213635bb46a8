//! The queue against a small model, under any order of requests, claims, deaths and clock jumps.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;
use uuid::Uuid;

use super::jobs::{Ending, Fence, NewJob};
use super::testing::{TestStore, sqlite};
use crate::error::{ErrorCode, Result};
use crate::model::{JobId, JobKind, JobProgress, JobState};

const LEASE_MS: i64 = 30_000;
const LEASE: Duration = Duration::from_secs(30);

/// What can happen. Jobs and claims are picked by number, modulo how many there are.
#[derive(Clone, Debug)]
enum Step {
    Enqueue(i32),
    Claim,
    Renew(usize),
    Report(usize),
    Finish(usize, bool),
    HandBack(usize),
    Cancel(usize),
    Pause(usize),
    Resume(usize),
    Advance(i64),
    /// The process dies and another one starts.
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (-1..2).prop_map(Step::Enqueue),
        5 => Just(Step::Claim),
        3 => any::<usize>().prop_map(Step::Renew),
        2 => any::<usize>().prop_map(Step::Report),
        3 => any::<(usize, bool)>().prop_map(|(claim, well)| Step::Finish(claim, well)),
        1 => any::<usize>().prop_map(Step::HandBack),
        1 => any::<usize>().prop_map(Step::Cancel),
        1 => any::<usize>().prop_map(Step::Pause),
        1 => any::<usize>().prop_map(Step::Resume),
        3 => (0..40_000_i64).prop_map(Step::Advance),
        1 => prop_oneof![Just(Step::Advance(3_600_000)), Just(Step::Advance(-3_600_000))],
        1 => Just(Step::Crash),
    ];
    proptest::collection::vec(step, 100..200)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Wish {
    Run,
    Pause,
    Cancel,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stand {
    Queued { from: i64 },
    Running { until: i64 },
    Ended(JobState),
}

#[derive(Clone, Copy, Debug)]
struct ModelJob {
    priority: i32,
    stand: Stand,
    wish: Wish,
    token: i64,
    attempt: u32,
}

#[derive(Default)]
struct Model {
    now: i64,
    jobs: BTreeMap<JobId, ModelJob>,
    claims: Vec<Fence>,
}

impl ModelJob {
    fn is_due(&self, now: i64) -> bool {
        let due = match self.stand {
            Stand::Queued { from } => from <= now,
            Stand::Running { until } => until <= now,
            Stand::Ended(_) => false,
        };
        due && self.wish != Wish::Pause
    }

    fn shown(&self) -> JobState {
        match self.stand {
            Stand::Ended(state) => state,
            _ if self.wish == Wish::Pause => JobState::Paused,
            Stand::Queued { .. } => JobState::Queued,
            Stand::Running { .. } => JobState::Running,
        }
    }
}

impl Model {
    fn next(&self) -> Option<JobId> {
        let due = self.jobs.iter().filter(|(_, job)| job.is_due(self.now));
        due.max_by_key(|(id, job)| (job.priority, std::cmp::Reverse(**id)))
            .map(|(id, _)| *id)
    }

    /// The job of a claim, if the claim still gives the right to write.
    fn held(&mut self, fence: Fence) -> Option<&mut ModelJob> {
        let now = self.now;
        let job = self.jobs.get_mut(&fence.job)?;
        let alive = matches!(job.stand, Stand::Running { until } if until > now);
        (alive && job.token == fence.token).then_some(job)
    }

    fn pick_claim(&self, number: usize) -> Option<Fence> {
        self.claims.get(number.checked_rem(self.claims.len())?).copied()
    }

    fn pick_job(&self, number: usize) -> Option<JobId> {
        self.jobs.keys().nth(number.checked_rem(self.jobs.len())?).copied()
    }
}

async fn play(test: &TestStore, model: &mut Model, step: &Step) {
    match *step {
        Step::Enqueue(priority) => enqueue(test, model, priority).await,
        Step::Claim => claim(test, model).await,
        Step::Advance(by) => {
            test.clock.advance(by);
            model.now += by;
        }
        Step::Crash => crash(test, model).await,
        Step::Renew(n) | Step::Report(n) | Step::Finish(n, _) | Step::HandBack(n) => {
            let Some(fence) = model.pick_claim(n) else { return };
            let expected = model.held(fence).is_some();
            let outcome = as_worker(test, step, fence).await;
            assert_eq!(
                outcome.as_ref().err().map(|error| error.code),
                (!expected).then_some(ErrorCode::LeaseLost)
            );
            let now = model.now;
            if let Some(job) = model.held(fence) {
                match step {
                    Step::Renew(_) => job.stand = Stand::Running { until: now + LEASE_MS },
                    Step::Finish(_, true) => end(job, JobState::Succeeded),
                    Step::Finish(_, false) => end(job, JobState::Cancelled),
                    Step::HandBack(_) => {
                        job.stand = Stand::Queued { from: now + 1000 };
                        job.attempt -= 1;
                    }
                    _ => {}
                }
            }
        }
        Step::Cancel(n) | Step::Pause(n) | Step::Resume(n) => {
            let Some(id) = model.pick_job(n) else { return };
            as_user(test, model, step, id).await;
        }
    }
}

fn end(job: &mut ModelJob, state: JobState) {
    assert!(!matches!(job.stand, Stand::Ended(_)), "a job ends once");
    job.stand = Stand::Ended(state);
    job.wish = Wish::Run;
}

async fn enqueue(test: &TestStore, model: &mut Model, priority: i32) {
    let job = NewJob {
        id: Uuid::now_v7(),
        kind: JobKind::Check,
        pool: None,
        request: json!({}),
        payload: json!({}),
        images: Vec::new(),
        locks: Vec::new(),
        makes: None,
        priority,
        rate_limit: None,
    };
    let mut tx = test.store.begin().await.unwrap();
    tx.enqueue(&job, 1000).await.unwrap();
    tx.commit().await.unwrap();
    let stand = Stand::Queued { from: 0 };
    model.jobs.insert(
        job.id,
        ModelJob {
            priority,
            stand,
            wish: Wish::Run,
            token: 0,
            attempt: 0,
        },
    );
}

async fn claim(test: &TestStore, model: &mut Model) {
    let mut tx = test.store.begin().await.unwrap();
    let claimed = tx.claim(Uuid::now_v7(), LEASE).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(claimed.as_ref().map(|claimed| claimed.fence.job), model.next());
    let Some(claimed) = claimed else { return };
    let until = model.now + LEASE_MS;
    let job = model.jobs.get_mut(&claimed.fence.job).unwrap();
    (job.stand, job.token, job.attempt) = (Stand::Running { until }, job.token + 1, job.attempt + 1);
    assert_eq!((claimed.fence.token, claimed.attempt), (job.token, job.attempt));
    model.claims.push(claimed.fence);
}

async fn crash(test: &TestStore, model: &mut Model) {
    let mut tx = test.store.begin().await.unwrap();
    let dead = tx.expire_all_leases().await.unwrap();
    tx.commit().await.unwrap();
    let running = |job: &&mut ModelJob| matches!(job.stand, Stand::Running { .. });
    let mut count = 0;
    for job in model.jobs.values_mut().filter(running) {
        // Before any moment of the test's clock.
        job.stand = Stand::Running { until: 0 };
        count += 1;
    }
    assert_eq!(dead, count);
}

/// Whatever happened: with workers that live, every job comes to its one end.
async fn drain(test: &TestStore, model: &mut Model) {
    for number in 0..model.jobs.len() {
        play(test, model, &Step::Resume(number)).await;
    }
    // However far the clock was put back.
    let last = model.jobs.values().filter_map(|job| match job.stand {
        Stand::Queued { from } => Some(from),
        Stand::Running { until } => Some(until),
        Stand::Ended(_) => None,
    });
    let wait = last.max().map_or(0, |last| last.saturating_sub(model.now).max(0));
    play(test, model, &Step::Advance(wait)).await;
    while model.next().is_some() {
        play(test, model, &Step::Claim).await;
        play(test, model, &Step::Finish(model.claims.len() - 1, true)).await;
    }
    let open = model.jobs.values().filter(|job| !matches!(job.stand, Stand::Ended(_)));
    assert_eq!(open.count(), 0, "jobs that never end");
}

async fn as_worker(test: &TestStore, step: &Step, fence: Fence) -> Result<()> {
    let mut tx = test.store.begin().await.unwrap();
    match step {
        Step::Renew(_) => tx.renew(fence, LEASE).await.map(drop)?,
        Step::Report(_) => tx.record_progress(fence, &JobProgress::default()).await?,
        Step::Finish(_, true) => tx.finish(fence, &Ending::Succeeded(json!({}))).await.map(drop)?,
        Step::Finish(_, false) => tx.finish(fence, &Ending::Cancelled).await.map(drop)?,
        _ => tx.hand_back(fence, Duration::from_secs(1)).await?,
    }
    tx.commit().await
}

async fn as_user(test: &TestStore, model: &mut Model, step: &Step, id: JobId) {
    let mut tx = test.store.begin().await.unwrap();
    let outcome = match step {
        Step::Cancel(_) => tx.cancel_job(id).await,
        Step::Pause(_) => tx.pause_job(id).await,
        _ => tx.resume_job(id).await,
    };
    tx.commit().await.unwrap();
    let job = model.jobs.get_mut(&id).unwrap();
    let refused = match (step, job.stand) {
        (Step::Cancel(_), Stand::Ended(state)) => state != JobState::Cancelled,
        (_, Stand::Ended(_)) => true,
        (Step::Pause(_), _) => job.wish == Wish::Cancel,
        _ => false,
    };
    assert_eq!(
        outcome.err().map(|error| error.code),
        refused.then_some(ErrorCode::JobStateConflict)
    );
    match (step, job.stand) {
        (_, Stand::Ended(_)) => {}
        (Step::Cancel(_), Stand::Queued { .. }) => end(job, JobState::Cancelled),
        (Step::Cancel(_), _) => job.wish = Wish::Cancel,
        (Step::Pause(_), _) if job.wish == Wish::Run => job.wish = Wish::Pause,
        (Step::Resume(_), _) if job.wish == Wish::Pause => job.wish = Wish::Run,
        _ => {}
    }
}

async fn compare(test: &TestStore, model: &Model) {
    for (id, expected) in &model.jobs {
        let job = test.store.job(*id).await.unwrap();
        assert_eq!((job.state, job.attempt), (expected.shown(), expected.attempt), "{id}");
        assert_eq!(
            job.finished_at.is_some(),
            matches!(expected.stand, Stand::Ended(_)),
            "{id}"
        );
        assert_eq!(job.cancel_requested, expected.wish == Wish::Cancel, "{id}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 140, failure_persistence: None, ..ProptestConfig::default() })]

    /// 140 histories of 100 to 199 steps: some 20,000 steps.
    #[test]
    fn the_queue_behaves_as_its_model(history in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let test = sqlite().await;
            let mut model = Model { now: test.store.now().0, ..Model::default() };
            for step in &history {
                play(&test, &mut model, step).await;
            }
            compare(&test, &model).await;
            drain(&test, &mut model).await;
            compare(&test, &model).await;
        });
    }
}
