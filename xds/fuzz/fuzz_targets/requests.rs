//! Fuzzes the requests of a client on a discovery stream, from the bytes in gRPC's frames to the
//! bytes of the responses.

#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| xds::fuzzing::play(script));
