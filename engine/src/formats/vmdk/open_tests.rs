//! Descriptors as other programs write them: how they are found, and what they call the layer below.

use std::sync::Arc;

use super::Vmdk;
use super::tests::{Files, GRAIN, created, half_written, open_on, whole};
use crate::formats::FormatDriver;
use crate::options::Options;
use crate::storage::MemoryStorage;
use crate::{Chain, ErrorKind, Limits, Node, OpenEnv};

fn text(cid: u32, parent: u32, hint: &str, extent: &str) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID={cid:08x}\nparentCID={parent:08x}\ncreateType=\"custom\"\n{hint}\n\
         # Extent description\n{extent}\n"
    )
}

/// As VMware and VirtualBox write names, on Windows and elsewhere.
#[test]
fn the_layer_below_is_found_beside_the_delta() {
    let files = Files::default();
    files.add("base.vmdk", text(1, u32::MAX, "", "RW 8 ZERO").into_bytes());
    files.add("up/base.vmdk", text(1, u32::MAX, "", "RW 8 ZERO").into_bytes());
    let delta = created(8 * 512, Options::new());
    let limits = Limits::default();
    let env = OpenEnv::closed(&limits).with_gate(&files);
    for hint in [
        "base.vmdk",
        ".\\base.vmdk",
        "up\\base.vmdk",
        "C:\\vm\\base.vmdk",
        "\\\\?\\C:\\vm\\base.vmdk",
        "\\\\srv\\vm\\base.vmdk",
        "/vmfs/volumes/5f3/vm/base.vmdk",
    ] {
        files.add("extent.vmdk", delta.clone());
        let hint = format!("parentFileNameHint=\"{hint}\"");
        let main = files.add(
            "delta.vmdk",
            text(2, 1, &hint, "RW 8 SPARSE \"extent.vmdk\"").into_bytes(),
        );
        let chain = Chain::open(Node::new(main, "vmdk"), &env).map_err(|e| e.to_string());
        assert_eq!(chain.map(|c| c.layers().len()), Ok(2), "{hint}");
    }
    let hint = "parentFileNameHint=\"C:\\vm\\gone.vmdk\"";
    let main = files.add("delta.vmdk", text(2, 1, hint, "RW 8 ZERO").into_bytes());
    let error = Chain::open(Node::new(main, "vmdk"), &env).err().unwrap();
    assert!(error.to_string().contains("gone.vmdk"), "{error}");
}

/// qemu-img reads them with `-f vmdk`, whatever their first lines are.
#[test]
fn a_text_that_is_said_to_be_a_descriptor_is_read_as_one() {
    let files = Files::default();
    files.add("flat.vmdk", vec![7; 8 * 512]);
    let plain = text(1, u32::MAX, "", "RW 8 FLAT \"flat.vmdk\" 0").replace("# Disk DescriptorFile\n", "");
    let limits = Limits::default();
    let env = OpenEnv::closed(&limits).with_gate(&files);
    for text in [
        plain.clone(),
        format!("\n\n{plain}"),
        plain.replace("version=1", "version = 1"),
        plain.replace('\n', "\r\n"),
    ] {
        let main = files.add("disk.vmdk", text.clone().into_bytes());
        let image = Vmdk
            .open(main, &Options::new(), &env)
            .unwrap_or_else(|e| panic!("{text:?}: {e}"));
        assert!(whole(image.as_ref()) == [7; 8 * 512], "{text:?}");
    }
    let error = open_on(files.add("disk.vmdk", b"some text\n".to_vec())).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotThisFormat);
}

#[test]
fn what_an_embedded_descriptor_need_not_say_does_not_matter() {
    let (bytes, content) = half_written();
    let descriptor = 512..512 + 20 * 512;
    let text = String::from_utf8(bytes[descriptor.clone()].to_vec()).unwrap();
    let text = text.trim_end_matches('\0');
    let twice = text.lines().find(|l| l.starts_with("CID=")).unwrap();
    for changed in [
        text.replace("createType=\"monolithicSparse\"\n", ""),
        text.replace(twice, &format!("{twice}\n{twice}")),
        format!("{text}# \x01\n"),
    ] {
        assert_ne!(changed, text);
        let mut bytes = bytes.clone();
        bytes[descriptor.clone()].fill(0);
        bytes[512..512 + changed.len()].copy_from_slice(changed.as_bytes());
        let image = open_on(Arc::new(MemoryStorage::new("m", bytes))).unwrap();
        assert!(whole(image.as_ref()) == content, "{changed}");
        image
            .write(0, &[1; GRAIN as usize], &crate::image::NothingBelow)
            .unwrap();
        image.close().unwrap();
    }
}
