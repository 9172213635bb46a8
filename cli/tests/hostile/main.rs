//! Texts that a fuzzer kept are answered again by the readers of names and options.

mod inputs;

use std::path::Path;

#[test]
fn kept_texts_are_answered() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile/kept");
    let mut count = 0;
    for (name, _) in inputs::READERS {
        for file in std::fs::read_dir(root.join(name)).unwrap() {
            inputs::run(name, &std::fs::read(file.unwrap().path()).unwrap());
            count += 1;
        }
    }
    println!("{count} kept texts answered");
    assert!(count > 0);
}
