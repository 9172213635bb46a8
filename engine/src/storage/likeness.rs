//! A file that takes the place of another one: who may use it stays the same.

use std::fs::File;
use std::os::unix::fs::fchown;

use rustix::fs::{Mode, Stat, XattrFlags, fchmod, fgetxattr, flistxattr, fremovexattr, fsetxattr, fstat};
use rustix::io::Errno;

const ACL: &str = "system.posix_acl_access";
/// What the system allows for a value, and for all names.
const MOST: usize = 64 << 10;

/// Gives `new` the owner, mode, access list and labels of `old`. Where the system does not let us, fewer users may use it, never more.
///
/// # Errors
/// What the system says when not even the mode can be set.
pub(super) fn resemble(new: &File, old: &File) -> Result<(), Errno> {
    let (wanted, made) = (fstat(old)?, fstat(new)?);
    // Nobody gets in between; and a change of the owner may take away the right to everything else.
    fchmod(new, Mode::RUSR | Mode::WUSR)?;
    let attributes = copy_attributes(new, old);
    let owner = wanted.st_uid == made.st_uid || fchown(new, Some(wanted.st_uid), None).is_ok();
    let group = wanted.st_gid == made.st_gid || fchown(new, None, Some(wanted.st_gid)).is_ok();
    fchmod(new, allowed(&wanted, owner && group, attributes))
}

/// The mode where not all could be kept: another group has no more than both it and the rest had, and without its list, which the bits of the
/// group stand for, there is the owner alone.
fn allowed(wanted: &Stat, same_owners: bool, same_list: bool) -> Mode {
    let mode = wanted.st_mode & 0o7777;
    let both = mode & mode >> 3 & 0o007;
    Mode::from_raw_mode(match (same_list, same_owners) {
        (true, true) => mode,
        (true, false) => mode & 0o700 | both << 3 | both,
        (false, _) => mode & 0o700,
    })
}

/// Copies the access list; labels and what users noted come along where they can. Whether `new` has the list of `old` now, or none like it.
fn copy_attributes(new: &File, old: &File) -> bool {
    let mut value = vec![0; MOST];
    let same_list = match fgetxattr(old, ACL, &mut value[..]) {
        Ok(len) => fsetxattr(new, ACL, value.get(..len).unwrap_or_default(), XattrFlags::empty()).is_ok(),
        // The folder may have given it one.
        Err(Errno::NODATA) => matches!(fremovexattr(new, ACL), Ok(()) | Err(Errno::NODATA)),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => true,
        Err(_) => false,
    };
    let mut names = vec![0; MOST];
    let len = flistxattr(old, &mut names[..]).unwrap_or(0);
    let names = names.get(..len).unwrap_or_default().split(|byte| *byte == 0);
    for name in names.filter(|name| name.starts_with(b"user.") || *name == b"security.selinux") {
        if let Ok(len) = fgetxattr(old, name, &mut value[..]) {
            // What the policy of the system does not let us say, it says itself.
            let _ = fsetxattr(new, name, value.get(..len).unwrap_or_default(), XattrFlags::empty());
        }
    }
    same_list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_kept_lets_nobody_else_in() {
        let mut stat = fstat(tempfile::tempfile().unwrap()).unwrap();
        let mut check = |mode: u32, same_owners, same_list, expected: u32| {
            stat.st_mode = 0o100_000 | mode;
            let found = allowed(&stat, same_owners, same_list).as_raw_mode();
            assert_eq!(found, expected, "{mode:o} {same_owners} {same_list}");
        };
        check(0o660, true, true, 0o660);
        check(0o664, false, true, 0o644);
        check(0o660, false, true, 0o600);
        check(0o604, false, true, 0o600);
        check(0o666, true, false, 0o600);
        check(0o440, false, false, 0o400);
    }
}
