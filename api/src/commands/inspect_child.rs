//! The hidden sub-command that the service runs itself as, to parse files of unknown origin.

use std::io::Write;

use clap::Args;
use vdisk_service::sandbox;

use super::Failure;

/// What to look for, as the service says it.
#[derive(Args)]
pub struct InspectChild {
    /// JSON, or 'probe': try what a sandboxed process must not do, and say what was possible
    task: String,
}

/// Looks at the file on standard input, inside bounds that the process puts on itself.
///
/// # Errors
/// Those of the sandbox.
pub fn run(options: &InspectChild) -> Result<(), Failure> {
    if options.task == "probe" {
        let found = sandbox::probe()?;
        return Ok(std::io::stdout().write_all(found.as_bytes())?);
    }
    Ok(sandbox::run_child(&options.task)?)
}
