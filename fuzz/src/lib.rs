//! The fuzz targets' common part. What an input means is told in the hostile tests of the engine and of the command line, which answer the
//! kept inputs again.

#[path = "../../engine/tests/hostile/inputs/mod.rs"]
pub mod inputs;
#[path = "../../cli/tests/hostile/inputs.rs"]
pub mod texts;

mod memory;
