//! The bytes of all records, packed into blocks: a record takes its key, its value and about twenty bytes.
//!
//! A [`Slot`] of eight bytes names a record. Records are added at the end of the open block, never changed and never
//! moved by themselves; one that is freed leaves a hole. A block without records is given back; one whose
//! holes are half of it is offered by [`Heap::sparse_block`], so that the owner of the slots moves the rest.
//!
//! ```text
//! record = key-length key mod-revision sub version [mod-minus-create lease value-length] hash:u64 [value]
//! ```
//!
//! Nothing from outside is read here without having been written here.

use crate::record::RecordRef;

/// Size of a block that records share.
const BLOCK_BYTES: usize = 64 * 1024;

/// Larger records have a block each, so that little is lost at the end of the shared ones.
const SHARED_RECORD_BYTES_MAX: usize = BLOCK_BYTES / 8;

const TOMBSTONE: u64 = 1 << 63;
const BLOCK_SHIFT: u32 = 32;
const BLOCKS_MAX: u32 = 1 << 30;

/// Names a record, and says whether it is a tombstone. The second highest bit is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot(u64);

impl Slot {
    /// Names nothing.
    pub(crate) const NONE: Self = Self(u64::MAX);

    fn new(block: u32, offset: usize, tombstone: bool) -> Self {
        let flag = if tombstone { TOMBSTONE } else { 0 };
        Self(flag | u64::from(block) << BLOCK_SHIFT | offset as u64)
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    pub(crate) fn is_tombstone(self) -> bool {
        self.tombstone_bit() != 0
    }

    /// What says so.
    pub(crate) fn tombstone_bit(self) -> u64 {
        self.0 & TOMBSTONE
    }

    fn block(self) -> usize {
        ((self.0 & !TOMBSTONE) >> BLOCK_SHIFT) as usize
    }

    fn offset(self) -> usize {
        self.0 as u32 as usize
    }
}

#[derive(Debug, Default)]
struct Block {
    bytes: Vec<u8>,
    /// Bytes of freed records.
    dead: usize,
    /// It is, or was, offered to be emptied.
    offered: bool,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Heap {
    blocks: Vec<Block>,
    /// Blocks without bytes.
    unused: Vec<u32>,
    /// Where records are added.
    open: Option<u32>,
    /// Blocks that had become sparse when they were put in here.
    sparse: Vec<u32>,
}

impl Heap {
    /// Adds a record.
    pub(crate) fn push(&mut self, record: &RecordRef<'_>) -> Slot {
        let bytes = encoded_bytes(record);
        let block = self.room_for(bytes);
        let target = &mut self.blocks[block as usize].bytes;
        let offset = target.len();
        write(target, record);
        debug_assert_eq!(target.len() - offset, bytes, "the length is computed as the record is written");
        Slot::new(block, offset, record.is_tombstone())
    }

    /// A record.
    pub(crate) fn view(&self, slot: Slot) -> RecordRef<'_> {
        read(self.bytes_from(slot)).0
    }

    /// A record's key alone.
    pub(crate) fn key(&self, slot: Slot) -> &[u8] {
        let mut cursor = Cursor(self.bytes_from(slot));
        let length = cursor.varint() as usize;
        cursor.take(length)
    }

    /// A record's revision alone.
    pub(crate) fn mod_revision(&self, slot: Slot) -> u64 {
        let mut cursor = Cursor(self.bytes_from(slot));
        let length = cursor.varint() as usize;
        cursor.take(length);
        cursor.varint()
    }

    /// Gives a record's room back.
    pub(crate) fn free(&mut self, slot: Slot) {
        let bytes = read(self.bytes_from(slot)).1;
        let number = slot.block() as u32;
        let block = &mut self.blocks[slot.block()];
        block.dead += bytes;
        if self.open == Some(number) {
            return;
        }
        if block.dead == block.bytes.len() {
            self.release(number);
        } else {
            self.offer_if_sparse(number);
        }
    }

    /// A block that is worth emptying, if there is one: move its records, then [`release`](Self::release) it.
    pub(crate) fn sparse_block(&mut self) -> Option<u32> {
        while let Some(number) = self.sparse.pop() {
            let block = &self.blocks[number as usize];
            // It may have been released since, and filled again.
            if block.offered && !block.bytes.is_empty() && self.open != Some(number) {
                return Some(number);
            }
        }
        None
    }

    pub(crate) fn has_sparse_block(&self) -> bool {
        !self.sparse.is_empty()
    }

    /// The record, freed or not, at an offset of a block, and the offset of the next.
    pub(crate) fn at(&self, block: u32, offset: usize) -> Option<(Slot, usize)> {
        let bytes = &self.blocks[block as usize].bytes;
        if offset >= bytes.len() {
            return None;
        }
        let (record, length) = read(&bytes[offset..]);
        Some((Slot::new(block, offset, record.is_tombstone()), offset + length))
    }

    /// Adds a copy of a record.
    pub(crate) fn copy(&mut self, slot: Slot) -> Slot {
        let bytes = read(self.bytes_from(slot)).1;
        let copied = self.bytes_from(slot)[..bytes].to_vec();
        let block = self.room_for(bytes);
        let target = &mut self.blocks[block as usize].bytes;
        let offset = target.len();
        target.extend_from_slice(&copied);
        Slot::new(block, offset, slot.is_tombstone())
    }

    /// Gives a whole block back.
    pub(crate) fn release(&mut self, number: u32) {
        self.blocks[number as usize] = Block::default();
        self.unused.push(number);
    }

    /// Bytes that the blocks take up.
    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.bytes.capacity()).sum()
    }

    fn bytes_from(&self, slot: Slot) -> &[u8] {
        &self.blocks[slot.block()].bytes[slot.offset()..]
    }

    /// A block that takes so many bytes more without being moved.
    fn room_for(&mut self, bytes: usize) -> u32 {
        if bytes > SHARED_RECORD_BYTES_MAX {
            return self.add_block(bytes);
        }
        if let Some(open) = self.open {
            let block = &self.blocks[open as usize];
            if block.bytes.len() + bytes <= BLOCK_BYTES {
                return open;
            }
            self.open = None;
            if block.dead == block.bytes.len() {
                self.release(open);
            } else {
                self.offer_if_sparse(open);
            }
        }
        let open = self.add_block(BLOCK_BYTES);
        self.open = Some(open);
        open
    }

    fn add_block(&mut self, bytes: usize) -> u32 {
        let block = Block { bytes: Vec::with_capacity(bytes), ..Block::default() };
        if let Some(number) = self.unused.pop() {
            self.blocks[number as usize] = block;
            return number;
        }
        let number = self.blocks.len() as u32;
        assert!(number < BLOCKS_MAX, "blocks of 8 KiB and more do not get to be that many in any memory");
        self.blocks.push(block);
        number
    }

    fn offer_if_sparse(&mut self, number: u32) {
        let block = &mut self.blocks[number as usize];
        if !block.offered && block.dead * 2 >= block.bytes.len() {
            block.offered = true;
            self.sparse.push(number);
        }
    }
}

fn varint_bytes(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

/// How long ago the key was created; wraps, so that it is right for any two numbers.
fn age(record: &RecordRef<'_>) -> u64 {
    record.mod_revision.wrapping_sub(record.create_revision)
}

fn encoded_bytes(record: &RecordRef<'_>) -> usize {
    let mut bytes = varint_bytes(record.key.len() as u64) + record.key.len();
    bytes += varint_bytes(record.mod_revision) + varint_bytes(u64::from(record.sub));
    bytes += varint_bytes(record.version) + 8;
    if !record.is_tombstone() {
        bytes += varint_bytes(age(record)) + varint_bytes(zigzag(record.lease));
        bytes += varint_bytes(record.value.len() as u64) + record.value.len();
    }
    bytes
}

fn write(target: &mut Vec<u8>, record: &RecordRef<'_>) {
    let mut head = Head::default();
    head.varint(record.key.len() as u64);
    target.extend_from_slice(head.bytes());
    target.extend_from_slice(record.key);
    head = Head::default();
    head.varint(record.mod_revision);
    head.varint(u64::from(record.sub));
    head.varint(record.version);
    if !record.is_tombstone() {
        head.varint(age(record));
        head.varint(zigzag(record.lease));
        head.varint(record.value.len() as u64);
    }
    target.extend_from_slice(head.bytes());
    target.extend_from_slice(&record.hash.to_le_bytes());
    if !record.is_tombstone() {
        target.extend_from_slice(record.value);
    }
}

/// Numbers that are put down together.
struct Head {
    bytes: [u8; 64],
    length: usize,
}

impl Default for Head {
    fn default() -> Self {
        Self { bytes: [0; 64], length: 0 }
    }
}

impl Head {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes[self.length] = value as u8 | 0x80;
            self.length += 1;
            value >>= 7;
        }
        self.bytes[self.length] = value as u8;
        self.length += 1;
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// A record at the beginning of `bytes`, and how many of them it takes.
fn read(bytes: &[u8]) -> (RecordRef<'_>, usize) {
    let mut cursor = Cursor(bytes);
    let key_length = cursor.varint() as usize;
    let mut record = RecordRef { key: cursor.take(key_length), ..RecordRef::default() };
    record.mod_revision = cursor.varint();
    record.sub = cursor.varint() as u32;
    record.version = cursor.varint();
    let mut value_length = 0;
    if record.version != 0 {
        record.create_revision = record.mod_revision.wrapping_sub(cursor.varint());
        record.lease = unzigzag(cursor.varint());
        value_length = cursor.varint() as usize;
    }
    record.hash = cursor.take(8).try_into().map_or(0, u64::from_le_bytes);
    record.value = cursor.take(value_length);
    (record, bytes.len() - cursor.0.len())
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn varint(&mut self) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = self.0[0];
            self.0 = &self.0[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return value;
            }
            shift += 7;
        }
    }

    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    type Content = (Vec<u8>, Vec<u8>, u64, u64, u32, u64, i64);

    fn record((key, value, create_revision, mod_revision, sub, version, lease): &Content) -> RecordRef<'_> {
        let record =
            RecordRef { key, mod_revision: *mod_revision, sub: *sub, hash: 7, ..RecordRef::default() };
        match version {
            0 => record,
            _ => RecordRef {
                value,
                create_revision: *create_revision,
                version: *version,
                lease: *lease,
                ..record
            },
        }
    }

    fn content() -> impl Strategy<Value = Content> {
        let bytes = || prop_oneof![20 => vec(any::<u8>(), 0..600), 1 => vec(any::<u8>(), 9000..20_000)];
        let number = || prop_oneof![0u64..300, any::<u64>()];
        (bytes(), bytes(), number(), number(), any::<u32>(), number(), any::<i64>())
    }

    proptest! {
        #[test]
        fn records_come_back_and_their_room_is_given_back(
            contents in vec(content(), 1..300),
            kept in vec(any::<bool>(), 300),
        ) {
            let mut heap = Heap::default();
            let mut slots: Vec<Slot> = contents.iter().map(|content| heap.push(&record(content))).collect();
            for (slot, content) in slots.iter().zip(&contents) {
                prop_assert_eq!(heap.view(*slot), record(content));
                prop_assert_eq!(heap.key(*slot), &content.0[..]);
                prop_assert_eq!(heap.mod_revision(*slot), content.3);
                prop_assert_eq!(slot.is_tombstone(), content.5 == 0);
            }
            slots.iter().zip(&kept).filter(|(_, kept)| !**kept).for_each(|(slot, _)| heap.free(*slot));
            while let Some(block) = heap.sparse_block() {
                let mut next = 0;
                while let Some((slot, after)) = heap.at(block, next) {
                    next = after;
                    let at = slots.iter().position(|known| *known == slot).expect("every record has a slot");
                    if kept[at] {
                        slots[at] = heap.copy(slot);
                    }
                }
                heap.release(block);
            }
            let mut live = 0;
            for ((slot, content), _) in slots.iter().zip(&contents).zip(&kept).filter(|(_, kept)| **kept) {
                prop_assert_eq!(heap.view(*slot), record(content));
                live += encoded_bytes(&record(content));
            }
            prop_assert!(heap.held_bytes() <= 5 * live / 2 + 2 * BLOCK_BYTES, "{} for {live}", heap.held_bytes());
        }
    }
}
