//! etcd's rules of users and roles, written down as simply as possible.

use bytes::Bytes;
use state_machine::*;

type Grant = (PermissionKind, Bytes, Bytes);

#[derive(Debug, Clone)]
pub(crate) struct AuthModel {
    pub(crate) enabled: bool,
    pub(crate) revision: u64,
    /// Name, and roles in order.
    pub(crate) users: Vec<(String, Vec<String>)>,
    pub(crate) roles: Vec<(String, Vec<Grant>)>,
}

impl Default for AuthModel {
    fn default() -> Self {
        Self { enabled: false, revision: 1, users: Vec::new(), roles: Vec::new() }
    }
}

impl AuthModel {
    fn user(&mut self, name: &str) -> Result<&mut (String, Vec<String>), AuthError> {
        self.users.iter_mut().find(|user| user.0 == name).ok_or(AuthError::UserNotFound)
    }

    fn role(&mut self, name: &str) -> Result<&mut (String, Vec<Grant>), AuthError> {
        self.roles.iter_mut().find(|role| role.0 == name).ok_or(AuthError::RoleNotFound)
    }

    pub(crate) fn apply(&mut self, command: &AuthCommand) -> Result<(), AuthError> {
        let enabled = self.enabled;
        match command {
            AuthCommand::Enable { .. } if enabled => return Ok(()),
            AuthCommand::Enable { .. } => {
                let root = self.user("root").map_err(|_| AuthError::RootUserNotExist)?;
                if !root.1.contains(&"root".to_owned()) {
                    return Err(AuthError::RootRoleNotExist);
                }
                self.enabled = true;
                return Ok(());
            }
            AuthCommand::Disable if !enabled => return Ok(()),
            AuthCommand::Disable => self.enabled = false,
            AuthCommand::UserAdd { name, .. } => {
                if name.is_empty() {
                    return Err(AuthError::UserEmpty);
                }
                if self.user(name).is_ok() {
                    return Err(AuthError::UserAlreadyExists);
                }
                self.users.push((name.clone(), Vec::new()));
                self.users.sort();
            }
            AuthCommand::UserDelete { name } => {
                if enabled && name == "root" {
                    return Err(AuthError::InvalidManagement);
                }
                self.user(name)?;
                self.users.retain(|user| user.0 != *name);
            }
            AuthCommand::UserChangePassword { name, .. } => {
                self.user(name)?;
            }
            AuthCommand::UserGrantRole { user, role } => {
                self.user(user)?;
                if role != "root" {
                    self.role(role)?;
                }
                let roles = &mut self.user(user)?.1;
                if roles.contains(role) {
                    return Ok(());
                }
                roles.push(role.clone());
                roles.sort();
            }
            AuthCommand::UserRevokeRole { user, role } => {
                if enabled && user == "root" && role == "root" {
                    return Err(AuthError::InvalidManagement);
                }
                let roles = &mut self.user(user)?.1;
                if !roles.contains(role) {
                    return Err(AuthError::RoleNotGranted);
                }
                roles.retain(|one| one != role);
            }
            AuthCommand::RoleAdd { name } => {
                if name.is_empty() {
                    return Err(AuthError::RoleEmpty);
                }
                if self.role(name).is_ok() {
                    return Err(AuthError::RoleAlreadyExists);
                }
                self.roles.push((name.clone(), Vec::new()));
                self.roles.sort_by(|left, right| left.0.cmp(&right.0));
            }
            AuthCommand::RoleDelete { name } => {
                if enabled && name == "root" {
                    return Err(AuthError::InvalidManagement);
                }
                self.role(name)?;
                self.roles.retain(|role| role.0 != *name);
                self.users.iter_mut().for_each(|user| user.1.retain(|role| role != name));
            }
            AuthCommand::RoleGrantPermission { role, permission } => {
                let Permission { kind, key, range_end } = permission.clone();
                let backwards = !range_end.is_empty() && range_end != "\0" && range_end <= key;
                if key.is_empty() || backwards {
                    return Err(AuthError::InvalidManagement);
                }
                let grants = &mut self.role(role)?.1;
                match grants.iter_mut().find(|grant| (&grant.1, &grant.2) == (&key, &range_end)) {
                    Some(grant) => grant.0 = kind,
                    None => grants.push((kind, key, range_end)),
                }
                grants.sort_by(|left, right| left.1.cmp(&right.1));
            }
            AuthCommand::RoleRevokePermission { role, key, range_end } => {
                let grants = &mut self.role(role)?.1;
                if !grants.iter().any(|grant| (&grant.1, &grant.2) == (key, range_end)) {
                    return Err(AuthError::PermissionNotGranted);
                }
                grants.retain(|grant| (&grant.1, &grant.2) != (key, range_end));
            }
        }
        self.revision += 1;
        Ok(())
    }

    pub(crate) fn check_equal(&self, auth: &Auth) {
        assert_eq!((auth.is_enabled(), auth.revision()), (self.enabled, self.revision));
        let users: Vec<_> = auth
            .users()
            .map(|name| (name.to_owned(), auth.user(name).unwrap().roles.iter().cloned().collect::<Vec<_>>()))
            .collect();
        assert_eq!(users, self.users);
        let grant =
            |permission: &Permission| (permission.kind, permission.key.clone(), permission.range_end.clone());
        let roles: Vec<_> = auth
            .roles()
            .map(|name| (name.to_owned(), auth.role(name).unwrap().iter().map(grant).collect::<Vec<_>>()))
            .collect();
        assert_eq!(roles, self.roles);
    }
}
