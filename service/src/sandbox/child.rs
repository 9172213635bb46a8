//! The child's side.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;

use vdisk_engine::control::NoProgress;
use vdisk_engine::storage::FileStorage;
use vdisk_engine::{CancelToken, Control, Limits, StorageRef};

use super::{Answer, Task, confine, options};
use crate::disk::{Looked, look};
use crate::error::Result;

/// Runs the hidden sub-command: bounds this process, looks at the file on standard input, and writes the report.
///
/// # Errors
/// A task that cannot be read, bounds that cannot be set, a pipe that is closed: the parent sees that the child failed.
pub fn run(task: &str) -> io::Result<()> {
    let task: Task = serde_json::from_str(task)?;
    let file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut parsed_in = confine::confine(task.cpu_seconds)?;
    parsed_in.child = true;
    let answer = match inspect(file, &task) {
        Ok(mut looked) => {
            looked.inspection.parsed_in = parsed_in;
            Answer::Looked(Box::new(looked))
        }
        Err(error) => Answer::Failed {
            code: error.code.as_str().to_owned(),
            public: error.public,
        },
    };
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, &answer)?;
    out.flush()
}

fn inspect(file: File, task: &Task) -> Result<Looked> {
    let storage: StorageRef = Arc::new(FileStorage::from_file(file, &task.name, options(task.held))?);
    let limits = Limits {
        chain_depth: task.chain_depth,
        virtual_size: task.virtual_size,
        ..Limits::untrusted()
    };
    let control = Control::new(Arc::new(NoProgress), CancelToken::new());
    look(&storage, &task.look, &limits, &control)
}
