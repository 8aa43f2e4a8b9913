//! Names: their syntax, and the messages that say what is wrong.
//!
//! Owns the checks for names, label keys and values, and the making of generated names. Each check gives the
//! list of its messages, empty when all is well, in Kubernetes' words. Draws no randomness of its own.

/// Longest DNS-1123 label.
pub const LABEL_BYTES_MAX: usize = 63;
/// Longest DNS-1123 subdomain.
pub const SUBDOMAIN_BYTES_MAX: usize = 253;
/// Letters that a generated suffix is drawn from: no vowels and no look-alikes.
pub const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// Length of a generated suffix.
pub const SUFFIX_BYTES: usize = 5;
/// What remains of a `generateName` before the suffix.
pub const GENERATE_BASE_BYTES_MAX: usize = LABEL_BYTES_MAX - SUFFIX_BYTES;

const LABEL_MESSAGE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_MESSAGE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED_MESSAGE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE_MESSAGE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY_MESSAGE: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const DNS1035_MESSAGE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";

fn max_length(bytes_max: usize) -> String {
    format!("must be no more than {bytes_max} bytes")
}

fn is_lower_alphanumeric(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn is_label_text(text: &str) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(&first), Some(&last)) => {
            is_lower_alphanumeric(first)
                && is_lower_alphanumeric(last)
                && bytes.iter().all(|&b| is_lower_alphanumeric(b) || b == b'-')
        }
        _ => false,
    }
}

fn is_qualified_text(text: &str) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            first.is_ascii_alphanumeric()
                && last.is_ascii_alphanumeric()
                && bytes.iter().all(|&b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        }
        _ => false,
    }
}

/// A lower-case DNS-1123 label: namespaces, containers, volumes.
pub fn dns1123_label(text: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if text.len() > LABEL_BYTES_MAX {
        messages.push(max_length(LABEL_BYTES_MAX));
    }
    if !is_label_text(text) {
        let also_subdomain = text.split('.').all(is_label_text);
        if also_subdomain && !text.is_empty() {
            messages.push("must not contain dots".to_owned());
        } else {
            messages.push(LABEL_MESSAGE.to_owned());
        }
    }
    messages
}

/// A lower-case DNS-1123 subdomain: most objects' names.
pub fn dns1123_subdomain(text: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if text.len() > SUBDOMAIN_BYTES_MAX {
        messages.push(max_length(SUBDOMAIN_BYTES_MAX));
    }
    if !text.split('.').all(is_label_text) {
        messages.push(SUBDOMAIN_MESSAGE.to_owned());
    }
    messages
}

/// A DNS-1035 label: services' names.
pub fn dns1035_label(text: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if text.len() > LABEL_BYTES_MAX {
        messages.push(max_length(LABEL_BYTES_MAX));
    }
    if !(is_label_text(text) && text.as_bytes()[0].is_ascii_lowercase()) {
        messages.push(DNS1035_MESSAGE.to_owned());
    }
    messages
}

/// A label key, annotation key, taint key or resource name: an optional prefix and a name.
pub fn qualified_name(text: &str) -> Vec<String> {
    let mut messages = Vec::new();
    let parts: Vec<&str> = text.split('/').collect();
    let last = match parts.as_slice() {
        [one] => one,
        [prefix, last] => {
            if prefix.is_empty() {
                messages.push("prefix part must be non-empty".to_owned());
            } else {
                messages.extend(dns1123_subdomain(prefix).into_iter().map(|m| format!("prefix part {m}")));
            }
            last
        }
        _ => {
            return vec![format!(
                "a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                QUALIFIED_MESSAGE
            )];
        }
    };
    if last.is_empty() {
        messages.push("name part must be non-empty".to_owned());
    } else if last.len() > LABEL_BYTES_MAX {
        messages.push(format!("name part {}", max_length(LABEL_BYTES_MAX)));
    }
    if !is_qualified_text(last) {
        messages.push(format!("name part {QUALIFIED_MESSAGE}"));
    }
    messages
}

/// A label's value.
pub fn label_value(text: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if text.len() > LABEL_BYTES_MAX {
        messages.push(max_length(LABEL_BYTES_MAX));
    }
    if !text.is_empty() && !is_qualified_text(text) {
        messages.push(LABEL_VALUE_MESSAGE.to_owned());
    }
    messages
}

/// A key of a ConfigMap's or Secret's data.
pub fn config_map_key(text: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if text.len() > SUBDOMAIN_BYTES_MAX {
        messages.push(max_length(SUBDOMAIN_BYTES_MAX));
    }
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    {
        messages.push(CONFIG_KEY_MESSAGE.to_owned());
    }
    if text == "." {
        messages.push("must not be '.'".to_owned());
    } else if text == ".." {
        messages.push("must not be '..'".to_owned());
    } else if text.starts_with("..") {
        messages.push("must not start with '..'".to_owned());
    }
    messages
}

/// An environment variable's name (printable ASCII without `=`).
pub fn env_var_name(text: &str) -> Vec<String> {
    if text.is_empty() {
        return vec!["environment variable name must be non-empty".to_owned()];
    }
    if !text.bytes().all(|b| (0x20..=0x7e).contains(&b) && b != b'=') {
        return vec![
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        ];
    }
    Vec::new()
}

/// A port's name (IANA service name).
pub fn port_name(text: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if text.len() > 15 {
        messages.push(max_length(15).replace("bytes", "characters"));
    }
    if !text.bytes().all(|b| is_lower_alphanumeric(b) || b == b'-') {
        messages.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        messages.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        messages.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        messages.push("must not begin or end with a hyphen".to_owned());
    }
    messages
}

/// A port's number.
pub fn port_number(port: i64) -> Vec<String> {
    if (1..=65535).contains(&port) {
        Vec::new()
    } else {
        vec!["must be between 1 and 65535, inclusive".to_owned()]
    }
}

/// A name used as one path segment.
pub fn path_segment(text: &str) -> Vec<String> {
    if text == "." || text == ".." {
        return vec![format!("may not be '{text}'")];
    }
    ['/', '%'].iter().filter(|c| text.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// A `generateName` with its suffix: the base is cut to fit, each random byte picks a letter.
pub fn generate(base: &str, random: [u8; SUFFIX_BYTES]) -> String {
    let mut end = base.len().min(GENERATE_BASE_BYTES_MAX);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = base[..end].to_owned();
    name.extend(random.iter().map(|b| SUFFIX_ALPHABET[usize::from(*b) % SUFFIX_ALPHABET.len()] as char));
    name
}

/// A short text of letters and digits that stands for others (FNV-1a, 32 bits).
pub fn hash(bytes: &[u8]) -> String {
    let hash =
        bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    let letters = hash.to_string().into_bytes();
    letters
        .iter()
        .map(|byte| char::from(SUFFIX_ALPHABET[usize::from(*byte) % SUFFIX_ALPHABET.len()]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_names_pass() {
        for text in ["a", "a-1", "0", &"a".repeat(63)] {
            assert!(dns1123_label(text).is_empty(), "{text}");
        }
        for text in ["a.b-c.d", "1.2", &format!("{}.b", "a".repeat(63))] {
            assert!(dns1123_subdomain(text).is_empty(), "{text}");
        }
        for text in ["a", "A_b.c-d", "example.com/X", "kubernetes.io/metadata.name"] {
            assert!(qualified_name(text).is_empty(), "{text}");
        }
        assert!(label_value("").is_empty() && label_value("A.b_c").is_empty());
        assert!(config_map_key("a..b").is_empty() && env_var_name("A.B-c").is_empty());
        assert!(port_name("http-2").is_empty() && port_number(65535).is_empty());
    }

    #[test]
    fn bad_names_are_explained() {
        assert_eq!(dns1123_label("A"), [LABEL_MESSAGE]);
        assert_eq!(dns1123_label("a.b"), ["must not contain dots"]);
        assert_eq!(dns1123_label(&"a".repeat(64)), ["must be no more than 63 bytes"]);
        for text in ["", "A", "a..b", "-a", "a-", "a_b", ".a"] {
            assert_eq!(dns1123_subdomain(text), [SUBDOMAIN_MESSAGE], "{text}");
        }
        assert_eq!(qualified_name("/x"), ["prefix part must be non-empty"]);
        assert_eq!(
            qualified_name("a/"),
            ["name part must be non-empty", &format!("name part {QUALIFIED_MESSAGE}")]
        );
        assert_eq!(qualified_name("a/b/c").len(), 1);
        assert_eq!(label_value("-"), [LABEL_VALUE_MESSAGE]);
        assert_eq!(config_map_key("..a"), ["must not start with '..'"]);
        assert_eq!(port_name("80"), ["must contain at least one letter (a-z)"]);
        assert_eq!(port_name("a--b"), ["must not contain consecutive hyphens"]);
        assert_eq!(path_segment("a/%"), ["may not contain '/'", "may not contain '%'"]);
    }

    #[test]
    fn generated_names_fit() {
        assert_eq!(generate("web-", [0, 1, 2, 26, 27]), "web-bcd9b");
        let name = generate(&"x".repeat(80), [0; 5]);
        assert_eq!(name.len(), 63);
        assert!(name.ends_with("xbbbbb"));
    }
}
