//! The bytes of an [`Outcome`], as a leader sends them to the follower that forwarded the command.

use std::sync::Arc;

use bytes::Bytes;

use crate::auth_command::AuthError;
use crate::command_codec::{read_alarm, write_alarm};
use crate::outcome::{ApplyError, OpResult, Outcome, RangeResponse, ReadError, TxnOutcome};
use crate::record::{KeyValue, Record};
use crate::txn::TXN_DEPTH_MAX;
use crate::wire::{DecodeError, Reader, Writer};

/// Version that `encode` writes, and the newest that `decode` reads.
const VERSION: u8 = 1;

impl Outcome {
    /// The outcome's bytes.
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(64);
        writer.u8(VERSION);
        match self {
            Self::Txn(outcome) => {
                writer.u8(1);
                write_txn(&mut writer, outcome);
            }
            Self::Batch(outcomes) => {
                writer.u8(2);
                writer.list(outcomes, |writer, outcome| match outcome {
                    Ok(outcome) => {
                        writer.bool(true);
                        write_txn(writer, outcome);
                    }
                    Err(error) => {
                        writer.bool(false);
                        write_error(writer, error);
                    }
                });
            }
            Self::Compacted { compact_revision, revision } => {
                writer.u8(3);
                writer.varint(*compact_revision);
                writer.varint(*revision);
            }
            Self::LeaseGranted { id, ttl_seconds, revision } => {
                writer.u8(4);
                writer.i64(*id);
                writer.i64(*ttl_seconds);
                writer.varint(*revision);
            }
            Self::LeaseRevoked { revision, deleted } => {
                writer.u8(5);
                writer.varint(*revision);
                writer.varint(*deleted);
            }
            Self::LeaseCheckpointed => writer.u8(6),
            Self::Alarms(alarms) => {
                writer.u8(7);
                writer.list(alarms, write_alarm);
            }
            Self::Rejected(error) => {
                writer.u8(8);
                write_error(&mut writer, error);
            }
            Self::AuthChanged { revision, auth_revision } => {
                writer.u8(9);
                writer.varint(*revision);
                writer.varint(*auth_revision);
            }
            Self::Version { cluster } => {
                writer.u8(10);
                writer.varint(u64::from(*cluster));
            }
        }
        writer.finish()
    }

    /// Reads what [`encode`](Self::encode) wrote; keys and values are slices of `bytes`.
    ///
    /// # Errors
    /// When the bytes are not an outcome that this version knows.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        match reader.u8()? {
            VERSION => {}
            version => return Err(DecodeError::UnknownVersion { version, newest: VERSION }),
        }
        let outcome = match reader.u8()? {
            1 => Self::Txn(read_txn(&mut reader)?),
            2 => Self::Batch(reader.list(|reader| {
                Ok(if reader.bool()? { Ok(read_txn(reader)?) } else { Err(read_error(reader)?) })
            })?),
            3 => Self::Compacted { compact_revision: reader.varint()?, revision: reader.varint()? },
            4 => Self::LeaseGranted {
                id: reader.i64()?,
                ttl_seconds: reader.i64()?,
                revision: reader.varint()?,
            },
            5 => Self::LeaseRevoked { revision: reader.varint()?, deleted: reader.varint()? },
            6 => Self::LeaseCheckpointed,
            7 => Self::Alarms(reader.list(read_alarm)?),
            8 => Self::Rejected(read_error(&mut reader)?),
            9 => Self::AuthChanged { revision: reader.varint()?, auth_revision: reader.varint()? },
            10 => Self::Version { cluster: reader.u32()? },
            tag => return Err(DecodeError::UnknownTag { what: "outcome", tag }),
        };
        reader.finish()?;
        Ok(outcome)
    }
}

fn write_txn(writer: &mut Writer, outcome: &TxnOutcome) {
    writer.varint(outcome.revision);
    writer.u8(u8::from(outcome.succeeded) | u8::from(outcome.fenced) << 1);
    writer.list(&outcome.results, write_result);
}

fn read_txn(reader: &mut Reader) -> Result<TxnOutcome, DecodeError> {
    let revision = reader.varint()?;
    let flags = reader.u8()?;
    if flags > 3 {
        return Err(DecodeError::UnknownTag { what: "flag", tag: flags });
    }
    let results = reader.list(|reader| read_result(reader, 1))?;
    Ok(TxnOutcome { revision, succeeded: flags & 1 != 0, fenced: flags & 2 != 0, results })
}

fn write_result(writer: &mut Writer, result: &OpResult) {
    match result {
        OpResult::Put { prev_kv } => {
            writer.u8(1);
            writer.option(prev_kv.as_ref(), write_record);
        }
        OpResult::Range(response) => {
            writer.u8(2);
            writer.varint(response.revision);
            writer.varint(response.count);
            writer.bool(response.more);
            writer.list(&response.kvs, write_record);
        }
        OpResult::DeleteRange { deleted, prev_kvs } => {
            writer.u8(3);
            writer.varint(*deleted);
            writer.list(prev_kvs, write_record);
        }
        OpResult::Txn { succeeded, results } => {
            writer.u8(4);
            writer.bool(*succeeded);
            writer.list(results, write_result);
        }
    }
}

fn read_result(reader: &mut Reader, depth: usize) -> Result<OpResult, DecodeError> {
    if depth > TXN_DEPTH_MAX {
        return Err(DecodeError::TooDeep { depth_max: TXN_DEPTH_MAX });
    }
    Ok(match reader.u8()? {
        1 => OpResult::Put { prev_kv: reader.option(read_record)? },
        2 => OpResult::Range(RangeResponse {
            revision: reader.varint()?,
            count: reader.varint()?,
            more: reader.bool()?,
            kvs: reader.list(read_record)?,
        }),
        3 => OpResult::DeleteRange { deleted: reader.varint()?, prev_kvs: reader.list(read_record)? },
        4 => OpResult::Txn {
            succeeded: reader.bool()?,
            results: reader.list(|reader| read_result(reader, depth + 1))?,
        },
        tag => return Err(DecodeError::UnknownTag { what: "operation result", tag }),
    })
}

fn write_record(writer: &mut Writer, record: &Arc<Record>) {
    record.write(writer);
}

fn read_record(reader: &mut Reader) -> Result<Arc<Record>, DecodeError> {
    KeyValue::read(reader).map(Record::detached).map(Arc::new)
}

fn write_error(writer: &mut Writer, error: &ApplyError) {
    let mut tagged = |tag: u8, numbers: &[i64]| {
        writer.u8(tag);
        numbers.iter().for_each(|number| writer.i64(*number));
    };
    match error {
        ApplyError::Read(ReadError::Compacted { requested, compact_revision }) => {
            tagged(1, &[requested.cast_signed(), compact_revision.cast_signed()]);
        }
        ApplyError::Read(ReadError::Future { requested, revision }) => {
            tagged(2, &[requested.cast_signed(), revision.cast_signed()]);
        }
        ApplyError::EmptyKey => tagged(3, &[]),
        ApplyError::DuplicateKey => tagged(4, &[]),
        ApplyError::KeyNotFound => tagged(5, &[]),
        ApplyError::ValueProvided => tagged(6, &[]),
        ApplyError::LeaseProvided => tagged(7, &[]),
        ApplyError::LeaseNotFound { id } => tagged(8, &[*id]),
        ApplyError::LeaseExists { id } => tagged(9, &[*id]),
        ApplyError::LeaseTtl { ttl_seconds, ttl_seconds_max } => {
            tagged(10, &[*ttl_seconds, *ttl_seconds_max]);
        }
        ApplyError::TooManyOps { ops_max } => tagged(11, &[*ops_max as i64]),
        ApplyError::TooDeep { depth_max } => tagged(12, &[*depth_max as i64]),
        ApplyError::NoSpace => tagged(13, &[]),
        ApplyError::Fenced { fence_term, entry_term } => {
            tagged(14, &[fence_term.cast_signed(), entry_term.cast_signed()]);
        }
        ApplyError::AlreadyApplied { log_index, applied_index } => {
            tagged(15, &[log_index.cast_signed(), applied_index.cast_signed()]);
        }
        ApplyError::Corrupt => tagged(16, &[]),
        ApplyError::Auth(error) => tagged(17, &[i64::from(error.number())]),
        ApplyError::RequestForgotten { sequence } => tagged(18, &[sequence.cast_signed()]),
    }
}

fn read_error(reader: &mut Reader) -> Result<ApplyError, DecodeError> {
    let tag = reader.u8()?;
    let mut number = || reader.i64();
    Ok(match tag {
        1 => ReadError::Compacted {
            requested: number()?.cast_unsigned(),
            compact_revision: number()?.cast_unsigned(),
        }
        .into(),
        2 => ReadError::Future { requested: number()?.cast_unsigned(), revision: number()?.cast_unsigned() }
            .into(),
        3 => ApplyError::EmptyKey,
        4 => ApplyError::DuplicateKey,
        5 => ApplyError::KeyNotFound,
        6 => ApplyError::ValueProvided,
        7 => ApplyError::LeaseProvided,
        8 => ApplyError::LeaseNotFound { id: number()? },
        9 => ApplyError::LeaseExists { id: number()? },
        10 => ApplyError::LeaseTtl { ttl_seconds: number()?, ttl_seconds_max: number()? },
        11 => ApplyError::TooManyOps { ops_max: number()? as usize },
        12 => ApplyError::TooDeep { depth_max: number()? as usize },
        13 => ApplyError::NoSpace,
        14 => ApplyError::Fenced {
            fence_term: number()?.cast_unsigned(),
            entry_term: number()?.cast_unsigned(),
        },
        15 => ApplyError::AlreadyApplied {
            log_index: number()?.cast_unsigned(),
            applied_index: number()?.cast_unsigned(),
        },
        16 => ApplyError::Corrupt,
        17 => {
            let number = u8::try_from(number()?);
            let number = number.map_err(|_| DecodeError::OutOfRange { what: "an auth error" })?;
            ApplyError::Auth(AuthError::of_number(number)?)
        }
        18 => ApplyError::RequestForgotten { sequence: number()?.cast_unsigned() },
        tag => return Err(DecodeError::UnknownTag { what: "apply error", tag }),
    })
}
