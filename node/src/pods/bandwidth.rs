//! How fast a pod may send and receive, by its annotations (kubernetes.io, "network plugins", traffic shaping).

use api::Quantity;
use k8s_openapi::api::core::v1::Pod;

/// Towards the pod.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
/// From the pod.
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// What is taken for a mistake, in bits a second: the bounds of Kubernetes.
const LEAST: i64 = 1_000;
const MOST: i64 = 1_000_000_000_000_000;

/// Bits a second; none: as fast as it goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Bandwidth {
    pub(crate) ingress: Option<u64>,
    pub(crate) egress: Option<u64>,
}

impl Bandwidth {
    /// What the pod asks for; what it may not ask for, with the reason.
    pub(crate) fn of(pod: &Pod) -> Result<Self, String> {
        Ok(Self { ingress: read(pod, INGRESS)?, egress: read(pod, EGRESS)? })
    }
}

fn read(pod: &Pod, annotation: &str) -> Result<Option<u64>, String> {
    let text = pod.metadata.annotations.as_ref().and_then(|all| all.get(annotation));
    let Some(text) = text else { return Ok(None) };
    let refused = |why: &str| format!("annotation {annotation}: {text:?} {why}");
    let bits = Quantity::parse(text).map_err(|error| refused(&format!("is no quantity: {error}")))?.value();
    match bits {
        ..LEAST => Err(refused("is unreasonably small (< 1kbit)")),
        LEAST..=MOST => Ok(Some(bits.unsigned_abs())),
        _ => Err(refused("is unreasonably large (> 1Pbit)")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn of(annotations: &[(&str, &str)]) -> Result<Bandwidth, String> {
        let mut pod = Pod::default();
        let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        pod.metadata.annotations = Some(annotations.collect::<BTreeMap<_, _>>());
        Bandwidth::of(&pod)
    }

    #[test]
    fn each_direction_is_bounded_alone_and_mistakes_are_told() {
        assert_eq!(of(&[]), Ok(Bandwidth::default()));
        let both = Bandwidth { ingress: Some(10_000_000), egress: Some(1 << 20) };
        assert_eq!(of(&[(INGRESS, "10M"), (EGRESS, "1Mi")]), Ok(both));
        for (text, words) in [
            ("fast", "is no quantity"),
            ("10", "unreasonably small"),
            ("-1M", "unreasonably small"),
            ("2P", "unreasonably large"),
        ] {
            let why = of(&[(EGRESS, text)]).unwrap_err();
            assert!(why.contains(words) && why.contains(EGRESS) && why.contains(text), "{why}");
        }
    }
}
