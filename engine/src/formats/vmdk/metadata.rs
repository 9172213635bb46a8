//! What else than grains is in a hosted extent: header, descriptor, directories, tables. None of it may lie over another, since each is
//! written for itself.

use std::fmt;

use super::layout::{Header, SECTOR};
use super::tables::Tables;

/// One structure. The order is that in which they are believed where they lie over each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Header,
    Descriptor,
    Directory,
    RedundantDirectory,
    Table(u32),
    /// The redundant table with this number.
    Twin(u32),
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("the header"),
            Self::Descriptor => f.write_str("the descriptor"),
            Self::Directory => f.write_str("the grain directory"),
            Self::RedundantDirectory => f.write_str("the redundant grain directory"),
            Self::Table(index) => write!(f, "grain table {index}"),
            Self::Twin(index) => write!(f, "redundant grain table {index}"),
        }
    }
}

/// All structures of an extent by their first byte. Directories can have millions of entries, so a structure is no more than place and role.
#[derive(Debug)]
pub(super) struct Metadata {
    places: Vec<(u64, Role)>,
    descriptor: u64,
    directory: u64,
    table: u64,
}

/// Two structures of which the second begins before the first ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Overlap {
    pub first: (u64, Role),
    pub second: (u64, Role),
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((at, first), (over, second)) = (self.first, self.second);
        write!(f, "{first} at {at:#x} reaches over {second} at {over:#x}")
    }
}

impl Metadata {
    pub fn new(header: Option<&Header>, tables: &Tables) -> Self {
        let descriptor = header.and_then(|h| h.descriptor);
        let numbered = |places: &[u64], role: fn(u32) -> Role| -> Vec<(u64, Role)> {
            let all = (0..).zip(places).filter(|(_, at)| **at != 0);
            all.map(|(index, at)| (*at, role(index))).collect()
        };
        let mut places = numbered(tables.directory(), Role::Table);
        // Both directories may name one table: there is no twin then.
        let twins = numbered(tables.redundant(), Role::Twin).into_iter();
        places.extend(twins.filter(|(at, role)| match role {
            Role::Twin(index) => tables.place(u64::from(*index)) != *at,
            _ => true,
        }));
        places.extend(header.map(|_| (0, Role::Header)));
        places.extend(descriptor.map(|(at, _)| (at, Role::Descriptor)));
        places.extend(Some((tables.directory_at, Role::Directory)).filter(|(at, _)| *at != 0));
        places.extend(tables.redundant_at.map(|at| (at, Role::RedundantDirectory)));
        places.sort_unstable();
        Self {
            places,
            descriptor: descriptor.map_or(0, |(_, len)| len),
            directory: tables.count().saturating_mul(4),
            table: tables.geometry.table_bytes(),
        }
    }

    /// First byte and end of each structure, in the file's order.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        self.places.iter().map(|place| (place.0, self.end(*place)))
    }

    fn end(&self, (at, role): (u64, Role)) -> u64 {
        at.saturating_add(match role {
            Role::Header => SECTOR,
            Role::Descriptor => self.descriptor,
            Role::Directory | Role::RedundantDirectory => self.directory,
            Role::Table(_) | Role::Twin(_) => self.table,
        })
    }

    /// Where structures lie over each other; each that does is in one at least.
    pub fn overlaps(&self) -> impl Iterator<Item = Overlap> {
        let mut furthest: Option<(u64, Role)> = None;
        self.places.iter().filter_map(move |place| {
            let first = furthest.filter(|first| place.0 < self.end(*first));
            if furthest.is_none_or(|first| self.end(*place) > self.end(first)) {
                furthest = Some(*place);
            }
            first.map(|first| Overlap { first, second: *place })
        })
    }
}
