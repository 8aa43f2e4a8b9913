//! ValidatingAdmissionPolicy: expressions about requests, bound to namespaces and parameters.

use serde_json::Value;

use super::{Request, Seen, VARIABLES, chosen, conditions_hold};
use crate::cel::{self, Budget, Expression};
use crate::object;

/// What a policy says about a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// `Deny`, `Warn`, `Audit`: what its binding does.
    pub actions: Vec<String>,
    /// Why.
    pub message: String,
    /// The code of a refusal.
    pub code: u16,
}

/// Whether a policy speaks of the request at all.
pub fn is_about(policy: &Value, request: &Request<'_>) -> bool {
    chosen(&policy["spec"]["matchConstraints"], "resourceRules", request)
}

/// Whether a binding of it does, too.
pub fn binds(binding: &Value, policy: &Value, request: &Request<'_>) -> bool {
    let resources = &binding["spec"]["matchResources"];
    if binding["spec"]["policyName"] != object::name(policy) {
        return false;
    }
    // A binding that names no rules narrows by its selectors only.
    let mut narrowed = resources.clone();
    if narrowed["resourceRules"].as_array().is_none_or(Vec::is_empty) && !narrowed.is_null() {
        narrowed["resourceRules"] = policy["spec"]["matchConstraints"]["resourceRules"].clone();
    }
    narrowed.is_null() || chosen(&narrowed, "resourceRules", request)
}

/// Which objects are the parameters of a binding: namespace and name, or a selector.
pub fn param_ref(binding: &Value) -> Option<&Value> {
    Some(&binding["spec"]["paramRef"]).filter(|reference| !reference.is_null())
}

/// What the policy finds, with these parameters (null: it takes none).
pub fn evaluate(policy: &Value, binding: &Value, params: &Value, request: &Request<'_>) -> Vec<Finding> {
    let spec = &policy["spec"];
    let fails = spec["failurePolicy"] != "Ignore";
    let mut run = Run { policy, binding, budget: Budget::default(), findings: Vec::new(), fails };
    match conditions_hold(&spec["matchConditions"], request) {
        Ok(false) => return Vec::new(),
        Err(why) => {
            run.failed(&why);
            return run.findings;
        }
        Ok(true) => {}
    }
    let (seen, params) = (Seen::of(request), cel::from_json(params));
    let mut names: Vec<&str> = VARIABLES.to_vec();
    names.extend(["params", "variables"]);
    let mut computed: Vec<(String, cel::Value)> = Vec::new();
    for variable in spec["variables"].as_array().into_iter().flatten() {
        let text = |field: &str| variable[field].as_str().unwrap_or_default().to_owned();
        let so_far = cel::map(computed.iter().cloned());
        let mut known = seen.variables();
        known.extend([("params", &params), ("variables", &so_far)]);
        let value = Expression::compile(&text("expression"), &names)
            .and_then(|expression| expression.evaluate(&known, &mut run.budget));
        // One that fails is missing; only who uses it fails.
        if let Ok(value) = value {
            computed.push((text("name"), value));
        }
    }
    let variables = cel::map(computed.into_iter());
    let mut known = seen.variables();
    known.extend([("params", &params), ("variables", &variables)]);
    for validation in spec["validations"].as_array().into_iter().flatten() {
        run.validation(validation, &names, &known);
    }
    run.findings
}

struct Run<'a> {
    policy: &'a Value,
    binding: &'a Value,
    budget: Budget,
    findings: Vec<Finding>,
    fails: bool,
}

impl Run<'_> {
    fn validation(&mut self, validation: &Value, names: &[&str], known: &[cel::Variable<'_>]) {
        let source = validation["expression"].as_str().unwrap_or_default();
        let outcome = Expression::compile(source, names)
            .and_then(|expression| expression.is_true(known, &mut self.budget));
        match outcome {
            Ok(true) => {}
            Ok(false) => {
                let own = validation["message"].as_str().map(str::to_owned);
                let said = validation["messageExpression"].as_str().and_then(|text| {
                    let expression = Expression::compile(text, names).ok()?;
                    expression.text(known, &mut self.budget).ok()?
                });
                let said = said.filter(|text| !text.trim().is_empty());
                let message = said.or(own).unwrap_or_else(|| format!("failed expression: {}", source.trim()));
                let code = match validation["reason"].as_str() {
                    Some("Unauthorized") => 401,
                    Some("Forbidden") => 403,
                    Some("RequestEntityTooLarge") => 413,
                    _ => 422,
                };
                self.find(&message, code);
            }
            Err(error) => self.failed(&format!("expression '{}' resulted in error: {error}", source.trim())),
        }
    }

    fn failed(&mut self, why: &str) {
        if self.fails {
            self.find(why, 422);
        }
    }

    fn find(&mut self, message: &str, code: u16) {
        let actions = self.binding["spec"]["validationActions"].as_array().into_iter().flatten();
        let actions = actions.filter_map(Value::as_str).map(str::to_owned).collect();
        let (policy, binding) = (object::name(self.policy), object::name(self.binding));
        let message = format!(
            "ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: {message}"
        );
        self.findings.push(Finding { actions, message, code });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::by_kind;

    fn policy() -> Value {
        json!({"metadata": {"name": "few"}, "spec": {
            "matchConstraints": {"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"],
                "operations": ["CREATE", "UPDATE"], "resources": ["deployments"]}]},
            "variables": [{"name": "count", "expression": "object.spec.replicas"}],
            "validations": [{"expression": "variables.count <= params.most",
                "messageExpression": "'at most ' + string(params.most)"}]}})
    }

    #[test]
    fn a_policy_is_about_what_it_names_and_finds_what_it_says() {
        let kind = by_kind("apps", "v1", "Deployment").expect("a kind");
        let (object, namespace) =
            (json!({"spec": {"replicas": 6}}), json!({"metadata": {"labels": {"env": "test"}}}));
        let request = Request {
            kind,
            requested: kind,
            subresource: "",
            operation: "CREATE",
            namespace: "d",
            name: "x",
            object: &object,
            old: &Value::Null,
            dry_run: false,
            user: &json!({"username": "u"}),
            namespace_object: &namespace,
        };
        let (policy, mut binding) = (
            policy(),
            json!({"metadata": {"name": "b"}, "spec": {"policyName": "few",
            "validationActions": ["Deny"], "matchResources": {"namespaceSelector": {"matchLabels": {"env": "test"}}}}}),
        );
        assert!(is_about(&policy, &request) && binds(&binding, &policy, &request));
        let found = evaluate(&policy, &binding, &json!({"most": 5}), &request);
        assert_eq!(
            found,
            [Finding {
                actions: vec!["Deny".to_owned()],
                code: 422,
                message: "ValidatingAdmissionPolicy 'few' with binding 'b' denied request: at most 5"
                    .to_owned()
            }]
        );
        assert!(evaluate(&policy, &binding, &json!({"most": 6}), &request).is_empty());
        // Without what it needs it fails, and so refuses.
        assert_eq!(evaluate(&policy, &binding, &Value::Null, &request).len(), 1);
        binding["spec"]["matchResources"]["namespaceSelector"]["matchLabels"]["env"] = json!("prod");
        assert!(!binds(&binding, &policy, &request));
        let status = Request { subresource: "status", ..request.clone() };
        assert!(!is_about(&policy, &status));
    }
}
