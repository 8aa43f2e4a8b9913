//! In which form a client wants its answer.
//!
//! Reads `Accept` as the Kubernetes API server does: the alternatives in order of preference, the first that
//! is served wins. Kubernetes protobuf is served for the built-in kinds, and not for tables: clients that offer
//! JSON beside it get JSON, and clients that offer nothing else are refused.

use api::Status;
use http::HeaderMap;
use http::header::ACCEPT;

/// The media type of Kubernetes protobuf.
pub(super) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// The media types that answers come in, the last one not for everything.
const SERVED: [&str; 3] = ["application/json", "application/yaml", PROTOBUF];

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

/// What an answer could be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offer {
    /// JSON and YAML.
    Text,
    /// Those and protobuf.
    Any,
}

impl Offer {
    fn served(self) -> &'static [&'static str] {
        match self {
            Self::Text => &SERVED[..2],
            Self::Any => &SERVED,
        }
    }
}

/// What objects are turned into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// As they are.
    Whole,
    /// A `meta.k8s.io` `Table`, in this version.
    Table(&'static str),
    /// `PartialObjectMetadata`, in this version.
    Metadata(&'static str),
}

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) encoding: Encoding,
    pub(super) shape: Shape,
}

impl Form {
    /// Plain JSON.
    pub(super) const JSON: Self = Self { encoding: Encoding::Json, shape: Shape::Whole };

    /// The form that the client prefers among those served.
    pub(super) fn of(headers: &HeaderMap, offer: Offer) -> Result<Self, Status> {
        let ranges = ranges(headers);
        if ranges.is_empty() {
            return Ok(Self::JSON);
        }
        let form = ranges.iter().find_map(|range| range.form(offer));
        form.ok_or_else(|| Status::not_acceptable(offer.served()))
    }

    /// As [`Form::of`], for an answer that is a stream: those do not come in YAML.
    pub(super) fn of_stream(headers: &HeaderMap, offer: Offer) -> Result<Self, Status> {
        let ranges = ranges(headers);
        if ranges.is_empty() {
            return Ok(Self::JSON);
        }
        let mut forms = ranges.iter().filter_map(|range| range.form(offer));
        forms.find(|form| form.encoding != Encoding::Yaml).ok_or_else(|| Status::not_acceptable(&SERVED[..1]))
    }

    /// The same encoding for something that is no object.
    pub(super) fn whole(self) -> Self {
        Self { shape: Shape::Whole, ..self }
    }

    /// The media type of the answer.
    pub(super) fn media_type(self) -> &'static str {
        match self.encoding {
            Encoding::Json => "application/json",
            Encoding::Yaml => "application/yaml",
            Encoding::Protobuf => PROTOBUF,
        }
    }
}

/// Whether the client names this very media type.
pub(super) fn accepts(headers: &HeaderMap, media_type: &str) -> bool {
    ranges(headers).iter().any(|range| range.media_type == media_type)
}

/// The version of aggregated discovery that the client prefers, if it prefers that over the plain form.
pub(super) fn aggregated_discovery(headers: &HeaderMap) -> Option<&'static str> {
    for range in ranges(headers) {
        if range.parameter("g") == Some("apidiscovery.k8s.io")
            && range.parameter("as") == Some("APIGroupDiscoveryList")
            && range.media_type == "application/json"
        {
            match range.parameter("v") {
                Some("v2") => return Some("v2"),
                Some("v2beta1") => return Some("v2beta1"),
                _ => {}
            }
        } else if range.parameter("as").is_none() && range.form(Offer::Text).is_some() {
            return None;
        }
    }
    None
}

struct MediaRange {
    media_type: String,
    parameters: Vec<(String, String)>,
    quality: f32,
}

impl MediaRange {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let media_type = parts.next().filter(|part| !part.is_empty())?.to_ascii_lowercase();
        let parameters: Vec<(String, String)> = parts
            .filter_map(|part| part.split_once('='))
            .map(|(key, value)| (key.trim().to_ascii_lowercase(), value.trim().trim_matches('"').to_owned()))
            .collect();
        let quality = parameters.iter().find(|(key, _)| key == "q");
        let quality = quality.and_then(|(_, value)| value.parse().ok()).unwrap_or(1.0);
        Some(Self { media_type, parameters, quality })
    }

    fn parameter(&self, key: &str) -> Option<&str> {
        self.parameters.iter().find(|(own, _)| own == key).map(|(_, value)| value.as_str())
    }

    fn form(&self, offer: Offer) -> Option<Form> {
        let encoding = match self.media_type.as_str() {
            "*/*" | "application/*" | "application/json" => Encoding::Json,
            "application/yaml" => Encoding::Yaml,
            PROTOBUF if offer == Offer::Any => Encoding::Protobuf,
            _ => return None,
        };
        let version = || match self.parameter("v") {
            Some("v1") => Some("v1"),
            Some("v1beta1") => Some("v1beta1"),
            _ => None,
        };
        let shape = match (self.parameter("as"), self.parameter("g")) {
            (None, _) => Shape::Whole,
            (Some("Table"), _) if encoding == Encoding::Protobuf => return None,
            (Some("Table"), Some("meta.k8s.io")) => Shape::Table(version()?),
            (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), Some("meta.k8s.io")) => {
                Shape::Metadata(version()?)
            }
            _ => return None,
        };
        (self.quality > 0.0).then_some(Form { encoding, shape })
    }
}

fn ranges(headers: &HeaderMap) -> Vec<MediaRange> {
    let texts = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut ranges: Vec<MediaRange> =
        texts.flat_map(|text| text.split(',')).filter_map(MediaRange::parse).collect();
    ranges.sort_by(|left, right| right.quality.total_cmp(&left.quality));
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(accept: &str) -> Option<Form> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().unwrap());
        Form::of(&headers, Offer::Text).ok()
    }

    fn any(accept: &str) -> Option<Form> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().unwrap());
        Form::of(&headers, Offer::Any).ok()
    }

    #[test]
    fn the_first_served_alternative_wins() {
        let whole = |encoding| Some(Form { encoding, shape: Shape::Whole });
        assert_eq!(form("application/vnd.kubernetes.protobuf, application/json"), whole(Encoding::Json));
        assert_eq!(form("application/json;q=0.5, application/yaml"), whole(Encoding::Yaml));
        assert_eq!(form("*/*"), whole(Encoding::Json));
        assert_eq!(form("application/vnd.kubernetes.protobuf"), None);
        assert_eq!(form("text/html"), None);
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(form(kubectl), Some(Form { encoding: Encoding::Json, shape: Shape::Table("v1") }));
        assert_eq!(form("application/json;as=Table;v=v9;g=meta.k8s.io"), None);
        let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        assert_eq!(form(metadata), Some(Form { encoding: Encoding::Json, shape: Shape::Metadata("v1") }));
    }

    #[test]
    fn protobuf_is_for_what_has_messages() {
        let whole = |encoding| Some(Form { encoding, shape: Shape::Whole });
        assert_eq!(any("application/vnd.kubernetes.protobuf,application/json"), whole(Encoding::Protobuf));
        assert_eq!(any("application/json,application/vnd.kubernetes.protobuf"), whole(Encoding::Json));
        assert_eq!(
            any("application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"),
            Some(Form { encoding: Encoding::Protobuf, shape: Shape::Metadata("v1") })
        );
        assert_eq!(any("application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1"), None);
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, "application/vnd.kubernetes.protobuf;stream=watch".parse().unwrap());
        assert_eq!(Form::of_stream(&headers, Offer::Any).ok(), whole(Encoding::Protobuf));
        assert_eq!(Form::of_stream(&headers, Offer::Text).ok(), None);
    }

    #[test]
    fn aggregated_discovery_is_given_to_those_that_prefer_it() {
        let version = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            aggregated_discovery(&headers)
        };
        let both = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert_eq!(version(both), Some("v2"));
        assert_eq!(version("application/json"), None);
        assert_eq!(
            version("application/json;v=v2beta1;g=apidiscovery.k8s.io;as=APIGroupDiscoveryList"),
            Some("v2beta1")
        );
    }
}
