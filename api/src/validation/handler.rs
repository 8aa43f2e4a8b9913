//! Validation of probes and lifecycle hooks.

use k8s_openapi::api::core::v1::{
    ExecAction, HTTPGetAction, Lifecycle, LifecycleHandler, Probe, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{invalid_each, not_negative, one_of};
use crate::name;
use crate::status::Cause;

/// Which probe is looked at: the rules differ.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Liveness,
    Readiness,
    Startup,
}

/// What a probe or hook does; at most one member may be set.
#[derive(Default)]
struct Handlers<'a> {
    exec: Option<&'a ExecAction>,
    http_get: Option<&'a HTTPGetAction>,
    tcp_socket: Option<&'a TCPSocketAction>,
    grpc_port: Option<i32>,
    sleep_s: Option<i64>,
}

pub(super) fn probe(path: &str, probe: &Probe, purpose: Purpose, causes: &mut Vec<Cause>) {
    let handlers = Handlers {
        exec: probe.exec.as_ref(),
        http_get: probe.http_get.as_ref(),
        tcp_socket: probe.tcp_socket.as_ref(),
        grpc_port: probe.grpc.as_ref().map(|g| g.port),
        sleep_s: None,
    };
    check(path, &handlers, causes);
    for (field, value) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        not_negative(&format!("{path}.{field}"), value.unwrap_or(0), causes);
    }
    if let Some(seconds) = probe.termination_grace_period_seconds {
        let field = format!("{path}.terminationGracePeriodSeconds");
        if purpose == Purpose::Readiness {
            causes.push(Cause::invalid(field, seconds, "must not be set for readinessProbes"));
        } else if seconds <= 0 {
            causes.push(Cause::invalid(field, seconds, "must be greater than 0"));
        }
    }
    let successes = probe.success_threshold.unwrap_or(1);
    if purpose != Purpose::Readiness && successes != 1 {
        causes.push(Cause::invalid(format!("{path}.successThreshold"), successes, "must be 1"));
    }
}

pub(super) fn lifecycle(path: &str, lifecycle: &Lifecycle, grace_s: i64, causes: &mut Vec<Cause>) {
    for (hook, handler) in [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)] {
        if let Some(handler) = handler {
            lifecycle_handler(&format!("{path}.{hook}"), handler, grace_s, causes);
        }
    }
}

fn lifecycle_handler(path: &str, handler: &LifecycleHandler, grace_s: i64, causes: &mut Vec<Cause>) {
    if handler.tcp_socket.is_some() {
        // Kubernetes takes such a hook and then fails to run it; better to say so at once.
        causes.push(Cause::forbidden(format!("{path}.tcpSocket"), "is not supported as a lifecycle hook"));
        return;
    }
    let handlers = Handlers {
        exec: handler.exec.as_ref(),
        http_get: handler.http_get.as_ref(),
        sleep_s: handler.sleep.as_ref().map(|s| s.seconds),
        ..Handlers::default()
    };
    check(path, &handlers, causes);
    if let Some(seconds) = handlers.sleep_s
        && !(0..=grace_s).contains(&seconds)
    {
        let detail = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace_s})");
        causes.push(Cause::invalid(format!("{path}.sleep"), seconds, &detail));
    }
}

fn check(path: &str, handlers: &Handlers<'_>, causes: &mut Vec<Cause>) {
    let mut set: Vec<&str> = Vec::new();
    // The first handler is checked; each further one is one too many.
    let mut first = |name: &'static str, present: bool, causes: &mut Vec<Cause>| -> bool {
        if !present {
            return false;
        }
        set.push(name);
        if set.len() > 1 {
            causes
                .push(Cause::forbidden(format!("{path}.{name}"), "may not specify more than 1 handler type"));
        }
        set.len() == 1
    };
    if first("exec", handlers.exec.is_some(), causes)
        && handlers.exec.is_some_and(|e| e.command.as_ref().is_none_or(Vec::is_empty))
    {
        causes.push(Cause::required(format!("{path}.exec.command"), ""));
    }
    if first("httpGet", handlers.http_get.is_some(), causes)
        && let Some(get) = handlers.http_get
    {
        http_get(&format!("{path}.httpGet"), get, causes);
    }
    if first("tcpSocket", handlers.tcp_socket.is_some(), causes)
        && let Some(socket) = handlers.tcp_socket
    {
        port(&format!("{path}.tcpSocket.port"), &socket.port, causes);
    }
    if first("grpc", handlers.grpc_port.is_some(), causes)
        && let Some(number) = handlers.grpc_port
    {
        port(&format!("{path}.grpc.port"), &IntOrString::Int(number), causes);
    }
    first("sleep", handlers.sleep_s.is_some(), causes);
    if set.is_empty() {
        causes.push(Cause::required(path, "must specify a handler type"));
    }
}

fn http_get(path: &str, get: &HTTPGetAction, causes: &mut Vec<Cause>) {
    if get.path.as_deref().unwrap_or("").is_empty() {
        causes.push(Cause::required(format!("{path}.path"), ""));
    }
    port(&format!("{path}.port"), &get.port, causes);
    one_of(&format!("{path}.scheme"), get.scheme.as_deref().unwrap_or(""), &["HTTP", "HTTPS"], causes);
    for header in get.http_headers.iter().flatten() {
        let valid =
            !header.name.is_empty() && header.name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !valid {
            causes.push(Cause::invalid(
                format!("{path}.httpHeaders"),
                header.name.as_str(),
                "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')",
            ));
        }
    }
}

fn port(field: &str, port: &IntOrString, causes: &mut Vec<Cause>) {
    match port {
        IntOrString::Int(number) => {
            for message in name::port_number(i64::from(*number)) {
                causes.push(Cause::invalid(field, *number, &message));
            }
        }
        IntOrString::String(text) => invalid_each(field, text, name::port_name(text), causes),
    }
}
