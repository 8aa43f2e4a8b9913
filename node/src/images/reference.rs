//! Image references: `[registry/]path[:tag][@digest]`, normalised the way that every container tool does.
//!
//! `hello` is `docker.io/library/hello:latest`, `barque/hello:1.0` is `docker.io/barque/hello:1.0`; two
//! spellings of one image are equal once parsed. Says nothing about whether the image exists.

use std::fmt;

const DEFAULT_DOMAIN: &str = "docker.io";
const TAG_LENGTH_MAX: usize = 128;
const NAME_LENGTH_MAX: usize = 255;

/// A normalised image reference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// The text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("couldn't parse image name {text:?}: {problem}")]
pub struct InvalidReference {
    text: String,
    problem: &'static str,
}

impl Reference {
    /// Parses and normalises a reference; without tag and digest the tag is `latest`.
    pub fn parse(text: &str) -> Result<Self, InvalidReference> {
        let refuse = |problem| InvalidReference { text: text.to_owned(), problem };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        if digest.is_some_and(|d| !is_digest(d)) {
            return Err(refuse("invalid reference format"));
        }
        let (name, tag) = match rest.rfind(':') {
            Some(at) if !rest[at..].contains('/') => (&rest[..at], Some(&rest[at + 1..])),
            _ => (rest, None),
        };
        if tag.is_some_and(|t| !is_tag(t)) {
            return Err(refuse("invalid reference format"));
        }
        let (domain, path) = split_domain(name);
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(refuse("invalid reference format: repository name must be lowercase"));
        }
        if domain.len() + path.len() > NAME_LENGTH_MAX || !path.split('/').all(is_path_component) {
            return Err(refuse("invalid reference format"));
        }
        let tag = match (tag, digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { domain, path, tag, digest: digest.map(str::to_owned) })
    }

    /// The registry: `docker.io`, `registry.lab:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within its registry: `library/nginx`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Registry and path, without tag and digest: `docker.io/barque/hello`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The tag, if the reference names one (or neither tag nor digest).
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, `sha256:<hex>`, if the reference pins one.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn split_domain(name: &str) -> (String, String) {
    if let Some((first, rest)) = name.split_once('/') {
        let is_domain = first.contains(['.', ':'])
            || first == "localhost"
            || first.bytes().any(|b| b.is_ascii_uppercase());
        if is_domain && is_host(first) {
            let domain = if first == "index.docker.io" { DEFAULT_DOMAIN } else { first };
            if domain == DEFAULT_DOMAIN && !rest.contains('/') {
                return (domain.to_owned(), format!("library/{rest}"));
            }
            return (domain.to_owned(), rest.to_owned());
        }
        return (DEFAULT_DOMAIN.to_owned(), name.to_owned());
    }
    (DEFAULT_DOMAIN.to_owned(), format!("library/{name}"))
}

fn is_host(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b))
}

/// Lower-case letters and digits, separated by one period, one or two underscores, or dashes.
fn is_path_component(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    if !bytes.first().is_some_and(|b| alphanumeric(*b)) || !bytes.last().is_some_and(|b| alphanumeric(*b)) {
        return false;
    }
    part.split(|c: char| alphanumeric(c as u8) && c.is_ascii())
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_LENGTH_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// `sha256:` and 64 lower-case hex digits; other algorithms are not stored.
fn is_digest(digest: &str) -> bool {
    digest.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises_as_every_tool_does() {
        for (text, expected) in [
            ("hello", "docker.io/library/hello:latest"),
            ("barque/hello:1.0", "docker.io/barque/hello:1.0"),
            ("docker.io/barque/hello:1.0", "docker.io/barque/hello:1.0"),
            ("docker.io/hello", "docker.io/library/hello:latest"),
            ("index.docker.io/hello:2", "docker.io/library/hello:2"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/a/b:c", "localhost:5000/a/b:c"),
            ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9"),
            ("a__b/c.d-e--f", "docker.io/a__b/c.d-e--f:latest"),
        ] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), expected, "{text}");
        }
        let digest = format!("sha256:{}", "a".repeat(64));
        let pinned = Reference::parse(&format!("hello@{digest}")).unwrap();
        assert_eq!(pinned.digest(), Some(digest.as_str()));
        assert_eq!(pinned.tag(), None);
    }

    #[test]
    fn refuses_what_is_no_reference() {
        for text in [
            "",
            "a/",
            "/a",
            "Hello",
            "a:b:c",
            "a@sha256:short",
            "a..b",
            "-a",
            "a___b",
            "a:",
            "a b",
            "a//b",
            "é",
        ] {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
        let error = Reference::parse("Barque:1").unwrap_err().to_string();
        assert_eq!(
            error,
            "couldn't parse image name \"Barque:1\": invalid reference format: repository name must be lowercase"
        );
    }
}
