//! From the bytes of a file to a checked image.
//!
//! A guest can write whatever it likes into a fixed disk, also something that looks like the copy of a footer in its first sector. So the
//! footer at the end of the file decides; the copy at the front counts only where there is none at the end (a write that was cut
//! short), or to agree with it.

use zerocopy::FromBytes;

use super::geometry::{SizeRule, farthest_end, virtual_size};
use super::layout::{DiskKind, FOOTER, FOOTER_COOKIE, Footer, HEADER, Header, RawFooter, RawHeader, SECTOR, UNUSED};
use super::locator;
use crate::formats::findings::{Findings, Fix, Severity};
use crate::storage::{read_padded, read_vec};
use crate::{Error, Limits, Result, Storage};

/// An image as it stands in the file.
#[derive(Debug)]
pub struct Opened {
    /// The footer that counts.
    pub footer: Footer,
    /// Bytes the guest sees.
    pub size: u64,
    /// Header, table and parent of a disk that is not fixed.
    pub sparse: Option<Sparse>,
    /// What is wrong.
    pub findings: Findings,
}

/// The parts that a dynamic and a differencing disk have beside the footer.
#[derive(Debug)]
pub struct Sparse {
    /// The header.
    pub header: Header,
    /// Sector of each block's bitmap, or [`UNUSED`].
    pub table: Vec<u32>,
    /// Where the next block may begin: behind all that is in use, over the footer at the end.
    pub end: u64,
    /// End of the last block that lies past the disk's end, but not past its [`farthest_end`]; 0 for none. Other programs show it.
    pub hidden_end: u64,
    /// Names of the disk below, the best first; `None` for a disk without one.
    pub parent: Option<Vec<String>>,
}

/// Reads and checks everything but guest data.
///
/// # Errors
/// `NotThisFormat`, `Corrupt`, `Unsupported`, `LimitExceeded`; what only `check` may see goes into the findings.
pub fn read(storage: &dyn Storage, rule: SizeRule, limits: &Limits) -> Result<Opened> {
    let file_len = storage.len()?;
    let mut findings = Findings::default();
    let (footer, end_footer) = footer(storage, file_len, &mut findings)?;
    let size = virtual_size(&footer.raw, rule)?;
    if size > limits.virtual_size {
        return Err(Error::limit(format!(
            "the virtual size {size} exceeds the limit of {} bytes",
            limits.virtual_size
        )));
    }
    let data_end = end_footer.unwrap_or(file_len);
    let sparse = match footer.kind {
        DiskKind::Fixed if size > data_end => {
            return Err(too_short(&footer.raw, size, data_end));
        }
        DiskKind::Fixed => None,
        kind => Some(sparse(storage, &footer, kind, size, data_end, limits, &mut findings)?),
    };
    Ok(Opened {
        footer,
        size,
        sparse,
        findings,
    })
}

/// A fixed disk without all of its data.
fn too_short(footer: &RawFooter, size: u64, data_end: u64) -> Error {
    let field = footer.current_size.get();
    let way = if field < size && field <= data_end {
        format!("; the size field says {field}: open it with force_size_calc=current_size")
    } else {
        String::new()
    };
    Error::corrupt(format!(
        "expected {size} bytes of data before the footer, found {data_end}{way}"
    ))
}

fn raw_footer(storage: &dyn Storage, offset: u64) -> Result<Option<RawFooter>> {
    let mut bytes = [0; FOOTER as usize];
    // A footer of 511 bytes was written before Virtual PC 2004; its last byte is reserved.
    read_padded(storage, offset, &mut bytes)?;
    let raw = RawFooter::read_from_bytes(&bytes).map_err(|_| Error::corrupt("a footer has 512 bytes"))?;
    Ok((raw.cookie == *FOOTER_COOKIE).then_some(raw))
}

/// Finds the footer that counts, and where the one at the end is.
fn footer(storage: &dyn Storage, len: u64, findings: &mut Findings) -> Result<(Footer, Option<u64>)> {
    let mut end = None;
    for offset in [len.checked_sub(FOOTER), len.checked_sub(FOOTER - 1)]
        .into_iter()
        .flatten()
    {
        if end.is_none() {
            end = raw_footer(storage, offset)?.map(|raw| (raw, offset));
        }
    }
    let front = raw_footer(storage, 0)?;
    let bad_sum = || Error::corrupt("Incorrect header checksum");
    let Some((end, at)) = end else {
        let raw = front.ok_or_else(|| Error::not_this_format("invalid VPC image: there is no footer"))?;
        let footer = Footer::try_from(raw)?;
        if footer.kind == DiskKind::Fixed {
            return Err(Error::corrupt(
                "a fixed disk has its footer at the end of the file, where there is none",
            ));
        }
        if !raw.is_sound() {
            return Err(bad_sum());
        }
        findings.add(
            Severity::Note,
            Fix::Copies,
            "the footer at the end of the file is missing",
        );
        return Ok((footer, None));
    };
    if end.is_sound() {
        let footer = Footer::try_from(end)?;
        if footer.kind != DiskKind::Fixed && front != Some(end) {
            findings.add(
                Severity::Refuse,
                Fix::Copies,
                "the copy of the footer at the front differs from the footer at the end",
            );
        }
        return Ok((footer, Some(at)));
    }
    match front {
        // Both copies agree byte for byte: no accident, but a program that does not keep the sum.
        Some(raw) if raw == end && at != 0 => {
            findings.add(
                Severity::ReadOnly,
                Fix::Copies,
                "both footers have the same wrong checksum",
            );
            Ok((Footer::try_from(end)?, Some(at)))
        }
        Some(raw) if raw.is_sound() && Footer::try_from(raw)?.kind != DiskKind::Fixed => {
            findings.add(
                Severity::Refuse,
                Fix::Copies,
                "the footer at the end has a wrong checksum; its copy at the front is sound",
            );
            Ok((Footer::try_from(raw)?, Some(at)))
        }
        _ => Err(bad_sum()),
    }
}

fn header(storage: &dyn Storage, footer: &Footer, data_end: u64, findings: &mut Findings) -> Result<Header> {
    let offset = footer.raw.data_offset.get();
    if offset < FOOTER || offset.checked_add(HEADER).is_none_or(|end| end > data_end) {
        return Err(Error::corrupt(format!(
            "the dynamic disk header at {offset:#x} does not lie between the footers"
        )));
    }
    let bytes = read_vec(storage, offset, HEADER as usize)?;
    let raw = RawHeader::read_from_bytes(&bytes).map_err(|_| Error::corrupt("a header has 1024 bytes"))?;
    let header = Header::checked(raw, offset)?;
    if !raw.is_sound() {
        // Where the footers' sums are wrong on purpose, so is this one.
        let severity = if footer.raw.is_sound() {
            Severity::Refuse
        } else {
            Severity::ReadOnly
        };
        findings.add(severity, Fix::Sum, "the dynamic disk header has a wrong checksum");
    }
    Ok(header)
}

fn sparse(
    storage: &dyn Storage,
    footer: &Footer,
    kind: DiskKind,
    size: u64,
    data_end: u64,
    limits: &Limits,
    findings: &mut Findings,
) -> Result<Sparse> {
    let header = header(storage, footer, data_end, findings)?;
    let (entries, offset) = (header.entries, header.table_offset);
    if header.table_bytes() > limits.table_bytes {
        return Err(Error::limit(format!("Max Table Entries too large ({entries})")));
    }
    let blocks = size.div_ceil(header.block_size);
    if entries < blocks {
        return Err(Error::corrupt(format!(
            "Page table too small: {entries} entries for {blocks} blocks"
        )));
    }
    let table_end = offset.checked_add(header.table_bytes()).filter(|end| *end <= data_end);
    let overlaps_header = offset < header.offset + HEADER && offset + header.table_bytes() > header.offset;
    let Some(table_end) = table_end.filter(|_| offset >= FOOTER && offset.is_multiple_of(SECTOR) && !overlaps_header)
    else {
        return Err(Error::corrupt(format!(
            "the table of {entries} entries at {offset:#x} overlaps a header or ends past the end of the data at {data_end:#x}"
        )));
    };
    let said = farthest_end(&footer.raw).div_ceil(header.block_size).min(entries);
    let mut table = read_table(storage, offset, blocks.max(said))?;
    let hidden = table.split_off(usize::try_from(blocks).unwrap_or(usize::MAX).min(table.len()));
    let last_hidden = hidden.iter().filter(|entry| **entry != UNUSED).max();
    let parent = match kind {
        DiskKind::Differencing => Some(locator::parent_names(storage, &header.raw)?),
        _ => None,
    };
    let mut end = table_end.max(header.offset + HEADER).next_multiple_of(SECTOR);
    let reserved = [
        (0, FOOTER),
        (header.offset, header.offset + HEADER),
        (offset, table_end),
    ];
    if let Some(last) = check_table(&table, &header, &reserved, data_end, findings) {
        end = end.max(last);
    }
    Ok(Sparse {
        header,
        table,
        end: end.max(data_end.next_multiple_of(SECTOR)),
        hidden_end: last_hidden.map_or(0, |sector| u64::from(*sector) * SECTOR + header.stored_block()),
        parent,
    })
}

/// Reads the first entries of the table; there may be more.
fn read_table(storage: &dyn Storage, offset: u64, blocks: u64) -> Result<Vec<u32>> {
    let len = usize::try_from(blocks * 4).map_err(|_| Error::limit("the table exceeds the address space"))?;
    let bytes = read_vec(storage, offset, len)?;
    Ok(bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| u32::from_be_bytes(*b))
        .collect())
}

/// Looks for blocks that lie outside the file, over a structure or over each other; gives the end of the last one.
pub fn check_table(
    table: &[u32],
    header: &Header,
    reserved: &[(u64, u64)],
    data_end: u64,
    findings: &mut Findings,
) -> Option<u64> {
    let len = header.stored_block();
    let mut starts: Vec<(u64, usize)> = Vec::new();
    for (index, entry) in table.iter().enumerate().filter(|(_, e)| **e != UNUSED) {
        let start = u64::from(*entry) * SECTOR;
        let end = start + len;
        if end > data_end {
            findings.add(
                Severity::Refuse,
                Fix::None,
                format!("block {index} at {start:#x} ends past the end of the data at {data_end:#x}"),
            );
        } else if reserved.iter().any(|(from, to)| start < *to && end > *from) {
            findings.add(
                Severity::Refuse,
                Fix::None,
                format!("block {index} at {start:#x} lies over a header or the table"),
            );
        } else {
            starts.push((start, index));
        }
    }
    starts.sort_unstable();
    for (first, second) in starts.iter().zip(starts.iter().skip(1)) {
        if second.0 < first.0 + len {
            findings.add(
                Severity::Refuse,
                Fix::None,
                format!("blocks {} and {} overlap at {:#x}", first.1, second.1, second.0),
            );
        }
    }
    starts.last().map(|(start, _)| start + len)
}
