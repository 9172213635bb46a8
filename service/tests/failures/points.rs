//! Every named point, one by one; and any moment at all.

use std::collections::BTreeMap;
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
    (Verb::Grow, Step::FlushBytes, true),
];

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

#[test]
#[ignore = "takes minutes: run by hand"]
fn a_kill_at_any_point_loses_nothing() {
    if !fault::COMPILED {
        return eprintln!("skipped: the points are not in this build");
    }
    let (began, disk) = (Instant::now(), serve());
    let mut deaths: Vec<Death> = all_points(&disk, number("VDISK_POINT_HITS", 2))
        .into_iter()
        .map(|(v, p)| (v, None, p))
        .collect();
    deaths.extend(second_deaths(&disk));
    let died = Mutex::new(BTreeMap::<(Step, bool), u64>::new());
    side_by_side(&deaths, |death| {
        if die(death, &disk) {
            *died.lock().unwrap().entry((death.2.step, death.2.after)).or_default() += 1;
        }
    });
    let died = died.into_inner().unwrap();
    let kills: u64 = died.values().sum();
    println!(
        "{} named points, {kills} kills of {} planned, in {} s",
        died.len(),
        deaths.len(),
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
#[ignore = "takes minutes: run by hand"]
fn every_step_may_fail_twice() {
    if !fault::COMPILED {
        return eprintln!("skipped: the points are not in this build");
    }
    let (began, disk) = (Instant::now(), serve());
    let points = all_points(&disk, number("VDISK_POINT_HITS", 2));
    let started = Mutex::new(Vec::new());
    side_by_side(&points, |(verb, point)| {
        let (_dir, case) = new_case(*verb, What::FailTwice(*point));
        let (said, ending) = Process::start(&case, &disk).end();
        assert_eq!(ending, Ending::Well, "{verb:?} {point}\n{}", errors(&case));
        if said.contains("needs a start") {
            started.lock().unwrap().push(format!("{verb:?} {point}"));
        }
    });
    let started = started.into_inner().unwrap();
    println!(
        "{} failures, each twice, in {} s; cleared away by the next start: {started:?}",
        points.len(),
        began.elapsed().as_secs()
    );
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
    process.until_ready();
    let began = Instant::now();
    process.end();
    began.elapsed()
}

/// Kills the process of one case up to three times, at moments the numbers say.
fn killed_at_random(verb: Verb, most: Duration, disk: &str, state: &mut u64) -> u64 {
    let (_dir, mut case) = new_case(verb, What::Live);
    for kill in 0..3 {
        case.goes_on = kill > 0;
        let mut process = Process::start(&case, disk);
        process.until_ready();
        std::thread::sleep(most.mul_f64(next(state) as f64 / f64::from(u32::MAX) * 2.0));
        process.kill();
    }
    look(&Case { goes_on: true, ..case }, disk);
    3
}

#[test]
#[ignore = "takes minutes: run by hand"]
fn a_kill_at_any_moment_loses_nothing() {
    let (began, disk) = (Instant::now(), serve());
    let (kills, seed) = (number("VDISK_KILLS", 3), number("VDISK_SEED", 1));
    let done = Mutex::new(BTreeMap::<Verb, u64>::new());
    let verbs: Vec<Verb> = verbs().into_iter().filter(|verb| verb.trouble().is_empty()).collect();
    side_by_side(&verbs, |verb| {
        let most = duration(*verb, &disk);
        let mut state = seed.wrapping_mul(1000) + *verb as u64;
        let mut count = 0;
        while count < kills {
            count += killed_at_random(*verb, most, &disk, &mut state);
        }
        done.lock().unwrap().insert(*verb, count);
    });
    let done = done.into_inner().unwrap();
    let all: u64 = done.values().sum();
    println!("{all} kills in {} s: {done:?}", began.elapsed().as_secs());
}
