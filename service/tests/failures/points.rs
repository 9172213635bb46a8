//! Every named point, one by one; and any moment at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use vdisk_service::fault::{self, Step};

use crate::child::{Case, Point, What};
use crate::parent::{Ending, Process, errors, look, new_case, number, serve, side_by_side};
use crate::scene::{VERBS, Verb};

/// Where the first of two processes dies, so that the second has something to put right.
const FIRST_DEATHS: &[(Verb, Step, bool)] = &[
    (Verb::Create, Step::FormatFile, true),
    (Verb::Create, Step::PublishFile, true),
    (Verb::ConvertQcow2, Step::FlushBytes, true),
    (Verb::ConvertQcow2, Step::PublishFile, true),
    (Verb::CommitDrop, Step::PutAside, true),
    (Verb::Delete, Step::PutAside, true),
    (Verb::UploadInParts, Step::SettleUpload, true),
    (Verb::Upload, Step::ShowUpload, true),
    (Verb::Rebase, Step::WriteBytes, false),
    (Verb::Commit, Step::FlushBytes, true),
    (Verb::Grow, Step::FlushBytes, true),
    (Verb::SnapshotCreate, Step::WriteBytes, true),
];

/// Failures that left something behind once, and which time it was.
const MENDED: &[(Verb, Step, bool, u64)] = &[
    (Verb::Create, Step::ReserveImage, true, 1),
    (Verb::CreateFails, Step::ForgetImage, false, 1),
    (Verb::Webhook, Step::RecordImage, true, 1),
    (Verb::Delete, Step::RecordDelete, false, 1),
    (Verb::Delete, Step::RecordDelete, true, 1),
    (Verb::ConvertOnto, Step::PublishFile, true, 1),
    (Verb::Steer, Step::SteerJob, true, 1),
    (Verb::UploadNotRecorded, Step::HideUpload, false, 1),
    (Verb::Upload, Step::ShowUpload, true, 1),
    (Verb::DeleteFails, Step::BringBack, false, 1),
    (Verb::Shrink, Step::DiscardBytes, true, 1),
    (Verb::UploadInParts, Step::ReleaseLocks, false, 1),
    (Verb::DeleteFails, Step::ReleaseLocks, false, 1),
    (Verb::Rebase, Step::SucceedJob, false, 1),
    (Verb::Flatten, Step::SucceedJob, false, 1),
    // The header names the new base by then.
    (Verb::Rebase, Step::NoteStep, false, 3),
    (Verb::Flatten, Step::NoteStep, true, 2),
    (Verb::Rebase, Step::FlushBytes, true, 6),
    (Verb::Flatten, Step::FlushBytes, false, 6),
    (Verb::Audit, Step::WriteAudit, false, 1),
    (Verb::Audit, Step::WriteAudit, true, 1),
];

/// Kills of one case, before what is left is looked at.
const KILLS_IN_A_ROW: u64 = 3;

/// A process that dies at a point, after another that died, or alone.
type Death = (Verb, Option<Point>, Point);

/// The verbs asked for: all, or those in the variable.
fn verbs() -> Vec<Verb> {
    let wanted = std::env::var("VDISK_VERBS").unwrap_or_default();
    let wanted: Vec<&str> = wanted.split(',').filter(|verb| !verb.is_empty()).collect();
    VERBS
        .iter()
        .copied()
        .filter(|verb| wanted.is_empty() || wanted.contains(&format!("{verb:?}").as_str()))
        .collect()
}

/// Which points a case reaches, and how often.
fn count(case: &Case, disk: &str) -> Vec<(Step, bool, u64)> {
    let (said, ending) = Process::start(case, disk).end();
    assert_eq!(ending, Ending::Well, "{case:?}\n{}", errors(case));
    let line = said.lines().find(|line| line.starts_with('[')).unwrap();
    serde_json::from_str(line).unwrap()
}

/// Of those that are reached often some are taken: the first, the last, and some between.
fn chosen(points: &[(Step, bool, u64)], most: u64) -> Vec<Point> {
    let pick = |&(step, after, count): &(Step, bool, u64)| {
        let steps = count.min(most).max(1);
        (0..steps).map(move |k| Point {
            step,
            after,
            nth: if steps == 1 {
                1
            } else {
                1 + k * (count - 1) / (steps - 1)
            },
        })
    };
    points.iter().flat_map(pick).collect()
}

fn all_points(disk: &str, most: u64) -> Vec<(Verb, Point)> {
    let found = Mutex::new(Vec::new());
    side_by_side(&verbs(), |verb| {
        let (_dir, case) = new_case(*verb, What::Count);
        let points = chosen(&count(&case, disk), most);
        found
            .lock()
            .unwrap()
            .extend(points.into_iter().map(|point| (*verb, point)));
    });
    let mut found = found.into_inner().unwrap();
    found.sort_unstable();
    found
}

fn second_deaths(disk: &str) -> Vec<Death> {
    let found = Mutex::new(Vec::new());
    side_by_side(FIRST_DEATHS, |&(verb, step, after)| {
        let first = Point { step, after, nth: 1 };
        let (_dir, case) = new_case(verb, What::Die(first));
        assert_eq!(
            Process::start(&case, disk).end().1,
            Ending::Killed,
            "{case:?}\n{}",
            errors(&case)
        );
        let case = Case {
            goes_on: true,
            what: What::Count,
            ..case
        };
        let points = chosen(&count(&case, disk), 1);
        found
            .lock()
            .unwrap()
            .extend(points.into_iter().map(|point| (verb, Some(first), point)));
    });
    found.into_inner().unwrap()
}

/// Whether the process died where it was to die.
fn die((verb, first, point): &Death, disk: &str) -> bool {
    let (_dir, mut case) = new_case(*verb, What::Die(first.unwrap_or(*point)));
    let mut ending = Process::start(&case, disk).end().1;
    if first.is_some() {
        case = Case {
            goes_on: true,
            what: What::Die(*point),
            ..case
        };
        ending = Process::start(&case, disk).end().1;
    }
    assert_ne!(ending, Ending::Badly, "{case:?}\n{}", errors(&case));
    look(&Case { goes_on: true, ..case }, disk);
    ending == Ending::Killed
}

/// How often each point of each verb is taken, when all are asked for. Otherwise each point is taken once, in one verb.
fn hits() -> Option<u64> {
    std::env::var("VDISK_POINT_HITS").ok()?.parse().ok()
}

/// One list for each point, of the places where it is reached: first the verb that has been taken least often. With `all`, a list for
/// each place.
fn spread<T: Clone>(places: Vec<T>, all: bool, what: impl Fn(&T) -> (Verb, Point)) -> Vec<Vec<T>> {
    if all {
        return places.into_iter().map(|place| vec![place]).collect();
    }
    let mut by_point = BTreeMap::<(Step, bool), Vec<T>>::new();
    for place in places {
        let point = what(&place).1;
        by_point.entry((point.step, point.after)).or_default().push(place);
    }
    let mut lists: Vec<Vec<T>> = by_point.into_values().collect();
    // Points of few verbs first: the others have a choice.
    lists.sort_by_key(Vec::len);
    let mut taken = BTreeMap::<Verb, usize>::new();
    for list in &mut lists {
        list.sort_by_key(|place| taken.get(&what(place).0).copied().unwrap_or_default());
        if let Some(first) = list.first() {
            *taken.entry(what(first).0).or_default() += 1;
        }
    }
    lists
}

#[test]
fn a_kill_at_any_point_loses_nothing() {
    if !fault::COMPILED {
        return eprintln!("skipped: the points are not in this build");
    }
    let (began, disk) = (Instant::now(), serve());
    let mut places: Vec<Death> = all_points(&disk, hits().unwrap_or(2))
        .into_iter()
        .map(|(v, p)| (v, None, p))
        .collect();
    places.extend(second_deaths(&disk));
    let lists = spread(places, hits().is_some(), |death| (death.0, death.2));
    let died = Mutex::new(BTreeMap::<(Step, bool), BTreeMap<Verb, u64>>::new());
    side_by_side(&lists, |list| {
        // A point that is not reached this time is looked for in another verb.
        if let Some((verb, _, point)) = list.iter().find(|death| die(death, &disk)) {
            let mut died = died.lock().unwrap();
            let of_point = died.entry((point.step, point.after)).or_default();
            *of_point.entry(*verb).or_default() += 1;
        }
    });
    let died = died.into_inner().unwrap();
    let kills: u64 = died.values().flat_map(BTreeMap::values).sum();
    let verbs_hit: BTreeSet<Verb> = died.values().flat_map(BTreeMap::keys).copied().collect();
    println!(
        "{} named points, {kills} kills of {} planned, in {} verbs, in {} s",
        died.len(),
        lists.len(),
        verbs_hit.len(),
        began.elapsed().as_secs()
    );
    let missed: Vec<String> = Step::ALL
        .iter()
        .flat_map(|step| [(*step, false), (*step, true)])
        .filter(|point| !died.contains_key(point))
        .map(|(step, after)| format!("{} {step}", if after { "after" } else { "before" }))
        .collect();
    assert!(
        missed.is_empty() || verbs().len() < VERBS.len(),
        "no process died at: {missed:?}"
    );
}

#[test]
fn what_a_dead_attempt_had_allocated_is_given_back() {
    if !fault::COMPILED {
        return eprintln!("skipped: the points are not in this build");
    }
    let disk = serve();
    let counted = Mutex::new(Vec::new());
    let in_place = [Verb::Commit, Verb::Flatten, Verb::Rebase, Verb::Grow];
    side_by_side(&in_place, |verb| {
        let (_dir, case) = new_case(*verb, What::Count);
        let mut points = count(&case, &disk);
        points.retain(|(step, after, _)| *after && matches!(step, Step::WriteBytes | Step::FlushBytes));
        let points = chosen(&points, 5).into_iter().map(|point| (*verb, None, point));
        counted.lock().unwrap().extend(points);
    });
    let deaths: Vec<Death> = counted.into_inner().unwrap();
    side_by_side(&deaths, |death| {
        die(death, &disk);
    });
}

#[test]
fn every_step_may_fail_twice() {
    if !fault::COMPILED {
        return eprintln!("skipped: the points are not in this build");
    }
    let (began, disk) = (Instant::now(), serve());
    let lists = spread(all_points(&disk, hits().unwrap_or(2)), hits().is_some(), |place| *place);
    let (started, wrong) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    side_by_side(&lists, |list| {
        let Some((verb, point)) = list.first() else { return };
        let (_dir, case) = new_case(*verb, What::FailTwice(*point));
        let (said, ending) = Process::start(&case, &disk).end();
        if ending != Ending::Well {
            wrong
                .lock()
                .unwrap()
                .push(format!("{verb:?} {point}: {ending:?}\n{}", errors(&case)));
        }
        if said.contains("needs a start") {
            started.lock().unwrap().push(format!("{verb:?} {point}"));
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(
        wrong.is_empty(),
        "{} failures were not survived:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    let started = started.into_inner().unwrap();
    println!(
        "{} failures, each twice, in {} s; cleared away by the next start: {started:?}",
        lists.len(),
        began.elapsed().as_secs()
    );
}

#[test]
fn failures_that_were_not_survived_once() {
    if !fault::COMPILED {
        return eprintln!("skipped: the points are not in this build");
    }
    let disk = serve();
    side_by_side(MENDED, |&(verb, step, after, nth)| {
        let point = Point { step, after, nth };
        let (_dir, case) = new_case(verb, What::FailTwice(point));
        let ending = Process::start(&case, &disk).end().1;
        assert_eq!(ending, Ending::Well, "{verb:?} {point}\n{}", errors(&case));
    });
}

/// Numbers that differ from run to run only with the seed.
fn next(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// How long a verb takes without a kill.
fn duration(verb: Verb, disk: &str) -> Duration {
    let (_dir, case) = new_case(verb, What::Count);
    let mut process = Process::start(&case, disk);
    process.until_ready(&case);
    let began = Instant::now();
    process.end();
    began.elapsed()
}

/// Kills the process of one case, and whoever goes on with it, at moments the numbers say.
fn killed_at_random(verb: Verb, most: Duration, disk: &str, state: &mut u64) {
    let (_dir, mut case) = new_case(verb, What::Live);
    for kill in 0..KILLS_IN_A_ROW {
        case.goes_on = kill > 0;
        let mut process = Process::start(&case, disk);
        process.until_ready(&case);
        std::thread::sleep(most.mul_f64(next(state) as f64 / f64::from(u32::MAX) * 2.0));
        process.kill();
    }
    look(&Case { goes_on: true, ..case }, disk);
}

#[test]
fn a_kill_at_any_moment_loses_nothing() {
    let (began, disk) = (Instant::now(), serve());
    let (kills, seed) = (number("VDISK_KILLS", 100), number("VDISK_SEED", 1));
    let verbs: Vec<Verb> = verbs().into_iter().filter(|verb| verb.trouble().is_empty()).collect();
    let durations = Mutex::new(BTreeMap::new());
    side_by_side(&verbs, |verb| {
        let most = duration(*verb, &disk);
        durations.lock().unwrap().insert(*verb, most);
    });
    let durations = durations.into_inner().unwrap();
    let rounds = kills.div_ceil(KILLS_IN_A_ROW);
    let cases: Vec<(u64, Verb, Duration)> = (0..rounds)
        .flat_map(|round| durations.iter().map(move |(verb, most)| (round, *verb, *most)))
        .collect();
    side_by_side(&cases, |&(round, verb, most)| {
        let mut state = (seed << 32) + (round << 8) + verb as u64;
        next(&mut state);
        killed_at_random(verb, most, &disk, &mut state);
    });
    println!(
        "{} kills of each of {} verbs in {} s",
        rounds * KILLS_IN_A_ROW,
        durations.len(),
        began.elapsed().as_secs()
    );
}
