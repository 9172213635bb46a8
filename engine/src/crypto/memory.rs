//! Keeping keys where nobody else reads them: out of the swap and out of core dumps.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Asks the kernel to keep the memory of a value out of the swap, where it can be had: unprivileged processes may lock little
/// (`RLIMIT_MEMLOCK`), and a refusal changes nothing else.
///
/// Locks are by page and stay until the memory is given back to the system: other keys may share the page, and whatever comes to lie
/// there later was near to keys. What the value points to is not locked by this.
pub fn keep_in_memory<T: ?Sized>(value: &T) {
    let bytes = size_of_val(value);
    if bytes == 0 {
        return;
    }
    let start = std::ptr::from_ref(value).cast_mut().cast();
    #[expect(unsafe_code, reason = "the call takes an address")]
    // SAFETY: the range is that of a live value; locking pages changes neither their content nor who may use them.
    let _refused = unsafe { rustix::mm::mlock(start, bytes) };
}

/// Lets this process leave no core dump, whose memory may hold keys, and lets no process of another user read its memory. For the start
/// of a program.
///
/// # Errors
/// What the system calls say.
pub fn refuse_core_dumps() -> std::io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    // A limit of zero does not hold back dumps that go to a program (core_pattern); this does.
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locked_memory_is_as_it_was() {
        let key = vec![7_u8; 10_000];
        keep_in_memory(key.as_slice());
        keep_in_memory::<[u8]>(&[]);
        assert!(key.iter().all(|byte| *byte == 7));
    }
}
