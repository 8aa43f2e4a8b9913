//! The mounts of this machine, as `/proc/self/mountinfo` lists them (proc(5)).

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// What of the filesystem is mounted: a path in it, or `net:[…]` for a pinned namespace.
    pub(crate) root: String,
    /// Where.
    pub(crate) point: PathBuf,
    /// The filesystem's type.
    pub(crate) kind: String,
    /// The filesystem's own options.
    pub(crate) options: String,
}

/// All mounts, in the order in which they were made.
pub(crate) fn all() -> anyhow::Result<Vec<Mount>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    Ok(text.lines().filter_map(parse).collect())
}

fn parse(line: &str) -> Option<Mount> {
    // 36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(3);
    let root = unescape(fields.next()?);
    let point = PathBuf::from(unescape(fields.next()?));
    let mut fields = after.split(' ');
    let kind = fields.next()?.to_owned();
    let options = fields.nth(1)?.to_owned();
    Some(Mount { root, point, kind, options })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, character)| text.replace(code, character))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn lines_are_read_with_and_without_optional_fields() {
        let mount =
            parse("42 35 0:4 net:[4026532301] /run/netns/my\\040net rw shared:5 - nsfs nsfs rw").unwrap();
        assert_eq!(mount.root, "net:[4026532301]");
        assert_eq!(mount.point, PathBuf::from("/run/netns/my net"));
        assert_eq!(mount.kind, "nsfs");
        let mount = parse("31 22 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu").unwrap();
        assert_eq!((mount.kind.as_str(), mount.options.as_str()), ("cgroup", "rw,cpu"));
        assert_eq!(parse("nonsense"), None);
        assert!(all().unwrap().iter().any(|mount| mount.point == Path::new("/proc")));
    }
}
