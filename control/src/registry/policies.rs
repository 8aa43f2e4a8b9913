//! What users configure about writes: admission webhooks and ValidatingAdmissionPolicies.
//!
//! Owns this replica's copies of the configurations, the order in which they are asked, and what their answers
//! do to a write. Promises that nothing is asked where nothing is configured, that every webhook's answer is
//! waited for no longer than it says (30 s at most), and that one that fails counts as its `failurePolicy`
//! says. What configures webhooks is never sent to them.

use std::borrow::Cow;
use std::sync::Arc;

use api::admission::{self, Request, policy, review};
use api::{Kind, Status, object};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{ListOptions, Object, Part, Registry, Rules, Target, WriteOptions};
use crate::object_store::SharedStore;
use crate::reflector::{Reflector, no_index};

const GROUP: &str = "admissionregistration.k8s.io";

/// This replica's copies of what is configured. A kind that is not served has none.
#[derive(Debug)]
pub(super) struct Policies {
    mutating: Option<Reflector<SharedStore>>,
    validating: Option<Reflector<SharedStore>>,
    policies: Option<Reflector<SharedStore>>,
    bindings: Option<Reflector<SharedStore>>,
}

/// A write as policies see it, but for the objects.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) target: Target<'a>,
    pub(super) operation: &'static str,
    pub(super) dry_run: bool,
    pub(super) asker: Option<&'a Value>,
}

impl Policies {
    pub(super) fn start(store: &SharedStore, tasks: &TaskTracker, cancel: &CancellationToken) -> Self {
        let follow = |kind: &str| {
            let kind = api::kinds::by_kind(GROUP, "v1", kind)?;
            let reflector = Reflector::new(store.clone(), kind, no_index);
            tasks.spawn(reflector.clone().run(cancel.clone()));
            Some(reflector)
        };
        Self {
            mutating: follow("MutatingWebhookConfiguration"),
            validating: follow("ValidatingWebhookConfiguration"),
            policies: follow("ValidatingAdmissionPolicy"),
            bindings: follow("ValidatingAdmissionPolicyBinding"),
        }
    }

    fn is_empty(&self) -> bool {
        [&self.mutating, &self.validating, &self.bindings].into_iter().flatten().all(|copies| !copies.any())
    }
}

/// Every object of a copy, by name.
fn sorted(copies: Option<&Reflector<SharedStore>>) -> Vec<Arc<Object>> {
    let mut all = copies.map(Reflector::list).unwrap_or_default();
    all.sort_by(|left, right| left.name().cmp(right.name()));
    all
}

/// The objects that a request speaks of, and where.
struct Subject<'a> {
    asked: Asked<'a>,
    object: &'a Value,
    old: &'a Value,
    namespace: &'a Value,
    user: &'a Value,
}

/// The objects of a request as somebody is to see them: in the version of this kind.
struct View<'a> {
    kind: &'static Kind,
    object: Cow<'a, Value>,
    old: Cow<'a, Value>,
}

impl<'a> Subject<'a> {
    /// The objects as the request has them.
    fn as_they_are(&self) -> View<'a> {
        View {
            kind: self.asked.target.kind,
            object: Cow::Borrowed(self.object),
            old: Cow::Borrowed(self.old),
        }
    }

    fn request<'b>(&'b self, view: &'b View<'_>) -> Request<'b> {
        let Target { kind, namespace, name, part } = self.asked.target;
        Request {
            kind: view.kind,
            requested: kind,
            subresource: match part {
                Part::Main => "",
                Part::Status => "status",
                Part::Approval => "approval",
                Part::Finalize => "finalize",
                Part::EphemeralContainers => "ephemeralcontainers",
            },
            operation: self.asked.operation,
            namespace,
            name,
            object: &view.object,
            old: &view.old,
            dry_run: self.asked.dry_run,
            user: self.user,
            namespace_object: self.namespace,
        }
    }
}

fn user(asker: Option<&Value>) -> Value {
    asker.cloned().unwrap_or_else(|| json!({"username": "system:barque", "groups": ["system:masters"]}))
}

impl Registry {
    /// Whether anything is configured that could ask to be heard about writes.
    pub(super) fn has_policies(&self) -> bool {
        !self.policies().is_empty()
    }

    /// The namespace that a target is in, as this replica has it; null outside namespaces.
    pub(super) async fn namespace_of(&self, target: Target<'_>) -> Result<Value, Status> {
        let kind = api::kinds::by_kind("", "v1", "Namespace").expect("the table of kinds has Namespace");
        if !target.kind.namespaced {
            return Ok(Value::Null);
        }
        let found = self.get_local(kind, "", target.namespace).await?;
        Ok(found.map_or(Value::Null, |namespace| namespace.value().clone()))
    }

    /// Lets mutating webhooks change an object; gives what its writer should be told.
    pub(super) async fn mutate(
        &self,
        asked: Asked<'_>,
        rules: &Rules,
        old: &Value,
        object: &mut Value,
    ) -> Result<Vec<String>, Status> {
        let configurations = sorted(self.policies().mutating.as_ref());
        let mut warnings = Vec::new();
        if configurations.is_empty() {
            return Ok(warnings);
        }
        let (namespace, user) = (self.namespace_of(asked.target).await?, user(asked.asker));
        let webhooks: Vec<&Value> = configurations.iter().flat_map(|own| webhooks(own.value())).collect();
        // Those that want to see what came after them are asked once more.
        let mut changed_after = vec![false; webhooks.len()];
        for round in 0..2 {
            for (index, webhook) in webhooks.iter().enumerate() {
                let again = webhook["reinvocationPolicy"] == "IfNeeded" && changed_after[index];
                if round > 0 && !again {
                    continue;
                }
                let before = object.clone();
                let subject = Subject { asked, object: &before, old, namespace: &namespace, user: &user };
                let Some((verdict, view)) = self.ask(webhook, &subject, true).await? else { continue };
                warnings.extend(verdict.warnings);
                let Some(patch) = verdict.patch else { continue };
                let patched = api::patch::json::apply(&view.object, &patch).map_err(|error| {
                    let name = webhook["name"].as_str().unwrap_or_default();
                    Status::internal(&format!(
                        "webhook {name:?} answered with a bad patch: {}",
                        error.message()
                    ))
                })?;
                *object = match is_same(view.kind, asked.target.kind) {
                    true => patched,
                    false => {
                        let seen_by = self.rules(view.kind)?;
                        self.converter().convert(&seen_by, asked.target.kind, &patched).await?
                    }
                };
                // What it did not touch keeps its form; what it added is checked like a client's words.
                rules.check_fields(object, &WriteOptions::default())?;
                rules.default(object);
                if *object != before {
                    changed_after.iter_mut().take(index).for_each(|changed| *changed = true);
                }
            }
        }
        Ok(warnings)
    }

    /// Asks validating webhooks and policies about a write; gives what its writer should be told.
    pub(super) async fn consult(
        &self,
        asked: Asked<'_>,
        old: &Value,
        object: &Value,
    ) -> Result<Vec<String>, Status> {
        if !self.has_policies() {
            return Ok(Vec::new());
        }
        let (namespace, user) = (self.namespace_of(asked.target).await?, user(asked.asker));
        let subject = Subject { asked, object, old, namespace: &namespace, user: &user };
        let mut warnings = self.policies_say(&subject).await?;
        let configurations = sorted(self.policies().validating.as_ref());
        let webhooks = configurations.iter().flat_map(|own| webhooks(own.value()));
        for verdict in join_all(webhooks.map(|webhook| self.ask(webhook, &subject, false))).await {
            warnings.extend(verdict?.map(|(verdict, _)| verdict.warnings).unwrap_or_default());
        }
        Ok(warnings)
    }

    async fn policies_say(&self, subject: &Subject<'_>) -> Result<Vec<String>, Status> {
        let (policies, bindings) =
            (sorted(self.policies().policies.as_ref()), sorted(self.policies().bindings.as_ref()));
        let mut warnings = Vec::new();
        // What configures policies is not for policies to refuse.
        if subject.asked.target.kind.group == GROUP {
            return Ok(warnings);
        }
        for own in &policies {
            let constraints = &own.value()["spec"]["matchConstraints"];
            let Some(view) = self.view(constraints, "resourceRules", subject).await? else { continue };
            let request = subject.request(&view);
            if !policy::is_about(own.value(), &request) {
                continue;
            }
            for binding in
                bindings.iter().filter(|binding| policy::binds(binding.value(), own.value(), &request))
            {
                for params in self.params(own.value(), binding.value(), &request).await? {
                    for finding in policy::evaluate(own.value(), binding.value(), &params, &request) {
                        let does = |action: &str| finding.actions.iter().any(|own| own == action);
                        if does("Audit") {
                            tracing::info!(target: "audit", message = finding.message, "a policy's finding");
                        }
                        if does("Deny") {
                            let name = request.name;
                            return Err(denied(request.kind, name, finding.code, &finding.message));
                        }
                        if does("Warn") {
                            let said = finding.message.replacen("denied request: ", "violation: ", 1);
                            warnings.push(said);
                        }
                    }
                }
            }
        }
        Ok(warnings)
    }

    /// The parameters of a binding; one null if the policy takes none.
    async fn params(
        &self,
        policy: &Value,
        binding: &Value,
        request: &Request<'_>,
    ) -> Result<Vec<Value>, Status> {
        let kind = &policy["spec"]["paramKind"];
        let Some(reference) = policy::param_ref(binding).filter(|_| !kind.is_null()) else {
            return Ok(vec![Value::Null]);
        };
        let api_version = kind["apiVersion"].as_str().unwrap_or_default();
        let (group, _) = api::kinds::split_api_version(api_version);
        let wanted = kind["kind"].as_str().unwrap_or_default();
        let kinds = self.kinds().current();
        let missing = |why: String| {
            let message = format!("failed to configure binding: {why}");
            match policy["spec"]["failurePolicy"] == "Ignore" {
                true => Ok(Vec::new()),
                false => Err(denied(request.kind, request.name, 403, &message)),
            }
        };
        let Some(kind) = kinds.by_group_kind(group, wanted) else {
            return missing(format!(
                "failed to find resource referenced by paramKind: '{api_version}, Kind={wanted}'"
            ));
        };
        let own = reference["namespace"].as_str().unwrap_or_default();
        let namespace = if own.is_empty() { request.namespace } else { own };
        let options = ListOptions { resource_version: Some("0".to_owned()), ..ListOptions::default() };
        let listed = self.list(kind, kind.namespaced.then_some(namespace), &options).await?;
        let name = reference["name"].as_str().unwrap_or_default();
        let selector = serde_json::from_value(reference["selector"].clone()).ok();
        let selector = api::LabelSelector::from_typed(selector.as_ref()).unwrap_or_default();
        let is_meant = |object: &Value| match name {
            "" => selector.matches_object(object),
            name => object::name(object) == name,
        };
        let found: Vec<Value> =
            listed.items.iter().map(|item| item.value()).filter(|value| is_meant(value)).cloned().collect();
        match found.is_empty() {
            true if reference["parameterNotFoundAction"] == "Allow" => Ok(Vec::new()),
            true => {
                missing("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned())
            }
            false => Ok(found),
        }
    }

    /// The objects of a request in the version that rules name: the request's own, or else, unless exactly that is
    /// wanted, another version of the same kind. `None`: the rules name none.
    async fn view<'a>(
        &self,
        constraints: &Value,
        rules: &str,
        subject: &Subject<'a>,
    ) -> Result<Option<View<'a>>, Status> {
        let own = subject.as_they_are();
        if admission::names(constraints, rules, &subject.request(&own)) {
            return Ok(Some(own));
        }
        if constraints["matchPolicy"] == "Exact" {
            return Ok(None);
        }
        let kind = subject.asked.target.kind;
        for kind_seen in self.kinds().current().other_versions(kind) {
            let request = Request { kind: kind_seen, ..subject.request(&own) };
            if !admission::names(constraints, rules, &request) {
                continue;
            }
            let from = self.rules(kind)?;
            let mut seen = [subject.object, subject.old].map(Cow::Borrowed);
            for object in seen.iter_mut().filter(|object| !object.is_null()) {
                *object = Cow::Owned(self.converter().convert(&from, kind_seen, object).await?);
            }
            let [object, old] = seen;
            return Ok(Some(View { kind: kind_seen, object, old }));
        }
        Ok(None)
    }

    /// Asks one webhook, if the request is for it; gives what it says, and what it was shown.
    async fn ask<'a>(
        &self,
        webhook: &Value,
        subject: &Subject<'a>,
        may_patch: bool,
    ) -> Result<Option<(review::Verdict, View<'a>)>, Status> {
        let name = webhook["name"].as_str().unwrap_or_default();
        let ignores = webhook["failurePolicy"] == "Ignore";
        let failed = |why: &str| {
            if ignores {
                tracing::warn!(webhook = name, why, "a webhook failed and is ignored, as it says");
                return Ok(None);
            }
            Err(Status::internal(&format!("failed calling webhook {name:?}: {why}")))
        };
        let view = match self.view(webhook, "rules", subject).await {
            Ok(Some(view)) => view,
            Ok(None) => return Ok(None),
            Err(status) => return failed(status.message()),
        };
        let request = subject.request(&view);
        match admission::meets(webhook, &request) {
            Ok(false) => return Ok(None),
            Ok(true) => {}
            Err(why) => return failed(&why),
        }
        let has_effects = !matches!(webhook["sideEffects"].as_str(), Some("None" | "NoneOnDryRun"));
        if request.dry_run && has_effects {
            return Err(Status::bad_request(format!("admission webhook {name:?} does not support dry run")));
        }
        let uid = super::create::new_uid();
        let body = review::write(&request, &uid).to_string();
        let answer = self.webhooks().call(&webhook["clientConfig"], webhook["timeoutSeconds"].as_u64(), body);
        let verdict = match answer.await {
            Ok(answer) => review::read(&answer, &uid, may_patch),
            Err(error) => Err(error.to_string()),
        };
        let verdict = match verdict {
            Ok(verdict) => verdict,
            Err(why) => return failed(&why),
        };
        for (key, text) in &verdict.annotations {
            tracing::info!(target: "audit", webhook = name, key, text, "a webhook's note");
        }
        if let Some((code, message)) = &verdict.denied {
            let text = match message.as_str() {
                "" => format!("admission webhook {name:?} denied the request without explanation"),
                message => format!("admission webhook {name:?} denied the request: {message}"),
            };
            return Err(Status::denied(*code, text));
        }
        Ok(Some((verdict, view)))
    }
}

/// Whether two rows are the same version of a kind.
fn is_same(one: &Kind, other: &Kind) -> bool {
    (one.group, one.version, one.kind) == (other.group, other.version, other.kind)
}

fn webhooks(configuration: &Value) -> impl Iterator<Item = &Value> {
    configuration["webhooks"].as_array().into_iter().flatten()
}

fn denied(kind: &Kind, name: &str, code: u16, message: &str) -> Status {
    match code {
        403 | 422 => {
            let text = format!("{} {name:?} is forbidden: {message}", kind.group_resource());
            Status::denied(code, text)
        }
        code => Status::denied(code, message),
    }
}
