//! Questions and answers as they travel. The only place that knows the library which reads and writes them.

use std::net::IpAddr;

use simple_dns::rdata::{A, AAAA, CNAME, OPT, PTR, RData, SOA, SRV, TXT};
use simple_dns::{CLASS, Name, OPCODE, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};

use super::zone::{Asked, Data};

/// How long others may remember an answer, in seconds.
const TTL_S: u32 = 5;
/// What callers without EDNS take in one datagram.
const DATAGRAM_BYTES_OLD: u16 = 512;
/// What is sent and taken in one datagram; more goes over TCP.
pub(super) const DATAGRAM_BYTES_MAX: u16 = 1232;
const SRV_WEIGHT: u16 = 100;
const HEADER_BYTES: usize = 12;

/// How an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    Good,
    NoName,
    Failed,
    Unknown,
}

/// One question.
#[derive(Debug, Clone)]
pub(super) struct Question {
    packet: Packet<'static>,
    /// The name, as it was written, without the last dot.
    pub(super) name: String,
    pub(super) asked: Asked,
    /// The number of the type.
    pub(super) number: u16,
}

/// What may be read of a message.
pub(super) enum Read {
    Question(Box<Question>),
    /// A question that cannot be answered, and what to say.
    Refused(Vec<u8>),
    /// Nothing that wants an answer.
    Noise,
}

/// Reads a message from somebody who asks.
pub(super) fn read(bytes: &[u8]) -> Read {
    let Ok(packet) = Packet::parse(bytes) else { return malformed(bytes) };
    if packet.has_flags(PacketFlag::RESPONSE) {
        return Read::Noise;
    }
    let packet = owned(packet);
    let [question] = &packet.questions[..] else { return malformed(bytes) };
    let name = question.qname.to_string();
    let asked = match question.qtype {
        QTYPE::TYPE(TYPE::A) => Asked::A,
        QTYPE::TYPE(TYPE::AAAA) => Asked::Aaaa,
        QTYPE::TYPE(TYPE::SRV) => Asked::Srv,
        QTYPE::TYPE(TYPE::PTR) => Asked::Ptr,
        QTYPE::TYPE(TYPE::TXT) => Asked::Txt,
        QTYPE::TYPE(TYPE::SOA) => Asked::Soa,
        QTYPE::ANY => Asked::Any,
        _ => Asked::Other,
    };
    let question = Question { name, asked, number: question.qtype.into(), packet };
    match question.packet.opcode() {
        OPCODE::StandardQuery => Read::Question(Box::new(question)),
        _ => question.failure(Code::Unknown).map_or(Read::Noise, Read::Refused),
    }
}

/// Only the number and that it is a question can be relied on.
fn malformed(bytes: &[u8]) -> Read {
    let is_question = bytes.len() >= HEADER_BYTES && bytes[2] & 0x80 == 0;
    let Some(id) = bytes.first_chunk::<2>().filter(|_| is_question) else { return Read::Noise };
    let mut reply = Packet::new_reply(u16::from_be_bytes(*id));
    *reply.rcode_mut() = RCODE::FormatError;
    reply.build_bytes_vec().map_or(Read::Noise, Read::Refused)
}

/// The packet without what it borrows; only questions and EDNS are kept.
fn owned(packet: Packet<'_>) -> Packet<'static> {
    let mut copy = Packet::new_query(packet.id());
    *copy.opcode_mut() = packet.opcode();
    if packet.has_flags(PacketFlag::RECURSION_DESIRED) {
        copy.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    let takes = packet.opt().map(|opt| opt.udp_packet_size);
    *copy.opt_mut() = takes.map(|udp_packet_size| OPT { opt_codes: Vec::new(), udp_packet_size, version: 0 });
    copy.questions = packet.questions.into_iter().map(|question| question.into_owned()).collect();
    copy
}

impl Question {
    /// How many bytes a datagram for the caller may have.
    pub(super) fn datagram_bytes_max(&self) -> usize {
        let takes = self.packet.opt().map_or(DATAGRAM_BYTES_OLD, |opt| opt.udp_packet_size);
        usize::from(takes.clamp(DATAGRAM_BYTES_OLD, DATAGRAM_BYTES_MAX))
    }

    fn reply(&self, code: Code) -> Packet<'_> {
        let mut reply = Packet::new_reply(self.packet.id());
        reply.set_flags(PacketFlag::RECURSION_AVAILABLE);
        if self.packet.has_flags(PacketFlag::RECURSION_DESIRED) {
            reply.set_flags(PacketFlag::RECURSION_DESIRED);
        }
        *reply.rcode_mut() = match code {
            Code::Good => RCODE::NoError,
            Code::NoName => RCODE::NameError,
            Code::Failed => RCODE::ServerFailure,
            Code::Unknown => RCODE::NotImplemented,
        };
        reply.questions.clone_from(&self.packet.questions);
        let opt = || OPT { opt_codes: Vec::new(), udp_packet_size: DATAGRAM_BYTES_MAX, version: 0 };
        *reply.opt_mut() = self.packet.opt().map(|_| opt());
        reply
    }

    /// An answer without records.
    pub(super) fn failure(&self, code: Code) -> Option<Vec<u8>> {
        written(&self.reply(code))
    }

    /// An answer that was cut off: the caller asks again over TCP.
    pub(super) fn cut_off(&self) -> Option<Vec<u8>> {
        let mut reply = self.reply(Code::Good);
        reply.set_flags(PacketFlag::TRUNCATION);
        written(&reply)
    }

    /// What the zone says: records of the name, and others. Without any the zone's own goes with it.
    pub(super) fn answer(
        &self,
        domain: &str,
        code: Code,
        (records, others): (&[Data], &[(String, Data)]),
    ) -> Option<Vec<u8>> {
        let mut reply = self.reply(code);
        reply.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
        let asked = self.packet.questions.first()?.qname.clone();
        for data in records {
            reply.answers.push(record(asked.clone(), data, domain)?);
        }
        for (name, data) in others {
            reply.additional_records.push(record(named(name)?, data, domain)?);
        }
        if records.is_empty() {
            reply.name_servers.push(record(named(domain)?, &Data::Authority, domain)?);
        }
        written(&reply)
    }

    /// The question as we ask it of others.
    pub(super) fn onward(&self, id: u16) -> Option<Vec<u8>> {
        let mut query = Packet::new_query(id);
        query.set_flags(PacketFlag::RECURSION_DESIRED);
        query.questions.clone_from(&self.packet.questions);
        *query.opt_mut() =
            Some(OPT { opt_codes: Vec::new(), udp_packet_size: DATAGRAM_BYTES_MAX, version: 0 });
        written(&query)
    }

    /// Another's answer, to this caller: its number, and EDNS only where the caller has it.
    pub(super) fn passed_on(&self, answer: &[u8], age_s: u32) -> Option<Vec<u8>> {
        let mut packet = Packet::parse(answer).ok()?;
        packet.set_id(self.packet.id());
        packet.questions.clone_from(&self.packet.questions);
        let records = packet.answers.iter_mut().chain(&mut packet.name_servers);
        records
            .chain(&mut packet.additional_records)
            .for_each(|record| record.ttl = record.ttl.saturating_sub(age_s));
        if self.packet.opt().is_none() {
            *packet.opt_mut() = None;
        }
        written(&packet)
    }
}

/// What is to be known of another's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) is_cut_off: bool,
    /// It says that there is something, or that there is nothing; otherwise it failed.
    pub(super) is_known: bool,
    /// How long it may be remembered, in seconds, if it says.
    pub(super) ttl_s: Option<u32>,
}

/// Reads an answer; `None`: it is none, or to another question.
pub(super) fn outcome(bytes: &[u8], id: u16, question: &Question) -> Option<Outcome> {
    let packet = Packet::parse(bytes).ok()?;
    let [other] = &packet.questions[..] else { return None };
    let is_it = packet.id() == id
        && packet.has_flags(PacketFlag::RESPONSE)
        && other.qname.to_string().eq_ignore_ascii_case(&question.name)
        && u16::from(other.qtype) == question.number;
    is_it.then(|| Outcome {
        is_cut_off: packet.has_flags(PacketFlag::TRUNCATION),
        is_known: matches!(packet.rcode(), RCODE::NoError | RCODE::NameError),
        ttl_s: packet.answers.iter().chain(&packet.name_servers).map(|record| record.ttl).min(),
    })
}

fn named(text: &str) -> Option<Name<'static>> {
    Name::new(text).ok().map(Name::into_owned)
}

fn record(name: Name<'static>, data: &Data, domain: &str) -> Option<ResourceRecord<'static>> {
    let data = match data {
        Data::Address(IpAddr::V4(address)) => RData::A(A::from(*address)),
        Data::Address(IpAddr::V6(address)) => RData::AAAA(AAAA::from(*address)),
        Data::Alias(other) => RData::CNAME(CNAME(named(other)?)),
        Data::Pointer(other) => RData::PTR(PTR(named(other)?)),
        Data::Port { port, host } => {
            RData::SRV(SRV { priority: 0, weight: SRV_WEIGHT, port: *port, target: named(host)? })
        }
        Data::Text(text) => RData::TXT(TXT::new().with_string(text).ok()?.into_owned()),
        Data::Authority => RData::SOA(SOA {
            mname: named(&format!("ns.dns.{domain}"))?,
            rname: named(&format!("hostmaster.{domain}"))?,
            serial: 1,
            refresh: 7200,
            retry: 1800,
            expire: 86_400,
            minimum: TTL_S,
        }),
    };
    Some(ResourceRecord::new(name, CLASS::IN, TTL_S, data))
}

fn written(packet: &Packet<'_>) -> Option<Vec<u8>> {
    packet
        .build_bytes_vec_compressed()
        .inspect_err(|error| tracing::warn!(%error, "an answer cannot be written"))
        .ok()
}
