//! Which keys a user may read and write: permissions as roles hold them, and as one user's united intervals.
//!
//! A [`KeyIntervals`] is the union of many ranges, kept sorted and merged, so that one look answers whether a
//! whole range lies within it, however many permissions it takes to cover it.

use bytes::Bytes;

use crate::key_range::KeyRange;

/// What a permission allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PermissionKind {
    /// Reading.
    Read,
    /// Writing and deleting.
    Write,
    /// Both.
    ReadWrite,
}

impl PermissionKind {
    fn reads(self) -> bool {
        matches!(self, Self::Read | Self::ReadWrite)
    }

    fn writes(self) -> bool {
        matches!(self, Self::Write | Self::ReadWrite)
    }

    /// The number that stands for it in encodings, as in etcd.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::ReadWrite => 2,
        }
    }
}

/// What a role allows on one key or range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permission {
    /// What it allows.
    pub kind: PermissionKind,
    /// The key, or the first of the range.
    pub key: Bytes,
    /// As in a range: empty, the one key; `"\0"`, every key from `key` on.
    pub range_end: Bytes,
}

impl Permission {
    /// Whether it names at least one key.
    pub(crate) fn is_possible(&self) -> bool {
        !self.key.is_empty() && KeyRange::of(&self.key, &self.range_end) != KeyRange::Nothing
    }
}

/// A set of keys: half-open intervals, sorted, disjoint, never adjacent. An end of `None` is no end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct KeyIntervals(Vec<(Bytes, Option<Bytes>)>);

impl KeyIntervals {
    fn of<'a>(permissions: impl Iterator<Item = &'a Permission>) -> Self {
        let mut all: Vec<(Bytes, Option<Bytes>)> = permissions.filter_map(interval).collect();
        all.sort();
        let mut merged: Vec<(Bytes, Option<Bytes>)> = Vec::with_capacity(all.len());
        for (start, end) in all {
            match merged.last_mut() {
                Some((_, last_end)) if last_end.as_ref().is_none_or(|last_end| start <= *last_end) => {
                    if !ends_by(end.as_deref(), last_end.as_deref()) {
                        *last_end = end;
                    }
                }
                _ => merged.push((start, end)),
            }
        }
        Self(merged)
    }

    /// Whether every key of the range is in the set.
    pub(crate) fn contains(&self, range: KeyRange<'_>) -> bool {
        let (start, end) = match range {
            KeyRange::One(key) => (key, None),
            KeyRange::Span(key, end) => (key, Some(end)),
            // Touches no key, and so needs no permission.
            KeyRange::Nothing => return true,
        };
        let after = self.0.partition_point(|(first, _)| first.as_ref() <= start);
        let Some((_, last)) = after.checked_sub(1).and_then(|at| self.0.get(at)) else { return false };
        match end {
            None => last.as_deref().is_none_or(|last| start < last),
            Some(end) => ends_by(end, last.as_deref()),
        }
    }
}

/// Whether an interval that ends at `end` ends no later than one that ends at `bound`.
fn ends_by(end: Option<&[u8]>, bound: Option<&[u8]>) -> bool {
    match (end, bound) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(end), Some(bound)) => end <= bound,
    }
}

fn interval(permission: &Permission) -> Option<(Bytes, Option<Bytes>)> {
    let start = permission.key.clone();
    match KeyRange::of(&permission.key, &permission.range_end) {
        KeyRange::One(key) => {
            // The key's successor: there is none in between.
            let end = [key, &[0]].concat();
            Some((start, Some(end.into())))
        }
        KeyRange::Span(_, end) => Some((start, end.map(Bytes::copy_from_slice))),
        KeyRange::Nothing => None,
    }
}

/// Everything that a user's roles allow together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct UserPermissions {
    pub(crate) read: KeyIntervals,
    pub(crate) write: KeyIntervals,
}

impl UserPermissions {
    pub(crate) fn of<'a>(permissions: impl Iterator<Item = &'a Permission> + Clone) -> Self {
        Self {
            read: KeyIntervals::of(permissions.clone().filter(|permission| permission.kind.reads())),
            write: KeyIntervals::of(permissions.filter(|permission| permission.kind.writes())),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        vec(prop_oneof![Just(0u8), Just(1), Just(2)], 0..3)
    }

    fn permission(key: Vec<u8>, range_end: Vec<u8>) -> Permission {
        Permission { kind: PermissionKind::ReadWrite, key: key.into(), range_end: range_end.into() }
    }

    /// Every key of up to four bytes below 3: enough to tell any two of the intervals above apart.
    fn all_keys() -> Vec<Vec<u8>> {
        let mut keys = vec![vec![]];
        let mut longest = keys.clone();
        for _ in 0..4 {
            longest = longest
                .iter()
                .flat_map(|key| (0..3).map(move |byte| [key.as_slice(), &[byte]].concat()))
                .collect();
            keys.extend(longest.clone());
        }
        keys
    }

    fn covers(range: KeyRange<'_>, key: &[u8]) -> bool {
        match range {
            KeyRange::One(one) => one == key,
            KeyRange::Span(start, end) => key >= start && end.is_none_or(|end| key < end),
            KeyRange::Nothing => false,
        }
    }

    proptest! {
        #[test]
        fn a_range_is_allowed_when_each_of_its_keys_is(
            granted in vec((key(), key()), 0..5),
            asked in (key(), key()),
        ) {
            let granted: Vec<_> = granted.into_iter().map(|(key, end)| permission(key, end)).collect();
            let set = KeyIntervals::of(granted.iter());
            let range = KeyRange::of(&asked.0, &asked.1);
            let allowed = |key: &[u8]| {
                granted.iter().any(|one| covers(KeyRange::of(&one.key, &one.range_end), key))
            };
            let expected = all_keys().iter().filter(|key| covers(range, key)).all(|key| allowed(key));
            // Beyond the longest key that was tried there are more, which an endless range wants too.
            let endless = matches!(range, KeyRange::Span(_, None));
            let expected = expected && (!endless || allowed(&[9]));
            prop_assert_eq!(set.contains(range), expected, "{:?}", set);
        }
    }

    #[test]
    fn permissions_that_touch_cover_a_range_together() {
        let granted = [
            Permission { kind: PermissionKind::Read, key: "a".into(), range_end: "c".into() },
            Permission { kind: PermissionKind::ReadWrite, key: "c".into(), range_end: "e".into() },
        ];
        let user = UserPermissions::of(granted.iter());
        assert!(user.read.contains(KeyRange::of(b"a", b"e")));
        assert!(!user.read.contains(KeyRange::of(b"a", b"e\0")));
        assert!(user.write.contains(KeyRange::of(b"d", b"")));
        assert!(!user.write.contains(KeyRange::of(b"b", b"d")));
        assert!(!user.read.contains(KeyRange::of(b"a", b"\0")));
    }
}
