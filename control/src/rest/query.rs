//! Query parameters.
//!
//! Reads a query string and the option sets that Kubernetes makes of it. Unknown parameters are ignored, as
//! Kubernetes ignores them; malformed values of known ones are refused.

use std::time::Duration;

use api::{FieldSelector, LabelSelector, Status};
use percent_encoding::percent_decode_str;

use crate::registry::{
    DeleteOptions, FieldManager, FieldValidation, ListOptions, Propagation, VersionMatch, WatchOptions,
    WriteOptions,
};

/// Longest name of a field manager.
const FIELD_MANAGER_CHARS_MAX: usize = 128;

/// The parameters of a request, decoded.
#[derive(Debug, Clone, Default)]
pub(super) struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Reads the text after the question mark.
    pub(super) fn parse(text: Option<&str>) -> Self {
        let decode =
            |part: &str| percent_decode_str(&part.replace('+', " ")).decode_utf8_lossy().into_owned();
        let pairs = text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        });
        Self { pairs: pairs.collect() }
    }

    /// The first value of a parameter; `None` if it is absent or empty.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        let (_, value) = self.pairs.iter().find(|(own, _)| own == key)?;
        (!value.is_empty()).then_some(value)
    }

    /// All values of a parameter, in order.
    pub(super) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(own, _)| own == key).map(|(_, value)| value.as_str())
    }

    /// Whether the parameter is there, with or without value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.pairs.iter().any(|(own, _)| own == key)
    }

    /// A boolean: a parameter without value is true, as are all values but `false` and `0`.
    pub(super) fn flag(&self, key: &str) -> bool {
        self.has(key) && !matches!(self.get(key), Some("false" | "0" | "False" | "FALSE" | "f" | "F"))
    }

    /// A whole number.
    pub(super) fn number(&self, key: &str) -> Result<Option<i64>, Status> {
        let parse = |text: &str| {
            text.parse::<i64>().map_err(|_| {
                Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))
            })
        };
        self.get(key).map(parse).transpose()
    }

    fn selectors(&self) -> Result<(LabelSelector, FieldSelector), Status> {
        let labels = LabelSelector::parse(self.get("labelSelector").unwrap_or_default())?;
        let fields = FieldSelector::parse(self.get("fieldSelector").unwrap_or_default())?;
        Ok((labels, fields))
    }

    fn owned(&self, key: &str) -> Option<String> {
        self.get(key).map(str::to_owned)
    }

    fn version_match(&self) -> Result<Option<VersionMatch>, Status> {
        match self.get("resourceVersionMatch") {
            None => Ok(None),
            Some("Exact") => Ok(Some(VersionMatch::Exact)),
            Some("NotOlderThan") => Ok(Some(VersionMatch::NotOlderThan)),
            Some(other) => Err(refuse_option(&format!(
                "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\", \"\""
            ))),
        }
    }

    /// What a list asks for.
    pub(super) fn list_options(&self) -> Result<ListOptions, Status> {
        let (labels, fields) = self.selectors()?;
        if self.has("sendInitialEvents") {
            return Err(refuse_option(
                "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list",
            ));
        }
        let limit = self.number("limit")?.filter(|limit| *limit > 0);
        Ok(ListOptions {
            labels,
            fields,
            limit: limit.and_then(|limit| usize::try_from(limit).ok()),
            continue_token: self.owned("continue"),
            resource_version: self.owned("resourceVersion"),
            version_match: self.version_match()?,
        })
    }

    /// What a watch asks for.
    pub(super) fn watch_options(&self) -> Result<WatchOptions, Status> {
        let (labels, fields) = self.selectors()?;
        let version_match = self.version_match()?;
        let send_initial_events = self.flag("sendInitialEvents");
        if self.has("sendInitialEvents") && version_match != Some(VersionMatch::NotOlderThan) {
            return Err(refuse_option(
                "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ));
        }
        if !self.has("sendInitialEvents") && version_match.is_some() {
            return Err(refuse_option(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
        let bookmarks = self.flag("allowWatchBookmarks");
        if send_initial_events && !bookmarks {
            return Err(refuse_option(
                "sendInitialEvents: Forbidden: sendInitialEvents requires allowWatchBookmarks to be true",
            ));
        }
        let resource_version = self.owned("resourceVersion");
        Ok(WatchOptions { labels, fields, resource_version, bookmarks, send_initial_events })
    }

    /// For how long the client wants to watch.
    pub(super) fn watch_timeout(&self) -> Result<Option<Duration>, Status> {
        let seconds = self.number("timeoutSeconds")?.filter(|seconds| *seconds > 0);
        Ok(seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs))
    }

    /// Whether `dryRun=All` is asked.
    pub(super) fn dry_run(&self) -> Result<bool, Status> {
        let values = self.pairs.iter().filter(|(key, value)| key == "dryRun" && !value.is_empty());
        let mut dry = false;
        for (_, value) in values {
            if value != "All" {
                return Err(Status::invalid_request(format!(
                    "dryRun: Unsupported value: {value:?}: supported values: \"All\""
                )));
            }
            dry = true;
        }
        Ok(dry)
    }

    /// How a create, update or patch is made.
    pub(super) fn write_options(
        &self,
        duplicate_fields: Vec<String>,
        user_agent: &str,
    ) -> Result<WriteOptions, Status> {
        let field_validation = match self.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                return Err(Status::invalid_request(format!(
                    "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
                )));
            }
        };
        Ok(WriteOptions {
            dry_run: self.dry_run()?,
            field_validation,
            duplicate_fields,
            manager: FieldManager::Updates(self.field_manager(user_agent)?),
            ..WriteOptions::default()
        })
    }

    /// The name under which the writer owns fields: what it says, else what its user agent begins with.
    fn field_manager(&self, user_agent: &str) -> Result<String, Status> {
        let Some(name) = self.get("fieldManager") else {
            let name = user_agent.split('/').next().unwrap_or_default();
            let name: String = name.chars().filter(|letter| !letter.is_control()).collect();
            return Ok(name.chars().take(FIELD_MANAGER_CHARS_MAX).collect());
        };
        let refuse = |why: String| {
            Err(Status::invalid_request(format!(
                "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: {why}"
            )))
        };
        if name.chars().count() > FIELD_MANAGER_CHARS_MAX {
            return refuse(format!("Too long: may not be more than {FIELD_MANAGER_CHARS_MAX} bytes"));
        }
        if name.chars().any(char::is_control) {
            return refuse(format!("Invalid value: {name:?}: should only contain printable characters"));
        }
        Ok(name.to_owned())
    }

    /// How a deletion is made, as far as the query says; the body may say more.
    pub(super) fn delete_options(&self) -> Result<DeleteOptions, Status> {
        Ok(DeleteOptions {
            dry_run: self.dry_run()?,
            grace_period_s: self.number("gracePeriodSeconds")?,
            propagation: propagation(self.get("propagationPolicy"))?,
            ..DeleteOptions::default()
        })
    }
}

/// Reads a propagation policy.
pub(super) fn propagation(text: Option<&str>) -> Result<Option<Propagation>, Status> {
    match text {
        None => Ok(None),
        Some("Background") => Ok(Some(Propagation::Background)),
        Some("Foreground") => Ok(Some(Propagation::Foreground)),
        Some("Orphan") => Ok(Some(Propagation::Orphan)),
        Some(other) => Err(Status::invalid_request(format!(
            "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: {other:?}: \
             supported values: \"Foreground\", \"Background\", \"Orphan\""
        ))),
    }
}

fn refuse_option(why: &str) -> Status {
    Status::invalid_request(format!("ListOptions.meta.k8s.io \"\" is invalid: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_malformed_ones_refused() {
        let query = Query::parse(Some("labelSelector=a%3Db%2Cc&limit=5&watch&pretty=false&x=a+b"));
        assert_eq!(query.get("labelSelector"), Some("a=b,c"));
        assert_eq!(query.get("x"), Some("a b"));
        assert!(query.flag("watch") && !query.flag("pretty") && !query.flag("absent"));
        assert_eq!(query.list_options().unwrap().limit, Some(5));
        assert_eq!(Query::parse(Some("limit=x")).list_options().unwrap_err().code(), 400);
        assert_eq!(Query::parse(Some("dryRun=Some")).dry_run().unwrap_err().code(), 422);
        assert_eq!(Query::parse(Some("sendInitialEvents=true")).watch_options().unwrap_err().code(), 422);
        let whole = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
        assert!(Query::parse(Some(whole)).watch_options().unwrap().send_initial_events);
    }
}
