//! Ids of clusters and members, computed as etcd computes them.
//!
//! Every member derives the same ids from the same settings, so that they need not be agreed on: SHA-1 over
//! the sorted peer URLs and the cluster's token, the first eight bytes. SHA-1 is no protection here, only a
//! name; that it is etcd's lets an operator compare.

use ring::digest;

/// The id of a member that is named in the initial cluster.
pub(crate) fn member_id(peer_urls: &[String], token: &str) -> u64 {
    let mut urls = peer_urls.to_vec();
    urls.sort();
    let hash = sha1(&[urls.concat().as_bytes(), token.as_bytes()]);
    first_u64(&hash).max(1)
}

/// The id of a cluster that begins with these members. etcd knows its first eight bytes.
pub(crate) fn cluster_id(mut member_ids: Vec<u64>) -> [u8; 16] {
    member_ids.sort_unstable();
    let bytes: Vec<u8> = member_ids.iter().flat_map(|id| id.to_be_bytes()).collect();
    let hash = sha1(&[&bytes]);
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    id
}

fn sha1(parts: &[&[u8]]) -> [u8; 20] {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; 20];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

fn first_u64(hash: &[u8; 20]) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash[..8]);
    u64::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_etcd() {
        // What every etcd started without flags prints.
        let member = member_id(&["http://localhost:2380".to_owned()], "etcd-cluster");
        assert_eq!(member, 0x8e9e_05c5_2164_694d);
        assert_eq!(cluster_id(vec![member])[..8], 0xcdf8_1819_4e3a_8c32_u64.to_be_bytes());
    }

    #[test]
    fn order_does_not_matter_and_the_token_does() {
        let urls = |urls: &[&str]| urls.iter().map(|&url| url.to_owned()).collect::<Vec<_>>();
        let (ab, ba) = (urls(&["http://a:1", "http://b:1"]), urls(&["http://b:1", "http://a:1"]));
        assert_eq!(member_id(&ab, "t"), member_id(&ba, "t"));
        assert_ne!(member_id(&ab, "t"), member_id(&ab, "u"));
        assert_eq!(cluster_id(vec![3, 1, 2]), cluster_id(vec![1, 2, 3]));
        assert_ne!(cluster_id(vec![1, 2]), cluster_id(vec![1, 2, 3]));
    }
}
