//! Where the pipeline's bytes go: the fast way of a driver, or plain writes.

use std::ops::Range;

use super::CopyOptions;
use crate::image::{Below, BulkWrite, HostPlace, NothingBelow, Placement, Scratch};
use crate::ops::zeroes;
use crate::{Error, Image, Result, formats};

/// The image to fill.
#[derive(Clone, Copy)]
pub struct CopyTarget<'a> {
    /// The layer that is written.
    pub image: &'a dyn Image,
    /// What lies below it.
    pub below: &'a dyn Below,
    /// Nothing is allocated in it yet but zeroes (preallocation).
    pub fresh: bool,
    /// What was not written reads as zeroes, so zeroes need not be written.
    pub is_zero: bool,
}

impl<'a> CopyTarget<'a> {
    /// An image that was only just created, over `below`.
    ///
    /// # Errors
    /// `InvalidArgument` for an image of an unknown format.
    pub fn fresh(image: &'a dyn Image, below: Option<&'a dyn Below>) -> Result<Self> {
        let can = formats::by_name(image.format())?.capabilities();
        Ok(Self {
            image,
            below: below.unwrap_or(&NothingBelow),
            fresh: true,
            is_zero: below.is_none() && can.zero && image.is_zero_when_new(),
        })
    }
}

/// Smallest block that zero detection looks at.
const BLOCK: usize = 4096;

/// What zeroes are stored from: one block for all, which stays in the processors' caches.
static ZEROES: [u8; 512 << 10] = [0; 512 << 10];

pub struct Sink<'a> {
    target: CopyTarget<'a>,
    bulk: Option<&'a dyn BulkWrite>,
    encode: bool,
    /// Shortest run of zeroes that is left out; `None`: none is.
    gap: Option<usize>,
    store_zeroes: bool,
    /// What a range is cut by.
    unit: u64,
    /// What the fast way stores: a multiple of `unit`.
    whole: u64,
}

/// What becomes of one piece: runs in guest order.
pub(super) struct Prepared {
    offset: u64,
    runs: Vec<Run>,
}

enum Run {
    /// Stored as is: a range of the piece's buffer.
    Plain(Range<usize>),
    /// Less than a whole unit of the fast way, written as any write is.
    Part(Range<usize>),
    /// One unit in encoded form, with its range in the buffer.
    Encoded(Range<usize>, Vec<u8>),
    Zero(u64),
    /// Zeroes that are stored as data.
    StoredZeroes(u64),
}

impl Prepared {
    pub(super) fn zero(offset: u64, len: u64) -> Self {
        Self {
            offset,
            runs: vec![Run::Zero(len)],
        }
    }
    pub(super) fn stored_zeroes(offset: u64, len: u64) -> Self {
        Self {
            offset,
            runs: vec![Run::StoredZeroes(len)],
        }
    }
}

impl<'a> Sink<'a> {
    pub(super) fn new(target: &CopyTarget<'a>, options: &CopyOptions) -> Result<Self> {
        let can = formats::by_name(target.image.format())?.capabilities();
        if options.compress && !can.compress {
            return Err(target.image.cannot("compress"));
        }
        let bulk = target.image.bulk().filter(|b| target.fresh || b.overwrites());
        let cluster = target.image.info()?.cluster_size.unwrap_or(BLOCK as u64);
        let whole = bulk.map_or(cluster, BulkWrite::unit).max(1);
        let gap = usize::try_from(options.sparse)
            .ok()
            .filter(|s| *s > 0)
            .map(|s| s.max(BLOCK));
        let encode = options.compress || bulk.is_some_and(BulkWrite::encodes);
        // What is in an image already may be in parts of clusters, and what comes to it need not fill the rest.
        let part = target.image.subcluster_size().filter(|_| !target.fresh && !encode);
        let unit = part.unwrap_or(whole);
        // Where zeroes cost as much as data (encrypted disks), they are work for all workers like data.
        let store_zeroes = options.sparse == 0 || !(target.is_zero || can.zero);
        let gap = gap.filter(|_| !store_zeroes);
        Ok(Self {
            target: *target,
            bulk,
            encode,
            gap,
            store_zeroes,
            unit,
            whole,
        })
    }

    pub(super) fn flush(&self) -> Result<()> {
        self.target.image.flush()
    }

    /// Whether zeroes are stored like data.
    pub(super) fn store_zeroes(&self) -> bool {
        self.store_zeroes
    }

    /// Whether units are encoded one by one.
    pub(super) fn encodes(&self) -> bool {
        self.encode
    }

    pub(super) fn unit(&self) -> u64 {
        // Small units of a new image are planned together: what counts is where a piece may be cut. Elsewhere a unit that needs no copy
        // keeps what it has.
        if self.encode || !self.target.fresh {
            self.unit
        } else {
            (BLOCK as u64).next_multiple_of(self.unit)
        }
    }

    /// What pieces of work end at, where they are long enough.
    pub(super) fn whole(&self) -> u64 {
        self.whole.next_multiple_of(self.unit())
    }

    /// Whether zeroes must be written because something else would show through.
    pub(super) fn wants_zeroes(&self) -> bool {
        !self.target.is_zero
    }

    /// Whether the target is filled from its start to its end.
    pub(super) fn wants_order(&self) -> bool {
        self.target.image.bulk().is_some_and(BulkWrite::encodes)
    }

    /// Finds zeroes and encodes: any thread.
    pub(super) fn prepare(&self, offset: u64, buf: &[u8], scratch: &mut Scratch) -> Result<Prepared> {
        let runs = if self.encode {
            self.encode_units(buf, scratch)?
        } else {
            self.plain_runs(offset, buf)
        };
        Ok(Prepared { offset, runs })
    }

    fn encode_units(&self, buf: &[u8], scratch: &mut Scratch) -> Result<Vec<Run>> {
        let unit = self.unit as usize;
        let mut runs = Vec::with_capacity(buf.len() / unit + 1);
        for (i, part) in buf.chunks(unit).enumerate() {
            let range = i * unit..i * unit + part.len();
            if self.gap.is_some() && zeroes::is_zero(part) {
                self.push_zero(&mut runs, range);
                continue;
            }
            let encoded = match self.bulk {
                Some(bulk) => bulk.encode(part, scratch)?,
                None => None,
            };
            runs.push(encoded.map_or(Run::Plain(range.clone()), |bytes| Run::Encoded(range, bytes)));
        }
        Ok(runs)
    }

    /// Data is stored in whole units, and in whole blocks of the shortest run that may be left out, where these are larger: small units
    /// are not to be scattered for the sake of a few zeroes.
    fn plain_runs(&self, offset: u64, buf: &[u8]) -> Vec<Run> {
        let mut runs = Vec::new();
        let Some(gap) = self.gap else {
            self.push_data(&mut runs, offset, 0..buf.len());
            return runs;
        };
        let block = (1usize << gap.ilog2()).next_multiple_of(self.unit as usize);
        let gap = gap.max(block);
        let past = (offset % block as u64) as usize;
        let (head, rest) = buf.split_at((block - past).min(buf.len()) % block);
        let mut done = 0;
        let data = zeroes::data_ranges(rest, block, gap).into_iter();
        let data = data.map(|d| d.start + head.len()..d.end + head.len());
        let first = (!zeroes::is_zero(head)).then_some(0..head.len());
        for data in first.into_iter().chain(data) {
            self.push_zero(&mut runs, done..data.start);
            done = data.end;
            self.push_data(&mut runs, offset, data);
        }
        self.push_zero(&mut runs, done..buf.len());
        runs
    }

    /// Data of the piece at `offset`: whole units of the fast way, and what lies before and behind them.
    fn push_data(&self, runs: &mut Vec<Run>, offset: u64, range: Range<usize>) {
        if self.unit >= self.whole {
            runs.push(Run::Plain(range));
            return;
        }
        let (start, end) = (offset + range.start as u64, offset + range.end as u64);
        let first = start.next_multiple_of(self.whole).min(end);
        let last = match end == self.target.image.virtual_size() {
            true => end,
            false => (end / self.whole * self.whole).max(first),
        };
        let (head, tail) = ((first - start) as usize, (end - last) as usize);
        let middle = range.start + head..range.end - tail;
        for (range, whole) in [
            (range.start..middle.start, false),
            (middle.clone(), true),
            (middle.end..range.end, false),
        ] {
            match whole {
                _ if range.is_empty() => {}
                true => runs.push(Run::Plain(range)),
                false => runs.push(Run::Part(range)),
            }
        }
    }

    fn push_zero(&self, runs: &mut Vec<Run>, range: Range<usize>) {
        if !range.is_empty() {
            runs.push(Run::Zero(range.len() as u64));
        }
    }

    /// Gives the runs their places, or writes them where there is no fast way: in guest order, one thread at a time.
    pub(super) fn place(&self, prepared: &Prepared, buf: &[u8]) -> Result<Vec<Placement>> {
        let mut places = Vec::new();
        let mut offset = prepared.offset;
        for run in &prepared.runs {
            let len = match run {
                Run::Zero(len) | Run::StoredZeroes(len) => *len,
                Run::Plain(range) | Run::Part(range) | Run::Encoded(range, _) => range.len() as u64,
            };
            match (run, self.bulk) {
                (Run::Zero(_), _) => self.zero(offset, len)?,
                (Run::Part(range), _) => self.write(offset, &buf[range.clone()])?,
                (Run::Plain(_) | Run::StoredZeroes(_), Some(bulk)) => place_plain(bulk, offset, len, &mut places)?,
                (Run::Encoded(_, bytes), Some(bulk)) => {
                    places.push(bulk.place(offset, len, Some(bytes.len() as u64))?)
                }
                (Run::Plain(range) | Run::Encoded(range, _), None) => self.write(offset, &buf[range.clone()])?,
                (Run::StoredZeroes(_), None) => {
                    zero_parts(len).try_for_each(|(at, part)| self.write(offset + at, part))?
                }
            }
            offset += len;
        }
        Ok(places)
    }

    fn zero(&self, offset: u64, len: u64) -> Result<()> {
        if self.target.is_zero {
            return Ok(());
        }
        self.target.image.write_zeroes(offset, len, true, self.target.below)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        if self.encode {
            return self.target.image.write_compressed(offset, bytes);
        }
        self.target.image.write(offset, bytes, self.target.below)
    }

    /// Stores placed runs: any thread.
    pub(super) fn store(&self, prepared: &Prepared, places: &[Placement], buf: &[u8]) -> Result<()> {
        let Some(bulk) = self.bulk else { return Ok(()) };
        let mut places = places.iter();
        for run in &prepared.runs {
            match run {
                Run::Zero(_) | Run::Part(_) => {}
                Run::Encoded(_, bytes) => bulk.store(next(&mut places)?, bytes)?,
                Run::StoredZeroes(len) => {
                    let mut done = 0;
                    while done < *len {
                        let place = next(&mut places)?;
                        zero_parts(place.len).try_for_each(|(at, part)| bulk.store(&part_of(place, at, part), part))?;
                        done += place.len;
                    }
                }
                Run::Plain(range) => {
                    let mut bytes = &buf[range.clone()];
                    while !bytes.is_empty() {
                        let place = next(&mut places)?;
                        let (part, rest) = bytes.split_at(bytes.len().min(place.len as usize));
                        self.store_plain(bulk, place, part)?;
                        bytes = rest;
                    }
                }
            }
        }
        Ok(())
    }

    /// Leaves out zero blocks inside a run where its place reads as zeroes anyway.
    fn store_plain(&self, bulk: &dyn BulkWrite, place: &Placement, bytes: &[u8]) -> Result<()> {
        let Some(gap) = self
            .gap
            .filter(|_| self.target.fresh && bulk.sparse_store() && self.unit > BLOCK as u64)
        else {
            return bulk.store(place, bytes);
        };
        for range in zeroes::data_ranges(bytes, BLOCK, gap) {
            let (start, part) = (range.start as u64, &bytes[range]);
            bulk.store(&part_of(place, start, part), part)?;
        }
        Ok(())
    }
}

/// Parts of so many zeroes, each with where it begins.
fn zero_parts(len: u64) -> impl Iterator<Item = (u64, &'static [u8])> {
    let starts = (0..len).step_by(ZEROES.len());
    starts.map(move |at| (at, &ZEROES[..ZEROES.len().min((len - at) as usize)]))
}

/// The place of a part of a plain run.
fn part_of(place: &Placement, start: u64, part: &[u8]) -> Placement {
    let at = HostPlace {
        offset: place.at.offset + start,
        ..place.at
    };
    Placement {
        guest: place.guest + start,
        at,
        len: part.len() as u64,
        encoded: false,
    }
}

/// Asks for places until the whole run has them.
fn place_plain(bulk: &dyn BulkWrite, offset: u64, len: u64, places: &mut Vec<Placement>) -> Result<()> {
    let mut done = 0;
    while done < len {
        let place = bulk.place(offset + done, len - done, None)?;
        if place.len == 0 || place.len > len - done {
            let placed = place.len;
            return Err(Error::invalid(format!("{placed} of {} bytes were placed", len - done)));
        }
        done += place.len;
        places.push(place);
    }
    Ok(())
}

fn next<'p>(places: &mut impl Iterator<Item = &'p Placement>) -> Result<&'p Placement> {
    places.next().ok_or_else(|| Error::invalid("a run was not placed"))
}
