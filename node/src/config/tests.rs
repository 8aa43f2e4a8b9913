//! What a configuration may say, and how mistakes are told.

use super::*;

const MINIMAL: &str =
    "nodeName: node1\ncontrolAddresses: [10.0.0.1:6443]\ninternalIp: 10.0.0.4\njoinToken: t\n";

#[test]
fn fills_in_defaults() {
    let config = Config::parse(MINIMAL).unwrap();
    assert_eq!(config.heartbeat_interval, Duration::from_millis(500));
    assert_eq!(config.max_pods, 110);
    assert_eq!(config.restart_backoff, BackoffConfig::default());
    assert_eq!(config.tls_files().key, PathBuf::from("/var/lib/barque/node/pki/node.key"));
}

#[test]
fn survives_its_own_yaml() {
    let mut config = Config::parse(MINIMAL).unwrap();
    config.taints = vec![Taint { key: "a".into(), value: String::new(), effect: "NoExecute".into() }];
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(Config::parse(&text).unwrap(), config);
}

#[test]
fn refuses_unknown_keys_and_bad_values() {
    for (extra, word) in [
        ("nodename: x\n", "nodename"),
        ("heartbeatInterval: 5\n", "5"),
        ("heartbeatInterval: 1ms\n", "heartbeatInterval"),
        ("bridgeName: a-name-that-is-too-long\n", "bridgeName"),
        ("podNetwork: {vxlanId: 0}\n", "podNetwork.vxlanId"),
        ("podNetwork: {vxlanPort: 0}\n", "podNetwork.vxlanPort"),
        ("taints: [{key: a, effect: Never}]\n", "Never"),
        ("dataDir: here\n", "dataDir"),
        ("maxPods: 0\n", "maxPods"),
        ("userNamespaces: {idsPerPod: 1000}\n", "userNamespaces.idsPerPod"),
        ("userNamespaces: {firstId: 4294901760}\n", "userNamespaces.firstId"),
        ("evictionHard: {memory.free: 1Gi}\n", "memory.free"),
        ("staticPodPath: manifests\n", "staticPodPath"),
        ("shutdownGracePeriodCriticalPods: 1s\n", "shutdownGracePeriodCriticalPods"),
        ("containerRuntimeEndpoint: /run/c.sock\n", "unix:///"),
        ("images: {proxy: {httpsProxy: 'proxy.lab:3128'}}\n", "images.proxy.httpsProxy"),
        ("images: {maxParallelPulls: 0}\n", "maxParallelPulls"),
        ("images: {gcLowThresholdPercent: 90}\n", "gcLowThresholdPercent"),
        ("images: {registries: {'http://r.lab': {}}}\n", "without http://"),
        ("images: {registries: {r.lab: {mirrors: ['a b']}}}\n", "a b"),
    ] {
        let error = Config::parse(&format!("{MINIMAL}{extra}")).unwrap_err().to_string();
        assert!(error.contains(word), "{extra}: {error}");
    }
    let error = Config::parse("nodeName: Node_1\ncontrolAddresses: []\ninternalIp: 1.1.1.1\n").unwrap_err();
    assert!(error.to_string().contains("nodeName"), "{error}");
}

#[test]
fn reads_durations() {
    assert_eq!(duration_text::parse("5m"), Some(Duration::from_secs(300)));
    assert_eq!(duration_text::parse("5"), None);
    assert_eq!(duration_text::parse("5d"), None);
    assert_eq!(duration_text::parse(""), None);
}
