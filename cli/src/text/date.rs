//! Dates of snapshots.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Seconds since 1970 as `2026-11-22 19:23:36` in the local time zone.
pub fn local(seconds: u64) -> String {
    let at = i64::try_from(seconds).ok().and_then(|s| Timestamp::from_second(s).ok());
    match at {
        Some(at) => at
            .to_zoned(TimeZone::system())
            .strftime("%Y-%m-%d %H:%M:%S")
            .to_string(),
        None => seconds.to_string(),
    }
}

/// A guest clock as `0000:00:00.000`.
pub fn clock(nanoseconds: u64) -> String {
    let (milliseconds, seconds) = (nanoseconds / 1_000_000 % 1000, nanoseconds / 1_000_000_000);
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:04}:{minutes:02}:{:02}.{milliseconds:03}", seconds % 60)
}
