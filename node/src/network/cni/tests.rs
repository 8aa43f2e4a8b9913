use super::*;

fn list(text: &str) -> NetworkList {
    NetworkList::parse(text).unwrap()
}

#[test]
fn a_plugin_alone_is_a_network_of_one() {
    let alone = list(r#"{"cniVersion": "0.3.1", "name": "n", "type": "bridge", "bridge": "b0"}"#);
    assert_eq!((alone.name.as_str(), alone.plugins.len()), ("n", 1));
    assert_eq!(network::type_of(&alone.plugins[0]), "bridge");
    assert!(!alone.tells_delete());
    let chain = list(r#"{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "a"}, {"type": "b"}]}"#);
    assert_eq!(chain.plugins.iter().map(network::type_of).collect::<Vec<_>>(), ["a", "b"]);
    assert!(chain.tells_delete());
}

#[test]
fn networks_that_cannot_be_used_say_why() {
    for (text, word) in [
        ("{", "EOF"),
        (r#"{"cniVersion": "1.0.0", "type": "bridge"}"#, "null"),
        (r#"{"cniVersion": "0.2.0", "name": "n", "type": "bridge"}"#, "0.3.0"),
        (r#"{"cniVersion": "1.0.0", "name": "n", "plugins": []}"#, "no plugins"),
        (r#"{"cniVersion": "1.0.0", "name": "n", "plugins": [{}]}"#, "\"\""),
        (r#"{"cniVersion": "1.0.0", "name": "n", "type": "../sh"}"#, "../sh"),
    ] {
        let problem = NetworkList::parse(text).unwrap_err();
        assert!(problem.contains(word), "{text}: {problem}");
    }
}

#[test]
fn the_first_network_of_a_directory_counts() {
    let dir = tempfile::tempdir().unwrap();
    let nothing = NetworkList::load(dir.path()).unwrap_err().to_string();
    assert!(nothing.contains(".conflist"), "{nothing}");
    let network = |name: &str| format!(r#"{{"cniVersion": "1.0.0", "name": "{name}", "type": "ptp"}}"#);
    for (file, name) in [("20-b.conf", "b"), ("10-a.conflist", "a"), ("05-c.yaml", "c"), ("15-d.json", "d")] {
        fs::write(dir.path().join(file), network(name)).unwrap();
    }
    assert_eq!(NetworkList::load(dir.path()).unwrap().name, "a");
    fs::write(dir.path().join("00-broken.conf"), "{").unwrap();
    let broken = NetworkList::load(dir.path()).unwrap_err().to_string();
    assert!(broken.contains("00-broken.conf"), "{broken}");
}

#[test]
fn a_plugin_is_told_what_it_has_the_capability_for() {
    let chain = list(
        r#"{"cniVersion": "1.0.0", "name": "n", "plugins": [
            {"type": "a", "mtu": 1400}, {"type": "b", "capabilities": {"portMappings": true, "ipRanges": false}}]}"#,
    );
    let capabilities: Map<String, Value> =
        serde_json::from_value(json!({"portMappings": [1], "ipRanges": [2]})).unwrap();
    let first = chain.given_to(&chain.plugins[0], &capabilities, None);
    assert_eq!(first, json!({"type": "a", "mtu": 1400, "name": "n", "cniVersion": "1.0.0"}));
    let second = chain.given_to(&chain.plugins[1], &capabilities, Some(&json!({"ips": []})));
    assert_eq!(second["runtimeConfig"], json!({"portMappings": [1]}));
    assert_eq!(second["prevResult"], json!({"ips": []}));
    assert!(chain.has_capability("portMappings") && !chain.has_capability("ipRanges"));
}

#[test]
fn the_first_address_of_version_4_is_the_pods() {
    let result = |result: Value| Attachment {
        network: list(r#"{"cniVersion": "1.0.0", "name": "n", "type": "ptp"}"#),
        netns: "/proc/1/ns/net".into(),
        args: String::new(),
        capabilities: Map::new(),
        result: Some(result),
    };
    let both = json!({"ips": [{"address": "fd00::5/64"}, {"address": "10.1.2.3/24"}]});
    assert_eq!(result(both).address(), "10.1.2.3".parse().ok());
    let six = json!({"ips": [{"address": "fd00::5/64"}]});
    assert_eq!(result(six).address(), "fd00::5".parse().ok());
    for none in [json!({}), json!({"ips": []}), json!({"ips": [{"address": "here"}]}), Value::Null] {
        assert_eq!(result(none).address(), None);
    }
}
