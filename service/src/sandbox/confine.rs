//! Bounds that a process puts on itself: resource limits, then Landlock, then seccomp. None can be taken back.

use std::collections::BTreeMap;
use std::io;

use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope};
use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::model::ParsedIn;

/// Bytes of address space: the largest tables that the limits allow, and room to work.
const MEMORY: u64 = 1 << 30;
const FILES: u64 = 16;

/// What reading a file and writing to a pipe takes, and what the allocator, the C library and Rust's runtime take. Nothing here
/// opens, connects, starts or signals anything.
const SYSTEM_CALLS: &[i64] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fadvise64,
    libc::SYS_fcntl,
    libc::SYS_close,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Bounds this process for the rest of its life, and says what the kernel offered.
///
/// # Errors
/// Resource limits that cannot be set: without them the process must not go on.
pub fn confine(cpu_seconds: u64) -> io::Result<ParsedIn> {
    let limits = [
        (Resource::As, MEMORY),
        (Resource::Cpu, cpu_seconds),
        (Resource::Fsize, 0),
        (Resource::Nofile, FILES),
        (Resource::Nproc, 0),
        (Resource::Core, 0),
    ];
    for (resource, value) in limits {
        let limit = Rlimit {
            current: Some(value),
            maximum: Some(value),
        };
        setrlimit(resource, limit)?;
    }
    Ok(ParsedIn {
        child: false,
        landlock: landlock(),
        seccomp: seccomp(),
    })
}

/// No path, no port, no signal to others. Whether the kernel does at least the first of these.
fn landlock() -> bool {
    let restricted = || {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(ABI::V6))?
            .handle_access(AccessNet::from_all(ABI::V6))?
            .scope(Scope::from_all(ABI::V6))?
            .create()?
            .restrict_self()
    };
    restricted().is_ok_and(|status| status.ruleset != RulesetStatus::NotEnforced)
}

/// Every other system call fails with EPERM.
fn seccomp() -> bool {
    let Ok(arch) = TargetArch::try_from(std::env::consts::ARCH) else {
        return false;
    };
    let rules: BTreeMap<i64, Vec<seccompiler::SeccompRule>> =
        SYSTEM_CALLS.iter().map(|call| (*call, Vec::new())).collect();
    let refused = SeccompAction::Errno(u32::try_from(libc::EPERM).unwrap_or(1));
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, arch);
    let program = filter.and_then(BpfProgram::try_from);
    program.is_ok_and(|program| seccompiler::apply_filter(&program).is_ok())
}

/// What a file that took the parser over would try. Run by the hidden sub-command with the task `probe`, for the test.
///
/// # Errors
/// As [`confine`].
pub fn probe() -> io::Result<String> {
    let parsed = confine(30)?;
    let tries = [
        ("open", std::fs::File::open("/etc/passwd").is_ok()),
        ("create", std::fs::File::create("/tmp/vdiskd-probe").is_ok()),
        ("list", std::fs::read_dir("/").is_ok()),
        (
            "connect",
            std::net::TcpStream::connect("127.0.0.1:9").is_err_and(was_tried),
        ),
        ("listen", std::net::TcpListener::bind("127.0.0.1:0").is_ok()),
        ("socket", std::os::unix::net::UnixDatagram::unbound().is_ok()),
        ("execute", std::process::Command::new("/bin/true").status().is_ok()),
        ("thread", std::thread::Builder::new().spawn(|| {}).is_ok()),
        (
            "signal",
            rustix::process::test_kill_process(rustix::process::Pid::INIT).is_ok(),
        ),
        ("memory", Vec::<u8>::new().try_reserve_exact(2 << 30).is_ok()),
    ];
    let possible: Vec<_> = tries
        .iter()
        .filter(|(_, possible)| *possible)
        .map(|(name, _)| *name)
        .collect();
    Ok(format!(
        "landlock={} seccomp={} possible={}\n",
        parsed.landlock,
        parsed.seccomp,
        possible.join(",")
    ))
}

/// A connection that nobody took was tried all the same.
fn was_tried(error: io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}
