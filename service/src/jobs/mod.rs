//! The kinds of job: one file each, with its plan (checked and queued in one transaction), its run and its tests.
//! Adding one is a file and a line in [`KINDS`].

mod base;
mod check;
mod commit;
mod compare;
mod compress;
mod context;
mod convert;
mod decrypt;
mod encrypt;
mod fetch;
mod fill;
mod flatten;
mod foresee;
mod import;
mod kept;
mod plan;
mod rebase;
mod rekey;
mod resize;
mod roles;
mod rotate;
mod scan;
mod sources;
mod space;
mod verify;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::Value;

pub use base::{accept as accept_base, bind as bind_base};
pub use context::{
    BeginAsHolder, ChangeRequest, JobContext, Left, changed_by_then, close_abandoned, sweep, to_bring_back, to_change,
    unpublish,
};
pub use foresee::{Foreseen, Foresight};

use crate::error::{Result, ServiceError};
use crate::model::JobKind;
use crate::queue::Done;

pub use self::check::plan as plan_check;
pub use self::commit::plan as plan_commit;
pub use self::compare::plan as plan_compare;
pub use self::compress::plan as plan_compress;
pub use self::convert::plan as plan_convert;
pub use self::decrypt::plan as plan_decrypt;
pub use self::encrypt::plan as plan_encrypt;
pub use self::fetch::Source as ImportFrom;
pub use self::flatten::plan as plan_flatten;
pub use self::import::plan as plan_import;
pub use self::import::take_in;
pub use self::plan::{
    creatable, engine_options, priority as check_priority, require_ready, require_same_pool, require_unprotected,
};
pub use self::rebase::plan as plan_rebase;
pub use self::rekey::plan as plan_rekey;
pub use self::resize::plan as plan_resize;
pub use self::roles::{refuse_unused, require_secrets, take_roles};
pub use self::rotate::plan as plan_rotate;
pub use self::scan::plan as plan_scan;

/// Does one kind of work.
pub trait JobRunner: Sync {
    /// Which.
    fn kind(&self) -> JobKind;
    /// Does it. May be called again with the same payload after a worker died at any point of an earlier call.
    fn run(&self, context: JobContext, payload: Value) -> BoxFuture<'static, Result<Done>>;
    /// Whether it writes into images that are there. What an attempt before had allocated in them for nothing is given back first.
    fn grows_images(&self) -> bool {
        false
    }
    /// Instead of another attempt: sees to it that images which an earlier one left in the middle of a change can be used. What it finds in
    /// order it leaves alone.
    fn abandon(&self, _context: JobContext, _payload: Value) -> BoxFuture<'static, Result<()>> {
        futures::future::ready(Ok(())).boxed()
    }
    /// Says what it would do: for a dry run, which changes nothing.
    fn foresee(&self, foresight: Foresight, payload: Value) -> BoxFuture<'static, Result<Foreseen>>;
}

/// All kinds.
const KINDS: &[&dyn JobRunner] = &[
    &check::Check,
    &commit::Commit,
    &compare::Compare,
    &compress::Compress,
    &convert::Convert,
    &decrypt::Decrypt,
    &encrypt::Encrypt,
    &flatten::Flatten,
    &import::Import,
    &rebase::Rebase,
    &rekey::Rekey,
    &resize::Resize,
    &rotate::RotateMasterKey,
    &scan::Scan,
];

/// The runner of a kind.
pub fn find(kind: JobKind) -> Result<&'static dyn JobRunner> {
    let found = KINDS.iter().find(|runner| runner.kind() == kind).copied();
    found.ok_or_else(|| ServiceError::internal(format!("no runner for jobs of kind {kind}")))
}

/// Tells in a result that the target was read back, and what its content's digest is.
fn note_digest(result: &mut Value, digest: Option<String>) {
    if let (Value::Object(keys), Some(digest)) = (result, digest) {
        keys.insert("digest".to_owned(), digest.into());
        keys.insert("digest_kind".to_owned(), vdisk_engine::ops::digest::NONZERO_KIND.into());
    }
}

/// Reads a payload that the same program wrote.
fn parse<T: serde::de::DeserializeOwned>(payload: Value) -> Result<T> {
    serde_json::from_value(payload).map_err(|error| ServiceError::internal(format!("the job's payload: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_one_runner() {
        for kind in JobKind::ALL {
            assert_eq!(
                KINDS.iter().filter(|runner| runner.kind() == *kind).count(),
                1,
                "{kind}"
            );
        }
    }
}
