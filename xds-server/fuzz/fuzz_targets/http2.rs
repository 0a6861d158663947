//! What a client may send on a connection, from its first byte, and what those who answer may do meanwhile.

#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| xds_server::transport::fuzzing::play(script));
