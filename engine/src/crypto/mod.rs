//! Ciphers, key derivation and secrets.
