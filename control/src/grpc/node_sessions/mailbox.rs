//! What a session still has to tell its node.
//!
//! Owns one bounded set of notices per session. It is no queue: a pod stands in it once however often it
//! changed, and what is told is what the copy holds when the telling happens, so a slow node gets the
//! newest state and never a stale one. Acknowledgements and stream requests are few and bounded.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use api::references::Reference;
use proto::node::{ObjectKey, OpenStream, TokenResponse};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::network::{CHANGES_MAX, NetworkKey};
use super::objects::Entitled;
use crate::leader::Epoch;

/// Most stream requests waiting to be sent to one node.
const OPENS_MAX: usize = 64;
/// Most answered questions for tokens waiting to be sent to one node; a node asks no more at once.
const TOKENS_MAX: usize = 1024;
/// Most acknowledgements waiting to be sent; the inbox stops reading when there are more.
pub(super) const ACKS_MAX: usize = 1024;

/// One thing to tell.
#[derive(Debug, PartialEq)]
pub(super) enum Notice {
    /// What this replica is now.
    Role(Option<Epoch>),
    /// The whole set of pods.
    PodSet(Epoch),
    /// The routes.
    Network(Epoch),
    /// Send everything once more.
    Resync,
    /// A stream is wanted.
    Open(OpenStream),
    /// Something is stored.
    Ack(u64),
    /// The answer to a question for a token.
    Token(TokenResponse),
    /// An object changed or went; whether the node may know it.
    Object { epoch: Epoch, reference: Reference, is_entitled: bool },
    /// Everything that the cluster's network is made of.
    NetworkIndex(Epoch),
    /// Some of that changed, went or is asked for.
    NetworkObjects { epoch: Epoch, keys: Vec<NetworkKey> },
    /// A pod changed or went.
    Pod { epoch: Epoch, namespace: String, name: String, uid: String },
}

#[derive(Debug, Default)]
struct Pending {
    epoch: Option<Epoch>,
    role: bool,
    pod_set: bool,
    network: bool,
    resync: bool,
    opens: VecDeque<OpenStream>,
    acks: VecDeque<u64>,
    tokens: VecDeque<TokenResponse>,
    entitled: Entitled,
    objects: BTreeSet<Reference>,
    network_index: bool,
    network_objects: BTreeSet<NetworkKey>,
    /// uid → (namespace, name)
    pods: BTreeMap<String, (String, String)>,
}

/// The mailbox of one session.
#[derive(Debug)]
pub(super) struct Mailbox {
    pending: Mutex<Pending>,
    wake: Notify,
    /// Whether the node's object is known to exist under the present role.
    registered: AtomicBool,
    /// Cancelled when the session ends or a newer one takes its place.
    pub(super) closed: CancellationToken,
}

impl Mailbox {
    pub(super) fn new(closed: CancellationToken) -> Self {
        Self { pending: Mutex::default(), wake: Notify::new(), registered: AtomicBool::new(false), closed }
    }

    /// This replica's role changed (or is told for the first time): everything else starts over.
    pub(super) fn role(&self, epoch: Option<Epoch>) {
        self.registered.store(false, Ordering::Release);
        self.change(|pending| {
            pending.epoch = epoch;
            pending.role = true;
            pending.pods.clear();
            pending.entitled = Entitled::default();
            pending.objects.clear();
            pending.network_objects.clear();
            pending.network_index = epoch.is_some();
            pending.acks.clear();
            pending.tokens.clear();
            pending.pod_set = epoch.is_some();
            pending.network = epoch.is_some();
            pending.resync = false;
        });
    }

    /// The node's object exists.
    pub(super) fn set_registered(&self) {
        self.registered.store(true, Ordering::Release);
    }

    /// Whether the node's object was made or found under the present role.
    pub(super) fn is_registered(&self) -> bool {
        self.registered.load(Ordering::Acquire)
    }

    /// The routes changed.
    pub(super) fn network(&self) {
        self.change(|pending| pending.network = pending.epoch.is_some());
    }

    /// An object that the cluster's network is made of changed, or the node asks for it.
    pub(super) fn network_object(&self, key: &NetworkKey) {
        self.change(|pending| {
            if pending.epoch.is_some() {
                pending.network_objects.insert(key.clone());
            }
        });
    }

    /// What the cluster's network is made of is another matter now: everything is named anew.
    pub(super) fn network_anew(&self) {
        self.change(|pending| pending.network_index = pending.epoch.is_some());
    }

    /// The node asks for these.
    pub(super) fn network_wanted(&self, keys: Vec<ObjectKey>) {
        for key in keys.into_iter().filter_map(NetworkKey::parse) {
            self.network_object(&key);
        }
    }

    /// The node should send everything once more.
    pub(super) fn resync(&self) {
        self.change(|pending| pending.resync = pending.epoch.is_some());
    }

    /// A pod changed or went.
    pub(super) fn pod(&self, uid: String, namespace: &str, name: &str) {
        self.change(|pending| {
            if pending.epoch.is_some() {
                pending.pods.insert(uid, (namespace.to_owned(), name.to_owned()));
            }
        });
    }

    /// An object that pods may refer to changed or went.
    pub(super) fn object(&self, reference: &Reference) {
        self.change(|pending| {
            if pending.epoch.is_some() && pending.entitled.holds(reference) {
                pending.objects.insert(reference.clone());
            }
        });
    }

    /// The pods of the node that refer to it, by uid.
    pub(super) fn pods_of(&self, reference: &Reference) -> Vec<String> {
        self.lock().entitled.pods_of(reference)
    }

    /// A pod refers to these from now on. Gives what the node has to hear before it hears of the pod; what
    /// nobody refers to any more becomes a notice.
    pub(super) fn entitle(&self, epoch: Epoch, uid: &str, references: BTreeSet<Reference>) -> Vec<Reference> {
        let mut new = Vec::new();
        self.change(|pending| {
            if pending.epoch == Some(epoch) {
                let (added, gone) = pending.entitled.set(uid, references);
                new = added;
                pending.objects.extend(gone);
            }
        });
        new
    }

    /// The node itself has to know these from now on, in the name of something that is no pod; what is new and what is to be
    /// forgotten becomes a notice.
    pub(super) fn hold(&self, holder: &str, references: BTreeSet<Reference>) {
        self.change(|pending| {
            if pending.epoch.is_some() {
                let (added, gone) = pending.entitled.set(holder, references);
                pending.objects.extend(added.into_iter().chain(gone));
            }
        });
    }

    /// Everything that the node may know; `None`: the epoch is over.
    pub(super) fn entitled(&self, epoch: Epoch) -> Option<Vec<Reference>> {
        let pending = self.lock();
        (pending.epoch == Some(epoch)).then(|| pending.entitled.all())
    }

    /// Something that the node sent under `epoch` is stored.
    pub(super) fn ack(&self, epoch: Epoch, sequence: u64) {
        self.change(|pending| {
            if pending.epoch == Some(epoch) && pending.acks.len() < ACKS_MAX {
                pending.acks.push_back(sequence);
            }
        });
    }

    /// The answer to a question that was asked under `epoch`. One too many is dropped: the node asks again.
    pub(super) fn token(&self, epoch: Epoch, response: TokenResponse) {
        self.change(|pending| {
            if pending.epoch == Some(epoch) && pending.tokens.len() < TOKENS_MAX {
                pending.tokens.push_back(response);
            }
        });
    }

    /// How many acknowledgements wait.
    pub(super) fn acks(&self) -> usize {
        self.lock().acks.len()
    }

    /// A stream is wanted. `false`: too many are asked for already.
    pub(super) fn open(&self, request: OpenStream) -> bool {
        let mut accepted = false;
        self.change(|pending| {
            accepted = pending.opens.len() < OPENS_MAX;
            if accepted {
                pending.opens.push_back(request);
            }
        });
        accepted
    }

    /// The next thing to tell, once there is one.
    pub(super) async fn next(&self) -> Notice {
        loop {
            if let Some(notice) = self.lock().take() {
                return notice;
            }
            // A change between the look and the wait leaves a permit behind, so it is not missed.
            self.wake.notified().await;
        }
    }

    fn change(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut self.lock());
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    fn take(&mut self) -> Option<Notice> {
        if std::mem::take(&mut self.role) {
            return Some(Notice::Role(self.epoch));
        }
        if let Some(open) = self.opens.pop_front() {
            return Some(Notice::Open(open));
        }
        // Everything else is the leader's.
        let epoch = self.epoch?;
        // Before the pods, which are told what Services there are.
        if std::mem::take(&mut self.network_index) {
            return Some(Notice::NetworkIndex(epoch));
        }
        if std::mem::take(&mut self.pod_set) {
            self.pods.clear();
            return Some(Notice::PodSet(epoch));
        }
        if std::mem::take(&mut self.network) {
            return Some(Notice::Network(epoch));
        }
        if std::mem::take(&mut self.resync) {
            return Some(Notice::Resync);
        }
        if let Some(response) = self.tokens.pop_front() {
            return Some(Notice::Token(response));
        }
        if !self.network_objects.is_empty() {
            let keys = std::iter::from_fn(|| self.network_objects.pop_first()).take(CHANGES_MAX).collect();
            return Some(Notice::NetworkObjects { epoch, keys });
        }
        if let Some(reference) = self.objects.pop_first() {
            let is_entitled = self.entitled.holds(&reference);
            return Some(Notice::Object { epoch, reference, is_entitled });
        }
        if let Some((uid, (namespace, name))) = self.pods.pop_first() {
            return Some(Notice::Pod { epoch, namespace, name, uid });
        }
        self.acks.pop_front().map(Notice::Ack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn drain(mailbox: &Mailbox, count: usize) -> Vec<Notice> {
        let mut notices = Vec::new();
        for _ in 0..count {
            notices.push(mailbox.next().await);
        }
        notices
    }

    #[tokio::test]
    async fn a_role_starts_everything_over_and_pods_stand_once() {
        let mailbox = Mailbox::new(CancellationToken::new());
        mailbox.role(None);
        assert_eq!(drain(&mailbox, 1).await, [Notice::Role(None)]);
        mailbox.pod("u0".into(), "d", "follower hears of no pods");
        mailbox.role(Some(Epoch(3)));
        mailbox.pod("u1".into(), "d", "a");
        let told = drain(&mailbox, 4).await;
        assert_eq!(
            told,
            [
                Notice::Role(Some(Epoch(3))),
                Notice::NetworkIndex(Epoch(3)),
                Notice::PodSet(Epoch(3)),
                Notice::Network(Epoch(3)),
            ],
            "the set tells of every pod"
        );
        for _ in 0..100 {
            mailbox.pod("u1".into(), "d", "a");
        }
        mailbox.ack(Epoch(2), 7);
        mailbox.ack(Epoch(3), 8);
        let pod = Notice::Pod { epoch: Epoch(3), namespace: "d".into(), name: "a".into(), uid: "u1".into() };
        assert_eq!(drain(&mailbox, 2).await, [pod, Notice::Ack(8)]);
        mailbox.pod("u1".into(), "d", "a");
        mailbox.role(None);
        assert_eq!(drain(&mailbox, 1).await, [Notice::Role(None)]);
        assert_eq!(mailbox.lock().take(), None);
    }

    #[tokio::test]
    async fn stream_requests_are_bounded_and_told_by_followers_too() {
        let mailbox = Mailbox::new(CancellationToken::new());
        mailbox.role(None);
        let accepted = (0..=OPENS_MAX).filter(|_| mailbox.open(OpenStream::default())).count();
        assert_eq!(accepted, OPENS_MAX);
        let told = drain(&mailbox, 2).await;
        assert!(matches!(told[..], [Notice::Role(None), Notice::Open(_)]));
    }
}
