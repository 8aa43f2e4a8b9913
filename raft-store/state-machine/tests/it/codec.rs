//! Encodings: decoding copies no value, and no damage to the bytes leads to a panic or a wrong state.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use state_machine::*;

use crate::strategy;

#[test]
fn a_decoded_value_is_a_slice_of_the_input() {
    let put = PutRequest {
        key: Bytes::from_static(b"key"),
        value: Bytes::from(vec![7u8; 4096]),
        ..PutRequest::default()
    };
    let bytes = Command::Txn(TxnCommand::of(Op::Put(put))).encode();
    let Command::Txn(txn) = Command::decode(bytes.clone()).unwrap() else { panic!() };
    let Op::Put(put) = &txn.success[0] else { panic!() };
    assert!(bytes.as_ptr_range().contains(&put.value.as_ptr()));
    // And a copy in the state, which keeps nothing of the input.
    let mut machine = StateMachine::new();
    machine.apply(Position { log_index: 1, term: 1 }, &Command::Txn(txn));
    let held = machine.get(b"key").unwrap().value;
    assert!(held == [7; 4096] && !bytes.as_ptr_range().contains(&held.as_ptr()));
}

#[test]
fn a_newer_version_is_named_in_the_error() {
    let mut bytes = Command::Compact { revision: 1 }.encode().to_vec();
    bytes[0] = 9;
    assert_eq!(Command::decode(bytes.into()), Err(DecodeError::UnknownVersion { version: 9, newest: 1 }));
}

#[test]
fn nesting_is_bounded_on_the_way_in_and_when_applied() {
    let nest = |depth: usize| {
        let mut op = Op::Range(RangeRequest::default());
        for _ in 0..depth {
            op = Op::Txn(NestedTxn { success: vec![op], ..NestedTxn::default() });
        }
        Command::Txn(TxnCommand::of(op))
    };
    let mut machine = StateMachine::new();
    assert!(Command::decode(nest(TXN_DEPTH_MAX - 1).encode()).is_ok());
    let too_deep = nest(TXN_DEPTH_MAX);
    assert_eq!(Command::decode(too_deep.encode()), Err(DecodeError::TooDeep { depth_max: TXN_DEPTH_MAX }));
    assert_eq!(
        machine.apply(Position { log_index: 1, term: 1 }, &too_deep),
        Outcome::Rejected(ApplyError::TooDeep { depth_max: TXN_DEPTH_MAX })
    );
}

#[test]
fn a_count_without_elements_reserves_nothing() {
    // A batch of 2^62 transactions, in eleven bytes.
    let bytes = [&[1u8, 2], &[0x80u8; 8][..], &[0x40]].concat();
    assert_eq!(Command::decode(bytes.into()), Err(DecodeError::Truncated));
}

fn sample_snapshot() -> (StateMachine, Vec<u8>) {
    let mut machine = StateMachine::new();
    for log_index in 1..40u64 {
        let put = PutRequest {
            key: Bytes::from(format!("key-{}", log_index % 9)),
            value: Bytes::from(vec![log_index as u8; 40]),
            ..PutRequest::default()
        };
        machine.apply(Position { log_index, term: 1 }, &Command::Txn(TxnCommand::of(Op::Put(put))));
    }
    machine.apply(Position { log_index: 40, term: 1 }, &Command::Compact { revision: 20 });
    let bytes = machine.snapshot().write_all(&machine, Vec::new()).unwrap();
    (machine, bytes)
}

#[test]
fn no_flipped_bit_and_no_cut_of_a_snapshot_goes_unnoticed() {
    let (machine, bytes) = sample_snapshot();
    assert_eq!(StateMachine::restore(bytes.as_slice()).unwrap().header(), machine.header());
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        assert!(StateMachine::restore(damaged.as_slice()).is_err(), "flip at {at}");
        assert!(StateMachine::restore(&bytes[..at]).is_err(), "cut at {at}");
    }
}

proptest! {
    #[test]
    fn any_bytes_decode_or_do_not_but_never_panic(bytes in vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        let _ = Command::decode(bytes.clone());
        let _ = Envelope::decode(bytes.clone());
        let _ = Outcome::decode(bytes.clone());
        let _ = StateHeader::decode(bytes.clone());
        let _ = RecordRef::decode_body(b"", 1, &bytes);
        let _ = StateMachine::restore(bytes.as_ref());
    }

    #[test]
    fn damaged_commands_apply_without_panic(
        commands in vec(
            (strategy::command(), strategy::request_id(), any::<prop::sample::Index>(), any::<u8>()),
            1..20,
        ),
    ) {
        let mut machine = StateMachine::new();
        for (log_index, (command, id, at, xor)) in (1..).zip(&commands) {
            let author = id.map(|id| Author { user: "ann".into(), auth_revision: id.sequence });
            let mut bytes = Envelope::encode_parts(author.as_ref(), id.as_ref(), command).to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= xor;
            if let Ok(entry) = Envelope::decode(bytes.into()) {
                machine.apply_envelope(Position { log_index, term: 1 }, &entry);
            }
        }
        // Still a state that can be handed on.
        let bytes = machine.snapshot().write_all(&machine, Vec::new()).unwrap();
        prop_assert_eq!(StateMachine::restore(bytes.as_slice()).unwrap().header(), machine.header());
    }

    #[test]
    fn bodies_round_trip(value in vec(any::<u8>(), 0..40), lease: i64, sub: u32, version in 1u64.., create: u64) {
        let kv = KeyValue {
            key: Bytes::from_static(b"k"),
            value: value.into(),
            create_revision: create,
            mod_revision: 9,
            sub,
            version,
            lease,
        };
        let body = kv.encode_body();
        prop_assert_eq!(RecordRef::decode_body(&kv.key, 9, &body).unwrap(), RecordRef::from(&kv));
    }
}
