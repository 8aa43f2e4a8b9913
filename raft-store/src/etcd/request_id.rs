//! How a client names a request, so that it may be sent again: gRPC metadata
//! `barque-request-id: <client>:<sequence>`.
//!
//! `client` is a UUID of version 7 in its usual text form, made once by each client process; `sequence` is a
//! decimal number from 1 to 2^63-1 that the client counts up with each new request and repeats with each
//! retry. At most [`REQUESTS_PER_CLIENT`](state_machine::REQUESTS_PER_CLIENT) of a client's requests may be
//! under way at once. Version 7 begins with the time, so that clients made later have greater ids: this is how
//! the state tells a client that it has forgotten from one that it has not seen yet. A client whose clock is
//! more than [`CLOCK_AHEAD_MAX_MS`] ahead would spoil that for all others, and is refused.

use state_machine::RequestId;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::tokens::unix_now;

const KEY: &str = "barque-request-id";

/// How far a client's clock may be ahead of the member's.
const CLOCK_AHEAD_MAX_MS: u64 = 5 * 60 * 1000;

const SEQUENCE_MAX: u64 = i64::MAX as u64;

/// The request's id, if it has one.
pub(super) fn of(metadata: &MetadataMap) -> Result<Option<RequestId>, Status> {
    let Some(value) = metadata.get(KEY) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(parse).ok_or_else(|| {
        Status::invalid_argument(
            "etcdserver: barque-request-id must be <UUID of version 7>:<sequence from 1>",
        )
    })?;
    let made_ms = (parsed.client >> 80) as u64;
    if made_ms > unix_now() * 1000 + CLOCK_AHEAD_MAX_MS {
        let text = "etcdserver: barque-request-id names a time in the future; set the client's clock";
        return Err(Status::invalid_argument(text));
    }
    Ok(Some(parsed))
}

fn parse(text: &str) -> Option<RequestId> {
    let (uuid, sequence) = text.split_once(':')?;
    let groups: Vec<&str> = uuid.split('-').collect();
    let lengths = groups.iter().map(|group| group.len());
    if !lengths.eq([8, 4, 4, 4, 12]) || !groups[2].starts_with('7') {
        return None;
    }
    let hex = groups.concat();
    if !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) || !sequence.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let client = u128::from_str_radix(&hex, 16).ok()?;
    let sequence = sequence.parse().ok().filter(|sequence| (1..=SEQUENCE_MAX).contains(sequence))?;
    Some(RequestId { client, sequence })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_documented_is_an_id() {
        let id = parse("0190f5fe-7c4a-7000-8000-00000000002a:17").expect("an id");
        assert_eq!((id.client as u64, id.sequence), (0x8000_0000_0000_002a, 17));
        for text in [
            "",
            "17",
            "0190f5fe-7c4a-7000-8000-00000000002a",
            "0190f5fe-7c4a-7000-8000-00000000002a:",
            "0190f5fe-7c4a-7000-8000-00000000002a:0",
            "0190f5fe-7c4a-7000-8000-00000000002a:+1",
            "0190f5fe-7c4a-7000-8000-00000000002a:9223372036854775808",
            "0190f5fe-7c4a-4000-8000-00000000002a:1",
            "0190f5fe7c4a-7000-8000-00000000002a:1",
            "0190f5fe-7c4a-7000-8000-0000000000+a:1",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
