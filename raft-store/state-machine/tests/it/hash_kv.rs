//! The hash of the keys up to a revision: what it covers, and what it must not notice.

use bytes::Bytes;
use state_machine::*;

fn put(key: &'static str, value: &'static str) -> Command {
    Command::Txn(TxnCommand::of(Op::Put(PutRequest {
        key: key.into(),
        value: value.into(),
        ..PutRequest::default()
    })))
}

fn machine(commands: &[Command]) -> StateMachine {
    let mut machine = StateMachine::new();
    for (log_index, command) in (1..).zip(commands) {
        machine.apply(Position { log_index, term: 1 }, command);
    }
    machine
}

#[test]
fn later_changes_do_not_show_in_the_hash_of_an_earlier_revision() {
    let delete = DeleteRangeRequest { key: Bytes::from_static(b"a"), ..Default::default() };
    let commands =
        [put("a", "1"), put("a", "2"), put("b", "1"), Command::Txn(TxnCommand::of(Op::DeleteRange(delete)))];
    let whole = machine(&commands);
    for (count, revision) in (1..=4).zip(2..) {
        assert_eq!(whole.hash_kv(revision), machine(&commands[..count]).hash_kv(0), "revision {revision}");
    }
    assert_eq!(whole.hash_kv(0).unwrap().revision, 5);
    assert!(matches!(whole.hash_kv(6), Err(ReadError::Future { .. })));
    // A change of history shows.
    let other = machine(&[put("a", "1"), put("a", "X"), put("b", "1")]);
    assert_ne!(whole.hash_kv(3), other.hash_kv(3));
    assert_eq!(whole.hash_kv(2), other.hash_kv(2));
}

#[test]
fn it_does_not_notice_trimming() {
    let commands = [put("a", "1"), put("a", "2"), put("b", "1"), Command::Compact { revision: 3 }];
    let untrimmed = machine(&commands);
    let mut trimmed = machine(&commands);
    trimmed.discard_events();
    while trimmed.trim(1) {}
    assert_eq!(untrimmed.hash_kv(3), trimmed.hash_kv(3));
    assert_eq!(untrimmed.hash_kv(0), trimmed.hash_kv(0));
    assert!(matches!(trimmed.hash_kv(2), Err(ReadError::Compacted { .. })));
}
