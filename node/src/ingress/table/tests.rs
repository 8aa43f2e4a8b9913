use serde_json::{Value, json};

use super::*;

fn ingress(name: &str, spec: &Value) -> Arc<Ingress> {
    let value = json!({"metadata": {"name": name, "namespace": "d"}, "spec": spec});
    Arc::new(serde_json::from_value(value).unwrap())
}

fn path(path: &str, kind: &str, service: &str) -> Value {
    json!({"path": path, "pathType": kind, "backend": {"service": {"name": service, "port": {"number": 80}}}})
}

fn known(_: &str, name: &str) -> Option<Known> {
    if name == "gone" {
        return None;
    }
    let service = json!({"metadata": {"name": name}, "spec": {"ports": [{"name": "http", "port": 80}]}});
    let slice = json!({
        "metadata": {"name": "e"}, "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}, {"name": "x", "port": 9}],
        "endpoints": [
            {"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"], "conditions": {"ready": true}},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": false}},
        ],
    });
    Some(Known {
        service: Some(serde_json::from_value(service).unwrap()),
        slices: [("e".to_owned(), serde_json::from_value(slice).unwrap())].into(),
    })
}

fn table(ingresses: &[Arc<Ingress>]) -> Table {
    Table::compile(ingresses, &known, Arc::default())
}

/// The Service that a request goes to.
fn service(table: &Table, host: &str, path: &str) -> String {
    let name = table.find(host, path).map_or("", |backend| &backend.name);
    name.trim_start_matches("d/").trim_end_matches(":80").to_owned()
}

/// The table of examples of the Ingress documentation, path by path.
#[test]
fn paths_match_as_the_documentation_says() {
    for (kind, rule, request, matches) in [
        ("Prefix", "/", "/any/path", true),
        ("Exact", "/foo", "/foo", true),
        ("Exact", "/foo", "/bar", false),
        ("Exact", "/foo", "/foo/", false),
        ("Exact", "/foo/", "/foo", false),
        ("Prefix", "/foo", "/foo", true),
        ("Prefix", "/foo", "/foo/", true),
        ("Prefix", "/foo/", "/foo", true),
        ("Prefix", "/foo/", "/foo/", true),
        ("Prefix", "/aaa/bb", "/aaa/bbb", false),
        ("Prefix", "/aaa/bbb", "/aaa/bbb", true),
        ("Prefix", "/aaa/bbb/", "/aaa/bbb", true),
        ("Prefix", "/aaa/bbb", "/aaa/bbb/", true),
        ("Prefix", "/aaa/bbb", "/aaa/bbb/ccc", true),
        ("Prefix", "/aaa/bbb", "/aaa/bbbxyz", false),
    ] {
        let rules = json!({"rules": [{"http": {"paths": [path(rule, kind, "s")]}}]});
        let found = service(&table(&[ingress("i", &rules)]), "h", request);
        assert_eq!(found == "s", matches, "{kind} {rule} {request}");
    }
}

#[test]
fn the_most_specific_rule_counts() {
    let of_host = |host: &str, paths: Value| json!({"host": host, "http": {"paths": paths}});
    let first = ingress(
        "first",
        &json!({
            "defaultBackend": {"service": {"name": "default", "port": {"number": 80}}},
            "rules": [
                of_host("Foo.example.org", json!([path("/", "Prefix", "foo"), path("/a", "Prefix", "a"),
                    path("/a", "Exact", "exact"), path("/a/b", "Prefix", "ab")])),
                of_host("*.example.org", json!([path("/", "Prefix", "wild")])),
                {"http": {"paths": [path("/everywhere", "Prefix", "any")]}},
            ],
        }),
    );
    let second = ingress(
        "second",
        &json!({"rules": [of_host("foo.example.org", json!([path("/", "Prefix", "late")]))]}),
    );
    let table = table(&[first, second]);
    for (host, path, expected) in [
        ("foo.example.org", "/", "foo"),
        ("foo.example.org", "/a", "exact"),
        ("foo.example.org", "/a/", "a"),
        ("foo.example.org", "/a/b/c", "ab"),
        ("bar.example.org", "/a", "wild"),
        ("a.bar.example.org", "/a", "default"),
        ("example.org", "/everywhere/x", "any"),
        ("10.0.0.1", "/", "default"),
    ] {
        assert_eq!(service(&table, host, path), expected, "{host}{path}");
    }
}

#[test]
fn ready_endpoints_take_turns_and_what_is_missing_is_named() {
    let backend = |service: Value| {
        let spec = json!({"defaultBackend": {"service": service}});
        Arc::clone(table(&[ingress("i", &spec)]).find("h", "/").unwrap())
    };
    let by_name = backend(json!({"name": "s", "port": {"name": "http"}}));
    let first =
        |backend: &Backend| backend.candidates(3).unwrap().map(|at| at.to_string()).collect::<Vec<_>>();
    assert_eq!(first(&by_name), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    assert_eq!(first(&by_name), ["10.0.0.2:8080", "10.0.0.1:8080"]);
    let absence = |service: Value| backend(service).candidates(3).map(Iterator::count).unwrap_err();
    assert_eq!(absence(json!({"name": "gone", "port": {"number": 80}})), Absence::NoService);
    assert_eq!(absence(json!({"name": "s", "port": {"number": 81}})), Absence::NoPort);
}
