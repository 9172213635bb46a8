//! compare: whether two images show the guest the same.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::chain::{ChainExtent, Cursor};
use crate::image::ExtentKind;
use crate::ops::zeroes;
use crate::storage::PageBuffer;
use crate::{Chain, Control, Error, Result};

/// Guest bytes compared at once.
const STEP: u64 = 512 << 10;

/// The first thing that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// Content differs, first at this offset.
    Content(u64),
    /// Strict only: one image has this offset allocated, the other has not.
    Allocation(u64),
    /// Strict only: the virtual sizes differ.
    Size(u64, u64),
}

/// The outcome of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Comparison {
    /// `None`: identical.
    pub difference: Option<Difference>,
    /// The sizes differ, and the rest of the longer image reads as zeroes.
    pub sizes_differ: bool,
}

/// Why a comparison came to no end.
#[derive(Debug)]
pub struct Failed {
    /// The first image (0) or the second one (1) and the guest offset of the range that could not be read; `None` when it was stopped.
    pub reading: Option<(usize, u64)>,
    /// What the image says.
    pub error: Error,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { reading: None, error }
    }
}

/// Compares guest content on `workers` threads. The longer image may go on with zeroes, unless `strict`, which also compares what
/// is allocated.
///
/// # Errors
/// What the images say; `Cancelled`.
pub fn compare(a: &Chain, b: &Chain, strict: bool, workers: usize, control: &Control) -> Result<Comparison, Failed> {
    let (len_a, len_b) = (a.virtual_size(), b.virtual_size());
    let sizes_differ = len_a != len_b;
    if strict && sizes_differ {
        return Ok(Comparison {
            difference: Some(Difference::Size(len_a, len_b)),
            sizes_differ,
        });
    }
    let end = len_a.max(len_b);
    control.set_total(end);
    let plan = Plan {
        sides: [Side::new(a), Side::new(b)],
        next: 0,
        end,
        strict,
        difference: None,
    };
    let comparison = Comparing {
        a,
        b,
        plan: Mutex::new(plan),
        control,
    };
    let difference = comparison.run(workers.max(1))?;
    Ok(Comparison {
        difference,
        sizes_differ,
    })
}

/// One image, walked along; past its end it is zero.
struct Side<'a> {
    cursor: Cursor<'a>,
    size: u64,
}

impl<'a> Side<'a> {
    fn new(chain: &'a Chain) -> Self {
        Self {
            cursor: Cursor::new(chain),
            size: chain.virtual_size(),
        }
    }
    fn extent(&mut self, offset: u64, len: u64) -> Result<ChainExtent> {
        if offset >= self.size {
            return Ok(ChainExtent {
                len,
                depth: 0,
                present: false,
                kind: ExtentKind::Unallocated,
                hole: false,
            });
        }
        self.cursor.extent(offset, len.min(self.size - offset))
    }
}

/// What is still to be compared, and the first difference so far.
struct Plan<'a> {
    sides: [Side<'a>; 2],
    next: u64,
    end: u64,
    strict: bool,
    difference: Option<Difference>,
}

/// A range to compare; for each side the layer that has it as data, `None` where it reads as zeroes.
struct Step {
    offset: u64,
    len: u64,
    layers: [Option<usize>; 2],
}

impl Plan<'_> {
    fn next_step(&mut self, control: &Control) -> Result<Option<Step>, Failed> {
        while self.next < self.end {
            let offset = self.next;
            let [x, y] = &mut self.sides;
            let len = self.end - offset;
            let (x, y) = (
                x.extent(offset, len).map_err(reading(0, offset))?,
                y.extent(offset, len).map_err(reading(1, offset))?,
            );
            if self.strict && x.present != y.present {
                self.found(Difference::Allocation(offset));
                return Ok(None);
            }
            let layers = [&x, &y].map(|e| (!e.is_zero()).then_some(e.depth));
            let mut len = x.len.min(y.len);
            if layers != [None, None] {
                len = len.min(STEP);
                self.next += len;
                return Ok(Some(Step { offset, len, layers }));
            }
            self.next += len;
            control.advance(len);
        }
        Ok(None)
    }

    /// Keeps the first difference, and plans nothing behind it.
    fn found(&mut self, difference: Difference) {
        let at = |d: Difference| match d {
            Difference::Content(offset) | Difference::Allocation(offset) => offset,
            Difference::Size(..) => 0,
        };
        if self.difference.is_none_or(|d| at(difference) < at(d)) {
            self.difference = Some(difference);
        }
        self.end = self.end.min(at(difference));
    }
}

struct Comparing<'a> {
    a: &'a Chain,
    b: &'a Chain,
    plan: Mutex<Plan<'a>>,
    control: &'a Control,
}

impl<'a> Comparing<'a> {
    fn run(&self, workers: usize) -> Result<Option<Difference>, Failed> {
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..workers).map(|_| scope.spawn(|| self.work())).collect();
            let own = self.work();
            let joined = others.into_iter().map(|t| {
                t.join()
                    .unwrap_or_else(|_| Err(Error::invalid("a worker panicked").into()))
            });
            joined.fold(own, Result::and)
        })?;
        Ok(self.plan().difference)
    }

    fn plan(&self) -> MutexGuard<'_, Plan<'a>> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) -> Result<(), Failed> {
        let mut buffers = [PageBuffer::default(), PageBuffer::default()];
        loop {
            let step = self.plan().next_step(self.control);
            let Some(step) = step.inspect_err(|_| self.stop())? else {
                return Ok(());
            };
            self.control.checkpoint(step.len).inspect_err(|_| self.stop())?;
            if let Some(at) = self.compare_step(&step, &mut buffers).inspect_err(|_| self.stop())? {
                self.plan().found(Difference::Content(step.offset + at as u64));
            }
            self.control.advance(step.len);
        }
    }

    /// Lets the other workers run dry after an error.
    fn stop(&self) {
        self.plan().end = 0;
    }

    fn compare_step(&self, step: &Step, buffers: &mut [PageBuffer; 2]) -> Result<Option<usize>, Failed> {
        for ((side, chain), buf) in [self.a, self.b].into_iter().enumerate().zip(buffers.iter_mut()) {
            if let Some(layer) = step.layers[side] {
                buf.set_len(step.len as usize);
                chain
                    .read_layer(layer, step.offset, buf)
                    .map_err(reading(side, step.offset))?;
            }
        }
        let [x, y] = buffers;
        Ok(match step.layers {
            [Some(_), Some(_)] => first_difference(x, y),
            [Some(_), None] => first_nonzero(x),
            _ => first_nonzero(y),
        })
    }
}

fn reading(side: usize, offset: u64) -> impl Fn(Error) -> Failed {
    move |error| Failed {
        reading: Some((side, offset)),
        error,
    }
}

fn first_nonzero(bytes: &[u8]) -> Option<usize> {
    let blocks = bytes.chunks(4096).position(|b| !zeroes::is_zero(b))?;
    bytes
        .iter()
        .skip(blocks * 4096)
        .position(|b| *b != 0)
        .map(|i| blocks * 4096 + i)
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    let block = a.chunks(4096).zip(b.chunks(4096)).position(|(x, y)| x != y)?;
    let start = block * 4096;
    a.iter().zip(b).skip(start).position(|(x, y)| x != y).map(|i| start + i)
}
