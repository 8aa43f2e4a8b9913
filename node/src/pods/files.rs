//! The files that the node writes for a pod's containers: `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`.
//!
//! Contents are pure; [`write_all`] puts them below the pod's directory, from where they are bind-mounted.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use super::record::PodRecord;
use crate::Config;

const HOSTS_HEAD: &str = "# Kubernetes-managed hosts file.\n\
    127.0.0.1\tlocalhost\n\
    ::1\tlocalhost ip6-localhost ip6-loopback\n\
    fe00::0\tip6-localnet\n\
    fe00::0\tip6-mcastprefix\n\
    fe00::1\tip6-allnodes\n\
    fe00::2\tip6-allrouters\n";
/// The longest host name that Linux takes; longer pod names are cut.
const HOSTNAME_BYTES_MAX: usize = 63;

/// The files' names, below the pod's `etc` directory and below a container's `/etc`.
pub(crate) const ETC_FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// What Linux takes of a whole host name.
const FQDN_BYTES_MAX: usize = 64;
/// What resolvers take, and what the kubelet passes on to them.
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;

/// The host name inside the pod.
pub(crate) fn hostname(record: &PodRecord, config: &Config) -> String {
    if record.host_network() {
        return config.node_name.clone();
    }
    let short = short_hostname(record);
    let wanted = record.spec().set_hostname_as_fqdn == Some(true);
    domain(record, config).filter(|_| wanted).map_or(short.clone(), |domain| format!("{short}.{domain}"))
}

/// A host name that Linux would not take, in the kubelet's words.
pub(crate) fn hostname_problem(record: &PodRecord, config: &Config) -> Option<String> {
    let name = hostname(record, config);
    let too_long = !record.host_network() && name.len() > FQDN_BYTES_MAX;
    too_long.then(|| {
        format!(
            "failed to construct FQDN from Pod hostname and cluster domain, FQDN {name} is too long \
             ({FQDN_BYTES_MAX} characters is the max, {} characters requested)",
            name.len()
        )
    })
}

/// The domain of the pod's own name, if it is in one.
fn domain(record: &PodRecord, config: &Config) -> Option<String> {
    let subdomain = record.spec().subdomain.as_deref().filter(|s| !s.is_empty())?;
    Some(format!("{subdomain}.{}.svc.{}", record.namespace(), config.cluster_domain))
}

fn short_hostname(record: &PodRecord) -> String {
    let name = record.spec().hostname.as_deref().filter(|h| !h.is_empty()).unwrap_or(record.name());
    let cut = &name[..name.len().min(HOSTNAME_BYTES_MAX)];
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// Writes the three files into `dir`.
pub(crate) fn write_all(
    record: &PodRecord,
    ip: Option<IpAddr>,
    config: &Config,
    dir: &Path,
) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let hostname = hostname(record, config);
    let host_file = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let hosts = if record.host_network() {
        format!("# Kubernetes-managed hosts file (host network).\n{}", host_file("/etc/hosts"))
    } else {
        hosts(record, ip, config)
    };
    let hosts = hosts + &aliases(record);
    fs::write(dir.join("hosts"), hosts)?;
    fs::write(dir.join("hostname"), format!("{hostname}\n"))?;
    fs::write(dir.join("resolv.conf"), resolv_conf(record, config, &host_file("/etc/resolv.conf")))
}

fn hosts(record: &PodRecord, ip: Option<IpAddr>, config: &Config) -> String {
    let mut text = HOSTS_HEAD.to_owned();
    let Some(ip) = ip else { return text };
    let hostname = short_hostname(record);
    match domain(record, config) {
        Some(domain) => text.push_str(&format!("{ip}\t{hostname}.{domain}\t{hostname}\n")),
        None => text.push_str(&format!("{ip}\t{hostname}\n")),
    }
    text
}

fn aliases(record: &PodRecord) -> String {
    let aliases = record.spec().host_aliases.as_deref().unwrap_or_default();
    if aliases.is_empty() {
        return String::new();
    }
    let mut text = "\n# Entries added by HostAliases.\n".to_owned();
    for alias in aliases {
        let names = alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t");
        text.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    text
}

fn resolv_conf(record: &PodRecord, config: &Config, host: &str) -> String {
    let spec = record.spec();
    let mut servers: Vec<String> = Vec::new();
    let mut searches: Vec<String> = Vec::new();
    let mut options: Vec<String> = Vec::new();
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster_first =
        policy == "ClusterFirstWithHostNet" || (policy == "ClusterFirst" && !record.host_network());
    if cluster_first && !config.cluster_dns.is_empty() {
        let (namespace, domain) = (record.namespace(), &config.cluster_domain);
        servers.extend(config.cluster_dns.iter().map(IpAddr::to_string));
        searches.extend([format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()]);
        options.push("ndots:5".to_owned());
    }
    for line in host.lines().filter(|_| policy != "None") {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") if servers.is_empty() || !cluster_first || config.cluster_dns.is_empty() => {
                servers.extend(words.map(str::to_owned));
            }
            Some("search") => searches.extend(words.map(str::to_owned)),
            Some("options") if options.is_empty() => options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    if let Some(own) = &spec.dns_config {
        servers.extend(own.nameservers.iter().flatten().cloned());
        searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            options.retain(|o| o.split(':').next() != Some(name));
            options.push(option.value.as_ref().map_or(name.clone(), |value| format!("{name}:{value}")));
        }
    }
    let mut text = String::new();
    once(&mut searches);
    searches.truncate(SEARCHES_MAX);
    if !searches.is_empty() {
        text.push_str(&format!("search {}\n", searches.join(" ")));
    }
    once(&mut servers);
    servers.truncate(NAMESERVERS_MAX);
    servers.iter().for_each(|s| text.push_str(&format!("nameserver {s}\n")));
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
}

/// Keeps the first of equal entries.
fn once(entries: &mut Vec<String>) {
    let mut seen = std::collections::BTreeSet::new();
    entries.retain(|entry| seen.insert(entry.clone()));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;

    use super::*;

    fn record(spec: serde_json::Value) -> PodRecord {
        let mut spec = spec;
        spec["containers"] = serde_json::json!([{"name": "c"}]);
        let pod =
            serde_json::json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u"}, "spec": spec});
        PodRecord::new(Arc::new(serde_json::from_value(pod).unwrap()), Timestamp::UNIX_EPOCH)
    }

    fn config(dns: &str) -> Config {
        Config::parse(&format!(
            "nodeName: n\ncontrolAddresses: [1.1.1.1:1]\ninternalIp: 1.1.1.2\njoinToken: t\nclusterDns: [{dns}]"
        ))
        .unwrap()
    }

    #[test]
    fn hosts_name_the_pod_and_its_aliases() {
        let record = record(serde_json::json!({"subdomain": "s",
            "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}));
        let text = hosts(&record, Some("10.0.0.9".parse().unwrap()), &config("")) + &aliases(&record);
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.contains("10.0.0.9\tweb.s.shop.svc.cluster.local\tweb\n"));
        assert!(text.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"));
    }

    #[test]
    fn resolver_follows_the_policy() {
        let host = "nameserver 9.9.9.9\nsearch lan\n";
        let cluster = resolv_conf(&record(serde_json::json!({})), &config("10.96.0.10"), host);
        assert_eq!(
            cluster,
            "search shop.svc.cluster.local svc.cluster.local cluster.local lan\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
        let default =
            resolv_conf(&record(serde_json::json!({"dnsPolicy": "Default"})), &config("10.96.0.10"), host);
        assert_eq!(default, "search lan\nnameserver 9.9.9.9\n");
        let own = serde_json::json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["8.8.8.8"],
            "options": [{"name": "ndots", "value": "2"}]}});
        assert_eq!(resolv_conf(&record(own), &config(""), host), "nameserver 8.8.8.8\noptions ndots:2\n");
    }

    #[test]
    fn a_host_name_may_be_the_whole_name() {
        let whole = record(serde_json::json!({"subdomain": "s", "hostname": "h", "setHostnameAsFQDN": true}));
        assert_eq!(hostname(&whole, &config("")), "h.s.shop.svc.cluster.local");
        assert_eq!(hostname_problem(&whole, &config("")), None);
        let long = "s".repeat(50);
        let long = record(serde_json::json!({"subdomain": long, "hostname": "h", "setHostnameAsFQDN": true}));
        assert!(
            hostname_problem(&long, &config(""))
                .unwrap()
                .contains("is too long (64 characters is the max, 75")
        );
        let alone = record(serde_json::json!({"hostname": "h", "setHostnameAsFQDN": true}));
        assert_eq!(hostname(&alone, &config("")), "h");
    }

    #[test]
    fn a_resolver_gets_what_it_can_take() {
        let host = "nameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 1.1.1.1\nnameserver 3.3.3.3\nnameserver 4.4.4.4\n";
        let text = resolv_conf(&record(serde_json::json!({"dnsPolicy": "Default"})), &config(""), host);
        assert_eq!(text, "nameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 3.3.3.3\n");
    }

    #[test]
    fn host_names_are_cut_to_what_linux_takes() {
        let mut long = record(serde_json::json!({}));
        let mut pod = (*long.pod).clone();
        pod.metadata.name = Some(format!("{}-{}", "a".repeat(62), "b"));
        long.pod = Arc::new(pod);
        assert_eq!(hostname(&long, &config("")), "a".repeat(62));
    }
}
