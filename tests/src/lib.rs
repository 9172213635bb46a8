//! Scenarios through HTTP and gRPC, with real clients and killed workers.
