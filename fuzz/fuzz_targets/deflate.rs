#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vdisk_fuzz::inputs::run("deflate", data));
