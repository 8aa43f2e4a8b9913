//! Clients made for etcd against groups of ours: the real `etcdctl`, every version that is found on PATH, and the real
//! kube-apiserver.
//!
//! Where an etcd is on PATH too, the same steps run against it: what these tests expect is what etcd answers.

mod access;
mod arbitrary;
mod cluster;
mod concurrency;
mod ctl;
mod group;
mod kube_api;
mod kube_apiserver;
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
    // etcd first: where it answers otherwise, the steps are wrong, not the store.
    let mut systems: Vec<System> = ctl::programs("etcd").into_iter().take(1).map(System::Etcd).collect();
    if systems.is_empty() {
        skipped(&format!("{what}, against etcd: there is no etcd on PATH"));
    }
    systems.push(System::Barque);
    for system in systems {
        let group = Group::start(&system);
        for program in &programs {
            let ctl = Ctl::new(program, &group);
            println!("{what}: etcdctl {} against {system:?}", ctl.version);
            steps(&ctl);
        }
    }
}
