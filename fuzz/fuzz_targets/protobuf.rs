//! Bodies in Kubernetes protobuf, with and without a right envelope: each is read or refused, and what was read can
//! be written and read again as the same.

#![no_main]

use api::protobuf::{Encoder, decode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(object) = decode(bytes) else { return };
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    let encoder = Encoder::new(text("apiVersion"), text("kind")).expect("the kind was read");
    // Deep JSON within a value may be refused; nothing may panic.
    let Ok(written) = encoder.object(object.to_string().as_bytes()) else { return };
    decode(&written).expect("what was written can be read");
});
