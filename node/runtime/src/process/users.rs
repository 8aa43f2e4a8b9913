//! Users and groups of the container: numbers as they are, names by the container's own `/etc/passwd`
//! and `/etc/group`. Read after the container's root is in place, with plain file reads.

use std::fs;
use std::io;

use nix::unistd::Gid;

use super::failure::Failure;
use crate::container::spec::{Identity, UserSpec};

/// Larger files are no user databases.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Numbers to run with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, sorted.
    pub(crate) groups: Vec<Gid>,
    pub(crate) home: String,
}

/// Looks a user up in the files of the current root.
pub(crate) fn resolve(spec: &UserSpec) -> Result<Resolved, Failure> {
    resolve_in(spec, &read("/etc/passwd")?, &read("/etc/group")?)
}

fn read(path: &str) -> Result<String, Failure> {
    let failed = |error: io::Error| Failure::io("read", path, error);
    match fs::metadata(path) {
        Ok(found) if found.is_file() && found.len() <= FILE_BYTES_MAX => {}
        Ok(_) => return Err(Failure::rule(format!("{path} is no user database"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(failed(error)),
    }
    Ok(String::from_utf8_lossy(&fs::read(path).map_err(failed)?).into_owned())
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd_line(line: &str) -> Option<Passwd<'_>> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, ..] = fields[..] else { return None };
    Some(Passwd { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
}

/// Name, number and members.
fn group_line(line: &str) -> Option<(&str, u32, &str)> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, gid, rest @ ..] = &fields[..] else { return None };
    Some((name, gid.parse().ok()?, rest.first().copied().unwrap_or_default()))
}

fn resolve_in(spec: &UserSpec, passwd: &str, group: &str) -> Result<Resolved, Failure> {
    let mut users = passwd.lines().filter_map(passwd_line);
    let found = match &spec.user {
        Identity::Id(uid) => users.find(|user| user.uid == *uid),
        Identity::Name(name) => users.find(|user| user.name == name),
    };
    let uid = match (&spec.user, &found) {
        (Identity::Id(uid), _) => *uid,
        (Identity::Name(_), Some(user)) => user.uid,
        (Identity::Name(name), None) => {
            return Err(Failure::rule(format!(
                "unable to find user {name}: no matching entries in passwd file"
            )));
        }
    };
    let gid = match &spec.group {
        Some(Identity::Id(gid)) => *gid,
        Some(Identity::Name(name)) => group
            .lines()
            .filter_map(group_line)
            .find(|(known, ..)| known == name)
            .map(|(_, gid, _)| gid)
            .ok_or_else(|| {
                Failure::rule(format!("unable to find group {name}: no matching entries in group file"))
            })?,
        None => found.as_ref().map_or(0, |user| user.gid),
    };
    let mut groups = spec.additional_gids.clone();
    if let Some(user) = &found {
        let member = |members: &str| members.split(',').any(|member| member.trim() == user.name);
        let theirs = group.lines().filter_map(group_line).filter(|(.., members)| member(members));
        groups.extend(theirs.map(|(_, gid, _)| gid));
    }
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();
    let home = found.map(|user| user.home).filter(|home| !home.is_empty()).unwrap_or("/").to_owned();
    Ok(Resolved { uid, gid, groups: groups.into_iter().map(Gid::from_raw).collect(), home })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34:web:/srv:/bin/false\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlogs:x:40:adm, web\nvideo:x:44:root\n";

    fn resolved(text: &str, additional: &[u32]) -> Result<Resolved, Failure> {
        let spec = UserSpec { additional_gids: additional.to_vec(), ..UserSpec::parse(text) };
        resolve_in(&spec, PASSWD, GROUP)
    }

    fn gids(user: &Resolved) -> Vec<u32> {
        user.groups.iter().map(|gid| gid.as_raw()).collect()
    }

    #[test]
    fn names_and_numbers_meet_in_the_files() {
        let by_name = resolved("web", &[7]).unwrap();
        assert_eq!((by_name.uid, by_name.gid, by_name.home.as_str()), (33, 34, "/srv"));
        assert_eq!(gids(&by_name), [7, 34, 40]);
        assert_eq!(resolved("33", &[7]).unwrap(), by_name);
        let root = resolved("", &[]).unwrap();
        assert_eq!((root.uid, root.gid, root.home.as_str()), (0, 0, "/root"));
        assert_eq!(gids(&root), [0, 44]);
    }

    #[test]
    fn groups_may_be_named_and_unknown_numbers_are_fine() {
        let user = resolved("1000:logs", &[]).unwrap();
        assert_eq!((user.uid, user.gid, user.home.as_str()), (1000, 40, "/"));
        assert_eq!(gids(&user), [40]);
        assert_eq!(resolved("1000", &[]).unwrap().gid, 0);
    }

    #[test]
    fn unknown_names_say_so() {
        let message = |text| resolved(text, &[]).unwrap_err().at(crate::error::Stage::User).message;
        assert_eq!(message("ghost"), "unable to find user ghost: no matching entries in passwd file");
        assert_eq!(message("0:ghosts"), "unable to find group ghosts: no matching entries in group file");
    }
}
