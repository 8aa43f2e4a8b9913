//! Clients made for etcd against groups of ours: the real `etcdctl`, every version that is found on PATH.
//!
//! Where an etcd is on PATH too, the same steps run against it: what these tests expect is what etcd answers.

mod access;
mod cluster;
mod concurrency;
mod ctl;
mod group;
mod kv;
mod leases;
mod maintenance;
mod watching;

use ctl::Ctl;
use group::{Group, System};

use crate::support::skipped;

/// Runs steps with every etcdctl against a group of ours and, where there is one, of etcd.
fn with_every_etcdctl(what: &str, steps: fn(&Ctl<'_>)) {
    let programs = ctl::programs("etcdctl");
    if programs.is_empty() {
        skipped(&format!("{what}: there is no etcdctl on PATH"));
        return;
    }
    let mut systems = vec![System::Barque];
    match ctl::programs("etcd").pop() {
        Some(etcd) => systems.push(System::Etcd(etcd)),
        None => skipped(&format!("{what}, against etcd: there is no etcd on PATH")),
    }
    for system in systems {
        let group = Group::start(&system);
        for program in &programs {
            let ctl = Ctl::new(program, &group);
            println!("{what}: etcdctl {} against {system:?}", ctl.version);
            steps(&ctl);
        }
    }
}
