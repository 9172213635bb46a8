//! What the fuzzer kept: the inputs of each target that reach something new, and those that once broke something.

use std::path::Path;

use vdisk_engine::Storage;
use vdisk_engine::storage::read_vec;

use crate::inputs::{self, packed};
use crate::samples::sample;

#[test]
fn kept_inputs_are_answered() {
    let _alone = crate::alone();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile/kept");
    let (mut count, mut wrong) = (0, Vec::new());
    for folder in std::fs::read_dir(root).unwrap() {
        let folder = folder.unwrap();
        let target = folder.file_name().into_string().unwrap();
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let path = file.unwrap().path();
            let data = std::fs::read(&path).unwrap();
            if std::panic::catch_unwind(|| inputs::run(&target, &data)).is_err() {
                wrong.push(path);
            }
            count += 1;
        }
    }
    println!("{count} kept inputs answered");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count > 0);
}

#[test]
fn a_packed_image_unpacks_to_itself() {
    let _alone = crate::alone();
    for format in ["qcow2", "vhdx", "vpc", "vdi"] {
        let image = sample(format);
        let packed = packed::pack(&image, b"rest").unwrap();
        assert!(packed.len() < image.len());
        let input = packed::unpack(&packed).unwrap();
        let len = usize::try_from(input.storage.len().unwrap()).unwrap();
        assert!(read_vec(&*input.storage, 0, len).unwrap() == image, "{format}");
        assert_eq!(input.rest, b"rest");
    }
}
