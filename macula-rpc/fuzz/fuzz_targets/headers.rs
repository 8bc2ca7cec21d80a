#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| macula_rpc::fuzz_headers(data));
