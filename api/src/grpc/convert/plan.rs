use vdisk_service::model::{Amount, Bound, JobPlan, Loss, LossKind};

use super::job::kind;
use super::value::ids;
use crate::proto;

impl From<JobPlan> for proto::JobPlan {
    fn from(plan: JobPlan) -> Self {
        Self {
            kind: kind(plan.kind).into(),
            image_ids: ids(plan.image_ids),
            pool: plan.pool,
            read: plan.read.map(Into::into),
            write: plan.write.map(Into::into),
            target_size: plan.target_size.map(Into::into),
            space_needed: plan.space_needed.map(Into::into),
            space_free: plan.space_free,
            losses: plan.losses.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<Amount> for proto::Amount {
    fn from(amount: Amount) -> Self {
        let bound = match amount.bound {
            Bound::Exact => proto::Bound::Exact,
            Bound::AtMost => proto::Bound::AtMost,
        };
        Self {
            bytes: amount.bytes,
            bound: bound.into(),
        }
    }
}

impl From<Loss> for proto::Loss {
    fn from(loss: Loss) -> Self {
        let kind = match loss.kind {
            LossKind::Snapshots => proto::LossKind::Snapshots,
            LossKind::Bitmaps => proto::LossKind::Bitmaps,
            LossKind::Encryption => proto::LossKind::Encryption,
            LossKind::Data => proto::LossKind::Data,
            LossKind::Content => proto::LossKind::Content,
            LossKind::Image => proto::LossKind::Image,
        };
        Self {
            kind: kind.into(),
            image_id: loss.image_id.to_string(),
            detail: loss.detail,
        }
    }
}
