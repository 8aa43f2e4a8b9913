//! `freezer`: holds a group still while it is being killed, so that it cannot fork away.

use crate::cgroups::control::ControlDir;

/// Freezing takes effect soon, not at once; killing works on what is not frozen yet as well, so
/// failures matter little and are not reported.
pub(in crate::cgroups) fn set_frozen(dir: &ControlDir, frozen: bool) {
    let state = if frozen { "FROZEN" } else { "THAWED" };
    let _ = dir.write("freezer.state", state);
}
