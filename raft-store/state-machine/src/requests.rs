//! What requests with an id gave, so that a retry is answered and not done again.
//!
//! Keeps the outcomes of each client's last requests, for a bounded number of clients, bytes and log entries.
//! What goes, goes in an order that the log alone decides. What is gone is never taken for new:
//! - of a client that is kept, every sequence at or below the greatest one forgotten;
//! - of clients that are not, every client id at or below the greatest one forgotten. Ids are UUIDs of
//!   version 7, which grow with time, so that clients made later are not mistaken for it;
//! - a sequence above 1 of a client never seen is taken as new: a client may begin where it likes.
//!
//! In doubt the answer is that the outcome is not known; the request is not carried out then.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::envelope::RequestId;
use crate::hash;
use crate::wire::{DecodeError, Reader, Writer};

/// Outcomes kept for each client: so many of its requests may be under way at once.
pub const REQUESTS_PER_CLIENT: usize = 64;
/// Clients whose outcomes are kept.
pub const REQUEST_CLIENTS_MAX: usize = 4096;
/// A client is forgotten when its last request lies so many log entries back.
pub const REQUEST_AGE_ENTRIES_MAX: u64 = 10_000_000;
/// An outcome of more bytes is not kept; a retry learns only that it cannot be known.
pub const REQUEST_OUTCOME_BYTES_MAX: usize = 16 * 1024;
/// Bytes of all outcomes together.
pub const REQUEST_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Flat charge for each outcome and each client.
const OVERHEAD_BYTES: u64 = 64;

const REQUESTS_HASH_DOMAIN: u64 = 0x7265_7173_0000_0001;

/// What is known of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// It was not carried out.
    New,
    /// It was, and gave this.
    Before(Bytes),
    /// It may have been.
    Forgotten,
    /// The id belongs to somebody else.
    OfAnother,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Client {
    /// Hash of the user's name.
    user: u64,
    /// Index of the last request's entry; tells clients apart.
    last_index: u64,
    /// The greatest sequence forgotten.
    forgotten: u64,
    /// By sequence; `None`: too large to be kept.
    outcomes: BTreeMap<u64, Option<Bytes>>,
}

impl Client {
    fn bytes(&self) -> u64 {
        OVERHEAD_BYTES + self.outcomes.values().map(outcome_bytes).sum::<u64>()
    }

    fn hash(&self, id: u128) -> u64 {
        let head = [(id >> 64) as u64, id as u64, self.user, self.last_index, self.forgotten];
        hash::words(REQUESTS_HASH_DOMAIN, &head)
    }
}

fn outcome_bytes(outcome: &Option<Bytes>) -> u64 {
    OVERHEAD_BYTES + outcome.as_ref().map_or(0, |bytes| bytes.len() as u64)
}

fn outcome_hash(id: u128, sequence: u64, outcome: &Option<Bytes>) -> u64 {
    let content = outcome.as_ref().map_or(1, |bytes| hash::bytes(REQUESTS_HASH_DOMAIN, bytes));
    hash::words(REQUESTS_HASH_DOMAIN, &[(id >> 64) as u64, id as u64, sequence, content])
}

/// See the module's head.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    clients: BTreeMap<u128, Client>,
    /// By the index of their last request.
    by_age: BTreeMap<u64, u128>,
    /// The greatest client id forgotten.
    forgotten: u128,
    bytes: u64,
    /// Sum over clients and outcomes.
    hash: u64,
}

impl Requests {
    pub(crate) fn look(&self, id: &RequestId, user: &str) -> Known {
        let Some(client) = self.clients.get(&id.client) else {
            return if id.client <= self.forgotten { Known::Forgotten } else { Known::New };
        };
        if client.user != user_hash(user) {
            return Known::OfAnother;
        }
        match client.outcomes.get(&id.sequence) {
            Some(Some(outcome)) => Known::Before(outcome.clone()),
            Some(None) => Known::Forgotten,
            None if id.sequence <= client.forgotten => Known::Forgotten,
            None => Known::New,
        }
    }

    /// Keeps what the request in the entry at `log_index` gave, and forgets what has become too much.
    pub(crate) fn keep(&mut self, log_index: u64, id: &RequestId, user: &str, outcome: Bytes) {
        let outcome = Some(outcome).filter(|bytes| bytes.len() <= REQUEST_OUTCOME_BYTES_MAX);
        let mut client = self.take(id.client).unwrap_or_else(|| Client {
            user: user_hash(user),
            last_index: log_index,
            forgotten: 0,
            outcomes: BTreeMap::new(),
        });
        client.last_index = log_index;
        client.outcomes.insert(id.sequence, outcome);
        while client.outcomes.len() > REQUESTS_PER_CLIENT {
            if let Some((sequence, _)) = client.outcomes.pop_first() {
                client.forgotten = client.forgotten.max(sequence);
            }
        }
        self.put(id.client, client);
        while let Some((&oldest, &client)) = self.by_age.first_key_value() {
            let old = log_index - oldest.min(log_index) > REQUEST_AGE_ENTRIES_MAX;
            let many = self.clients.len() > REQUEST_CLIENTS_MAX || self.bytes > REQUEST_BYTES_MAX;
            if !old && !many {
                break;
            }
            self.take(client);
            self.forgotten = self.forgotten.max(client);
        }
    }

    fn take(&mut self, id: u128) -> Option<Client> {
        let client = self.clients.remove(&id)?;
        self.by_age.remove(&client.last_index);
        self.bytes -= client.bytes();
        self.hash = self.hash.wrapping_sub(whole_hash(id, &client));
        Some(client)
    }

    fn put(&mut self, id: u128, client: Client) {
        self.by_age.insert(client.last_index, id);
        self.bytes += client.bytes();
        self.hash = self.hash.wrapping_add(whole_hash(id, &client));
        self.clients.insert(id, client);
    }

    /// Bytes that the store's accounting charges for it.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// 0 as long as no request had an id.
    pub(crate) fn hash(&self) -> u64 {
        if self.clients.is_empty() && self.forgotten == 0 {
            return 0;
        }
        let words = [self.hash, (self.forgotten >> 64) as u64, self.forgotten as u64];
        hash::words(REQUESTS_HASH_DOMAIN, &words)
    }

    pub(crate) fn write(&self, writer: &mut Writer) {
        write_u128(writer, self.forgotten);
        writer.varint(self.clients.len() as u64);
        for (id, client) in &self.clients {
            write_u128(writer, *id);
            writer.u64_fixed(client.user);
            writer.varint(client.last_index);
            writer.varint(client.forgotten);
            writer.varint(client.outcomes.len() as u64);
            for (sequence, outcome) in &client.outcomes {
                writer.varint(*sequence);
                writer.option(outcome.as_ref(), |writer, bytes| writer.bytes(bytes));
            }
        }
    }

    pub(crate) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let mut requests = Self { forgotten: read_u128(reader)?, ..Self::default() };
        let clients = reader.list(|reader| {
            let id = read_u128(reader)?;
            let user = reader.u64_fixed()?;
            let (last_index, forgotten) = (reader.varint()?, reader.varint()?);
            let outcomes = reader.list(|reader| {
                let sequence = reader.varint()?;
                // A copy: the header must not live as long as one outcome.
                let outcome = reader.option(Reader::bytes)?.map(|bytes| Bytes::copy_from_slice(&bytes));
                Ok((sequence, outcome))
            })?;
            Ok((id, Client { user, last_index, forgotten, outcomes: outcomes.into_iter().collect() }))
        })?;
        for (id, client) in clients {
            if requests.clients.contains_key(&id) || requests.by_age.contains_key(&client.last_index) {
                return Err(DecodeError::OutOfRange { what: "a client's last request" });
            }
            requests.put(id, client);
        }
        Ok(requests)
    }
}

fn whole_hash(id: u128, client: &Client) -> u64 {
    let outcomes = client.outcomes.iter().map(|(sequence, outcome)| outcome_hash(id, *sequence, outcome));
    outcomes.fold(client.hash(id), u64::wrapping_add)
}

fn user_hash(user: &str) -> u64 {
    hash::bytes(REQUESTS_HASH_DOMAIN, user.as_bytes())
}

fn write_u128(writer: &mut Writer, number: u128) {
    writer.u64_fixed((number >> 64) as u64);
    writer.u64_fixed(number as u64);
}

fn read_u128(reader: &mut Reader) -> Result<u128, DecodeError> {
    let (high, low) = (reader.u64_fixed()?, reader.u64_fixed()?);
    Ok(u128::from(high) << 64 | u128::from(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(client: u128, sequence: u64) -> RequestId {
        RequestId { client, sequence }
    }

    fn outcome(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    #[test]
    fn what_is_forgotten_is_never_new_again() {
        let mut requests = Requests::default();
        let last = REQUESTS_PER_CLIENT as u64 + 3;
        for sequence in 1..=last {
            assert_eq!(requests.look(&id(7, sequence), "u"), Known::New);
            requests.keep(sequence, &id(7, sequence), "u", outcome(&sequence.to_string()));
        }
        assert_eq!(requests.look(&id(7, 3), "u"), Known::Forgotten);
        assert_eq!(requests.look(&id(7, 4), "u"), Known::Before(outcome("4")));
        assert_eq!(requests.look(&id(7, last + 1), "u"), Known::New);
        assert_eq!(requests.look(&id(7, 4), "v"), Known::OfAnother);
        // The client itself grows old.
        requests.keep(REQUEST_AGE_ENTRIES_MAX + last + 1, &id(9, 1), "u", outcome("x"));
        assert_eq!(requests.look(&id(7, last), "u"), Known::Forgotten);
        assert_eq!(requests.look(&id(7, last + 1), "u"), Known::Forgotten);
        assert_eq!(requests.look(&id(8, 1), "u"), Known::New);
        assert_eq!(requests.look(&id(9, 1), "u"), Known::Before(outcome("x")));
    }

    #[test]
    fn clients_and_bytes_are_bounded_and_the_longest_idle_go_first() {
        let mut requests = Requests::default();
        let clients = REQUEST_CLIENTS_MAX as u128 + 5;
        for client in 1..=clients {
            requests.keep(client as u64, &id(client, 1), "", outcome("o"));
            requests.keep(client as u64 * 2 + 1_000_000, &id(1, client as u64), "", outcome("busy"));
        }
        assert_eq!(requests.clients.len(), REQUEST_CLIENTS_MAX);
        assert_eq!(requests.look(&id(2, 1), ""), Known::Forgotten);
        assert_eq!(requests.look(&id(1, clients as u64), ""), Known::Before(outcome("busy")));
        let large = Bytes::from(vec![0; REQUEST_OUTCOME_BYTES_MAX]);
        for (at, client) in (10_000_000u64..).zip(clients + 1..=clients + 1000) {
            requests.keep(at, &id(client, 1), "", large.clone());
        }
        assert!(requests.bytes() <= REQUEST_BYTES_MAX);
        requests.keep(20_000_000, &id(1 << 100, 1), "", vec![0; REQUEST_OUTCOME_BYTES_MAX + 1].into());
        assert_eq!(requests.look(&id(1 << 100, 1), ""), Known::Forgotten);
    }

    #[test]
    fn it_reads_what_it_wrote_and_hashes_to_the_same() {
        let mut requests = Requests::default();
        assert_eq!(requests.hash(), 0);
        for at in 1..300u64 {
            requests.keep(at, &id(u128::from(at % 7), at), "user", outcome(&at.to_string()));
        }
        let mut writer = Writer::with_capacity(0);
        requests.write(&mut writer);
        let read = Requests::read(&mut Reader::new(writer.finish())).unwrap();
        assert_eq!(read, requests);
        assert_eq!((read.hash(), read.bytes()), (requests.hash(), requests.bytes()));
    }
}
