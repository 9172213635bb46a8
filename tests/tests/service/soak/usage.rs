//! What a process takes of the machine.

/// At one moment.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    pub resident_kib: u64,
    pub files: usize,
    pub threads: u64,
}

impl Usage {
    /// Of a process that lives.
    pub fn of(process: u32) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        Self {
            resident_kib: number("VmRSS:"),
            files: std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().count(),
            threads: number("Threads:"),
        }
    }
}

/// The largest of each.
fn most(usage: &[Usage]) -> Usage {
    Usage {
        resident_kib: usage.iter().map(|usage| usage.resident_kib).max().unwrap_or(0),
        files: usage.iter().map(|usage| usage.files).max().unwrap_or(0),
        threads: usage.iter().map(|usage| usage.threads).max().unwrap_or(0),
    }
}

/// The largest of each at the beginning, and at the end.
pub fn summary(usage: &[Usage]) -> String {
    let third = usage.len().div_ceil(3);
    let (first, last) = (most(&usage[..third]), most(&usage[usage.len() - third..]));
    format!("first third at most {first:?}, last third at most {last:?}")
}

/// The program does not grow with what its database and its pools have seen.
pub fn assert_flat(usage: &[Usage]) {
    let third = usage.len().div_ceil(3);
    let (first, last) = (most(&usage[..third]), most(&usage[usage.len() - third..]));
    let slack = 64 << 10;
    assert!(
        last.resident_kib <= first.resident_kib * 3 / 2 + slack,
        "{first:?} {last:?}"
    );
    assert!(last.files <= first.files * 2 + 32, "{first:?} {last:?}");
}
