//! Sets and maps of the packet filter, and their elements.

use super::LIST_ELEMENT;
use super::rule::{Attributes, Verdict};

/// Most elements in one message: an attribute has at most 64 KiB, an element of ours below 128 bytes.
pub(super) const ELEMENTS_MAX: usize = 400;

const HAS_RANGES: u32 = 0x4;
const IS_MAP: u32 = 0x8;
const HAS_TIMEOUTS: u32 = 0x10;
const IS_FILLED_BY_RULES: u32 = 0x20;
/// Any type will do: the kernel compares bytes.
const SOME_TYPE: u32 = 1;
const VERDICT_TYPE: u32 = 0xffff_ff00;
/// What an element says of itself: a range ends before it.
const ENDS_RANGE: u32 = 0x1;

/// What a set's elements are mapped to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::net) enum Mapped {
    Nothing,
    /// So many bytes.
    Bytes(u32),
    Verdicts,
}

/// A set before it is made.
#[derive(Debug, Clone, Copy)]
pub(in crate::net) struct SetSpec {
    pub(in crate::net) name: &'static str,
    pub(in crate::net) key_bytes: u32,
    pub(in crate::net) mapped: Mapped,
    /// Rules fill it, elements go after a while, and there are at most so many.
    pub(in crate::net) remembers: Option<u32>,
    /// Elements are ranges of keys.
    pub(in crate::net) of_ranges: bool,
}

impl SetSpec {
    pub(super) fn attributes(&self, table: &str, id: u32) -> Attributes {
        let mut flags = 0;
        if self.mapped != Mapped::Nothing {
            flags |= IS_MAP;
        }
        if self.of_ranges {
            flags |= HAS_RANGES;
        }
        if self.remembers.is_some() {
            flags |= HAS_TIMEOUTS | IS_FILLED_BY_RULES;
        }
        let set = Attributes::default()
            .text(1, table)
            .text(2, self.name)
            .number(3, flags)
            .number(4, SOME_TYPE)
            .number(5, self.key_bytes);
        let set = match self.mapped {
            Mapped::Nothing => set,
            Mapped::Bytes(length) => set.number(6, SOME_TYPE).number(7, length),
            Mapped::Verdicts => set.number(6, VERDICT_TYPE),
        };
        let set = match self.remembers {
            None => set,
            Some(count) => set.nested(9, Attributes::default().number(1, count)),
        };
        set.number(10, id)
    }
}

/// What an element is mapped to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::net) enum Value {
    Nothing,
    Bytes(Vec<u8>),
    Verdict(Verdict),
    /// All keys from the element's on up to the end, which is not one of them.
    Range {
        end: Vec<u8>,
        bytes: Option<Vec<u8>>,
    },
}

impl Element {
    /// The keys that the kernel lists for it.
    pub(in crate::net) fn keys(&self) -> impl Iterator<Item = &Vec<u8>> {
        let end = match &self.value {
            Value::Range { end, .. } => Some(end),
            _ => None,
        };
        [&self.key].into_iter().chain(end)
    }
}

/// One element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::net) struct Element {
    pub(in crate::net) key: Vec<u8>,
    pub(in crate::net) value: Value,
}

pub(super) fn elements(table: &str, set: &str, elements: &[Element]) -> Attributes {
    let mut list = Attributes::default();
    for element in elements {
        let keyed = |key: &[u8]| Attributes::default().nested(1, Attributes::default().bytes(1, key));
        let mapped = |bytes: &[u8]| Attributes::default().bytes(1, bytes);
        let encoded = keyed(&element.key);
        let (encoded, end) = match &element.value {
            Value::Nothing => (encoded, None),
            Value::Bytes(bytes) => (encoded.nested(2, mapped(bytes)), None),
            Value::Verdict(verdict) => {
                (encoded.nested(2, Attributes::default().nested(2, verdict.attributes())), None)
            }
            Value::Range { end, bytes: None } => (encoded, Some(end)),
            Value::Range { end, bytes: Some(bytes) } => (encoded.nested(2, mapped(bytes)), Some(end)),
        };
        list = list.nested(LIST_ELEMENT, encoded);
        if let Some(end) = end {
            list = list.nested(LIST_ELEMENT, keyed(end).number(3, ENDS_RANGE));
        }
    }
    Attributes::default().text(1, table).text(2, set).nested(3, list)
}
