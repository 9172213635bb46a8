//! What the service is asked to do: one verb each, from making ready to looking at what came out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vdisk_service::fault::{Action, Plan, Side, Step};

use crate::common::Lab;

/// Ids by the names that the verbs use.
pub type Ids = BTreeMap<String, Uuid>;

macro_rules! verbs {
    ($($verb:ident),* $(,)?) => {
        /// What is done.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Verb { $($verb),* }

        /// All of them.
        pub const VERBS: &[Verb] = &[$(Verb::$verb),*];
    };
}

verbs!(
    Create,
    CreateOverlay,
    CreateFails,
    CreatePreallocated,
    Update,
    Upload,
    UploadInParts,
    UploadDamaged,
    UploadRefused,
    UploadNotRecorded,
    Delete,
    DeleteFails,
    SnapshotCreate,
    SnapshotDelete,
    SnapshotApply,
    Import,
    ImportConverted,
    ImportFetched,
    Scan,
    ConvertRaw,
    ConvertQcow2,
    ConvertCompressed,
    ConvertOnto,
    Compress,
    Rebase,
    RebaseUnsafe,
    Commit,
    CommitDrop,
    Flatten,
    Grow,
    Shrink,
    Check,
    Repair,
    Encrypt,
    Decrypt,
    KeyAdd,
    KeyChange,
    KeyErase,
    RotateMasterKey,
    Compare,
    Cancel,
    Steer,
    HandBack,
    Start,
    Secret,
    Token,
    Webhook,
    WebhookDown,
    Audit,
);

impl Verb {
    /// What goes wrong besides, to get to the steps that mend it.
    pub fn trouble(self) -> Vec<Plan> {
        let fails = |step, side| Plan {
            step,
            side,
            nth: 1,
            action: Action::Fail,
        };
        match self {
            Self::CreateFails => vec![fails(Step::FormatFile, Side::After)],
            Self::UploadNotRecorded => vec![fails(Step::RecordUpload, Side::Before)],
            Self::DeleteFails => vec![fails(Step::RecordDelete, Side::Before)],
            _ => Vec::new(),
        }
    }

    /// Whether the verb queues a job that changes images or makes one.
    pub fn is_job(self) -> bool {
        self >= Self::Import && self <= Self::Compare
    }
}

/// A service with what the verb needs.
pub struct Scene {
    pub verb: Verb,
    /// `None` between two starts.
    pub lab: Option<Lab>,
    pub ids: Ids,
}

impl Scene {
    pub fn lab(&self) -> &Lab {
        self.lab.as_ref().expect("the service was started again")
    }

    pub fn id(&self, name: &str) -> Uuid {
        self.ids[name]
    }
}
