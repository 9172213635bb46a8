//! `bench`: how fast an image answers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::json;
use vdisk_engine::storage::CacheMode;
use vdisk_engine::{Chain, Error, Result as EngineResult};

use super::Common;
use crate::app::{self, Failure, Outcome};
use crate::output::{self, Format};
use crate::spec::{Access, Spec};
use crate::text::size;

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Format of the image
    #[arg(short = 'f', long = "format", value_name = "FMT")]
    format: Option<String>,
    /// FILENAME is a complete image specification
    #[arg(long = "image-opts")]
    image_opts: bool,
    /// Cache mode of the image
    #[arg(short = 't', long = "cache", value_name = "CACHE")]
    cache: Option<String>,
    /// Number of requests
    #[arg(short = 'c', long, value_name = "COUNT")]
    count: Option<String>,
    /// Requests at a time
    #[arg(short = 'd', long, value_name = "DEPTH")]
    depth: Option<String>,
    /// Bytes a request
    #[arg(short = 's', long = "buffer-size", value_name = "BUFFER_SIZE")]
    buffer_size: Option<String>,
    /// Bytes from one request to the next
    #[arg(short = 'S', long = "step-size", value_name = "STEP_SIZE")]
    step_size: Option<String>,
    /// Where the first request goes
    #[arg(short = 'o', long, value_name = "OFFSET")]
    offset: Option<String>,
    /// How requests are made: threads
    #[arg(short = 'i', long, value_name = "AIO")]
    aio: Option<String>,
    /// Use the system's asynchronous requests
    #[arg(short = 'n', long)]
    native: bool,
    /// Write instead of read
    #[arg(short = 'w', long)]
    write: bool,
    /// The byte that is written
    #[arg(long, value_name = "PATTERN")]
    pattern: Option<String>,
    /// Flush after this many requests
    #[arg(long = "flush-interval", value_name = "INTERVAL")]
    flush_interval: Option<String>,
    /// Do not wait for other requests before a flush
    #[arg(long = "no-drain")]
    no_drain: bool,
    /// Open the image although others may write to it
    #[arg(short = 'U', long = "force-share")]
    force_share: bool,
    /// Print nothing but errors
    #[arg(short = 'q', long)]
    quiet: bool,
    /// Output format: human or json
    #[arg(long, value_name = "FORMAT")]
    output: Option<String>,
    #[command(flatten)]
    common: Common,
    #[arg(value_name = "FILENAME")]
    files: Vec<String>,
}

struct Load {
    write: bool,
    count: u64,
    depth: u64,
    bytes: u64,
    step: u64,
    offset: u64,
    pattern: u8,
    flush_interval: u64,
    drain: bool,
}

/// Threads at most, whatever the depth asked for.
const THREADS: u64 = 64;

/// Measures.
pub fn run(args: &Args) -> Outcome {
    let format = Format::parse(args.output.as_deref())?;
    let load = load(args)?;
    let text = super::one(&args.files)?;
    let access = Access {
        writable: args.write,
        ..Access::read(args.force_share)
    }
    .cached(super::target_cache(args.cache.as_deref(), CacheMode::Writeback)?);
    let spec = Spec::new(text, args.format.as_deref(), args.image_opts)?;
    let image = args.common.opener()?.open(spec, access)?;
    if !args.quiet && !format.is_json() {
        tell_start(&load);
    }
    let start = Instant::now();
    let done = load.run(&image.chain);
    let seconds = start.elapsed().as_secs_f64();
    let closed = if args.write { image.chain.top().close() } else { Ok(()) };
    done.map_err(|e| Failure::new(app::reason(&e)).context("Failed request"))?;
    closed?;
    if format.is_json() {
        output::json(&json!({"requests": load.count, "bytes": load.count * load.bytes, "seconds": seconds}));
    } else if !args.quiet {
        output::line(&format!("Run completed in {seconds:.3} seconds."));
    }
    Ok(0)
}

fn load(args: &Args) -> Result<Load, Failure> {
    const INT: u64 = i32::MAX as u64;
    let number = |given: &Option<String>, what: &str, min, max, default| match given.as_deref() {
        None => Ok(default),
        Some(text) => size::number_between(what, text, min, max),
    };
    let bytes = |given: &Option<String>, what: &str, min, max, default| match given.as_deref() {
        None => Ok(default),
        Some(text) => size::size_between(what, text, min, max),
    };
    match args.aio.as_deref() {
        None | Some("threads") if !args.native => {}
        None | Some("native" | "io_uring" | "threads") => {
            return Err(Failure::new("only aio 'threads' is supported; leave -n and -i out"));
        }
        Some(other) => return Err(Failure::new(format!("Invalid aio option: {other}"))),
    }
    let size = bytes(&args.buffer_size, "buffer size", 1, INT, 4096)?;
    let load = Load {
        write: args.write,
        count: number(&args.count, "request count", 1, INT, 75_000)?,
        depth: number(&args.depth, "queue depth", 1, INT, 64)?,
        bytes: size,
        step: bytes(&args.step_size, "step size", 0, INT, 0)?,
        offset: bytes(&args.offset, "offset", 0, i64::MAX as u64, 0)?,
        pattern: u8::try_from(number(&args.pattern, "pattern byte", 0, 255, 0)?).unwrap_or(0),
        flush_interval: number(&args.flush_interval, "flush interval", 0, INT, 0)?,
        drain: !args.no_drain,
    };
    if !load.write && load.flush_interval > 0 {
        return Err(Failure::new("--flush-interval is only available in write tests"));
    }
    if load.flush_interval > 0 && load.flush_interval < load.depth {
        return Err(Failure::new("Flush interval can't be smaller than depth"));
    }
    Ok(Load {
        step: if load.step == 0 { size } else { load.step },
        ..load
    })
}

fn tell_start(load: &Load) {
    output::line(&format!(
        "Sending {} {} requests, {} bytes each, {} in parallel (starting at offset {}, step size {})",
        load.count,
        if load.write { "write" } else { "read" },
        load.bytes,
        load.depth,
        load.offset,
        load.step
    ));
    if load.flush_interval > 0 {
        let kind = if load.drain { "" } else { "out " };
        output::line(
            &format!(
                "Sending flush every {} requests, with{kind} draining the queue",
                load.flush_interval
            )
            .replace("without  draining", "without draining"),
        );
    }
}

impl Load {
    /// Sends all requests from as many threads as there may be requests at a time.
    fn run(&self, chain: &Chain) -> EngineResult<()> {
        let (next, failed) = (AtomicU64::new(0), Mutex::new(None));
        std::thread::scope(|scope| {
            for _ in 0..self.depth.min(THREADS).min(self.count) {
                scope.spawn(|| {
                    if let Err(error) = self.work(chain, &next) {
                        next.store(self.count, Ordering::Relaxed);
                        failed
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .get_or_insert(error);
                    }
                });
            }
        });
        failed
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .map_or(Ok(()), Err)
    }

    fn work(&self, chain: &Chain, next: &AtomicU64) -> EngineResult<()> {
        let mut buf = vec![self.pattern; self.bytes as usize];
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= self.count {
                return Ok(());
            }
            let size = chain.virtual_size();
            let offset = self.place(i, size);
            if offset > size || self.bytes > size - offset {
                let what = format!("{} bytes at {offset} end past the image's end at {size}", self.bytes);
                return Err(Error::io(what, rustix::io::Errno::IO));
            }
            if self.write {
                chain.write(offset, &buf)?;
            } else {
                chain.read(offset, &mut buf)?;
            }
            if self.flush_interval > 0 && (i + 1).is_multiple_of(self.flush_interval) {
                chain.top().flush()?;
            }
        }
    }

    /// Requests go round when they come to the end of the image; the first is where it was asked for.
    fn place(&self, i: u64, size: u64) -> u64 {
        if i == 0 {
            return self.offset;
        }
        let at = u128::from(self.offset) + u128::from(i) * u128::from(self.step);
        (at % u128::from(size.max(1))) as u64
    }
}
