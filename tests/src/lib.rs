//! What the project's tests share: finding tools and sample images, small disks, and saying why a test was skipped.
//!
//! The scenarios themselves stand in `tests/tests/`.

#![expect(clippy::expect_used, reason = "test support: a broken precondition fails the test")]

pub mod corpus;
pub mod small_disk;
pub mod tools;

/// Says that the calling test does not run, and why. With `VDISK_REQUIRE=all` that is a failure.
///
/// # Panics
/// With `VDISK_REQUIRE=all` in the environment.
pub fn skip(why: &str) {
    assert!(
        std::env::var("VDISK_REQUIRE").as_deref() != Ok("all"),
        "this test must run, but {why}"
    );
    eprintln!("skipped: {why}");
}
