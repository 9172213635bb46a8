//! Writing: edits of a descriptor, which touch their own line while all others go back to the file as they came, and the text of a new one.

use super::parse::{key_of, parse_extents, value};
use super::{Descriptor, NO_PARENT};
use crate::Limits;

impl Descriptor {
    /// The text as it goes to the file, in the encoding that it was read in.
    pub fn text(&self) -> Vec<u8> {
        let mut text = self.lines.join(self.line_end);
        text.push_str(self.line_end);
        if !self.bytewise {
            return text.into_bytes();
        }
        // Nothing but bytes came in: see `can_name`.
        text.chars().map(|c| u8::try_from(c).unwrap_or(b'?')).collect()
    }
    /// Whether the name of another file can stand in the text.
    pub fn can_name(&self, name: &str) -> bool {
        !self.bytewise || name.is_ascii()
    }
    pub fn set_cid(&mut self, cid: u32) {
        self.cid = cid;
        self.set("CID", &format!("{cid:08x}"));
    }
    /// Says which content is below.
    pub fn set_parent_cid(&mut self, cid: u32) {
        self.parent_cid = cid;
        self.set("parentCID", &format!("{cid:08x}"));
    }
    /// Names another layer below, or none.
    pub fn set_parent(&mut self, parent: Option<(&str, u32)>) {
        let hint = parent.map(|(name, _)| name.to_owned());
        self.set_parent_cid(parent.map_or(NO_PARENT, |(_, cid)| cid));
        match &hint {
            Some(name) => self.set("parentFileNameHint", &format!("\"{name}\"")),
            None => self.lines.retain(|l| key_of(l) != Some("parentFileNameHint")),
        }
        // Line numbers of the extents moved with the hint.
        if let Ok(extents) = parse_extents(
            &self.lines,
            &Limits {
                files: usize::MAX,
                ..Limits::default()
            },
        ) {
            self.extents = extents;
        }
        self.parent_hint = hint;
    }
    /// Changes the length of an extent.
    pub fn set_extent_len(&mut self, index: usize, len: u64) {
        let Some(extent) = self.extents.get_mut(index) else {
            return;
        };
        let old = (extent.len / 512).to_string();
        extent.len = len;
        if let Some(line) = self.lines.get_mut(extent.line) {
            *line = line.replacen(&old, &(len / 512).to_string(), 1);
        }
    }
    /// The geometry that belongs to the size: heads as they are, 63 sectors.
    pub fn set_cylinders(&mut self, size: u64) {
        let heads = value(&self.lines, "ddb.geometry.heads")
            .ok()
            .flatten()
            .and_then(|h| h.parse::<u64>().ok());
        let sectors = value(&self.lines, "ddb.geometry.sectors")
            .ok()
            .flatten()
            .and_then(|s| s.parse::<u64>().ok());
        if let (Some(heads @ 1..=255), Some(sectors @ 1..=63)) = (heads, sectors) {
            let cylinders = size / 512 / heads / sectors;
            self.set("ddb.geometry.cylinders", &format!("\"{cylinders}\""));
        }
    }

    fn set(&mut self, key: &str, value: &str) {
        let new = if key.starts_with("ddb.") {
            format!("{key} = {value}")
        } else {
            format!("{key}={value}")
        };
        let mut found = false;
        for line in self.lines.iter_mut().filter(|l| key_of(l) == Some(key)) {
            line.clone_from(&new);
            found = true;
        }
        if found {
            return;
        }
        let after = self.lines.iter().position(|l| key_of(l) == Some("createType"));
        self.lines.insert(after.map_or(self.lines.len(), |i| i + 1), new);
    }
}

/// What a new descriptor says.
pub(in crate::formats::vmdk) struct NewDescriptor<'a> {
    pub cid: u32,
    pub create_type: &'a str,
    pub parent: Option<(&'a str, u32)>,
    /// Lines of the extent description.
    pub extents: &'a [String],
    pub hw_version: &'a str,
    pub tools_version: &'a str,
    pub adapter: &'a str,
    /// Virtual size in bytes.
    pub size: u64,
}

impl NewDescriptor<'_> {
    /// The text, line by line as qemu-img writes it.
    pub fn text(&self) -> String {
        let heads = if self.adapter == "ide" { 16 } else { 255 };
        let cylinders = self.size / (63 * heads * 512);
        let parent_cid = self.parent.map_or(NO_PARENT, |(_, cid)| cid);
        let hint = self
            .parent
            .map_or(String::new(), |(name, _)| format!("parentFileNameHint=\"{name}\""));
        format!(
            "# Disk DescriptorFile\nversion=1\nCID={:08x}\nparentCID={parent_cid:08x}\ncreateType=\"{}\"\n{hint}\n\
             # Extent description\n{}\n\n# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"{}\"\n\
             ddb.geometry.cylinders = \"{cylinders}\"\nddb.geometry.heads = \"{heads}\"\nddb.geometry.sectors = \"63\"\n\
             ddb.adapterType = \"{}\"\nddb.toolsVersion = \"{}\"\n",
            self.cid,
            self.create_type,
            self.extents.join("\n"),
            self.hw_version,
            self.adapter,
            self.tools_version,
        )
    }
}
