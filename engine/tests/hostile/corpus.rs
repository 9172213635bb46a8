//! The seeds of the fuzz targets, and inputs that once broke something: each is answered.

use std::path::Path;

use vdisk_engine::formats;

use crate::exercise::exercise;

#[test]
fn the_fuzz_corpora_are_answered() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let mut count = 0;
    for folder in std::fs::read_dir(root).unwrap() {
        let folder = folder.unwrap();
        let name = folder.file_name().into_string().unwrap();
        if formats::by_name(&name).is_err() {
            continue;
        }
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let path = file.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            exercise(&name, &bytes, None, &path.display().to_string());
            count += 1;
        }
    }
    println!("{count} inputs answered");
    assert!(count > 0);
}
