//! Unpacking of one layer: the runtime does it, confined to the layer's root; this is the door to it.

use std::fs::File;
use std::path::Path;

use runtime::layers::LayerLimits;

/// Unpacks an archive into `target`, which it makes. Returns the digest of the uncompressed archive.
pub(crate) fn unpack(archive: File, target: &Path, limits: LayerLimits) -> Result<String, String> {
    let unpacked = runtime::layers::unpack_layer(archive, target, limits).map_err(|e| e.to_string())?;
    Ok(unpacked.diff_id)
}
