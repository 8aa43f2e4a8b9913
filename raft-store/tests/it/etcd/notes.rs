//! What a scenario does and notes: clients of one endpoint, and answers as text that two stores can share.

use std::collections::BTreeMap;
use std::fmt::Debug;

use bytes::Bytes;
use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::kv_client::KvClient;
use proto::etcd::etcdserverpb::lease_client::LeaseClient;
use proto::etcd::etcdserverpb::watch_client::WatchClient;
use proto::etcd::v3electionpb::election_client::ElectionClient;
use proto::etcd::v3lockpb::lock_client::LockClient;
use tonic::transport::Channel;
use tonic::{Response, Status};

/// Ids below are the scenario's own choice and are kept; the server's are numbered in order of appearance.
const CHOSEN_IDS_MAX: i64 = 1_000_000;

/// One answer.
pub(crate) struct Note {
    scenario: &'static str,
    label: String,
    text: String,
    /// First etcd version that answers so.
    since: (u32, u32),
    differs: bool,
}

impl Note {
    pub(crate) fn line(&self) -> String {
        format!("{}: {}: {}", self.scenario, self.label, self.text)
    }

    pub(crate) fn must_agree_with(&self, version: (u32, u32)) -> bool {
        !self.differs && version >= self.since
    }
}

/// A scenario that runs against one endpoint.
pub(crate) struct Scenario {
    name: &'static str,
    pub(crate) kv: KvClient<Channel>,
    pub(crate) watch: WatchClient<Channel>,
    pub(crate) lease: LeaseClient<Channel>,
    pub(crate) lock: LockClient<Channel>,
    pub(crate) election: ElectionClient<Channel>,
    /// The revision that the scenario began at.
    pub(crate) base: i64,
    ids: BTreeMap<i64, usize>,
    notes: Vec<Note>,
    since: (u32, u32),
    differs: bool,
}

impl Scenario {
    pub(crate) async fn begin(name: &'static str, channel: Channel) -> Self {
        let mut kv = KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
        let probe = pb::RangeRequest { key: key("none"), ..Default::default() };
        let answer = kv.range(probe).await.expect("the store answers").into_inner();
        Self {
            name,
            kv,
            watch: WatchClient::new(channel.clone()).max_decoding_message_size(usize::MAX),
            lease: LeaseClient::new(channel.clone()),
            lock: LockClient::new(channel.clone()),
            election: ElectionClient::new(channel),
            base: answer.header.expect("a header").revision,
            ids: BTreeMap::new(),
            notes: Vec::new(),
            since: (0, 0),
            differs: false,
        }
    }

    pub(crate) fn last_label(&self) -> Option<&str> {
        self.notes.last().map(|note| note.label.as_str())
    }

    pub(crate) fn end(self) -> Vec<Note> {
        self.notes
    }

    /// The next note is about what etcd does so only since this version.
    pub(crate) fn since(&mut self, version: (u32, u32)) -> &mut Self {
        self.since = version;
        self
    }

    /// The next note differs from etcd's on purpose.
    pub(crate) fn differs(&mut self, reason: &'static str) -> &mut Self {
        assert!(!reason.is_empty());
        self.differs = true;
        self
    }

    /// Notes an answer or an error.
    pub(crate) fn note<T: Debug>(&mut self, label: &str, answer: &Result<Response<T>, Status>) {
        let text = match answer {
            Ok(response) => format!("{:?}", response.get_ref()),
            Err(status) => format!("{:?} {:?}", status.code(), status.message()),
        };
        self.note_text(label, &text);
    }

    pub(crate) fn note_text(&mut self, label: &str, text: &str) {
        let text = self.normal(text);
        let since = std::mem::take(&mut self.since);
        let differs = std::mem::take(&mut self.differs);
        self.notes.push(Note { scenario: self.name, label: label.to_owned(), text, since, differs });
    }

    /// Takes out what differs between two stores that behave alike.
    fn normal(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find(": ") {
            let (before, after) = rest.split_at(at + 2);
            out += before;
            let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
            let (number, after) = after.split_at(digits);
            rest = after;
            let name = before[..before.len() - 2].rsplit(|c: char| c != '_' && !c.is_alphanumeric()).next();
            out += &self.normal_number(name.unwrap_or_default(), number);
        }
        out + rest
    }

    fn normal_number(&mut self, name: &str, number: &str) -> String {
        let Ok(value) = number.parse::<u64>() else { return number.to_owned() };
        let value = value as i64;
        match name {
            "cluster_id" | "member_id" | "raft_term" if value != 0 => "_".to_owned(),
            "revision" | "mod_revision" | "create_revision" | "compact_revision" | "rev"
                if value >= self.base =>
            {
                format!("+{}", value - self.base)
            }
            "id" | "lease" if value >= CHOSEN_IDS_MAX => {
                let next = self.ids.len() + 1;
                format!("#{}", self.ids.entry(value).or_insert(next))
            }
            _ => number.to_owned(),
        }
    }

    pub(crate) async fn put(&mut self, name: &str, value: &str) -> i64 {
        let request = put(name, value);
        let answer = self.kv.put(request).await.expect("written").into_inner();
        answer.header.expect("a header").revision
    }
}

pub(crate) fn key(name: &str) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

pub(crate) fn put(name: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: key(name), value: key(value), ..Default::default() }
}

pub(crate) fn get(name: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key(name), ..Default::default() }
}

pub(crate) fn span(from: &str, to: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key(from), range_end: key(to), ..Default::default() }
}

pub(crate) fn delete(from: &str, to: &str) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: key(from), range_end: key(to), ..Default::default() }
}
