//! Questions for names: what a node answers in a second, and how soon.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use runtime::net::NetNs;
use serde::Serialize;
use simple_dns::{CLASS, Name, Packet, Question, TYPE};

use crate::bench::histogram::Histogram;
use crate::bench::pods::Cluster;
use crate::table::Table;

/// Where pods ask.
const DNS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 53);
/// A name that every cluster has.
const NAME: &str = "kubernetes.default.svc.cluster.local";
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const WARM_UP: Duration = Duration::from_millis(500);

/// So many callers, each of which asks again as soon as it was answered.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Asked {
    callers: usize,
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
}

/// Measures a node of a cluster that it makes and removes.
pub(super) fn measure(callers: &[usize], time: Duration) -> anyhow::Result<Vec<Asked>> {
    let cluster = Cluster::up(&std::env::temp_dir())?;
    let node = NetNs::of_pid(cluster.agent()?)?;
    ask(&node, 1, WARM_UP)?;
    callers.iter().map(|count| ask(&node, *count, time)).collect()
}

fn ask(node: &NetNs, callers: usize, time: Duration) -> anyhow::Result<Asked> {
    let question = question()?;
    let sockets = (0..callers).map(|_| {
        let socket = node.run(|| UdpSocket::bind("0.0.0.0:0"))?.context("cannot open a socket")?;
        socket.connect(DNS).context("the node has no address for names")?;
        socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(socket)
    });
    let sockets = sockets.collect::<anyhow::Result<Vec<UdpSocket>>>()?;
    let began = Instant::now();
    let threads: Vec<_> = sockets
        .into_iter()
        .map(|socket| {
            let question = question.clone();
            std::thread::spawn(move || ask_on(&socket, question, began + time))
        })
        .collect();
    let mut all = Histogram::default();
    for thread in threads {
        let asked = thread.join().map_err(|_| anyhow::anyhow!("a caller panicked"))?;
        all.merge(&asked?);
    }
    let micros = |share: f64| all.quantile(share).as_secs_f64() * 1e6;
    Ok(Asked {
        callers,
        per_second: all.count() as f64 / began.elapsed().as_secs_f64(),
        p50_us: micros(0.5),
        p99_us: micros(0.99),
    })
}

fn ask_on(socket: &UdpSocket, mut question: Vec<u8>, until: Instant) -> anyhow::Result<Histogram> {
    let (mut answers, mut buffer) = (Histogram::default(), [0; 1500]);
    for id in (0..=u16::MAX).cycle() {
        let began = Instant::now();
        if began >= until {
            break;
        }
        // The first two bytes tell one question from another.
        question[..2].copy_from_slice(&id.to_be_bytes());
        socket.send(&question).context("cannot ask")?;
        let length = socket.recv(&mut buffer).context("a question was not answered")?;
        let answer = Packet::parse(&buffer[..length]).context("an answer is none")?;
        ensure!(answer.id() == id && !answer.answers.is_empty(), "{NAME} is not known to the node");
        answers.record(began.elapsed());
    }
    Ok(answers)
}

fn question() -> anyhow::Result<Vec<u8>> {
    let mut packet = Packet::new_query(0);
    let name = Name::new(NAME).context("the name is one")?;
    packet.questions.push(Question::new(name, TYPE::A.into(), CLASS::IN.into(), false));
    packet.build_bytes_vec().context("a question fits into a packet")
}

/// For people.
pub(super) fn table(found: &[Asked]) -> Table {
    let mut table = Table::new(&["CALLERS", "ANSWERS/S", "P50/P99 US"]);
    for asked in found {
        table.row(vec![
            asked.callers.to_string(),
            format!("{:.0}", asked.per_second),
            format!("{:.0}/{:.0}", asked.p50_us, asked.p99_us),
        ]);
    }
    table
}
