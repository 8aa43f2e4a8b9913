//! Names for containers that were given none.

const HOW: [&str; 24] = [
    "amber", "brave", "calm", "deep", "eager", "fair", "gentle", "hardy", "idle", "jolly", "keen", "lucky",
    "merry", "noble", "open", "proud", "quick", "ready", "steady", "tidy", "upright", "vivid", "warm",
    "young",
];
const WHAT: [&str; 24] = [
    "anchor", "barque", "canvas", "dinghy", "ensign", "ferry", "galley", "harbour", "island", "jetty",
    "keel", "lantern", "mast", "narrows", "oar", "pilot", "quay", "rudder", "sail", "tide", "umiak",
    "voyage", "wharf", "yawl",
];
/// After so many tries a number is added.
const PLAIN_TRIES: usize = 16;
/// Longest name.
const NAME_BYTES_MAX: usize = 128;

/// A name that is not taken.
pub(super) fn make(is_taken: impl Fn(&str) -> bool) -> String {
    let pick = |words: &[&'static str]| words[rand::random_range(0..words.len())];
    for _ in 0..PLAIN_TRIES {
        let name = format!("{}_{}", pick(&HOW), pick(&WHAT));
        if !is_taken(&name) {
            return name;
        }
    }
    loop {
        let name = format!("{}_{}_{}", pick(&HOW), pick(&WHAT), rand::random::<u16>());
        if !is_taken(&name) {
            return name;
        }
    }
}

/// Whether a user may choose this name.
pub(super) fn is_valid(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    name.len() >= 2
        && name.len() <= NAME_BYTES_MAX
        && name.as_bytes()[0].is_ascii_alphanumeric()
        && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_valid_and_free() {
        let first = make(|_| false);
        assert!(is_valid(&first));
        // With every plain name taken there still is one.
        let other = make(|name| name.split('_').count() == 2);
        assert!(is_valid(&other) && other.split('_').count() == 3);
        for name in ["", "a", "-a", "a b", "a/b", "ä1"] {
            assert!(!is_valid(name), "{name}");
        }
    }
}
