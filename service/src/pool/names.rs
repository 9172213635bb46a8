//! Names: of images as clients give them, of files as we give them.

use uuid::Uuid;
use uuid::fmt::Hyphenated;

use crate::error::{ErrorCode, Result, ServiceError};

/// Accepts `[A-Za-z0-9._-]{1,128}` that does not start with `.` or `-`.
///
/// # Errors
/// `invalid_name`.
pub fn check_image_name(name: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let good = (1..=128).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with(['.', '-']);
    if good {
        return Ok(());
    }
    let public = "a name is 1 to 128 of the characters A-Z a-z 0-9 . _ - and does not start with . or -";
    Err(ServiceError::new(ErrorCode::InvalidName, public).with_field("name"))
}

/// Bytes that a file system allows a name.
const NAME_MAX: usize = 255;
/// Bytes that the name of a file that a job makes beside another has more than that one's: `.{file}.{job}.part`.
const MORE_WHILE_MADE: usize = ".".len() + ".".len() + Hyphenated::LENGTH + ".part".len();
/// Bytes that the name of a file may have that is to be an image.
pub const FILE_NAME_MAX: usize = NAME_MAX - MORE_WHILE_MADE;

/// Accepts the name of a file that somebody put into a pool: one component, not hidden, short enough.
///
/// # Errors
/// `invalid_name`.
pub fn check_file_name(name: &str) -> Result<()> {
    if name.is_empty() || name.starts_with('.') || name.chars().any(|c| c == '/' || c.is_control()) {
        let public = "the name of a file in a pool has no slash, no control characters and does not start with a dot";
        return Err(ServiceError::new(ErrorCode::InvalidName, public).with_field("source"));
    }
    check_file_length(name)
}

/// Accepts a name that leaves room for those of the files that jobs make beside it.
///
/// # Errors
/// `invalid_name`.
pub fn check_file_length(name: &str) -> Result<()> {
    if name.len() <= FILE_NAME_MAX {
        return Ok(());
    }
    let public = format!(
        "the name of a file that is to be an image has at most {FILE_NAME_MAX} bytes, this one has {}: what jobs make \
         beside the file has a longer name",
        name.len()
    );
    Err(ServiceError::new(ErrorCode::InvalidName, public).with_field("source"))
}

/// What a file name inside a pool says about the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileName {
    /// `<image>` or `<image>-<token>`: a finished file that the service made.
    Published(Uuid),
    /// `.<file>.<maker>.part`: being made, by this job or request; `.<published>.source.<maker>.part`: what it is made of.
    Staged {
        /// The name it will have.
        file: String,
        /// The job or request that makes it.
        maker: Uuid,
    },
    /// `.<image>.upload`: arriving.
    Upload(Uuid),
    /// `.<image>.trash`: being deleted. It was `.<file>.trash` once; such a file is ours only where a record says so.
    Trash(String),
    /// Anything else that is hidden: none of ours.
    Hidden,
    /// A file that somebody else put there.
    Foreign,
}

impl FileName {
    /// The name of a finished file; attempts after the first get names of their own, so that none removes another's.
    pub fn published(image: Uuid, token: i64) -> String {
        if token <= 1 {
            image.to_string()
        } else {
            format!("{image}-{token}")
        }
    }

    /// What stands for the maker in the temporary name of a file that a job makes its own of.
    pub fn source_of(maker: Uuid) -> String {
        format!("source.{maker}")
    }

    /// The name of an arriving file.
    pub fn upload(image: Uuid) -> String {
        format!(".{image}.upload")
    }

    /// The name of a file on its way out.
    pub fn trash(image: Uuid) -> String {
        format!(".{image}.trash")
    }

    /// The name that it had before it bore the image's id.
    pub fn old_trash(file: &str) -> String {
        format!(".{file}.trash")
    }

    /// Tells what a name says.
    pub fn parse(name: &str) -> Self {
        let Some(hidden) = name.strip_prefix('.') else {
            return published_image(name).map_or(Self::Foreign, Self::Published);
        };
        if let Some(file) = hidden.strip_suffix(".trash") {
            return Self::Trash(file.to_owned());
        }
        if let Some(image) = hidden.strip_suffix(".upload").and_then(|id| id.parse().ok()) {
            return Self::Upload(image);
        }
        let staged = hidden.strip_suffix(".part").and_then(|rest| rest.rsplit_once('.'));
        let made = |file: &str| file.strip_suffix(".source").unwrap_or(file).to_owned();
        match staged.and_then(|(file, maker)| Some((made(file), maker.parse().ok()?))) {
            Some((file, maker)) => Self::Staged { file, maker },
            None => Self::Hidden,
        }
    }
}

fn published_image(name: &str) -> Option<Uuid> {
    let (id, rest) = name.split_at_checked(36)?;
    let token = rest.is_empty() || rest.strip_prefix('-').is_some_and(|token| token.parse::<u32>().is_ok());
    id.parse().ok().filter(|_| token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_names_follow_the_contract() {
        for good in ["a", "A.b_c-9", "9", &"x".repeat(128)] {
            assert!(check_image_name(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".a",
            "-a",
            "a/b",
            "..",
            "a b",
            "a\0",
            "ü",
            "日本",
            "a\n",
            &"x".repeat(129),
            &"x".repeat(300),
        ] {
            assert_eq!(
                check_image_name(bad).unwrap_err().code,
                ErrorCode::InvalidName,
                "{bad:?}"
            );
        }
    }

    #[test]
    fn the_names_that_jobs_give_fit_beside_the_longest_name() {
        let longest = "x".repeat(FILE_NAME_MAX);
        check_file_name(&longest).unwrap();
        assert_eq!(format!(".{longest}.{}.part", Uuid::now_v7()).len(), 255);
        // Bytes count, not characters.
        for long in ["x".repeat(FILE_NAME_MAX + 1), "ü".repeat(FILE_NAME_MAX / 2 + 1)] {
            assert_eq!(check_file_name(&long).unwrap_err().code, ErrorCode::InvalidName);
        }
    }

    #[test]
    fn file_names_tell_what_they_are() {
        let (image, maker) = (Uuid::now_v7(), Uuid::now_v7());
        assert_eq!(
            FileName::parse(&FileName::published(image, 1)),
            FileName::Published(image)
        );
        assert_eq!(
            FileName::parse(&FileName::published(image, 7)),
            FileName::Published(image)
        );
        assert_eq!(FileName::parse(&FileName::upload(image)), FileName::Upload(image));
        assert_eq!(
            FileName::parse(&FileName::trash(image)),
            FileName::Trash(image.to_string())
        );
        assert_eq!(
            FileName::parse(&FileName::old_trash("disk.raw")),
            FileName::Trash("disk.raw".to_owned())
        );
        for file in [format!("{image}"), format!("{image}-3"), "disk.raw".to_owned()] {
            assert_eq!(
                FileName::parse(&format!(".{file}.{maker}.part")),
                FileName::Staged {
                    file: file.clone(),
                    maker
                }
            );
            assert_eq!(
                FileName::parse(&format!(".{file}.{}.part", FileName::source_of(maker))),
                FileName::Staged {
                    file: file.clone(),
                    maker
                }
            );
        }
        assert_eq!(FileName::parse("disk.qcow2"), FileName::Foreign);
        assert_eq!(FileName::parse(&format!("{image}-x")), FileName::Foreign);
        assert_eq!(FileName::parse(".bashrc"), FileName::Hidden);
    }
}
