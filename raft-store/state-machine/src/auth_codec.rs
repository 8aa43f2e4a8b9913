//! The bytes of an [`AuthCommand`] in the log, and of the whole [`Auth`] in headers and for its hash.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::auth::{Auth, User};
use crate::auth_command::{AuthCommand, AuthError};
use crate::permission::{Permission, PermissionKind};
use crate::secret::Secret;
use crate::wire::{DecodeError, Reader, Writer};

/// Version that `Auth::encode` writes, and the newest that `decode` reads.
const AUTH_VERSION: u8 = 1;

impl Auth {
    pub(crate) fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(64);
        writer.u8(AUTH_VERSION);
        writer.bool(self.enabled);
        writer.varint(self.revision);
        write_secret(&mut writer, &self.token_secret);
        writer.varint(self.users.len() as u64);
        for (name, user) in &self.users {
            writer.bytes(name.as_bytes());
            writer.option(user.password.as_ref(), write_secret);
            writer.varint(user.credentials_revision);
            writer.varint(user.roles.len() as u64);
            user.roles.iter().for_each(|role| writer.bytes(role.as_bytes()));
        }
        writer.varint(self.roles.len() as u64);
        for (name, permissions) in &self.roles {
            writer.bytes(name.as_bytes());
            writer.list(permissions, write_permission);
        }
        writer.finish()
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        match reader.u8()? {
            AUTH_VERSION => {}
            version => return Err(DecodeError::UnknownVersion { version, newest: AUTH_VERSION }),
        }
        let mut auth = Self::default();
        auth.enabled = reader.bool()?;
        auth.revision = reader.varint()?;
        auth.token_secret = read_secret(&mut reader)?;
        auth.users = reader.list(read_user)?.into_iter().collect::<BTreeMap<_, _>>();
        let roles = reader.list(|reader| Ok((read_text(reader)?, reader.list(read_permission)?)))?;
        auth.roles = roles.into_iter().collect();
        reader.finish()?;
        auth.changed();
        Ok(auth)
    }
}

fn read_user(reader: &mut Reader) -> Result<(String, User), DecodeError> {
    let name = read_text(reader)?;
    let password = reader.option(read_secret)?;
    let mut user = User::new(password, reader.varint()?);
    user.roles = reader.list(read_text)?.into_iter().collect::<BTreeSet<_>>();
    Ok((name, user))
}

pub(crate) fn write_auth_command(writer: &mut Writer, command: &AuthCommand) {
    let mut tagged = |tag: u8, texts: &[&str]| {
        writer.u8(tag);
        texts.iter().for_each(|text| writer.bytes(text.as_bytes()));
    };
    match command {
        AuthCommand::Enable { token_secret } => {
            tagged(1, &[]);
            write_secret(writer, token_secret);
        }
        AuthCommand::Disable => tagged(2, &[]),
        AuthCommand::UserAdd { name, password } => {
            tagged(3, &[name]);
            writer.option(password.as_ref(), write_secret);
        }
        AuthCommand::UserDelete { name } => tagged(4, &[name]),
        AuthCommand::UserChangePassword { name, password } => {
            tagged(5, &[name]);
            write_secret(writer, password);
        }
        AuthCommand::UserGrantRole { user, role } => tagged(6, &[user, role]),
        AuthCommand::UserRevokeRole { user, role } => tagged(7, &[user, role]),
        AuthCommand::RoleAdd { name } => tagged(8, &[name]),
        AuthCommand::RoleDelete { name } => tagged(9, &[name]),
        AuthCommand::RoleGrantPermission { role, permission } => {
            tagged(10, &[role]);
            write_permission(writer, permission);
        }
        AuthCommand::RoleRevokePermission { role, key, range_end } => {
            tagged(11, &[role]);
            writer.bytes(key);
            writer.bytes(range_end);
        }
    }
}

pub(crate) fn read_auth_command(reader: &mut Reader) -> Result<AuthCommand, DecodeError> {
    Ok(match reader.u8()? {
        1 => AuthCommand::Enable { token_secret: read_secret(reader)? },
        2 => AuthCommand::Disable,
        3 => AuthCommand::UserAdd { name: read_text(reader)?, password: reader.option(read_secret)? },
        4 => AuthCommand::UserDelete { name: read_text(reader)? },
        5 => AuthCommand::UserChangePassword { name: read_text(reader)?, password: read_secret(reader)? },
        6 => AuthCommand::UserGrantRole { user: read_text(reader)?, role: read_text(reader)? },
        7 => AuthCommand::UserRevokeRole { user: read_text(reader)?, role: read_text(reader)? },
        8 => AuthCommand::RoleAdd { name: read_text(reader)? },
        9 => AuthCommand::RoleDelete { name: read_text(reader)? },
        10 => AuthCommand::RoleGrantPermission {
            role: read_text(reader)?,
            permission: read_permission(reader)?,
        },
        11 => AuthCommand::RoleRevokePermission {
            role: read_text(reader)?,
            key: reader.bytes()?,
            range_end: reader.bytes()?,
        },
        tag => return Err(DecodeError::UnknownTag { what: "auth command", tag }),
    })
}

fn write_permission(writer: &mut Writer, permission: &Permission) {
    writer.u8(permission.kind.number());
    writer.bytes(&permission.key);
    writer.bytes(&permission.range_end);
}

fn read_permission(reader: &mut Reader) -> Result<Permission, DecodeError> {
    let kind = match reader.u8()? {
        0 => PermissionKind::Read,
        1 => PermissionKind::Write,
        2 => PermissionKind::ReadWrite,
        tag => return Err(DecodeError::UnknownTag { what: "permission kind", tag }),
    };
    Ok(Permission { kind, key: reader.bytes()?, range_end: reader.bytes()? })
}

fn write_secret(writer: &mut Writer, secret: &Secret) {
    writer.bytes(secret.expose());
}

/// A copy: secrets outlive the buffer that they came in.
fn read_secret(reader: &mut Reader) -> Result<Secret, DecodeError> {
    Ok(Secret::new(Bytes::copy_from_slice(&reader.bytes()?)))
}

pub(crate) fn read_text(reader: &mut Reader) -> Result<String, DecodeError> {
    let bytes = reader.bytes()?;
    std::str::from_utf8(&bytes).map(str::to_owned).map_err(|_| DecodeError::OutOfRange { what: "a text" })
}

/// Every error with the number that stands for it.
const ERRORS: [(u8, AuthError); 13] = [
    (1, AuthError::RootUserNotExist),
    (2, AuthError::RootRoleNotExist),
    (3, AuthError::UserAlreadyExists),
    (4, AuthError::UserEmpty),
    (5, AuthError::UserNotFound),
    (6, AuthError::RoleAlreadyExists),
    (7, AuthError::RoleNotFound),
    (8, AuthError::RoleEmpty),
    (9, AuthError::RoleNotGranted),
    (10, AuthError::PermissionNotGranted),
    (11, AuthError::InvalidManagement),
    (12, AuthError::PermissionDenied),
    (13, AuthError::OldRevision),
];

impl AuthError {
    pub(crate) fn number(self) -> u8 {
        let found = ERRORS.iter().find(|(_, error)| *error == self);
        found.map(|(number, _)| *number).expect("the table holds every error")
    }

    pub(crate) fn of_number(number: u8) -> Result<Self, DecodeError> {
        let found = ERRORS.iter().find(|(known, _)| *known == number);
        found.map(|(_, error)| *error).ok_or(DecodeError::UnknownTag { what: "auth error", tag: number })
    }
}
