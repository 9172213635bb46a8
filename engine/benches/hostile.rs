//! What the hostile images of the tests' catalogue cost, through info, check, map, read, convert and a writable open: prints the ten whose slowest
//! use takes longest, with the time of all uses together, the ten largest, and how many have a use over 100 ms or are over 64 MiB.

#![expect(clippy::unwrap_used, reason = "a broken precondition ends the program")]

#[path = "../tests/hostile/cases/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the verdicts are for the tests")]
mod cases;
#[path = "../tests/hostile/exercise.rs"]
mod exercise;
#[path = "../tests/hostile/inputs/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the targets are for the tests")]
mod inputs;
#[path = "../tests/hostile/samples.rs"]
mod samples;

use std::time::Duration;

const TIME: Duration = Duration::from_millis(100);
const MEMORY: u64 = 64 << 20;

fn of(case: &cases::Case) -> (String, exercise::Cost) {
    let what = case.name();
    let cost = exercise::cost(case.format, &case.file.bytes(), None, &what);
    (what, cost)
}

fn main() {
    let mut costs: Vec<_> = cases::all().iter().map(of).collect();
    let (slow, large) = (
        costs.iter().filter(|(_, c)| c.slowest > TIME).count(),
        costs.iter().filter(|(_, c)| c.memory > MEMORY).count(),
    );
    println!("{} cases: {slow} over {TIME:?}, {large} over 64 MiB", costs.len());
    costs.sort_by_key(|(_, cost)| std::cmp::Reverse(cost.slowest));
    for (what, cost) in costs.iter().take(10) {
        println!("{:>9.2?} of {:>9.2?}  {what}", cost.slowest, cost.time);
    }
    costs.sort_by_key(|(_, cost)| std::cmp::Reverse(cost.memory));
    for (what, cost) in costs.iter().take(10) {
        println!("{:>5.1} MiB  {what}", cost.memory as f64 / 1048576.0);
    }
}
