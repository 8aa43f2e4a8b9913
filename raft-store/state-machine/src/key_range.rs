//! The keys that a request names.

use std::ops::Bound;

/// Bounds for a map's `range`.
pub(crate) type KeyBounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// The keys that a request's `key` and `range_end` name, as etcd reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyRange<'a> {
    /// Exactly this key.
    One(&'a [u8]),
    /// From the first on, to before the second if there is one. Not empty.
    Span(&'a [u8], Option<&'a [u8]>),
    /// No key can match.
    Nothing,
}

impl<'a> KeyRange<'a> {
    pub(crate) fn of(key: &'a [u8], range_end: &'a [u8]) -> Self {
        match range_end {
            [] => Self::One(key),
            [0] => Self::Span(key, None),
            end if end > key => Self::Span(key, Some(end)),
            _ => Self::Nothing,
        }
    }

    /// Whether the key is one of them.
    pub(crate) fn contains(self, key: &[u8]) -> bool {
        match self {
            Self::One(one) => key == one,
            Self::Span(start, end) => key >= start && end.is_none_or(|end| key < end),
            Self::Nothing => false,
        }
    }

    /// `None` when nothing can match.
    pub(crate) fn bounds(self) -> Option<KeyBounds<'a>> {
        match self {
            Self::One(key) => Some((Bound::Included(key), Bound::Included(key))),
            Self::Span(key, Some(end)) => Some((Bound::Included(key), Bound::Excluded(end))),
            Self::Span(key, None) => Some((Bound::Included(key), Bound::Unbounded)),
            Self::Nothing => None,
        }
    }
}
