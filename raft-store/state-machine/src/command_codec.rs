//! The bytes of a [`Command`], as they lie in the log: a version, a tag, the fields. Numbers never change
//! their meaning; new commands get new tags, changed ones a new version. Decoding cuts keys and values out of
//! the input without copying, so the input lives as long as any of them.

use bytes::Bytes;

use crate::auth_codec::{read_auth_command, write_auth_command};
use crate::command::{
    Alarm, AlarmAction, AlarmKind, Command, Compare, CompareResult, CompareTarget, DeleteRangeRequest, Fence,
    LeaseRemaining, NestedTxn, Op, PutRequest, RangeRequest, SortOrder, SortTarget, TxnCommand,
};
use crate::txn::TXN_DEPTH_MAX;
use crate::version::{read_version_command, write_version_command};
use crate::wire::{DecodeError, Reader, Writer};

/// Version that `encode` writes, and the newest that `decode` reads.
const VERSION: u8 = 1;

/// Room beside keys and values that an operation usually needs.
const OP_OVERHEAD_BYTES: usize = 24;

impl Command {
    /// The command's bytes.
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(size_hint(self));
        write_version(&mut writer);
        write_command(&mut writer, self);
        writer.finish()
    }

    /// Reads what [`encode`](Self::encode) wrote; keys and values are slices of `bytes`.
    ///
    /// # Errors
    /// When the bytes are not a command that this version knows.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        read_version(&mut reader)?;
        let command = read_command(&mut reader)?;
        reader.finish()?;
        Ok(command)
    }
}

pub(crate) fn write_version(writer: &mut Writer) {
    writer.u8(VERSION);
}

pub(crate) fn read_version(reader: &mut Reader) -> Result<(), DecodeError> {
    match reader.u8()? {
        VERSION => Ok(()),
        version => Err(DecodeError::UnknownVersion { version, newest: VERSION }),
    }
}

pub(crate) fn write_command(writer: &mut Writer, command: &Command) {
    match command {
        Command::Txn(txn) => {
            writer.u8(1);
            write_txn_command(writer, txn);
        }
        Command::Batch(txns) => {
            writer.u8(2);
            writer.list(txns, write_txn_command);
        }
        Command::Compact { revision } => {
            writer.u8(3);
            writer.varint(*revision);
        }
        Command::LeaseGrant { id, ttl_seconds } => {
            writer.u8(4);
            writer.i64(*id);
            writer.i64(*ttl_seconds);
        }
        Command::LeaseRevoke { id, fence } => {
            writer.u8(5);
            writer.i64(*id);
            writer.option(fence.as_ref(), write_fence);
        }
        Command::LeaseCheckpoint { fence, remaining } => {
            writer.u8(6);
            writer.option(fence.as_ref(), write_fence);
            writer.list(remaining, |writer, lease| {
                writer.i64(lease.id);
                writer.i64(lease.remaining_ttl_seconds);
            });
        }
        Command::Alarm { action, alarm } => {
            writer.u8(7);
            writer.u8(match action {
                AlarmAction::Activate => 1,
                AlarmAction::Deactivate => 2,
            });
            write_alarm(writer, alarm);
        }
        Command::Auth(command) => {
            writer.u8(8);
            write_auth_command(writer, command);
        }
        Command::Version(command) => {
            writer.u8(9);
            write_version_command(writer, command);
        }
    }
}

pub(crate) fn read_command(reader: &mut Reader) -> Result<Command, DecodeError> {
    Ok(match reader.u8()? {
        1 => Command::Txn(read_txn_command(reader)?),
        2 => Command::Batch(reader.list(read_txn_command)?),
        3 => Command::Compact { revision: reader.varint()? },
        4 => Command::LeaseGrant { id: reader.i64()?, ttl_seconds: reader.i64()? },
        5 => Command::LeaseRevoke { id: reader.i64()?, fence: reader.option(read_fence)? },
        6 => Command::LeaseCheckpoint {
            fence: reader.option(read_fence)?,
            remaining: reader.list(|reader| {
                Ok(LeaseRemaining { id: reader.i64()?, remaining_ttl_seconds: reader.i64()? })
            })?,
        },
        7 => Command::Alarm {
            action: match reader.u8()? {
                1 => AlarmAction::Activate,
                2 => AlarmAction::Deactivate,
                tag => return Err(DecodeError::UnknownTag { what: "alarm action", tag }),
            },
            alarm: read_alarm(reader)?,
        },
        8 => Command::Auth(read_auth_command(reader)?),
        9 => Command::Version(read_version_command(reader)?),
        tag => return Err(DecodeError::UnknownTag { what: "command", tag }),
    })
}

pub(crate) fn size_hint(command: &Command) -> usize {
    let txn = |txn: &TxnCommand| {
        OP_OVERHEAD_BYTES + compares_size(&txn.compares) + ops_size(&txn.success) + ops_size(&txn.failure)
    };
    match command {
        Command::Txn(command) => txn(command),
        Command::Batch(commands) => OP_OVERHEAD_BYTES + commands.iter().map(txn).sum::<usize>(),
        _ => OP_OVERHEAD_BYTES,
    }
}

fn compares_size(compares: &[Compare]) -> usize {
    compares.iter().map(|compare| OP_OVERHEAD_BYTES + compare.key.len() + compare.range_end.len()).sum()
}

fn ops_size(ops: &[Op]) -> usize {
    let size = |op: &Op| match op {
        Op::Put(put) => put.key.len() + put.value.len(),
        Op::Range(range) => range.key.len() + range.range_end.len(),
        Op::DeleteRange(delete) => delete.key.len() + delete.range_end.len(),
        Op::Txn(txn) => compares_size(&txn.compares),
    };
    ops.iter().map(|op| OP_OVERHEAD_BYTES + size(op)).sum()
}

fn write_txn_command(writer: &mut Writer, txn: &TxnCommand) {
    writer.option(txn.fence.as_ref(), write_fence);
    writer.list(&txn.compares, write_compare);
    writer.list(&txn.success, write_op);
    writer.list(&txn.failure, write_op);
}

fn read_txn_command(reader: &mut Reader) -> Result<TxnCommand, DecodeError> {
    Ok(TxnCommand {
        fence: reader.option(read_fence)?,
        compares: reader.list(read_compare)?,
        success: reader.list(|reader| read_op(reader, 1))?,
        failure: reader.list(|reader| read_op(reader, 1))?,
    })
}

fn write_fence(writer: &mut Writer, fence: &Fence) {
    writer.varint(fence.term);
}

fn read_fence(reader: &mut Reader) -> Result<Fence, DecodeError> {
    Ok(Fence { term: reader.varint()? })
}

fn write_compare(writer: &mut Writer, compare: &Compare) {
    let result = match compare.result {
        CompareResult::Equal => 0,
        CompareResult::NotEqual => 1,
        CompareResult::Greater => 2,
        CompareResult::Less => 3,
    };
    writer.bytes(&compare.key);
    writer.bytes(&compare.range_end);
    writer.u8(result);
    match &compare.target {
        CompareTarget::Version(version) => {
            writer.u8(1);
            writer.varint(*version);
        }
        CompareTarget::CreateRevision(revision) => {
            writer.u8(2);
            writer.varint(*revision);
        }
        CompareTarget::ModRevision(revision) => {
            writer.u8(3);
            writer.varint(*revision);
        }
        CompareTarget::Value(value) => {
            writer.u8(4);
            writer.bytes(value);
        }
        CompareTarget::Lease(lease) => {
            writer.u8(5);
            writer.i64(*lease);
        }
    }
}

fn read_compare(reader: &mut Reader) -> Result<Compare, DecodeError> {
    let key = reader.bytes()?;
    let range_end = reader.bytes()?;
    let result = match reader.u8()? {
        0 => CompareResult::Equal,
        1 => CompareResult::NotEqual,
        2 => CompareResult::Greater,
        3 => CompareResult::Less,
        tag => return Err(DecodeError::UnknownTag { what: "compare result", tag }),
    };
    let target = match reader.u8()? {
        1 => CompareTarget::Version(reader.varint()?),
        2 => CompareTarget::CreateRevision(reader.varint()?),
        3 => CompareTarget::ModRevision(reader.varint()?),
        4 => CompareTarget::Value(reader.bytes()?),
        5 => CompareTarget::Lease(reader.i64()?),
        tag => return Err(DecodeError::UnknownTag { what: "compare target", tag }),
    };
    Ok(Compare { key, range_end, result, target })
}

fn write_op(writer: &mut Writer, op: &Op) {
    match op {
        Op::Put(put) => {
            writer.u8(1);
            writer.u8(u8::from(put.prev_kv)
                | u8::from(put.ignore_value) << 1
                | u8::from(put.ignore_lease) << 2);
            writer.i64(put.lease);
            writer.bytes(&put.key);
            writer.bytes(&put.value);
        }
        Op::Range(range) => {
            writer.u8(2);
            write_range(writer, range);
        }
        Op::DeleteRange(delete) => {
            writer.u8(3);
            writer.bool(delete.prev_kv);
            writer.bytes(&delete.key);
            writer.bytes(&delete.range_end);
        }
        Op::Txn(txn) => {
            writer.u8(4);
            writer.list(&txn.compares, write_compare);
            writer.list(&txn.success, write_op);
            writer.list(&txn.failure, write_op);
        }
    }
}

fn read_op(reader: &mut Reader, depth: usize) -> Result<Op, DecodeError> {
    if depth > TXN_DEPTH_MAX {
        return Err(DecodeError::TooDeep { depth_max: TXN_DEPTH_MAX });
    }
    Ok(match reader.u8()? {
        1 => {
            let flags = read_flags(reader, 3)?;
            Op::Put(PutRequest {
                prev_kv: flags & 1 != 0,
                ignore_value: flags & 2 != 0,
                ignore_lease: flags & 4 != 0,
                lease: reader.i64()?,
                key: reader.bytes()?,
                value: reader.bytes()?,
            })
        }
        2 => Op::Range(read_range(reader)?),
        3 => Op::DeleteRange(DeleteRangeRequest {
            prev_kv: reader.bool()?,
            key: reader.bytes()?,
            range_end: reader.bytes()?,
        }),
        4 => Op::Txn(NestedTxn {
            compares: reader.list(read_compare)?,
            success: reader.list(|reader| read_op(reader, depth + 1))?,
            failure: reader.list(|reader| read_op(reader, depth + 1))?,
        }),
        tag => return Err(DecodeError::UnknownTag { what: "operation", tag }),
    })
}

/// A bit of a range request's flags that says the revision bounds follow.
const RANGE_HAS_BOUNDS: u8 = 4;

fn write_range(writer: &mut Writer, range: &RangeRequest) {
    let bounds = [
        range.min_mod_revision,
        range.max_mod_revision,
        range.min_create_revision,
        range.max_create_revision,
    ];
    let has_bounds = bounds.iter().any(|bound| *bound != 0);
    let order = match range.sort_order {
        SortOrder::None => 0,
        SortOrder::Ascend => 1,
        SortOrder::Descend => 2,
    };
    let target = match range.sort_target {
        SortTarget::Key => 0,
        SortTarget::Version => 1,
        SortTarget::CreateRevision => 2,
        SortTarget::ModRevision => 3,
        SortTarget::Value => 4,
    };
    let flags = u8::from(range.keys_only) | u8::from(range.count_only) << 1;
    writer.u8(flags | if has_bounds { RANGE_HAS_BOUNDS } else { 0 });
    writer.u8(order);
    writer.u8(target);
    writer.varint(range.limit);
    writer.varint(range.revision);
    if has_bounds {
        bounds.iter().for_each(|bound| writer.varint(*bound));
    }
    writer.bytes(&range.key);
    writer.bytes(&range.range_end);
}

fn read_range(reader: &mut Reader) -> Result<RangeRequest, DecodeError> {
    let flags = read_flags(reader, 3)?;
    let mut range = RangeRequest {
        keys_only: flags & 1 != 0,
        count_only: flags & 2 != 0,
        sort_order: match reader.u8()? {
            0 => SortOrder::None,
            1 => SortOrder::Ascend,
            2 => SortOrder::Descend,
            tag => return Err(DecodeError::UnknownTag { what: "sort order", tag }),
        },
        sort_target: match reader.u8()? {
            0 => SortTarget::Key,
            1 => SortTarget::Version,
            2 => SortTarget::CreateRevision,
            3 => SortTarget::ModRevision,
            4 => SortTarget::Value,
            tag => return Err(DecodeError::UnknownTag { what: "sort target", tag }),
        },
        limit: reader.varint()?,
        revision: reader.varint()?,
        ..RangeRequest::default()
    };
    if flags & RANGE_HAS_BOUNDS != 0 {
        range.min_mod_revision = reader.varint()?;
        range.max_mod_revision = reader.varint()?;
        range.min_create_revision = reader.varint()?;
        range.max_create_revision = reader.varint()?;
    }
    range.key = reader.bytes()?;
    range.range_end = reader.bytes()?;
    Ok(range)
}

/// Reads a byte of which only the lowest `known` bits may be set.
fn read_flags(reader: &mut Reader, known: u32) -> Result<u8, DecodeError> {
    let flags = reader.u8()?;
    if u32::from(flags) >> known != 0 {
        return Err(DecodeError::UnknownTag { what: "flag", tag: flags });
    }
    Ok(flags)
}

pub(crate) fn write_alarm(writer: &mut Writer, alarm: &Alarm) {
    writer.u8(alarm.kind.number());
    writer.varint(alarm.member_id);
}

pub(crate) fn read_alarm(reader: &mut Reader) -> Result<Alarm, DecodeError> {
    let kind = match reader.u8()? {
        1 => AlarmKind::NoSpace,
        2 => AlarmKind::Corrupt,
        tag => return Err(DecodeError::UnknownTag { what: "alarm kind", tag }),
    };
    Ok(Alarm { kind, member_id: reader.varint()? })
}

impl AlarmKind {
    /// The number that stands for it in encodings and hashes, as in etcd.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::NoSpace => 1,
            Self::Corrupt => 2,
        }
    }
}
