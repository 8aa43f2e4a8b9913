//! The files of a cluster: tokens, certificates, configuration files, kubeconfig.
//!
//! Written once, before the first process starts. When a cluster is started again, what is there is kept:
//! the control token is the cluster's identity.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use control::pki::{self, Authority, ControlToken};
use serde::Serialize;

use super::plan::Plan;
use crate::kubeconfig;

/// The nodes of a new cluster join at once; the token need not live longer than a slow start.
const NODE_TOKEN_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// The administrator's name.
const ADMIN: &str = "admin";

/// Writes everything that is not there yet.
pub(crate) fn write(plan: &Plan) -> anyhow::Result<()> {
    let now = SystemTime::now();
    let token = control_token(plan, now)?;
    let authority = Authority::from_token(&token)?;
    pki::write_public(&plan.ca_file(), authority.certificate_pem().as_bytes())?;
    // A new one each time: an administrator's certificate does not live for ever.
    let admin = authority.issue_admin(ADMIN, now)?;
    let text = kubeconfig::render(&plan.name, &format!("https://{}", plan.endpoint()), ADMIN, &admin);
    pki::write_private(&plan.kubeconfig_file(), text.as_bytes())?;

    for master in plan.masters() {
        write_config(plan, &master.name, &super::configs::control(plan, master))?;
    }
    let node_token = authority.issue_node_token(NODE_TOKEN_LIFE, now)?.to_secret_text();
    for node in plan.nodes() {
        let mut config = super::configs::node(plan, node, &node_token);
        // Registries are the operator's to name: what was written there stays.
        let file = plan.config_file(&node.agent());
        if let Ok(text) = fs::read_to_string(&file) {
            let before: node::Config = serde_saphyr::from_str(&text)
                .with_context(|| format!("{} cannot be used; correct it", file.display()))?;
            config.images = before.images;
        }
        write_config(plan, &node.agent(), &config)?;
    }
    Ok(())
}

fn control_token(plan: &Plan, now: SystemTime) -> anyhow::Result<ControlToken> {
    let path = plan.control_token_file();
    if path.exists() {
        return Ok(pki::read_token(&path)?);
    }
    let token = ControlToken::generate(now)?;
    pki::write_private(&path, token.to_secret_text().as_bytes())?;
    Ok(token)
}

fn write_config<T: Serialize>(plan: &Plan, process: &str, config: &T) -> anyhow::Result<()> {
    create_private_dir(&plan.process_dir(process))?;
    let text = serde_saphyr::to_string(config).context("a configuration is plain data")?;
    // A node's configuration holds its token.
    Ok(pki::write_private(&plan.config_file(process), text.as_bytes())?)
}

/// Makes a directory that only root can enter, with those above it.
pub(crate) fn create_private_dir(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    let parent = path.parent().context("a cluster does not lie at the root")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))
                .with_context(|| format!("cannot make {} private", path.display()))
        }
        Err(error) => Err(error).with_context(|| format!("cannot create {}", path.display())),
    }
}
