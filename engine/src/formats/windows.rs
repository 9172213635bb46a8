//! Names of files as Windows programs store them, for formats that come from there.
//!
//! A relative path becomes a relative name with slashes; of an absolute one with a drive letter only the last part is kept, because that
//! drive is not here; anything else (a POSIX path by another program, a network share) stays as it is. Whether the name may be opened
//! is for the gate to say.

use crate::{Error, Result};

/// A path as Windows writes it, as a name here.
pub fn from_windows(text: &str, relative: bool) -> String {
    let bytes = text.as_bytes();
    let drive = bytes.get(1) == Some(&b':') && bytes.first().is_some_and(u8::is_ascii_alphabetic);
    if drive {
        return text.rsplit(['\\', '/', ':']).next().unwrap_or(text).to_owned();
    }
    if !relative || text.starts_with('/') || text.starts_with('\\') {
        return text.to_owned();
    }
    let name = text.replace('\\', "/");
    name.strip_prefix("./").map_or(name.clone(), str::to_owned)
}

/// A name as a path for Windows, and whether it is relative.
///
/// # Errors
/// `InvalidArgument` for a name that would not come back as it was.
pub fn to_windows(name: &str) -> Result<(String, bool)> {
    let relative = !name.starts_with('/');
    let text = if relative {
        format!(".\\{}", name.replace('/', "\\"))
    } else {
        name.to_owned()
    };
    if name.is_empty() || name.contains('\0') || from_windows(&text, relative) != name {
        return Err(Error::invalid(format!(
            "the format cannot name \"{}\" as the disk below",
            name.escape_debug()
        )));
    }
    Ok((text, relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_paths_become_names_here() {
        for (text, relative, name) in [
            (".\\fat-parent.vhd", true, "fat-parent.vhd"),
            ("..\\up\\p.vhd", true, "../up/p.vhd"),
            ("C:\\Projects\\test data\\fat-parent.vhd", false, "fat-parent.vhd"),
            ("/images/base.vhd", false, "/images/base.vhd"),
            ("\\\\host\\share\\p.vhd", false, "\\\\host\\share\\p.vhd"),
            ("image.vhd", false, "image.vhd"),
        ] {
            assert_eq!(from_windows(text, relative), name);
        }
    }

    #[test]
    fn names_come_back_or_are_refused() {
        for name in ["a.vhd", "../b/c.vhd", "/abs/d.vhd", "./e.vhd"] {
            let (text, relative) = to_windows(name).unwrap();
            assert_eq!(from_windows(&text, relative), name);
        }
        for name in ["", "a\\b.vhd", "a\0b"] {
            assert!(to_windows(name).is_err(), "{name:?}");
        }
    }
}
