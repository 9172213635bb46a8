//! Standard input as a source and standard output as a target (`-`), through files without a name.

use std::fs::File;
use std::io::{self, Seek as _};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use crate::app::{self, Failure};

/// A file without a name that stands for standard input or output.
pub struct Spool {
    file: File,
}

impl Spool {
    /// An empty one.
    pub fn new() -> Result<Self, Failure> {
        tempfile::tempfile()
            .map(|file| Self { file })
            .map_err(|e| failed("create a temporary file", &e))
    }
    /// All of standard input.
    pub fn from_stdin() -> Result<Self, Failure> {
        let mut spool = Self::new()?;
        sparse::copy(&mut io::stdin().lock(), &mut spool.file).map_err(|e| failed("read standard input", &e))?;
        Ok(spool)
    }
    /// A name under which it can be opened as long as it lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
    /// Sends it to standard output.
    pub fn send_to_stdout(mut self) -> Result<(), Failure> {
        self.file.rewind().map_err(|e| failed("rewind", &e))?;
        let sent = io::copy(&mut self.file, &mut io::stdout().lock()).and_then(|_| io::Write::flush(&mut io::stdout()));
        sent.map_err(|e| failed("write standard output", &e))
    }
}

fn failed(what: &str, error: &io::Error) -> Failure {
    Failure::new(format!("Could not {what}: {}", app::system_error(error)))
}

mod sparse {
    use std::fs::File;
    use std::io::{self, Read, Seek as _, SeekFrom, Write as _};

    const BLOCK: usize = 64 << 10;

    /// Copies a stream into an empty file, leaving out blocks of zeroes.
    pub fn copy(from: &mut impl Read, to: &mut File) -> io::Result<()> {
        let mut block = vec![0; BLOCK];
        let mut len = 0u64;
        loop {
            let n = fill(from, &mut block)?;
            let part = &block[..n];
            if part.iter().any(|b| *b != 0) {
                to.seek(SeekFrom::Start(len))?;
                to.write_all(part)?;
            }
            len += n as u64;
            if n < BLOCK {
                return to.set_len(len);
            }
        }
    }

    fn fill(from: &mut impl Read, block: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < block.len() {
            match from.read(&mut block[done..]) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }
}
