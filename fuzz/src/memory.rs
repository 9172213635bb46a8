//! Counts memory: an input that makes the engine hold more than the limit stops the fuzzer.

use std::alloc::{GlobalAlloc, Layout, System};

/// Bytes that one allocation may have: far above every limit that the targets set.
const MOST: usize = 64 << 20;

struct Bounded;

// SAFETY: everything is left to the system's allocator; sizes are only looked at.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        unsafe { System.dealloc(place, layout) }
    }
    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check(size);
        unsafe { System.realloc(place, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

fn check(size: usize) {
    if size > MOST {
        // The fuzzer sees the signal and keeps the input.
        std::process::abort();
    }
}
