//! A range in pieces (etcd 3.7's `RangeStream`).
//!
//! The range is read once, at one revision; what is kept is a reference to each record, so that neither
//! compaction nor a long time between two pieces changes the answer, and values are copied only into the
//! piece that is about to be sent. A client that does not read holds one piece. Pieces begin small, so that the
//! first comes soon, and grow. Merged in order they are the answer to the same `Range`: the header, the
//! count and `more` come with the last.

use std::sync::Arc;

use futures_util::{Stream, stream};
use proto::etcd::etcdserverpb as pb;
use state_machine::{RangeResponse, Record};
use tonic::Status;

use super::convert;

/// Payload of the first piece; the next ones are twice as large each, up to the limit.
const PIECE_BYTES_MIN: usize = 16 * 1024;
const PIECE_BYTES_MAX: usize = 1024 * 1024;
/// What a pair takes beside its key and value, about.
const PAIR_OVERHEAD_BYTES: usize = 32;

struct Pieces {
    kvs: std::vec::IntoIter<Arc<Record>>,
    keys_only: bool,
    piece_bytes: usize,
    /// What comes with the last piece; `None` afterwards.
    last: Option<pb::RangeResponse>,
}

/// The pieces of an answer, made as they are asked for. With `keys_only`, values are left out here.
pub(crate) fn pieces(
    response: RangeResponse,
    header: pb::ResponseHeader,
    keys_only: bool,
) -> impl Stream<Item = Result<pb::RangeStreamResponse, Status>> {
    let RangeResponse { count, more, kvs, .. } = response;
    let last = pb::RangeResponse { header: Some(header), kvs: vec![], more, count: convert::signed(count) };
    let pieces = Pieces { kvs: kvs.into_iter(), keys_only, piece_bytes: PIECE_BYTES_MIN, last: Some(last) };
    stream::unfold(pieces, |mut pieces| async move {
        let piece = pieces.next()?;
        Some((Ok(pb::RangeStreamResponse { range_response: Some(piece) }), pieces))
    })
}

impl Pieces {
    fn next(&mut self) -> Option<pb::RangeResponse> {
        let mut last = self.last.take()?;
        let mut kvs = Vec::new();
        let mut bytes = 0;
        while bytes < self.piece_bytes
            && let Some(record) = self.kvs.next()
        {
            let mut kv = convert::key_value(&record);
            if self.keys_only {
                kv.value.clear();
            }
            bytes += kv.key.len() + kv.value.len() + PAIR_OVERHEAD_BYTES;
            kvs.push(kv);
        }
        self.piece_bytes = PIECE_BYTES_MAX.min(self.piece_bytes * 2);
        if self.kvs.len() == 0 {
            last.kvs = kvs;
            return Some(last);
        }
        self.last = Some(last);
        Some(pb::RangeResponse { kvs, ..pb::RangeResponse::default() })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::StreamExt;
    use state_machine::KeyValue;

    use super::*;

    fn response(keys: usize, value_bytes: usize) -> RangeResponse {
        let record = |n: usize| {
            let key = Bytes::from(format!("k{n:06}"));
            let value = Bytes::from(vec![b'v'; value_bytes]);
            Arc::new(Record::detached(KeyValue { key, value, version: 1, ..KeyValue::default() }))
        };
        RangeResponse { revision: 9, count: 70_000, more: true, kvs: (0..keys).map(record).collect() }
    }

    async fn all(response: RangeResponse, keys_only: bool) -> Vec<pb::RangeResponse> {
        let header = pb::ResponseHeader { revision: 9, ..Default::default() };
        let pieces = pieces(response, header, keys_only).collect::<Vec<_>>().await;
        pieces.into_iter().map(|piece| piece.expect("a piece").range_response.expect("a response")).collect()
    }

    #[tokio::test]
    async fn merged_in_order_the_pieces_are_the_whole_answer() {
        let pieces = all(response(5_000, 500), false).await;
        assert!(pieces.len() > 3, "{}", pieces.len());
        let keys: Vec<_> =
            pieces.iter().flat_map(|piece| piece.kvs.iter().map(|kv| kv.key.clone())).collect();
        assert_eq!(keys.len(), 5_000);
        assert!(keys.is_sorted());
        let (last, before) = pieces.split_last().expect("at least one");
        assert_eq!((last.count, last.more), (70_000, true));
        assert_eq!(last.header.as_ref().map(|header| header.revision), Some(9));
        for piece in before {
            assert_eq!((piece.count, piece.more, &piece.header), (0, false, &None));
            let bytes: usize = piece.kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
            assert!(bytes <= PIECE_BYTES_MAX + 600, "{bytes}");
        }
    }

    #[tokio::test]
    async fn an_empty_range_is_one_piece() {
        let pieces = all(response(0, 0), false).await;
        assert_eq!(pieces.len(), 1);
        assert!(pieces[0].header.is_some());
    }

    #[tokio::test]
    async fn keys_alone_carry_no_values() {
        let pieces = all(response(10, 500), true).await;
        assert!(pieces.iter().flat_map(|piece| &piece.kvs).all(|kv| kv.value.is_empty()));
    }
}
