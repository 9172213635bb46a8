//! The messages and services of `proto/vdisk/v1`, and their descriptors.

#![expect(
    clippy::allow_attributes,
    clippy::large_enum_variant,
    reason = "the generated code is as it is"
)]

tonic::include_proto!("vdisk.v1");

/// The encoded `FileDescriptorSet`, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vdisk.bin"));
