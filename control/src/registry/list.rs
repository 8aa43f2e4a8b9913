//! Lists: selectors, pages, and how fresh they are.

use std::sync::Arc;

use api::crd::CustomKind;
use api::{FieldSelector, Kind, LabelSelector, Status};
use bytes::Bytes;

use super::continue_token::ContinueToken;
use super::{ListOptions, Object, Registry, Rules, VersionMatch, error, keys};
use crate::object_store::{Consistency, Error, ListRequest, Listing, ObjectStore};

/// How many keys are read at once when a selector drops some of them.
const SELECTED_PAGE_ITEMS: usize = 500;

/// What a list gave.
#[derive(Debug, Clone)]
pub struct ObjectList {
    /// The kind of the items.
    pub kind: &'static Kind,
    /// Its rules, if a definition made them.
    pub(crate) custom: Option<Arc<CustomKind>>,
    /// In key order.
    pub items: Vec<Arc<Object>>,
    /// The revision that all were read at: the list's resource version.
    pub revision: u64,
    /// Where the next page begins, if there is one.
    pub continue_token: Option<String>,
    /// How many follow after this page, when that is known.
    pub remaining: Option<u64>,
}

/// Both selectors of a request.
#[derive(Debug, Clone, Default)]
pub(super) struct Selection {
    labels: LabelSelector,
    fields: FieldSelector,
    custom: Option<Arc<CustomKind>>,
}

impl Selection {
    pub(super) fn new(rules: &Rules, labels: &LabelSelector, fields: &FieldSelector) -> Result<Self, Status> {
        let custom = rules.custom().cloned();
        match &custom {
            None => fields.check(rules.kind())?,
            Some(custom) => fields.check_custom(custom)?,
        }
        Ok(Self { labels: labels.clone(), fields: fields.clone(), custom })
    }

    pub(super) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    pub(super) fn matches(&self, object: &Object) -> bool {
        (self.labels.is_everything() || self.labels.matches(&object.labels()))
            && (self.fields.is_everything()
                || match &self.custom {
                    None => self.fields.matches(object.kind(), object.value()),
                    Some(custom) => self.fields.matches_custom(custom, object.value()),
                })
    }
}

/// At which revision, or how fresh, a list is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Freshness {
    Newest,
    Local,
    NotOlderThan(u64),
    Exact(u64),
}

/// Why a page was not read.
enum Failure {
    Store(Error),
    /// Its objects could not be shown.
    Status(Status),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// A list as asked, selectors aside.
struct Pages {
    rules: Rules,
    prefix: Bytes,
    after: Option<Bytes>,
    freshness: Freshness,
    limit: Option<usize>,
}

impl Registry {
    /// Lists the objects of a kind, in one namespace or in all.
    pub async fn list(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        options: &ListOptions,
    ) -> Result<ObjectList, Status> {
        let rules = self.rules(kind)?;
        let selection = Selection::new(&rules, &options.labels, &options.fields)?;
        let prefix = keys::prefix(kind, namespace);
        let mut freshness = freshness(options)?;
        let mut after = None;
        let continued = options.continue_token.is_some();
        if let Some(text) = &options.continue_token {
            let token = ContinueToken::decode(text, &prefix)?;
            freshness = Freshness::Exact(token.revision);
            after = Some(token.after);
        }
        if let (Some(name), Some(namespace), None) =
            (options.fields.required("metadata.name"), single(kind, namespace), &after)
            && !matches!(freshness, Freshness::Exact(_))
        {
            return self.list_named(&rules, namespace, name, &selection, freshness).await;
        }
        let pages = Pages { rules, prefix, after, freshness, limit: options.limit };
        self.list_pages(pages, &selection).await.map_err(|failure| match failure {
            Failure::Store(error) => list_error(error, continued),
            Failure::Status(status) => status,
        })
    }

    /// A list that can hold one object at most is a read of that one.
    async fn list_named(
        &self,
        rules: &Rules,
        namespace: &str,
        name: &str,
        selection: &Selection,
        freshness: Freshness,
    ) -> Result<ObjectList, Status> {
        let kind = rules.kind();
        let key = keys::object(kind, namespace, name);
        let consistency = match freshness {
            Freshness::Local => Consistency::Serializable,
            _ => Consistency::Linearizable,
        };
        let (stored, revision) = self.store().get(key, consistency).await.map_err(error::from_store)?;
        let objects = self.converter().open(rules, stored.into_iter().collect()).await?;
        let items = objects.into_iter().filter(|object| selection.matches(object)).map(Arc::new).collect();
        let custom = rules.custom().cloned();
        Ok(ObjectList { kind, custom, items, revision, continue_token: None, remaining: None })
    }

    async fn list_pages(&self, pages: Pages, selection: &Selection) -> Result<ObjectList, Failure> {
        let Pages { rules, prefix, after, freshness, limit } = pages;
        let (kind, custom) = (rules.kind(), rules.custom().cloned());
        let everything = selection.is_everything();
        let page_items = match (everything, limit) {
            (true, limit) => limit,
            (false, Some(limit)) => Some(limit.max(SELECTED_PAGE_ITEMS)),
            (false, None) => None,
        };
        let mut request = ListRequest {
            prefix: prefix.clone(),
            after,
            limit: page_items,
            revision: None,
            consistency: Consistency::Linearizable,
        };
        let mut listing = self.first_page(&mut request, freshness).await?;
        let revision = listing.revision;
        let mut items = Vec::new();
        loop {
            let mut more = listing.remaining > 0;
            let mut last_key = None;
            for object in self.converter().open(&rules, listing.items).await? {
                if limit.is_some_and(|limit| items.len() >= limit) {
                    more = true;
                    break;
                }
                last_key = Some(object.key().clone());
                if everything || selection.matches(&object) {
                    items.push(Arc::new(object));
                }
            }
            let full = limit.is_some_and(|limit| items.len() >= limit);
            let Some(last_key) = last_key.filter(|_| more) else {
                return Ok(ObjectList {
                    kind,
                    custom,
                    items,
                    revision,
                    continue_token: None,
                    remaining: None,
                });
            };
            if full {
                let token = ContinueToken { revision, after: last_key };
                let remaining = everything.then_some(listing.remaining);
                let continue_token = Some(token.encode(&prefix));
                return Ok(ObjectList { kind, custom, items, revision, continue_token, remaining });
            }
            request.after = Some(last_key);
            request.revision = Some(revision);
            listing = self.store().list(request.clone()).await?;
        }
    }

    async fn first_page(&self, request: &mut ListRequest, freshness: Freshness) -> Result<Listing, Error> {
        match freshness {
            Freshness::Newest => {}
            Freshness::Local => request.consistency = Consistency::Serializable,
            Freshness::Exact(revision) => {
                request.revision = Some(revision);
                return match self.store().list(request.clone()).await {
                    // This replica lags: catch up with the leader, then look again.
                    Err(Error::Future { .. }) => {
                        self.store().get(request.prefix.clone(), Consistency::Linearizable).await?;
                        self.store().list(request.clone()).await
                    }
                    other => other,
                };
            }
            Freshness::NotOlderThan(revision) => {
                request.consistency = Consistency::Serializable;
                let listing = self.store().list(request.clone()).await?;
                if listing.revision >= revision {
                    return Ok(listing);
                }
                request.consistency = Consistency::Linearizable;
                let listing = self.store().list(request.clone()).await?;
                return match listing.revision >= revision {
                    true => Ok(listing),
                    false => Err(Error::Future { requested: revision, newest: listing.revision }),
                };
            }
        }
        self.store().list(request.clone()).await
    }
}

fn single<'a>(kind: &Kind, namespace: Option<&'a str>) -> Option<&'a str> {
    if kind.namespaced { namespace } else { Some("") }
}

fn list_error(error: Error, continued: bool) -> Status {
    match error {
        Error::Compacted { .. } if continued => Status::expired(
            "The provided continue parameter is too old to display a consistent list result. \
             You must start a new list without the continue parameter.",
        ),
        error => error::from_store(error),
    }
}

fn freshness(options: &ListOptions) -> Result<Freshness, Status> {
    let version = options.resource_version.as_deref().unwrap_or_default();
    if options.continue_token.is_some() {
        if options.version_match.is_some() {
            return Err(refuse_match("resourceVersionMatch is forbidden when continue is provided"));
        }
        if !matches!(version, "" | "0") {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        return Ok(Freshness::Newest);
    }
    if version.is_empty() {
        return match options.version_match {
            None => Ok(Freshness::Newest),
            Some(_) => {
                Err(refuse_match("resourceVersionMatch is forbidden unless resourceVersion is provided"))
            }
        };
    }
    let revision = parse_version(version)?;
    match options.version_match {
        Some(VersionMatch::Exact) if revision == 0 => {
            Err(refuse_match("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""))
        }
        _ if revision == 0 => Ok(Freshness::Local),
        Some(VersionMatch::Exact) => Ok(Freshness::Exact(revision)),
        // What old clients that page through a version mean.
        None if options.limit.is_some() => Ok(Freshness::Exact(revision)),
        Some(VersionMatch::NotOlderThan) | None => Ok(Freshness::NotOlderThan(revision)),
    }
}

fn refuse_match(why: &str) -> Status {
    Status::invalid_request(format!(
        "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: {why}"
    ))
}

/// Reads a resource version that a client sent.
pub(super) fn parse_version(text: &str) -> Result<u64, Status> {
    text.parse().map_err(|_| {
        let why = match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => "value out of range",
            false => "invalid syntax",
        };
        Status::bad_request(format!("Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: {why}"))
    })
}
