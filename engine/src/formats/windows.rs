//! Names of files as Windows programs store them, for formats that come from there.
//!
//! A relative path becomes a relative name with slashes; of an absolute one with a drive letter only the last part is kept, because that
//! drive is not here; anything else (a POSIX path by another program, a network share) stays as it is, and its last part is another
//! name to try. Whether a name may be opened is for the gate to say.

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

/// The names of one file by all its paths, each with whether it is relative, the best path first: each path's name, then, of paths from a
/// root that may not be here, the last part.
pub fn names(paths: &[(&str, bool)]) -> Vec<String> {
    let rooted = |text: &&str| text.starts_with(['/', '\\']);
    let whole = paths.iter().map(|(text, relative)| from_windows(text, *relative));
    let last = paths.iter().map(|(text, _)| *text).filter(rooted);
    let last = last.filter_map(|text| text.rsplit(['\\', '/', ':']).next());
    let mut names: Vec<String> = Vec::new();
    for name in whole.chain(last.map(str::to_owned)) {
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
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

    /// Paths as [MS-VHDX] 2.6.2.6.3 has them, as Hyper-V writes them, and as they are on a share or another system.
    #[test]
    fn a_path_from_a_root_that_is_not_here_ends_in_a_name_beside_the_overlay() {
        for path in [
            "\\\\?\\C:\\vm\\p.vhdx",
            "\\\\?\\Volume{26A21BDA-A627-11D7-9931-806E6F6E6963}\\vm\\p.vhdx",
            "\\\\host\\share\\p.vhdx",
            "\\vm\\p.vhdx",
            "/vmfs/volumes/5f3/vm/p.vhdx",
        ] {
            assert_eq!(names(&[(path, false)]), [path, "p.vhdx"]);
        }
        let both = [("..\\gone\\p.vhdx", true), ("C:\\vm\\p.vhdx", false)];
        assert_eq!(names(&both), ["../gone/p.vhdx", "p.vhdx"]);
        assert_eq!(names(&[(".\\p.vhdx", true), ("D:\\p.vhdx", false)]), ["p.vhdx"]);
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
