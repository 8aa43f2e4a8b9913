//! Taints and tolerations.

use k8s_openapi::api::core::v1 as core;

/// What a taint does to a pod that does not tolerate it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// The pod is not placed here.
    NoSchedule,
    /// The pod is placed here only when nothing better is there.
    PreferNoSchedule,
    /// The pod is not placed here, and removed if it runs here.
    NoExecute,
}

impl Effect {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "NoSchedule" => Some(Self::NoSchedule),
            "PreferNoSchedule" => Some(Self::PreferNoSchedule),
            "NoExecute" => Some(Self::NoExecute),
            _ => None,
        }
    }
}

/// A node's taint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// Value; empty when there is none.
    pub value: String,
    /// Effect.
    pub effect: Effect,
}

impl Taint {
    /// Reads a taint; `None` for an effect that no rule knows.
    pub fn new(taint: &core::Taint) -> Option<Self> {
        Some(Self {
            key: taint.key.clone(),
            value: taint.value.clone().unwrap_or_default(),
            effect: Effect::parse(&taint.effect)?,
        })
    }
}

/// A pod's toleration.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Toleration {
    key: String,
    /// `None`: any value (operator `Exists`).
    value: Option<String>,
    /// `None`: every effect.
    effect: Option<Effect>,
    /// How long a `NoExecute` taint is borne; `None`: for ever.
    pub seconds: Option<i64>,
}

impl Toleration {
    /// Reads a toleration; `None` when its effect or operator is unknown, so that it tolerates nothing.
    pub fn new(toleration: &core::Toleration) -> Option<Self> {
        let effect = match toleration.effect.as_deref() {
            None | Some("") => None,
            Some(text) => Some(Effect::parse(text)?),
        };
        let value = match toleration.operator.as_deref() {
            None | Some("" | "Equal") => Some(toleration.value.clone().unwrap_or_default()),
            Some("Exists") => None,
            Some(_) => return None,
        };
        Some(Self {
            key: toleration.key.clone().unwrap_or_default(),
            value,
            effect,
            seconds: toleration.toleration_seconds,
        })
    }

    /// Whether the pod bears this taint.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.effect.is_none_or(|effect| effect == taint.effect)
            && (self.key.is_empty() || self.key == taint.key)
            && self.value.as_ref().is_none_or(|value| *value == taint.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toleration(key: &str, operator: &str, value: &str, effect: &str) -> Option<Toleration> {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Toleration::new(&core::Toleration {
            key: text(key),
            operator: text(operator),
            value: text(value),
            effect: text(effect),
            toleration_seconds: None,
        })
    }

    #[test]
    fn tolerations_match_as_kubernetes_matches_them() {
        let taint = Taint { key: "dedicated".into(), value: "gpu".into(), effect: Effect::NoSchedule };
        for (key, operator, value, effect, expected) in [
            ("dedicated", "Equal", "gpu", "NoSchedule", true),
            ("dedicated", "", "gpu", "", true),
            ("dedicated", "Equal", "cpu", "NoSchedule", false),
            ("dedicated", "Exists", "", "NoSchedule", true),
            ("dedicated", "Exists", "", "NoExecute", false),
            ("", "Exists", "", "", true),
            ("other", "Exists", "", "", false),
        ] {
            let found = toleration(key, operator, value, effect).is_some_and(|t| t.tolerates(&taint));
            assert_eq!(found, expected, "{key} {operator} {value} {effect}");
        }
        assert_eq!(toleration("a", "Sometimes", "", ""), None);
    }
}
