//! `barque bench network`: what a Service's address costs beside the endpoint's own and beside kube-proxy's rules, how fast
//! Services come into force, and how many questions for names a node answers.
//!
//! Owns what it makes: three network namespaces and a small cluster, gone when it returns, also on errors. A pod calls a
//! server behind another link of its host, as it would call a pod of another node, in turns directly and through the
//! address of a Service that is one of many. The rules are those of the node agent, written by the same code; beside them,
//! where iptables is found, those that kube-proxy would lay, with the Service that is called in the middle.

mod iptables;
mod names;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use runtime::net::{
    Backend, Frontend, NetNs, Netlink, Pool, Prefix, Route, Scope, ServiceRules, ServiceTable,
    ServiceTableConfig, Transport, VethPair, netns, sysctl,
};
use serde::Serialize;

use self::iptables::Iptables;
use crate::table::Table;
use crate::up::progress::line;

const BRIDGE: &str = "br";
const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 121, 0, 2)), 8080);
const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 122, 0, 1)), 80);
const ENDPOINTS: u32 = 5;
/// How often one Service is changed to see how long that takes.
const CHANGES: u32 = 20;
/// Turns between direct calls and calls through the Service.
const TURNS: usize = 10;
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Connections through Services.
    Services,
    /// Questions for names.
    Names,
}

/// Flags of `bench network`.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchNetworkArgs {
    /// What to measure. Default: everything.
    #[arg(long, value_enum, value_name = "LIST", value_delimiter = ',')]
    part: Vec<Part>,

    /// The program that lays kube-proxy's rules; left out if it is not found, and said.
    #[arg(long, value_name = "FILE", default_value = "iptables-restore")]
    iptables: PathBuf,

    /// How many ask for names at once, one number after another.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,16,64")]
    callers: Vec<usize>,

    /// For how many seconds each number of callers asks.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    seconds: u64,

    /// How many Services there are, one after another.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,100,10000")]
    services: Vec<u32>,

    /// How many connections are made each way.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    connections: usize,

    /// Prints JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Connections made one after the other.
#[derive(Debug, Clone, Serialize)]
struct Calls {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
}

#[derive(Debug, Clone, Serialize)]
struct Found {
    services: u32,
    written_ms: f64,
    one_change_ms: f64,
    direct: Calls,
    through_service: Calls,
    iptables: Option<Beside>,
}

/// The same with kube-proxy's rules.
#[derive(Debug, Clone, Serialize)]
struct Beside {
    /// All of them, as a change of one needs it, too.
    written_ms: f64,
    through_service: Calls,
}

/// Everything that was measured.
#[derive(Debug, Default, Serialize)]
struct Report {
    services: Vec<Found>,
    names: Vec<names::Asked>,
}

/// Measures.
pub(crate) fn run(args: &BenchNetworkArgs) -> anyhow::Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root");
    ensure!(args.services.iter().all(|count| (1..=60_000).contains(count)), "--services takes 1 to 60000");
    ensure!(args.connections >= TURNS, "--connections takes at least {TURNS}");
    ensure!(args.callers.iter().all(|count| (1..=1000).contains(count)), "--callers takes 1 to 1000");
    let wanted = |part: Part| args.part.is_empty() || args.part.contains(&part);
    let mut report = Report::default();
    if wanted(Part::Services) {
        report.services = services(args)?;
    }
    if wanted(Part::Names) {
        report.names = names::measure(&args.callers, Duration::from_secs(args.seconds))?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    if wanted(Part::Services) {
        print!("{}", table(&report.services));
    }
    if wanted(Part::Names) {
        print!("{}", names::table(&report.names));
    }
    Ok(())
}

fn services(args: &BenchNetworkArgs) -> anyhow::Result<Vec<Found>> {
    let iptables = Iptables::find(&args.iptables);
    if iptables.is_none() {
        line(format_args!("  {} is not there or does not run: left out", args.iptables.display()));
    }
    let town = Town::make()?;
    let listener = town.server.run(|| TcpListener::bind(SERVER))?.context("cannot listen")?;
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let counts = args.services.iter();
    counts.map(|count| measure(&town, *count, args.connections, iptables.as_ref())).collect()
}

/// For people.
fn table(found: &[Found]) -> Table {
    let mut table = Table::new(&[
        "SERVICES",
        "WRITTEN MS",
        "ONE CHANGE MS",
        "DIRECT/S",
        "SERVICE/S",
        "DIRECT P50/P99 US",
        "SERVICE P50/P99 US",
        "P50 %",
        "IPTABLES/S",
        "IPTABLES P50/P99 US",
        "IPTABLES WRITTEN MS",
    ]);
    for found in found {
        let more = (found.through_service.p50_us / found.direct.p50_us - 1.0) * 100.0;
        let beside = |text: fn(&Beside) -> String| found.iptables.as_ref().map_or("-".to_owned(), text);
        table.row(vec![
            found.services.to_string(),
            format!("{:.1}", found.written_ms),
            format!("{:.2}", found.one_change_ms),
            format!("{:.0}", found.direct.per_second),
            format!("{:.0}", found.through_service.per_second),
            format!("{:.0}/{:.0}", found.direct.p50_us, found.direct.p99_us),
            format!("{:.0}/{:.0}", found.through_service.p50_us, found.through_service.p99_us),
            format!("{more:+.1}"),
            beside(|it| format!("{:.0}", it.through_service.per_second)),
            beside(|it| format!("{:.0}/{:.0}", it.through_service.p50_us, it.through_service.p99_us)),
            beside(|it| format!("{:.1}", it.written_ms)),
        ]);
    }
    table
}

fn measure(
    town: &Town,
    count: u32,
    connections: usize,
    iptables: Option<&Iptables>,
) -> anyhow::Result<Found> {
    let mut table = ServiceTable::new(ServiceTableConfig {
        table: "barque-bench".to_owned(),
        bridge: BRIDGE.to_owned(),
        own_pods: prefix("10.120.0.0/24")?,
        all_pods: Some(prefix("10.120.0.0/15")?),
        services: Some(prefix("10.122.0.0/15")?),
        bridge_is_filtered: true,
    });
    let mut apply = |changes: BTreeMap<String, Option<ServiceRules>>| -> anyhow::Result<f64> {
        let began = Instant::now();
        town.host.run(|| table.apply(changes))??;
        Ok(began.elapsed().as_secs_f64() * 1000.0)
    };
    let middle = count / 2;
    let all = (0..count).map(|index| match index == middle {
        true => measured(),
        false => other(index + 1, 0),
    });
    let all: Vec<ServiceRules> = all.collect();
    let named = all.iter().enumerate().map(|(index, rules)| (format!("s{index}"), Some(rules.clone())));
    let written_ms = apply(named.collect())?;
    let changes: Vec<f64> = (0..CHANGES)
        .map(|turn| apply([("other".to_owned(), Some(other(count + 1, turn)))].into()))
        .collect::<Result<_, _>>()?;
    let (mut direct, mut through) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        town.pod.run(|| call(SERVER, connections / TURNS, &mut direct))??;
        town.pod.run(|| call(SERVICE, connections / TURNS, &mut through))??;
    }
    town.host.run(|| table.remove())??;
    let beside = iptables.map(|iptables| -> anyhow::Result<Beside> {
        let began = Instant::now();
        iptables.write(&town.host, all.iter())?;
        let written_ms = began.elapsed().as_secs_f64() * 1000.0;
        let mut through = Vec::new();
        town.pod.run(|| call(SERVICE, connections, &mut through))??;
        iptables.clear(&town.host)?;
        Ok(Beside { written_ms, through_service: calls(through) })
    });
    Ok(Found {
        services: count,
        written_ms,
        one_change_ms: changes.iter().sum::<f64>() / f64::from(CHANGES),
        direct: calls(direct),
        through_service: calls(through),
        iptables: beside.transpose()?,
    })
}

/// The Service that is called.
fn measured() -> ServiceRules {
    let IpAddr::V4(address) = SERVER.ip() else { return ServiceRules::default() };
    rules(SERVICE.ip(), [Backend { address, port: SERVER.port() }])
}

/// One of those that only are there.
fn other(index: u32, turn: u32) -> ServiceRules {
    let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 122, 0, 1).to_bits() + index);
    let first = Ipv4Addr::new(11, 0, 0, 0).to_bits() + index * ENDPOINTS + turn;
    let backends =
        (0..ENDPOINTS).map(|offset| Backend { address: Ipv4Addr::from_bits(first + offset), port: 80 });
    rules(address.into(), backends)
}

fn rules(address: IpAddr, backends: impl IntoIterator<Item = Backend>) -> ServiceRules {
    let address = match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    };
    let frontend = Frontend { transport: Transport::Tcp, address, port: SERVICE.port() };
    let pool = Pool { backends: backends.into_iter().collect(), ..Pool::default() };
    ServiceRules {
        pools: [("all".to_owned(), pool)].into(),
        frontends: [((frontend, Scope::Everyone), "all".to_owned())].into(),
        callers: BTreeMap::new(),
    }
}

/// Connects so often, one after the other, and notes how long each took.
fn call(at: SocketAddr, times: usize, into: &mut Vec<Duration>) -> anyhow::Result<()> {
    for _ in 0..times {
        let began = Instant::now();
        let stream =
            TcpStream::connect_timeout(&at, CALL_TIMEOUT).with_context(|| format!("cannot reach {at}"))?;
        into.push(began.elapsed());
        // Closed without a wait: else the ports of one address run out.
        nix::sys::socket::setsockopt(
            &stream,
            nix::sys::socket::sockopt::Linger,
            &nix::libc::linger { l_onoff: 1, l_linger: 0 },
        )?;
    }
    Ok(())
}

fn calls(mut took: Vec<Duration>) -> Calls {
    took.sort_unstable();
    let total: Duration = took.iter().sum();
    let at = |part: usize| took.get(took.len() * part / 100).map_or(0.0, |took| took.as_secs_f64() * 1e6);
    Calls { per_second: took.len() as f64 / total.as_secs_f64(), p50_us: at(50), p99_us: at(99) }
}

fn prefix(text: &str) -> anyhow::Result<Prefix> {
    Ok(text.parse()?)
}

/// A pod at its host's bridge, and a server behind another link of the host.
struct Town {
    host: NetNs,
    pod: NetNs,
    server: NetNs,
    names: Vec<String>,
}

impl Drop for Town {
    fn drop(&mut self) {
        for name in &self.names {
            let _gone = netns::delete(name);
        }
    }
}

impl Town {
    fn make() -> anyhow::Result<Self> {
        let names = ["host", "pod", "server"].map(|what| format!("bqbench-{}-{what}", std::process::id()));
        let [host, pod, server] = [&names[0], &names[1], &names[2]].map(|name| netns::create(name));
        let town = Self { host: host?, pod: pod?, server: server?, names: names.to_vec() };
        let mut net = Netlink::open_in(&town.host)?;
        net.set_up("lo")?;
        net.add_bridge(BRIDGE)?;
        net.add_address(BRIDGE, prefix("10.120.0.1/24")?)?;
        net.set_up(BRIDGE)?;
        town.connect(&town.pod, ("vpod", Some(BRIDGE)), ("10.120.0.2/24", "10.120.0.1"))?;
        town.connect(&town.server, ("vserver", None), ("10.121.0.2/24", "10.121.0.1"))?;
        net.add_address("vserver", prefix("10.121.0.1/24")?)?;
        sysctl::set_in(&town.host, "net.ipv4.ip_forward", "1")?;
        Ok(town)
    }

    fn connect(
        &self,
        inside: &NetNs,
        (link, master): (&str, Option<&str>),
        (own, gateway): (&str, &str),
    ) -> anyhow::Result<()> {
        Netlink::open_in(&self.host)?.add_veth(VethPair {
            name: link,
            peer_name: "eth0",
            peer_netns: Some(inside),
            mtu: None,
            master,
            up: true,
        })?;
        let mut net = Netlink::open_in(inside)?;
        net.add_address("eth0", prefix(own)?)?;
        net.set_up("lo")?;
        net.set_up("eth0")?;
        net.replace_route(&Route::via(Prefix::DEFAULT_V4, gateway.parse()?))?;
        Ok(())
    }
}
