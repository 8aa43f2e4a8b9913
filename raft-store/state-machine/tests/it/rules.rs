//! etcd's rules that are easy to get wrong, one by one.

use bytes::Bytes;
use state_machine::*;

fn key(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn put(key_text: &'static str, value: &'static str) -> Op {
    Op::Put(PutRequest { key: key(key_text), value: key(value), ..PutRequest::default() })
}

fn delete(from: &'static str, to: &'static str) -> Op {
    Op::DeleteRange(DeleteRangeRequest { key: key(from), range_end: key(to), prev_kv: false })
}

fn get(key_text: &'static str) -> Op {
    Op::Range(RangeRequest { key: key(key_text), ..RangeRequest::default() })
}

fn compare(key_text: &'static str, target: CompareTarget) -> Compare {
    Compare { key: key(key_text), range_end: Bytes::new(), result: CompareResult::Equal, target }
}

#[derive(Default)]
struct Store {
    machine: StateMachine,
    log_index: u64,
}

impl Store {
    fn apply(&mut self, command: Command) -> Outcome {
        self.log_index += 1;
        self.machine.apply(Position { log_index: self.log_index, term: 1 }, &command)
    }

    fn txn(&mut self, txn: TxnCommand) -> Result<TxnOutcome, ApplyError> {
        match self.apply(Command::Txn(txn)) {
            Outcome::Txn(outcome) => Ok(outcome),
            Outcome::Rejected(error) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    fn run(&mut self, success: Vec<Op>) -> Result<TxnOutcome, ApplyError> {
        self.txn(TxnCommand { success, ..TxnCommand::default() })
    }
}

#[test]
fn a_create_loses_against_a_key_that_exists_and_a_swap_against_one_that_moved() {
    let mut store = Store::default();
    let create = TxnCommand {
        compares: vec![compare("pod", CompareTarget::ModRevision(0))],
        success: vec![put("pod", "1")],
        failure: vec![get("pod")],
        fence: None,
    };
    assert!(store.txn(create.clone()).unwrap().succeeded);
    let lost = store.txn(create).unwrap();
    let [OpResult::Range(found)] = lost.results.as_slice() else { panic!() };
    assert!(!lost.succeeded);
    assert_eq!((lost.revision, found.kvs[0].mod_revision), (2, 2));
    let swap = |seen| TxnCommand {
        compares: vec![compare("pod", CompareTarget::ModRevision(seen))],
        success: vec![put("pod", "2")],
        ..TxnCommand::default()
    };
    assert!(store.txn(swap(2)).unwrap().succeeded);
    assert!(!store.txn(swap(2)).unwrap().succeeded);
}

#[test]
fn a_transaction_is_one_revision_and_sees_its_own_writes() {
    let mut store = Store::default();
    let outcome = store.run(vec![put("a", "1"), put("b", "1"), get("a")]).unwrap();
    assert_eq!(outcome.revision, 2);
    let OpResult::Range(read) = &outcome.results[2] else { panic!() };
    assert_eq!((read.revision, read.kvs[0].mod_revision), (2, 2));
    assert_eq!(store.machine.get(b"b").unwrap().sub, 1);
    // One that changes nothing has no revision of its own.
    assert_eq!(store.run(vec![get("a"), delete("x", "z")]).unwrap().revision, 2);
}

#[test]
fn a_key_is_not_written_twice_but_opposite_branches_do_not_meet() {
    let mut store = Store::default();
    let nested = |success, failure| Op::Txn(NestedTxn { compares: Vec::new(), success, failure });
    let twice = Err(ApplyError::DuplicateKey);
    assert_eq!(store.run(vec![put("a", "1"), put("a", "2")]), twice);
    assert_eq!(store.run(vec![put("b", "1"), delete("a", "c")]), twice);
    assert_eq!(store.run(vec![delete("a", "\0"), put("b", "1")]), twice);
    assert_eq!(store.run(vec![put("a", "1"), nested(vec![], vec![put("a", "2")])]), twice);
    assert_eq!(
        store.run(vec![nested(vec![put("a", "1")], vec![]), nested(vec![delete("a", "")], vec![])]),
        twice
    );
    // The branch that does not run counts, too.
    let failure = vec![put("a", "1"), put("a", "2")];
    assert_eq!(store.txn(TxnCommand { failure, ..TxnCommand::default() }), twice);
    assert_eq!(store.machine.revision(), 1);
    assert!(store.run(vec![nested(vec![put("a", "1")], vec![put("a", "2")])]).is_ok());
    assert!(store.run(vec![delete("a", "c"), delete("b", ""), put("c", "1")]).is_ok());
}

#[test]
fn nested_compares_look_at_the_state_before_the_transaction() {
    let mut store = Store::default();
    let nested = Op::Txn(NestedTxn {
        compares: vec![compare("a", CompareTarget::Version(0))],
        success: vec![put("b", "a was absent")],
        failure: vec![],
    });
    let outcome = store.run(vec![put("a", "1"), nested]).unwrap();
    assert!(matches!(&outcome.results[1], OpResult::Txn { succeeded: true, .. }));
}

#[test]
fn an_error_anywhere_in_a_transaction_leaves_nothing_behind() {
    let mut store = Store::default();
    let leased = |lease| Op::Put(PutRequest { key: key("b"), lease, ..PutRequest::default() });
    assert_eq!(store.run(vec![put("a", "1"), leased(5)]), Err(ApplyError::LeaseNotFound { id: 5 }));
    let future = Op::Range(RangeRequest { key: key("a"), revision: 9, ..RangeRequest::default() });
    assert!(matches!(store.run(vec![put("a", "1"), future]), Err(ApplyError::Read(_))));
    assert_eq!((store.machine.revision(), store.machine.records()), (1, 0));
}

#[test]
fn an_absent_value_compares_with_nothing() {
    let mut store = Store::default();
    for result in [CompareResult::Equal, CompareResult::NotEqual, CompareResult::Less] {
        let absent = Compare { result, ..compare("a", CompareTarget::Value(Bytes::new())) };
        let txn = TxnCommand { compares: vec![absent], ..TxnCommand::default() };
        assert!(!store.txn(txn).unwrap().succeeded, "{result:?}");
    }
}

#[test]
fn a_compare_over_a_range_must_hold_for_every_key() {
    let mut store = Store::default();
    store.run(vec![put("n/1", "x"), put("n/2", "x")]).unwrap();
    let all_new =
        |revision| Compare { range_end: key("n0"), ..compare("n/", CompareTarget::CreateRevision(revision)) };
    let txn = |compare| TxnCommand { compares: vec![compare], ..TxnCommand::default() };
    assert!(store.txn(txn(all_new(2))).unwrap().succeeded);
    store.run(vec![put("n/3", "x")]).unwrap();
    assert!(!store.txn(txn(all_new(2))).unwrap().succeeded);
}

#[test]
fn a_key_created_again_starts_over() {
    let mut store = Store::default();
    store.run(vec![put("a", "1")]).unwrap();
    store.run(vec![put("a", "2")]).unwrap();
    store.run(vec![delete("a", "")]).unwrap();
    store.run(vec![put("a", "3")]).unwrap();
    let a = store.machine.get(b"a").unwrap();
    assert_eq!((a.create_revision, a.mod_revision, a.version), (5, 5, 1));
}

#[test]
fn compaction_keeps_what_can_still_be_read_and_a_watch_may_start_at_it() {
    let mut store = Store::default();
    store.run(vec![put("a", "1")]).unwrap(); // 2
    store.run(vec![put("a", "2")]).unwrap(); // 3
    store.run(vec![delete("a", "")]).unwrap(); // 4
    store.run(vec![put("b", "1")]).unwrap(); // 5
    store.apply(Command::Compact { revision: 4 });
    store.machine.drain_events();
    while store.machine.trim(1) {}
    let read = |revision| RangeRequest { key: key("a"), revision, ..RangeRequest::default() };
    assert_eq!(
        store.machine.range(&read(3)),
        Err(ReadError::Compacted { requested: 3, compact_revision: 4 })
    );
    assert_eq!(store.machine.range(&read(4)).unwrap().count, 0);
    // The tombstone of revision 4 itself is still told, and gone with the next compaction.
    let from_4: Vec<_> = store.machine.events_since(4, 10).unwrap().map(|events| events.revision()).collect();
    assert_eq!((from_4, store.machine.records()), (vec![4, 5], 2));
    store.apply(Command::Compact { revision: 5 });
    assert_eq!(store.machine.records(), 1);
    assert_eq!(
        store.apply(Command::Compact { revision: 5 }),
        Outcome::Rejected(ReadError::Compacted { requested: 5, compact_revision: 5 }.into())
    );
    assert_eq!(
        store.apply(Command::Compact { revision: 6 }),
        Outcome::Rejected(ReadError::Future { requested: 6, revision: 5 }.into())
    );
}

#[test]
fn a_lease_takes_its_keys_with_it_in_one_revision() {
    let mut store = Store::default();
    store.apply(Command::LeaseGrant { id: 7, ttl_seconds: 30 });
    let leased = |text, lease| Op::Put(PutRequest { key: key(text), lease, ..PutRequest::default() });
    store.run(vec![leased("b", 7), leased("a", 7), leased("c", 7)]).unwrap();
    // Written again without the lease, a key no longer hangs on it.
    store.run(vec![leased("c", 0)]).unwrap();
    let revoked = store.apply(Command::LeaseRevoke { id: 7, fence: None });
    assert_eq!(revoked, Outcome::LeaseRevoked { revision: 4, deleted: 2 });
    assert!(store.machine.get(b"a").is_none() && store.machine.get(b"c").is_some());
    let again = store.apply(Command::LeaseRevoke { id: 7, fence: None });
    assert_eq!(again, Outcome::Rejected(ApplyError::LeaseNotFound { id: 7 }));
}

#[test]
fn a_batch_gives_each_transaction_its_own_revision_and_fate() {
    let mut store = Store::default();
    let only_if_absent = |text: &'static str| TxnCommand {
        compares: vec![compare(text, CompareTarget::Version(0))],
        success: vec![put(text, "x")],
        ..TxnCommand::default()
    };
    let bad = TxnCommand::of(put("", "x"));
    let fenced = TxnCommand { fence: Some(Fence { term: 9 }), ..only_if_absent("f") };
    let batch = vec![only_if_absent("a"), bad, only_if_absent("a"), fenced, only_if_absent("b")];
    let Outcome::Batch(outcomes) = store.apply(Command::Batch(batch)) else { panic!() };
    let brief: Vec<_> = outcomes
        .iter()
        .map(|outcome| outcome.as_ref().map(|txn| (txn.revision, txn.succeeded, txn.fenced)))
        .collect();
    let empty = ApplyError::EmptyKey;
    assert_eq!(
        brief,
        [
            Ok((2, true, false)),
            Err(&empty),
            Ok((2, false, false)),
            Ok((2, false, true)),
            Ok((3, true, false))
        ]
    );
}

#[test]
fn a_page_tells_the_whole_count() {
    let mut store = Store::default();
    for text in ["p/1", "p/2", "p/3", "p/4", "q"] {
        store.run(vec![put(text, "x")]).unwrap();
    }
    let page = RangeRequest { key: key("p/"), range_end: key("p0"), limit: 2, ..RangeRequest::default() };
    let first = store.machine.range(&page).unwrap();
    assert_eq!((first.kvs.len(), first.count, first.more, first.revision), (2, 4, true, 6));
    let newest =
        RangeRequest { sort_target: SortTarget::ModRevision, sort_order: SortOrder::Descend, ..page };
    let newest = store.machine.range(&newest).unwrap();
    assert_eq!((&newest.kvs[0].key[..], newest.count, newest.more), (&b"p/4"[..], 4, true));
}

#[test]
fn a_count_before_keys_that_came_and_went_does_not_fall_below_zero() {
    let mut machine = StateMachine::new();
    for (log_index, op) in (1..).zip([put("a", "1"), put("b", "1"), delete("a", "")]) {
        machine.apply(Position { log_index, term: 1 }, &Command::Txn(TxnCommand::of(op)));
    }
    let counted = |revision| {
        let all = RangeRequest { key: key("a"), range_end: key("\0"), ..RangeRequest::default() };
        machine.range(&RangeRequest { revision, count_only: true, ..all }).map(|response| response.count)
    };
    assert_eq!([1, 2, 3, 4].map(counted), [0, 1, 2, 1].map(Ok));
}
