//! How fast a link may send: the kernel's token bucket filter (tc-tbf(8)).

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use super::{Error, Netlink};

/// Attributes of the filter (`linux/pkt_sched.h`).
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// Packets are counted as Ethernet frames, which takes no table of sizes.
const TC_LINKLAYER_ETHERNET: u8 = 1;
/// What may leave at once, as a part of what leaves in a second.
const BURSTS_PER_SECOND: u64 = 50;
/// What may leave at once, at least: some packets of the largest usual size.
const BURST_BYTES_MIN: u64 = 32 * 1024;
/// How long a packet may wait before it is dropped, as a part of a second.
const WAITS_PER_SECOND: u64 = 20;

impl Netlink {
    /// Bounds what leaves by a link, in bits a second. A bound replaces the one before it; it goes with the link.
    pub fn set_rate(&mut self, link: &str, bits_per_second: u64) -> Result<(), Error> {
        let index = i32::try_from(self.index(link)?).unwrap_or(i32::MAX);
        let mut message = TcMessage::with_index(index);
        message.header.parent = TcHandle::ROOT;
        message.header.handle = TcHandle { major: 1, minor: 0 };
        let attribute = |kind, value: Vec<u8>| TcOption::Other(DefaultNla::new(kind, value));
        let bytes = (bits_per_second / 8).max(1);
        let burst = burst_bytes(bits_per_second);
        let mut options = vec![
            attribute(TCA_TBF_PARMS, parameters(bytes, burst)),
            attribute(TCA_TBF_BURST, narrow(burst).to_ne_bytes().to_vec()),
        ];
        if u32::try_from(bytes).is_err() {
            options.push(attribute(TCA_TBF_RATE64, bytes.to_ne_bytes().to_vec()));
        }
        message.attributes = vec![TcAttribute::Kind("tbf".to_owned()), TcAttribute::Options(options)];
        let request = RouteNetlinkMessage::NewQueueDiscipline(message);
        self.change("bound the rate of", &link, request, NLM_F_CREATE | NLM_F_REPLACE)
    }
}

/// What may leave at once under such a bound, in bytes.
pub fn burst_bytes(bits_per_second: u64) -> u64 {
    (bits_per_second / 8 / BURSTS_PER_SECOND).max(BURST_BYTES_MIN)
}

/// `struct tc_tbf_qopt`: the rate and no peak rate (`struct tc_ratespec` each), the queue's length, and two numbers that other
/// attributes say.
fn parameters(bytes_per_second: u64, burst: u64) -> Vec<u8> {
    let queue = burst.saturating_add(bytes_per_second / WAITS_PER_SECOND);
    let mut parameters = vec![0, TC_LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0];
    parameters.extend(narrow(bytes_per_second).to_ne_bytes());
    parameters.extend([0; 12]);
    parameters.extend(narrow(queue).to_ne_bytes());
    parameters.extend([0; 8]);
    parameters
}

fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
