//! Who may do what: checked inside the log, under the permissions that hold there.

use std::collections::BTreeSet;

use bytes::Bytes;
use state_machine::*;

/// A state with authentication on: root, and `ann` who may read `r*`, write `w*` and both on `b`.
struct Guarded {
    machine: StateMachine,
    log_index: u64,
}

impl Guarded {
    fn new() -> Self {
        let mut guarded = Self { machine: StateMachine::new(), log_index: 0 };
        let name = |name: &str| name.to_owned();
        let grant = |kind, key: &'static str, range_end: &'static str| AuthCommand::RoleGrantPermission {
            role: "staff".into(),
            permission: Permission { kind, key: key.into(), range_end: range_end.into() },
        };
        for command in [
            AuthCommand::UserAdd { name: name("root"), password: Some(Secret::new("hash")) },
            AuthCommand::RoleAdd { name: name("root") },
            AuthCommand::UserGrantRole { user: name("root"), role: name("root") },
            AuthCommand::UserAdd { name: name("ann"), password: None },
            AuthCommand::RoleAdd { name: name("staff") },
            AuthCommand::UserGrantRole { user: name("ann"), role: name("staff") },
            grant(PermissionKind::Read, "r", "s"),
            grant(PermissionKind::Write, "w", "x"),
            grant(PermissionKind::ReadWrite, "b", ""),
            AuthCommand::Enable { token_secret: Secret::new("secret") },
        ] {
            guarded.own(Command::Auth(command));
        }
        guarded
    }

    fn position(&mut self) -> Position {
        self.log_index += 1;
        Position { log_index: self.log_index, term: 1 }
    }

    /// A member's own command, which must work.
    fn own(&mut self, command: Command) {
        let position = self.position();
        let outcome = self.machine.apply(position, &command);
        assert!(!matches!(outcome, Outcome::Rejected(_)), "{command:?}: {outcome:?}");
    }

    fn send(&mut self, author: Author, request_id: Option<RequestId>, command: Command) -> Outcome {
        let position = self.position();
        let envelope = Envelope { author: Some(author), request_id, command };
        assert_eq!(Envelope::decode(envelope.encode()).unwrap(), envelope);
        self.machine.apply_envelope(position, &envelope)
    }

    fn author(&self, user: &str) -> Author {
        Author { user: user.into(), auth_revision: self.machine.auth().revision() }
    }

    /// Why `ann`'s command was refused, if it was.
    fn refusal(&mut self, command: Command) -> Option<AuthError> {
        let author = self.author("ann");
        match self.send(author, None, command) {
            Outcome::Rejected(ApplyError::Auth(error)) => Some(error),
            Outcome::Rejected(error) => panic!("{error}"),
            _ => None,
        }
    }
}

const DENIED: Option<AuthError> = Some(AuthError::PermissionDenied);

fn put(key: &'static str) -> PutRequest {
    PutRequest { key: key.into(), ..PutRequest::default() }
}

fn txn(op: Op) -> Command {
    Command::Txn(TxnCommand::of(op))
}

fn range(key: &'static str, range_end: &'static str) -> Op {
    Op::Range(RangeRequest { key: key.into(), range_end: range_end.into(), ..RangeRequest::default() })
}

fn delete(key: &'static str, range_end: &'static str, prev_kv: bool) -> Op {
    Op::DeleteRange(DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv })
}

#[test]
fn each_part_of_a_transaction_needs_its_permission() {
    let mut guarded = Guarded::new();
    let compare = |key: &'static str| Compare {
        key: key.into(),
        range_end: Bytes::new(),
        result: CompareResult::Equal,
        target: CompareTarget::Version(0),
    };
    let nested = |inner: NestedTxn| txn(Op::Txn(inner));
    let cases = [
        (txn(Op::Put(put("w1"))), None),
        (txn(Op::Put(put("r1"))), DENIED),
        (txn(Op::Put(PutRequest { prev_kv: true, ..put("w1") })), DENIED),
        (txn(Op::Put(PutRequest { prev_kv: true, ..put("b") })), None),
        (txn(range("r", "s")), None),
        (txn(range("r", "t")), DENIED),
        (txn(range("r", "\0")), DENIED),
        (txn(delete("w", "x", false)), None),
        (txn(delete("w", "x", true)), DENIED),
        (txn(delete("b", "", true)), None),
        (Command::Txn(TxnCommand { compares: vec![compare("r1")], ..TxnCommand::default() }), None),
        (Command::Txn(TxnCommand { compares: vec![compare("w1")], ..TxnCommand::default() }), DENIED),
        // The branch that does not run counts too, and what is nested.
        (Command::Txn(TxnCommand { failure: vec![Op::Put(put("x"))], ..TxnCommand::default() }), DENIED),
        (nested(NestedTxn { compares: vec![compare("w1")], ..NestedTxn::default() }), DENIED),
        (nested(NestedTxn { failure: vec![Op::Put(put("x"))], ..NestedTxn::default() }), DENIED),
        (nested(NestedTxn { success: vec![Op::Put(put("w2"))], ..NestedTxn::default() }), None),
        (Command::Batch(vec![TxnCommand::of(Op::Put(put("w3"))), TxnCommand::of(Op::Put(put("q")))]), DENIED),
        (Command::Auth(AuthCommand::Disable), DENIED),
        (Command::Compact { revision: 2 }, None),
        (Command::LeaseGrant { id: 9, ttl_seconds: 9 }, None),
    ];
    for (command, expected) in cases {
        assert_eq!(guarded.refusal(command.clone()), expected, "{command:?}");
    }
    assert!(guarded.machine.get(b"w3").is_none(), "a batch is refused whole");
}

#[test]
fn whoever_touches_a_lease_must_be_allowed_to_write_its_keys() {
    let mut guarded = Guarded::new();
    guarded.own(Command::LeaseGrant { id: 1, ttl_seconds: 9 });
    guarded.own(txn(Op::Put(PutRequest { lease: 1, ..put("secret") })));
    assert_eq!(guarded.refusal(txn(Op::Put(PutRequest { lease: 1, ..put("w1") }))), DENIED);
    assert_eq!(guarded.refusal(Command::LeaseRevoke { id: 1, fence: None }), DENIED);
    guarded.own(txn(delete("secret", "", false)));
    assert_eq!(guarded.refusal(txn(Op::Put(PutRequest { lease: 1, ..put("w1") }))), None);
    assert_eq!(guarded.refusal(Command::LeaseRevoke { id: 1, fence: None }), None);
}

#[test]
fn a_change_of_permissions_in_between_refuses_inside_the_log() {
    let mut guarded = Guarded::new();
    let before = guarded.author("ann");
    guarded.own(Command::Auth(AuthCommand::UserRevokeRole { user: "ann".into(), role: "staff".into() }));
    let refused = |error: AuthError| Outcome::Rejected(error.into());
    let write = || txn(Op::Put(put("w1")));
    assert_eq!(guarded.send(before, None, write()), refused(AuthError::OldRevision));
    let now = guarded.author("ann");
    assert_eq!(guarded.send(now, None, write()), refused(AuthError::PermissionDenied));
    assert_eq!(guarded.send(Author::default(), None, write()), refused(AuthError::UserEmpty));
    let nobody = guarded.author("bob");
    assert_eq!(guarded.send(nobody, None, write()), refused(AuthError::PermissionDenied));
    let root = guarded.author("root");
    assert!(matches!(guarded.send(root.clone(), None, write()), Outcome::Txn(_)));
    // A member's own command needs nobody.
    guarded.own(write());
    guarded.send(root, None, Command::Auth(AuthCommand::Disable));
    assert!(matches!(guarded.send(Author::default(), None, write()), Outcome::Txn(_)));
}

#[test]
fn root_cannot_be_locked_out_and_passwords_keep_their_kind() {
    let mut guarded = Guarded::new();
    let root = guarded.author("root");
    for command in [
        AuthCommand::UserDelete { name: "root".into() },
        AuthCommand::RoleDelete { name: "root".into() },
        AuthCommand::UserRevokeRole { user: "root".into(), role: "root".into() },
    ] {
        assert_eq!(
            guarded.send(root.clone(), None, Command::Auth(command)),
            Outcome::Rejected(AuthError::InvalidManagement.into())
        );
    }
    for user in ["root", "ann"] {
        let password = Secret::new("new");
        guarded.own(Command::Auth(AuthCommand::UserChangePassword { name: user.into(), password }));
    }
    let auth = guarded.machine.auth();
    assert_eq!(auth.user("root").unwrap().password, Some(Secret::new("new")));
    assert_eq!(auth.user("ann").unwrap().password, None);
    assert_eq!(auth.user("ann").unwrap().credentials_revision, auth.revision());
}

#[test]
fn secrets_are_not_shown() {
    let mut guarded = Guarded::new();
    let add = AuthCommand::UserAdd { name: "x".into(), password: Some(Secret::new("hunter2")) };
    guarded.own(Command::Auth(add.clone()));
    let shown = format!("{add:?} {:?} {:?}", guarded.machine, guarded.machine.header());
    assert!(!shown.contains("hunter2") && shown.contains("Secret(…)"), "{shown}");
}

#[test]
fn a_retry_is_answered_with_the_first_outcome_wherever_the_state_went_meanwhile() {
    let mut guarded = Guarded::new();
    let id = Some(RequestId { client: 5 << 64, sequence: 1 });
    let ann = guarded.author("ann");
    let first = guarded.send(ann.clone(), id, txn(Op::Put(put("w1"))));
    let revision = guarded.machine.revision();
    guarded.own(Command::Auth(AuthCommand::UserRevokeRole { user: "ann".into(), role: "staff".into() }));
    // Not even a change of permissions makes it look undone.
    assert_eq!(guarded.send(ann.clone(), id, txn(Op::Put(put("w1")))), first);
    let bytes = guarded.machine.snapshot().write_all(&guarded.machine, Vec::new()).unwrap();
    guarded.machine = StateMachine::restore(bytes.as_slice()).unwrap();
    assert_eq!(guarded.send(ann, id, txn(Op::Put(put("w1")))).encode(), first.encode());
    let root = guarded.author("root");
    let denied = Outcome::Rejected(AuthError::PermissionDenied.into());
    assert_eq!(guarded.send(root, id, txn(Op::Put(put("w1")))), denied);
    assert_eq!(guarded.machine.revision(), revision);
}

#[test]
fn a_refusal_for_want_of_permission_may_be_sent_again() {
    let mut guarded = Guarded::new();
    let id = Some(RequestId { client: 5 << 64, sequence: 1 });
    let stale = Author { auth_revision: 1, ..guarded.author("ann") };
    let refused = guarded.send(stale, id, txn(Op::Put(put("w1"))));
    assert_eq!(refused, Outcome::Rejected(AuthError::OldRevision.into()));
    let ann = guarded.author("ann");
    assert!(matches!(guarded.send(ann, id, txn(Op::Put(put("w1")))), Outcome::Txn(_)));
}

#[test]
fn the_clusters_version_is_the_lowest_and_never_goes_back() {
    let mut guarded = Guarded::new();
    let supports = |member_id, version| Command::Version(VersionCommand::Supports { member_id, version });
    let raise = |version, members: [u64; 2]| {
        Command::Version(VersionCommand::Raise { version, members: BTreeSet::from(members) })
    };
    assert_eq!(guarded.machine.cluster_version(), CLUSTER_VERSION_INITIAL);
    guarded.own(supports(1, 2));
    guarded.own(raise(2, [1, 2]));
    assert_eq!(guarded.machine.cluster_version(), 1, "member 2 has not said anything");
    guarded.own(supports(2, 2));
    guarded.own(raise(2, [1, 2]));
    assert_eq!(guarded.machine.cluster_version(), 2);
    guarded.own(supports(2, 1));
    guarded.own(raise(1, [1, 2]));
    assert_eq!(guarded.machine.cluster_version(), 2);
}

#[test]
fn a_member_that_is_too_old_stops_at_the_entry_and_at_the_state() {
    let newer = CLUSTER_VERSION_SUPPORTED + 1;
    let members = BTreeSet::from([1]);
    let raise = Command::Version(VersionCommand::Raise { version: newer, members });
    let error = Command::decode(raise.encode()).unwrap_err();
    assert!(error.to_string().contains("upgrade this member"), "{error}");
    // The state: only a newer member can have made it.
    let mut machine = StateMachine::new();
    let supports = Command::Version(VersionCommand::Supports { member_id: 1, version: newer });
    machine.apply(Position { log_index: 1, term: 1 }, &supports);
    machine.apply(Position { log_index: 2, term: 1 }, &raise);
    let bytes = machine.snapshot().write_all(&machine, Vec::new()).unwrap();
    let error = StateMachine::restore(bytes.as_slice()).unwrap_err();
    assert!(error.to_string().contains("upgrade this member"), "{error}");
}
