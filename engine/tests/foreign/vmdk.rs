//! VMDK descriptors as other programs spell them, with files beside them. Source: VMware Virtual Disk Format 5.0.

use std::collections::HashMap;
use std::sync::Arc;

use vdisk_engine::gate::{Gate, Node, Reference};
use vdisk_engine::storage::MemoryStorage;
use vdisk_engine::{Chain, Error, Limits, OpenEnv, Result, StorageRef, formats};

use super::support::{content, noise};

const SECTOR: usize = 512;

struct Beside(HashMap<&'static str, Arc<MemoryStorage>>);

impl Gate for Beside {
    fn open(&self, reference: &Reference<'_>) -> Result<Node> {
        let found = self.0.get(reference.name);
        let found = found.ok_or_else(|| Error::denied(format!("{:?}", reference.name)))?;
        Ok(Node::new(found.clone(), "raw"))
    }
    fn create(&self, reference: &Reference<'_>) -> Result<StorageRef> {
        Err(Error::denied(reference.name))
    }
}

/// 8 sectors of "a disk-flat.vmdk" from its third on, 4 of nothing, 8 of "b".
fn beside() -> (Beside, Vec<u8>) {
    let (a, b) = (noise(16 * SECTOR, 1), noise(8 * SECTOR, 2));
    let guest = [&a[2 * SECTOR..10 * SECTOR], &[0; 4 * SECTOR], &b].concat();
    let file = |name, bytes: Vec<u8>| (name, Arc::new(MemoryStorage::new(name, bytes)));
    (
        Beside(HashMap::from([file("a disk-flat.vmdk", a), file("b", b)])),
        guest,
    )
}

const SPELLINGS: &[(&str, &str)] = &[
    (
        "lines end as on Windows",
        "# Disk DescriptorFile\r\nversion=1\r\nencoding=\"windows-1252\"\r\nCID=fffffffe\r\nparentCID=ffffffff\r\nisNativeSnapshot=\"no\"\r\n\
         createType=\"twoGbMaxExtentFlat\"\r\n\r\n# Extent description\r\nRW 8 FLAT \"a disk-flat.vmdk\" 2\r\nRW 4 ZERO\r\n\
         RW 8 FLAT \"b\" 0\r\n\r\n# The Disk Data Base \r\n#DDB\r\n\r\nddb.adapterType = \"lsilogic\"\r\n",
    ),
    (
        "spaces and tabs everywhere, no last line end",
        "#   Disk DescriptorFile  \n version = 1 \nCID = ABCDEF01\nparentCID = FFFFFFFF\ncreateType = \"custom\"\t\n\
         RW\t8\tFLAT\t\"a disk-flat.vmdk\"\t2\n  RW   4   ZERO  \nRW 8 FLAT \"b\" 0",
    ),
    (
        "small letters, values without quotes, extents before the keys",
        "# disk descriptorfile\nrw 8 flat \"a disk-flat.vmdk\" 2\nrw 4 zero\nrw 8 vmfs \"b\"\nversion=2\nCID=1\nparentCID=ffffffff\n\
         createType=vmfs\nddb.uuid = \"60 00 C2 90\"\nddb.longContentID = \"0\"\n",
    ),
    (
        "a byte order mark, empty lines, an unknown section",
        "\u{feff}# Disk DescriptorFile\n\n\nversion=4\nCID=00000000\nparentCID=ffffffff\ncreateType=\"vmfs\"\n\n\nRW 8 VMFS \"a disk-flat.vmdk\" 2\n\n\
         RW 4 ZERO\n\nRW 8 FLAT \"b\" 0\n\n# Change Tracking File\nchangeTrackPath=\"x-ctk.vmdk\"\n",
    ),
];

fn open(text: &str, gate: &Beside, write: bool) -> Result<(Chain, Arc<MemoryStorage>)> {
    let main = Arc::new(MemoryStorage::new("disk.vmdk", text.as_bytes().to_vec()));
    let limits = Limits::default();
    let env = OpenEnv::closed(&limits).with_gate(gate);
    let env = if write { env.writable() } else { env };
    Ok((Chain::open(Node::new(main.clone(), "vmdk"), &env)?, main))
}

#[test]
fn descriptors_are_read_however_they_are_spelled() {
    for (what, text) in SPELLINGS {
        let (gate, guest) = beside();
        let file = MemoryStorage::new("disk.vmdk", text.as_bytes().to_vec());
        assert_eq!(formats::detect(&file).unwrap()[0].0.name(), "vmdk", "{what}");
        let (chain, _) = open(text, &gate, false).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(content(&chain) == guest, "{what}");
    }
}

#[test]
fn writing_changes_the_extents_and_no_other_word_of_the_descriptor() {
    for (what, text) in SPELLINGS {
        let (gate, mut guest) = beside();
        let (chain, main) = open(text, &gate, true).unwrap_or_else(|e| panic!("{what}: {e}"));
        let data = noise(3 * SECTOR, 9);
        chain.write(13 * SECTOR as u64, &data).unwrap();
        guest[13 * SECTOR..16 * SECTOR].copy_from_slice(&data);
        chain.top().close().unwrap();
        drop(chain);
        let after = String::from_utf8(main.contents()).unwrap();
        let kept = |text: &str| -> Vec<String> {
            let lines = text
                .trim_end()
                .lines()
                .map(|l| l.trim().trim_start_matches('\u{feff}').to_owned());
            lines.filter(|l| !l.starts_with("CID")).collect()
        };
        assert_eq!(kept(&after), kept(text), "{what}");
        assert_eq!(after.contains('\r'), text.contains('\r'), "{what}: line ends");
        assert!(content(&open(&after, &gate, false).unwrap().0) == guest, "{what}");
        let first = gate.0["a disk-flat.vmdk"].contents();
        assert!(first == noise(16 * SECTOR, 1), "{what}: what no extent covers stays");
    }
}
