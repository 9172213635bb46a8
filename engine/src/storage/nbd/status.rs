//! What the server said of the allocation of ranges (`base:allocation`).

use super::NbdStorage;
use super::requests::{MAX_RANGE, lacks};
use super::session::{Ask, Status};
use super::wire::{self, Command};
use crate::Result;
use crate::storage::StorageExtent;

/// An extent and where it begins.
pub(super) type Run = (u64, StorageExtent);

impl NbdStorage {
    pub(super) fn ask_status(&self, offset: u64, len: u64) -> Result<Option<Vec<Status>>> {
        let (start, blocks) = self.blocks(offset, len.min(u64::from(MAX_RANGE)));
        let ask = Ask {
            command: Command::BlockStatus,
            flags: 0,
            offset: start,
            len: u32::try_from(blocks).unwrap_or(u32::MAX),
        };
        match self.session().status(ask).map_err(|e| e.at(&self.name))? {
            Ok(statuses) => Ok(Some(statuses)),
            // Not knowing is no reason to fail: the data can be read.
            Err(number) if lacks(number) => Ok(None),
            Err(number) => self.done("tell the status of", ask, Err(number)).map(|()| None),
        }
    }

    /// What a status says of the ranges from `offset` on, neighbours of one kind together. Ranges are whole blocks, says the protocol: of one
    /// that ends inside a block only the blocks before count, or that one as data, and nothing behind it.
    pub(super) fn noted(&self, offset: u64, statuses: &[Status]) -> Vec<Run> {
        let (mut list, mut at): (Vec<Run>, _) = (Vec::new(), offset);
        let min = u64::from(self.export.min);
        for (told, flags) in statuses {
            let whole = told - told % min;
            let data = whole == 0 || flags & wire::STATE_ZERO == 0;
            let len = whole.max(min).min(self.export.size.saturating_sub(at));
            match list.last_mut() {
                Some((_, last)) if last.data == data => last.len += len,
                _ if len > 0 => list.push((at, StorageExtent { len, data })),
                _ => {}
            }
            at += len;
            if whole != *told {
                break;
            }
        }
        list
    }
}

pub(super) fn recall(known: &[Run], offset: u64, len: u64) -> Option<StorageExtent> {
    let index = known.partition_point(|(start, e)| start + e.len <= offset);
    let (start, extent) = known.get(index).filter(|(start, _)| *start <= offset)?;
    Some(StorageExtent {
        len: (start + extent.len - offset).min(len),
        data: extent.data,
    })
}
