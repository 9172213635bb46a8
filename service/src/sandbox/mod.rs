//! Files of unknown origin are parsed by a child process that can do nothing else.
//!
//! The child is the same program. It gets the open file as its standard input, bounds itself before it reads a byte of it, and
//! writes what it found as JSON. Whatever a hostile file makes of the parser, it is in a process that can open nothing,
//! reach nobody and not stay for long; that it died is all that the service sees.

mod child;
mod confine;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

pub use child::run as run_child;
pub use confine::probe;
use serde::{Deserialize, Serialize};
use vdisk_engine::storage::{FileOptions, FileStorage, LockMode};
use vdisk_engine::{Control, Limits, StorageRef};

use crate::disk::{Look, Looked, look};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::ParsedIn;

/// The hidden sub-command of the program.
pub const COMMAND: &str = "inspect-child";
/// Bytes that a report may have.
const REPORT_BYTES: u64 = 1 << 20;
/// How often a running child is looked after.
const STEP: Duration = Duration::from_millis(10);
const GIB: u64 = 1 << 30;

/// What the child is asked. Holds no path and no secret.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    name: String,
    look: Look,
    held: bool,
    chain_depth: usize,
    virtual_size: u64,
    cpu_seconds: u64,
}

/// What the child answers.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Looked(Box<Looked>),
    Failed { code: String, public: String },
}

/// Looks at a file: in a child process when a program for it is given, otherwise here.
///
/// # Errors
/// `inspection_failed` when the child died or took too long; as [`look`].
pub(crate) fn inspect(
    program: Option<&Path>,
    file: File,
    name: &str,
    wanted: &Look,
    limits: &Limits,
    control: &Control,
) -> Result<Looked> {
    inspect_file(program, (file, name), false, wanted, limits, control)
}

/// As [`inspect`], of a file whose lock is the caller's: one that it is making.
///
/// # Errors
/// As there.
pub(crate) fn inspect_held(
    program: Option<&Path>,
    file: File,
    name: &str,
    wanted: &Look,
    limits: &Limits,
    control: &Control,
) -> Result<Looked> {
    inspect_file(program, (file, name), true, wanted, limits, control)
}

fn inspect_file(
    program: Option<&Path>,
    (file, name): (File, &str),
    held: bool,
    wanted: &Look,
    limits: &Limits,
    control: &Control,
) -> Result<Looked> {
    let Some(program) = program else {
        let storage: StorageRef = Arc::new(FileStorage::from_file(file, name, options(held))?);
        return look(&storage, wanted, limits, control);
    };
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    let cpu_seconds = size.div_ceil(GIB).saturating_mul(60).saturating_add(30);
    let task = Task {
        name: name.to_owned(),
        look: wanted.clone(),
        held,
        chain_depth: limits.chain_depth,
        virtual_size: limits.virtual_size,
        cpu_seconds,
    };
    let patience = Duration::from_secs(cpu_seconds.saturating_mul(3));
    let answer = ask(program, file, &task, patience, control)?;
    match answer {
        Answer::Looked(looked) => {
            say_what_is_missing(&looked.inspection.parsed_in);
            Ok(*looked)
        }
        Answer::Failed { code, public } => {
            let code = code.parse().unwrap_or(ErrorCode::InspectionFailed);
            Err(ServiceError::new(code, public))
        }
    }
}

fn options(held: bool) -> FileOptions {
    let lock = if held { LockMode::None } else { LockMode::Read };
    FileOptions {
        lock,
        ..FileOptions::read()
    }
}

fn ask(program: &Path, file: File, task: &Task, patience: Duration, control: &Control) -> Result<Answer> {
    let task = serde_json::to_string(task).map_err(ServiceError::internal)?;
    let mut child = Command::new(program)
        .args([COMMAND, &task])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(file))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed("the process that looks at files cannot be started").with_internal(error))?;
    let report = child.stdout.take().map(read_report);
    let status = attend(&mut child, patience, control);
    let text = report.and_then(|reader| reader.join().ok()).unwrap_or_default();
    let status = status?;
    if !status.success() {
        let public = "the file made the process that looked at it fail; it is not taken";
        return Err(failed(public).with_internal(status));
    }
    serde_json::from_slice(&text).map_err(|error| failed("the look at the file gave no report").with_internal(error))
}

/// Reads on a thread of its own: a child whose report fills the pipe must not wait for us, nor we for it.
fn read_report(stdout: ChildStdout) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stdout.take(REPORT_BYTES).read_to_end(&mut text);
        text
    })
}

/// Waits for the child; ends it when it takes too long or is wanted no more.
fn attend(child: &mut Child, patience: Duration, control: &Control) -> Result<ExitStatus> {
    let start = Instant::now();
    let mut outcome = Ok(());
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return outcome.map(|()| status),
            Ok(None) if outcome.is_err() => {}
            Ok(None) => {
                outcome = control.check_cancelled().map_err(ServiceError::from);
                if start.elapsed() > patience {
                    outcome = Err(failed("looking at the file took too long; it is not taken"));
                }
                if outcome.is_err() {
                    let _ = child.kill();
                }
            }
            Err(error) => return Err(ServiceError::internal(error)),
        }
        std::thread::sleep(STEP);
    }
}

fn failed(public: &str) -> ServiceError {
    ServiceError::new(ErrorCode::InspectionFailed, public)
}

/// Once in a life: an operator should know what the kernel does not offer.
fn say_what_is_missing(parsed: &ParsedIn) {
    static SAID: Once = Once::new();
    if !(parsed.landlock && parsed.seccomp) {
        SAID.call_once(|| {
            tracing::warn!(
                landlock = parsed.landlock,
                seccomp = parsed.seccomp,
                "files are parsed in a child process with bounded memory and time, but this kernel does not offer all of its sandbox"
            );
        });
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use vdisk_engine::CancelToken;
    use vdisk_engine::control::NoProgress;

    use super::*;

    fn outcome(script: &str, patience: Duration, control: &Control) -> Result<Answer> {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("child");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let task = Task {
            name: "x".to_owned(),
            look: Look {
                claimed: None,
                check: true,
                strict: true,
            },
            held: false,
            chain_depth: 1,
            virtual_size: 1,
            cpu_seconds: 1,
        };
        ask(&program, File::open("/dev/null").unwrap(), &task, patience, control)
    }

    fn patient() -> Control {
        Control::new(Arc::new(NoProgress), CancelToken::new())
    }

    #[test]
    fn a_child_that_dies_hangs_or_babbles_is_an_error_and_nothing_more() {
        let long = Duration::from_secs(20);
        for script in [
            "kill -9 $$",
            "kill -SEGV $$",
            "exit 3",
            "echo '{'",
            "exit 0",
            "head -c 3000000 /dev/zero",
        ] {
            let error = outcome(script, long, &patient()).unwrap_err();
            assert_eq!(error.code, ErrorCode::InspectionFailed, "{script}");
        }
        let start = Instant::now();
        let error = outcome("exec sleep 60", Duration::from_millis(100), &patient()).unwrap_err();
        assert_eq!(error.code, ErrorCode::InspectionFailed);
        assert!(start.elapsed() < Duration::from_secs(50));
    }

    #[test]
    fn a_cancelled_job_ends_its_child() {
        let token = CancelToken::new();
        let control = Control::new(Arc::new(NoProgress), token.clone());
        token.cancel();
        let error = outcome("exec sleep 60", Duration::from_secs(50), &control).unwrap_err();
        assert_eq!(error.code, ErrorCode::Cancelled);
    }
}
