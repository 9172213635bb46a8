//! The copy pipeline: workers take batches of guest ranges in order, read and prepare them side by side, give them places in guest
//! order and store them side by side again. What comes out does not depend on the number of workers; memory is bounded by it.

mod plan;
mod segments;
mod sink;
mod turn;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use self::plan::{Batch, Piece, Planner, Step};
pub use self::segments::{Mark, Segments, copy_in_segments};
pub use self::sink::{CopyTarget, Sink};
use self::turn::Turns;
use super::{GuestSource, SourceKind};
use crate::image::Scratch;
use crate::storage::{PAGE, PageBuffer};
use crate::{Control, Error, Result};

/// How to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyOptions {
    /// Threads that read, encode and store; at least 1 is used.
    pub workers: usize,
    /// Store units compressed.
    pub compress: bool,
    /// Compression level, where the user chose one.
    pub level: Option<i32>,
    /// Runs of zeroes of at least this many bytes in data are left out; 0 stores every byte, also those of holes.
    pub sparse: u64,
    /// Give places in guest order. Without it the output depends on the timing of the workers, but where the target takes no other order.
    pub ordered: bool,
    /// Progress counts the bytes of data alone, which are counted beforehand. Without it holes count as well.
    pub count_data: bool,
    /// Flush the target after this many copied bytes, and again, so that a copy that is begun anew finds what is done already; 0 leaves it
    /// to the caller.
    pub flush_every: u64,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            workers: 1,
            compress: false,
            level: None,
            sparse: 4096,
            ordered: true,
            count_data: false,
            flush_every: 0,
        }
    }
}

/// Copies all of `source` to the start of `target`. The target is not flushed.
///
/// # Errors
/// The first error of any worker; `Cancelled`. The target then holds part of the data.
pub fn copy(source: &dyn GuestSource, target: &CopyTarget<'_>, options: &CopyOptions, control: &Control) -> Result<()> {
    refuse_longer(source, target)?;
    control.set_total(match options.count_data {
        true => data_bytes(source, Sink::new(target, options)?.store_zeroes(), control)?,
        false => source.len(),
    });
    copy_range(source, target, options, 0..source.len(), control)
}

fn refuse_longer(source: &dyn GuestSource, target: &CopyTarget<'_>) -> Result<()> {
    let (from, to) = (source.len(), target.image.virtual_size());
    if from > to {
        return Err(Error::invalid(format!(
            "{from} bytes do not fit into an image of {to} bytes"
        )));
    }
    Ok(())
}

fn copy_range(
    source: &dyn GuestSource,
    target: &CopyTarget<'_>,
    options: &CopyOptions,
    range: Range<u64>,
    control: &Control,
) -> Result<()> {
    Pipeline::new(source, target, options, range, control)?.run()
}

struct Pipeline<'a> {
    source: &'a dyn GuestSource,
    sink: Sink<'a>,
    planner: Mutex<Planner<'a>>,
    turns: Turns,
    options: &'a CopyOptions,
    unflushed: AtomicU64,
    control: &'a Control,
}

impl<'a> Pipeline<'a> {
    fn new(
        source: &'a dyn GuestSource,
        target: &CopyTarget<'a>,
        options: &'a CopyOptions,
        range: Range<u64>,
        control: &'a Control,
    ) -> Result<Self> {
        let sink = Sink::new(target, options)?;
        Ok(Self {
            planner: Mutex::new(Planner::new(source, &sink, range)),
            turns: Turns::new(options.ordered || sink.wants_order()),
            source,
            sink,
            options,
            unflushed: AtomicU64::new(0),
            control,
        })
    }

    /// Copies what is planned: all of it, or the segment.
    fn run(&self) -> Result<()> {
        let first_error = Mutex::new(None);
        let work = || {
            if let Err(error) = self.work() {
                self.turns.abort();
                first_error
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert(error);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.options.workers {
                scope.spawn(work);
            }
            work();
        });
        first_error
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .map_or(Ok(()), Err)
    }

    fn work(&self) -> Result<()> {
        let mut scratch = Scratch::with_level(self.options.level);
        let mut buffer = PageBuffer::default();
        while let Some(batch) = self.next_batch()? {
            self.control.checkpoint(batch.bytes_to_copy())?;
            self.copy_batch(&batch, &mut buffer, &mut scratch)?;
            self.flush_if_due(&batch)?;
            self.control.advance(match self.options.count_data {
                true => batch.data,
                false => batch.bytes,
            });
        }
        Ok(())
    }

    fn flush_if_due(&self, batch: &Batch) -> Result<()> {
        let every = self.options.flush_every;
        let copied = batch.bytes_to_copy();
        if every == 0 || self.unflushed.fetch_add(copied, Ordering::Relaxed) + copied < every {
            return Ok(());
        }
        self.unflushed.store(0, Ordering::Relaxed);
        self.sink.flush()
    }

    fn next_batch(&self) -> Result<Option<Batch>> {
        if self.turns.is_aborted() {
            return Ok(None);
        }
        self.planner().next()
    }

    fn planner(&self) -> MutexGuard<'_, Planner<'a>> {
        self.planner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copy_batch(&self, batch: &Batch, buffer: &mut PageBuffer, scratch: &mut Scratch) -> Result<()> {
        let mut prepared = Vec::with_capacity(batch.steps.len());
        for (step, buf) in batch.steps.iter().zip(parts(batch, buffer)) {
            match step {
                Step::Zero { offset, len } => prepared.push(sink::Prepared::zero(*offset, *len)),
                Step::StoreZeroes { offset, len } => prepared.push(sink::Prepared::stored_zeroes(*offset, *len)),
                Step::Copy(piece) => {
                    read_piece(self.source, piece, buf)?;
                    prepared.push(self.sink.prepare(piece.offset, buf, scratch)?);
                }
            }
        }
        let buffers = parts(batch, buffer);
        let mut placed = Vec::with_capacity(prepared.len());
        {
            let Some(_turn) = self.turns.take(batch.number) else {
                return Ok(());
            };
            for (prepared, buf) in prepared.iter().zip(&buffers) {
                placed.push(self.sink.place(prepared, buf)?);
            }
        }
        for ((prepared, placed), buf) in prepared.iter().zip(&placed).zip(&buffers) {
            self.sink.store(prepared, placed, buf)?;
        }
        Ok(())
    }
}

/// Cuts a worker's buffer into one part for each step, each at a page boundary.
fn parts<'b>(batch: &Batch, buffer: &'b mut PageBuffer) -> Vec<&'b mut [u8]> {
    let lengths = batch.steps.iter().map(Step::buffer_len);
    buffer.set_len(lengths.clone().map(|len| len.next_multiple_of(PAGE)).sum());
    let mut rest = &mut buffer[..];
    lengths
        .map(|len| {
            let (part, more) = std::mem::take(&mut rest).split_at_mut(len.next_multiple_of(PAGE));
            rest = more;
            &mut part[..len]
        })
        .collect()
}

/// How much there is to copy.
fn data_bytes(source: &dyn GuestSource, zeroes_too: bool, control: &Control) -> Result<u64> {
    let (mut walk, mut offset, mut bytes) = (source.walk(), 0, 0);
    while offset < source.len() {
        control.check_cancelled()?;
        let extent = walk.extent(offset, source.len() - offset)?;
        if extent.kind == SourceKind::Data || zeroes_too && extent.kind == SourceKind::Zero {
            bytes += extent.len;
        }
        offset = offset.saturating_add(extent.len.max(1));
    }
    Ok(bytes)
}

/// Reads the data of a piece and zeroes the gaps between.
fn read_piece(source: &dyn GuestSource, piece: &Piece, buf: &mut [u8]) -> Result<()> {
    let mut done = 0;
    for read in &piece.reads {
        let start = (read.offset - piece.offset) as usize;
        let end = start + read.len as usize;
        buf[done..start].fill(0);
        match read.layer {
            Some(layer) => source.read_data(layer, read.offset, &mut buf[start..end])?,
            None => source.read(read.offset, &mut buf[start..end])?,
        }
        done = end;
    }
    buf[done..].fill(0);
    Ok(())
}
