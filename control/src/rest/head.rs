//! A request before its body is read, and what its path, its query and its headers say about the answer.

use std::time::Duration;

use api::Status;
use api::table::IncludeObject;
use http::header::USER_AGENT;
use http::{HeaderMap, Method};

use super::negotiate::{Form, Offer};
use super::path::{Document, Probe, Resource, Route};
use super::query::Query;
use super::respond::Style;
use super::verbs::Verb;
use crate::auth::Identity;

/// A request as far as it was understood before its body is read.
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) route: Route,
    pub(super) query: Query,
    pub(super) headers: HeaderMap,
    pub(super) identity: Identity,
}

impl Head {
    /// What may be read by anybody who can reach the port.
    pub(super) fn is_public(&self) -> bool {
        match &self.route {
            Route::Probe(probe, _) => *probe != Probe::Metrics,
            Route::Document(document) => *document == Document::Version,
            Route::Resource(_) | Route::Unknown => false,
        }
    }

    /// Verb and resource as metrics name them.
    pub(super) fn labels(&self) -> (&'static str, &'static str) {
        match &self.route {
            Route::Resource(resource) => {
                let verb = Verb::of(&self.method, resource, &self.query).map_or("other", Verb::as_str);
                (verb, resource.kind.plural)
            }
            _ => ("get", ""),
        }
    }

    pub(super) fn style(&self, verb: Verb, resource: &Resource) -> Result<Style, Status> {
        let offer = match api::protobuf::is_known(&resource.kind.api_version(), resource.kind.kind) {
            true => Offer::Any,
            false => Offer::Text,
        };
        let form = match verb {
            Verb::Watch => Form::of_stream(&self.headers, offer)?,
            _ => Form::of(&self.headers, offer)?,
        };
        let include = self.query.get("includeObject").unwrap_or_default();
        let include = IncludeObject::parse(include)
            .ok_or_else(|| Status::bad_request(format!("unrecognized includeObject value: {include:?}")))?;
        Ok(Style { form, include, pretty: self.pretty() })
    }

    /// Whether the answer is laid out for people: on demand, and for the tools that people use by hand.
    pub(super) fn pretty(&self) -> bool {
        if self.query.has("pretty") {
            return self.query.flag("pretty");
        }
        let agent = self.user_agent();
        agent.starts_with("curl") || agent.starts_with("Wget")
    }

    pub(super) fn user_agent(&self) -> &str {
        self.headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default()
    }

    /// The client's own bound, as in `?timeout=10s`.
    pub(super) fn timeout(&self) -> Option<Duration> {
        let text = self.query.get("timeout")?;
        let (number, unit) = text.split_at(text.find(|letter: char| !letter.is_ascii_digit())?);
        let number: u64 = number.parse().ok()?;
        match unit {
            "s" => Some(Duration::from_secs(number)),
            "ms" => Some(Duration::from_millis(number)),
            "m" | "m0s" => Some(Duration::from_secs(number.saturating_mul(60))),
            _ => None,
        }
        .filter(|time| !time.is_zero())
    }
}
