//! Cuts a source into batches of work, aligned to the units of the target.

use std::collections::VecDeque;
use std::ops::Range;

use super::Sink;
use crate::ops::{GuestSource, SourceExtent, SourceKind, Walk};
use crate::{Control, Error, Result};

/// Guest bytes of one batch at most.
const BATCH_BYTES: u64 = 512 << 10;
/// Steps of one batch at most: what keeps scattered data from making batches of millions of pieces.
const BATCH_STEPS: usize = 128;
/// Steps of one segment at most, which is planned before it is copied.
const SEGMENT_STEPS: usize = 1 << 14;
/// Zeroes that are stored: shorter runs are written together with the data around them.
const ZERO_RUN: u64 = 64 << 10;

/// A run of whole units (the last one may be cut by the end) with the ranges of it that must be read; the rest is zero.
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) len: usize,
    pub(super) reads: Vec<Read>,
    /// Bytes of it that are data of the source.
    pub(super) data: u64,
}

/// A guest range to read; `layer` where it is known to be data of one.
#[derive(Clone, Copy)]
pub(super) struct Read {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) layer: Option<usize>,
}

pub(super) enum Step {
    Copy(Piece),
    /// Made zero, by whatever way the target has.
    Zero {
        offset: u64,
        len: u64,
    },
    /// Zeroes that are stored like data: whole units, also of the fast way.
    StoreZeroes {
        offset: u64,
        len: u64,
    },
}

impl Step {
    fn bytes_to_copy(&self) -> u64 {
        match self {
            Self::Copy(piece) => piece.len as u64,
            Self::StoreZeroes { len, .. } => *len,
            Self::Zero { .. } => 0,
        }
    }

    /// Bytes of it that are data of the source.
    fn data(&self) -> u64 {
        match self {
            Self::Copy(piece) => piece.data,
            Self::StoreZeroes { len, .. } => *len,
            Self::Zero { .. } => 0,
        }
    }

    /// Bytes of memory that it needs.
    pub(super) fn buffer_len(&self) -> usize {
        match self {
            Self::Copy(piece) => piece.len,
            Self::Zero { .. } | Self::StoreZeroes { .. } => 0,
        }
    }
}

/// Work for one worker, numbered in guest order.
pub(super) struct Batch {
    pub(super) number: u64,
    pub(super) steps: Vec<Step>,
    /// Guest bytes that are done when the batch is done, skipped ones included.
    pub(super) bytes: u64,
    /// Bytes of these that are data of the source.
    pub(super) data: u64,
}

impl Batch {
    /// Bytes that are read and written: holes and zeroes cost next to nothing.
    pub(super) fn bytes_to_copy(&self) -> u64 {
        self.steps.iter().map(Step::bytes_to_copy).sum()
    }
}

pub(super) struct Planner<'a> {
    walk: Box<dyn Walk + 'a>,
    end: u64,
    unit: u64,
    /// What pieces end at where they can.
    whole: u64,
    piece: u64,
    explicit_zeroes: bool,
    zeroes_are_data: bool,
    /// Shortest run of zeroes that is stored by itself; the target may want all of them encoded with the rest.
    zero_run: u64,
    position: u64,
    number: u64,
    /// The batches of a segment that are not given out yet. `None`: there are no segments.
    segment: Option<VecDeque<Batch>>,
}

impl<'a> Planner<'a> {
    /// For a range of the source that starts at a unit of the target.
    pub(super) fn new(source: &'a dyn GuestSource, sink: &Sink<'_>, range: Range<u64>) -> Self {
        let (unit, whole) = (sink.unit(), sink.whole());
        Self {
            walk: source.walk(),
            end: range.end,
            unit,
            whole,
            piece: BATCH_BYTES.next_multiple_of(whole),
            explicit_zeroes: sink.wants_zeroes(),
            zeroes_are_data: sink.store_zeroes(),
            zero_run: if sink.encodes() { u64::MAX } else { ZERO_RUN },
            position: range.start,
            number: 0,
            segment: None,
        }
    }

    /// Plans the next segment, the batches of which the pieces make up at least `bytes`, and says where it ends. Only these are given
    /// out then. Nothing is looked up again when they are copied: on some file systems that costs more than the copy.
    ///
    /// # Errors
    /// What the source says; `Cancelled`.
    pub(super) fn plan_segment(&mut self, bytes: u64, control: &Control) -> Result<u64> {
        let mut segment = VecDeque::<Batch>::new();
        let (mut pieces, mut steps) = (0, 0);
        while pieces < bytes && steps < SEGMENT_STEPS {
            control.check_cancelled()?;
            let Some(batch) = self.plan_batch()? else { break };
            pieces += batch.bytes_to_copy();
            steps += batch.steps.len();
            match segment.back_mut().filter(|_| batch.steps.is_empty()) {
                // A disk may have any number of holes.
                Some(before) => {
                    before.bytes += batch.bytes;
                    self.number -= 1;
                }
                None => segment.push_back(batch),
            }
        }
        self.segment = Some(segment);
        Ok(self.position)
    }

    /// The next batch to copy; `None` at the end, of the segment where there is one.
    pub(super) fn next(&mut self) -> Result<Option<Batch>> {
        match &mut self.segment {
            Some(segment) => Ok(segment.pop_front()),
            None => self.plan_batch(),
        }
    }

    fn plan_batch(&mut self) -> Result<Option<Batch>> {
        let (start, mut steps, mut bytes, mut data) = (self.position, Vec::new(), 0, 0);
        let end = self.end;
        let mut looks = 0;
        while self.position < end && bytes < BATCH_BYTES && looks < BATCH_STEPS {
            looks += 1;
            if let Some(step) = self.next_step(end)? {
                bytes += step.bytes_to_copy();
                data += step.data();
                steps.push(step);
            }
        }
        if self.position == start {
            return Ok(None);
        }
        self.number += 1;
        Ok(Some(Batch {
            number: self.number - 1,
            steps,
            bytes: self.position - start,
            data,
        }))
    }

    /// Moves on by whole units. `None`: nothing to do for the range that was passed.
    fn next_step(&mut self, end: u64) -> Result<Option<Step>> {
        let offset = self.position;
        let extent = self.look(offset, end - offset)?;
        if extent.kind == SourceKind::Data {
            return self.next_piece(end);
        }
        if extent.kind == SourceKind::Zero && self.zeroes_are_data {
            let stop = (offset + extent.len.min(self.piece)) / self.whole * self.whole;
            if extent.len < self.zero_run || !offset.is_multiple_of(self.whole) || stop <= offset {
                return self.next_piece(end);
            }
            self.position = stop;
            let len = stop - offset;
            return Ok(Some(Step::StoreZeroes { offset, len }));
        }
        let stop = offset + extent.len;
        let aligned = if stop == end { end } else { stop / self.unit * self.unit };
        if aligned <= offset {
            return self.next_piece(end); // The unit is a mixture.
        }
        self.position = aligned;
        let wanted = extent.kind == SourceKind::Zero && self.explicit_zeroes;
        Ok(wanted.then_some(Step::Zero {
            offset,
            len: aligned - offset,
        }))
    }

    /// The units from here to where no more data follows. `None`: they are of the target's own base alone.
    fn next_piece(&mut self, end: u64) -> Result<Option<Step>> {
        let offset = self.position;
        // A piece is at least as long as what it ends at, so that it never ends where it begins.
        let limit = (offset.saturating_add(self.piece) / self.whole * self.whole).min(end);
        let mut stop = offset.saturating_add(self.unit).min(end);
        let mut at = offset;
        let mut reads: Vec<Read> = Vec::new();
        let mut data = 0;
        let mut absent = true;
        while at < stop {
            let extent = self.look(at, limit - at)?;
            absent &= extent.kind == SourceKind::Absent;
            let len = match extent.kind {
                SourceKind::Data => {
                    data += extent.len;
                    extent.len
                }
                SourceKind::Zero if self.zeroes_are_data => {
                    let len = match extent.len < self.zero_run {
                        true => extent.len,
                        false => extent.len.min(stop - at),
                    };
                    data += len;
                    len
                }
                SourceKind::Zero | SourceKind::Absent => extent.len.min(stop - at),
            };
            if extent.kind != SourceKind::Zero {
                let layer = extent.layer.filter(|_| extent.kind == SourceKind::Data);
                match reads.last_mut() {
                    Some(last) if last.offset + last.len == at && last.layer == layer => last.len += len,
                    _ => reads.push(Read { offset: at, len, layer }),
                }
            }
            at += len;
            stop = stop.max(at.div_ceil(self.unit).saturating_mul(self.unit)).min(limit);
        }
        self.position = stop;
        if absent {
            return Ok(None);
        }
        let len =
            usize::try_from(stop - offset).map_err(|_| Error::limit("a unit is larger than the address space"))?;
        Ok(Some(Step::Copy(Piece {
            offset,
            len,
            reads,
            data,
        })))
    }

    fn look(&mut self, offset: u64, len: u64) -> Result<SourceExtent> {
        let extent = self.walk.extent(offset, len)?;
        if extent.len == 0 || extent.len > len {
            return Err(Error::corrupt(format!(
                "expected an extent of 1 to {len} bytes at {offset:#x}, found {}",
                extent.len
            )));
        }
        Ok(extent)
    }
}
