//! vdiskd: disk-image management over HTTP and gRPC.
