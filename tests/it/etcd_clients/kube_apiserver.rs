//! The real kube-apiserver with a group of ours in place of etcd, driven by kubectl.
//!
//! Kubernetes is the client that etcd is mostly run for. It keeps its objects by transactions that compare revisions,
//! reads pages at a revision, watches everything, compacts by itself and gives Events a time to live. Its write that lost
//! is a 409, and its clients rely on that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::group::{Group, System};
use super::kube_api::{Api, EVENT_TTL, NoAnswer, Programs, Way};
use crate::support::{eventually, skipped};

const MAPS: &str = "/api/v1/namespaces/fleet/configmaps";
/// Objects that are listed in pages.
const PAGED: usize = 23;
/// Callers that count up one object.
const COUNTERS: usize = 4;
/// How long they do before, between and after faults.
const CALM: Duration = Duration::from_secs(1);

#[test]
fn kube_apiserver_keeps_its_objects_in_our_store() {
    let Some(programs) = found("kube-apiserver") else { return };
    every_step(programs, &System::Barque);
}

/// What is expected of ours is what etcd does.
#[test]
fn kube_apiserver_does_the_same_on_etcd() {
    let Some(programs) = found("kube-apiserver on etcd") else { return };
    let Some(etcd) = super::ctl::programs("etcd").pop() else {
        return skipped("kube-apiserver on etcd: there is no etcd on PATH");
    };
    every_step(programs, &System::Etcd(etcd));
}

fn every_step(programs: Programs, system: &System) {
    let mut group = Group::start(system);
    let mut api = Api::start(programs, &group);
    objects(&api);
    custom_resources(&api);
    events(&api);
    pages_and_compaction(&api);
    sizes(&api, &group);
    faults(&api, &mut group);
    survives_restart(&mut api);
    group.assert_all_run();
}

#[test]
fn kube_apiserver_reaches_our_store_over_tls_with_its_certificate() {
    let Some(programs) = found("kube-apiserver over TLS") else { return };
    let mut group = Group::start_as(&System::Barque, true);
    let api = Api::start(programs, &group);
    objects(&api);
    sizes(&api, &group);
    group.assert_all_run();
}

fn found(what: &str) -> Option<Programs> {
    let missing = match Programs::find() {
        Ok(programs) => return Some(programs),
        Err(missing) => missing,
    };
    skipped(&format!("{what}: there is no {missing} on PATH"));
    None
}

const FIRST: &str = r#"{"apiVersion":"v1","kind":"List","items":[
{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"fleet"}},
{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"log","namespace":"fleet"},"data":{"n":"1"}},
{"apiVersion":"v1","kind":"Pod","metadata":{"name":"ship","namespace":"fleet","labels":{"kind":"barque"}},
 "spec":{"automountServiceAccountToken":false,"containers":[{"name":"c","image":"none"}]}},
{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"helm","namespace":"fleet"},
 "spec":{"holderIdentity":"a","leaseDurationSeconds":15}}]}"#;

/// Creates, reads, lists, watches, patches, replaces and deletes.
fn objects(api: &Api) {
    api.ok_with(FIRST, "create -f -");
    api.fails_with(FIRST, "create -f -", "\"log\" already exists");
    let stale = api.ok("get configmap log -n fleet -o json");
    let watch = api.follow(
        "get configmap log -n fleet -w --output-watch-events \
         -o jsonpath={.type}:{.object.data.n}{\"\\n\"}",
    );
    assert_eq!(watch.line(), "ADDED:1");
    for n in 2..5 {
        let patch = format!("{{\"data\":{{\"n\":\"{n}\"}}}}");
        api.ok(&format!("patch configmap log -n fleet --type=merge -p {patch}"));
        assert_eq!(watch.line(), format!("MODIFIED:{n}"));
    }
    api.fails_with(&stale, "replace -f -", "the object has been modified");
    assert_eq!(api.ok("get configmap log -n fleet -o jsonpath={.data.n}"), "4");

    assert_eq!(api.ok("get pods -A -l kind=barque -o jsonpath={.items[*].status.phase}"), "Pending");
    api.ok("label pod ship -n fleet kind=cog --overwrite");
    assert_eq!(api.ok("get pods -n fleet -l kind=barque -o name"), "");
    let renewed = r#"{"spec":{"holderIdentity":"b"}}"#;
    api.ok(&format!("patch lease helm -n fleet --type=merge -p {renewed}"));
    assert_eq!(api.ok("get lease helm -n fleet -o jsonpath={.spec.holderIdentity}"), "b");
    api.ok("delete configmap/log pod/ship lease/helm -n fleet");
    assert_eq!(watch.line(), "DELETED:4");
    api.fails_with("", "get pod ship -n fleet", "pods \"ship\" not found");
}

const KIND: &str = r#"{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition",
"metadata":{"name":"boats.example.org"},"spec":{"group":"example.org","scope":"Namespaced",
"names":{"plural":"boats","singular":"boat","kind":"Boat","listKind":"BoatList"},
"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object",
"properties":{"spec":{"type":"object","properties":{"sails":{"type":"integer","minimum":1}}}}}}}]}}"#;

fn custom_resources(api: &Api) {
    api.ok_with(KIND, "create -f -");
    api.ok("wait --for=condition=established crd/boats.example.org --timeout=60s");
    let boat = |sails: i64| {
        json!({ "apiVersion": "example.org/v1", "kind": "Boat",
                "metadata": { "name": "tern", "namespace": "fleet" }, "spec": { "sails": sails } })
        .to_string()
    };
    let proxy = api.proxy();
    let boats = "/apis/example.org/v1/namespaces/fleet/boats";
    // Established is said a moment before it is served.
    eventually(|| (proxy.way.ask("POST", boats, &boat(2)).unwrap().0 == 201).then_some(()));
    let (code, refused) = proxy.way.ask("PUT", &format!("{boats}/tern"), &boat(0)).unwrap();
    assert_eq!(code, 422, "{refused}");
    api.ok("patch boats.example.org tern -n fleet --type=merge -p {\"spec\":{\"sails\":3}}");
    assert_eq!(api.ok("get boats.example.org -A -o jsonpath={.items[*].spec.sails}"), "3");
    // Its objects go with it.
    api.ok("delete crd boats.example.org");
    eventually(|| (proxy.way.ask("GET", boats, "").unwrap().0 == 404).then_some(()));
    api.fails_with("", "get boats.example.org -A", "");
}

/// An Event lies under a store lease.
fn events(api: &Api) {
    let event = json!({ "apiVersion": "v1", "kind": "Event",
        "metadata": { "name": "sighted", "namespace": "fleet" }, "reason": "Sighted",
        "involvedObject": { "kind": "Pod", "name": "ship", "namespace": "fleet" } });
    let begun = Instant::now();
    api.ok_with(&event.to_string(), "create -f -");
    assert_eq!(api.ok("get events -n fleet -o jsonpath={.items[*].reason}"), "Sighted");
    eventually(|| api.ok("get events -n fleet -o name").is_empty().then_some(()));
    assert!(begun.elapsed() >= EVENT_TTL, "it went after {:?}", begun.elapsed());
}

fn pages_and_compaction(api: &Api) {
    let proxy = api.proxy();
    let way = &proxy.way;
    for number in 0..PAGED {
        let (code, answer) = way.ask("POST", MAPS, &map(&format!("page-{number:02}"), "0")).unwrap();
        assert_eq!(code, 201, "{answer}");
    }
    let expected: Vec<String> = (0..PAGED).map(|number| format!("configmap/page-{number:02}")).collect();
    let pages = api.ok("get configmaps -n fleet --chunk-size=5 -o name");
    let named: Vec<&str> = pages.lines().filter(|line| line.contains("/page-")).collect();
    assert_eq!(named, expected);

    // A page shows the revision of the first, whatever is written meanwhile.
    let page = |token: &str| way.ask("GET", &format!("{MAPS}?limit=5&continue={token}"), "").unwrap();
    let (_, first) = page("");
    let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    let kept = first["items"].as_array().unwrap();
    assert_eq!(kept.len(), 5);
    assert!(first["metadata"]["remainingItemCount"].as_u64().unwrap() >= (PAGED - 5) as u64, "{first}");
    api.ok("delete configmap page-10 -n fleet");
    let (code, second) = page(&token);
    assert_eq!(code, 200, "{second}");
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let (mut names, mut next) = (names(&first), second);
    loop {
        names.extend(self::names(&next));
        match next["metadata"]["continue"].as_str() {
            Some(token) if !token.is_empty() => next = page(token).1,
            _ => break,
        }
    }
    assert_eq!(names.iter().filter(|name| name.starts_with("page-")).count(), PAGED, "{names:?}");

    // A watch that nothing is written to goes on while the apiserver compacts beneath it.
    let watch = api.follow("get configmap page-22 -n fleet -w -o jsonpath={.data.n}{\"\\n\"}");
    assert_eq!(watch.line(), "0");
    let (_, gone) = eventually(|| Some(page(&token)).filter(|(code, _)| *code == 410));
    assert_eq!(gone["reason"], "Expired", "{gone}");
    api.ok("patch configmap page-22 -n fleet --type=merge -p {\"data\":{\"n\":\"1\"}}");
    assert_eq!(watch.line(), "1");
}

/// The apiserver asks every member how large its store is.
fn sizes(api: &Api, group: &Group) {
    for number in 0..3 {
        let line = format!("etcd_db_total_size_in_bytes{{endpoint=\"{}\"}} ", group.client_url(number));
        // -1 where it gets no answer.
        eventually(|| {
            let metrics = api.ok("get --raw /metrics");
            let size: f64 = metrics.lines().find_map(|found| found.strip_prefix(&line)?.parse().ok())?;
            (size > 0.0).then_some(())
        });
    }
}

/// What callers that counted up saw.
#[derive(Default)]
struct Tally {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    conflicts: AtomicU64,
    unknown: AtomicU64,
}

/// A member, then the leader, is killed under load: no count is lost or made twice, and a watch never goes back.
fn faults(api: &Api, group: &mut Group) {
    let proxy = api.proxy();
    let (code, made) = proxy.way.ask("POST", MAPS, &map("count", "0")).unwrap();
    assert_eq!(code, 201, "{made}");
    let version = made["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let tally: Arc<Tally> = Arc::default();
    let watcher = {
        let way = proxy.way.clone();
        std::thread::spawn(move || watch_counts(&way, version))
    };
    let callers: Vec<JoinHandle<()>> = (0..COUNTERS)
        .map(|_| {
            let (way, tally) = (proxy.way.clone(), Arc::clone(&tally));
            std::thread::spawn(move || count(&way, &tally))
        })
        .collect();
    progress(&tally);
    let leader = leader(group);
    for victim in [(leader + 1) % 3, leader] {
        group.kill(victim);
        progress(&tally);
        group.restart(victim);
        progress(&tally);
    }
    tally.stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.join().unwrap();
    }
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (acknowledged, unknown) = (of(&tally.acknowledged), of(&tally.unknown));
    println!("counted {acknowledged}, unknown {unknown}, conflicts {}", of(&tally.conflicts));
    let (_, last) = proxy.way.ask("GET", &format!("{MAPS}/count"), "").unwrap();
    let last = number(&last);
    assert!((acknowledged..=acknowledged + unknown).contains(&last), "{last}: {acknowledged} + {unknown}?");
    assert!(of(&tally.conflicts) > 0, "callers met");
    // Tells the watcher that this is all.
    api.ok("delete configmap count -n fleet");
    assert_eq!(watcher.join().unwrap(), last);
}

/// Waits until counting has gone on for a while.
fn progress(tally: &Tally) {
    let before = tally.acknowledged.load(Ordering::Relaxed);
    std::thread::sleep(CALM);
    eventually(|| (tally.acknowledged.load(Ordering::Relaxed) > before + 5).then_some(()));
}

/// Counts up by one, again and again, and does not repeat what may have been done.
fn count(way: &Way, tally: &Tally) {
    let path = format!("{MAPS}/count");
    while !tally.stop.load(Ordering::Relaxed) {
        let Ok((200, mut object)) = way.ask("GET", &path, "") else { continue };
        object["data"]["n"] = (number(&object) + 1).to_string().into();
        let counter = match way.ask("PUT", &path, &object.to_string()) {
            Ok((200, _)) => &tally.acknowledged,
            Ok((409, _)) => &tally.conflicts,
            Ok((500.., _)) | Err(NoAnswer) => &tally.unknown,
            Ok((code, answer)) => panic!("{code}: {answer}"),
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Follows the counted object to its deletion, as controllers do; returns the last count.
fn watch_counts(way: &Way, mut version: String) -> u64 {
    let mut last = 0;
    let mut newer = |object: &Value| {
        let seen = number(object);
        assert!(seen >= last, "{seen} after {last}");
        last = seen;
        object["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
    };
    loop {
        let select = "fieldSelector=metadata.name%3Dcount";
        let path = format!("{MAPS}?watch=1&{select}&resourceVersion={version}");
        let Ok(lines) = way.lines(&path) else { continue };
        for line in lines {
            let Ok(event) = serde_json::from_str::<Value>(&line) else { break };
            match event["type"].as_str() {
                Some("DELETED") => {
                    newer(&event["object"]);
                    return last;
                }
                Some("ADDED" | "MODIFIED") => version = newer(&event["object"]),
                // Expired: it lists again.
                _ => {
                    let Ok((200, object)) = way.ask("GET", &format!("{MAPS}/count"), "") else { break };
                    version = newer(&object);
                    break;
                }
            }
        }
    }
}

/// The number of the member that leads.
fn leader(group: &Group) -> usize {
    let leads = |number: &usize| {
        let way = Way { address: group.clients[*number].clone() };
        let metrics = way.lines("/metrics").unwrap().collect::<Vec<_>>();
        metrics.iter().any(|line| line == "etcd_server_is_leader 1")
    };
    eventually(|| (0..3).find(leads))
}

/// Another process finds every object as it was.
fn survives_restart(api: &mut Api) {
    let everything = "get configmaps -n fleet -o jsonpath={range.items[*]}{.metadata.name}\
                      ={.metadata.resourceVersion};{end}";
    let before = api.ok(everything);
    assert!(before.matches(';').count() >= PAGED - 1, "{before}");
    api.restart();
    assert_eq!(api.ok(everything), before);
}

fn map(name: &str, n: &str) -> String {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "n": n } })
        .to_string()
}

fn number(map: &Value) -> u64 {
    map["data"]["n"].as_str().unwrap_or_default().parse().unwrap_or_else(|_| panic!("{map}"))
}

fn names(list: &Value) -> Vec<String> {
    let name = |item: &Value| item["metadata"]["name"].as_str().unwrap().to_owned();
    list["items"].as_array().unwrap().iter().map(name).collect()
}
