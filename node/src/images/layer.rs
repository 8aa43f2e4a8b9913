//! From a layer's archive to its directory in the store: the runtime unpacks, confined to the layer's root.

use std::fs::File;
use std::path::Path;

use runtime::layers::{LayerLimits, unpack_layer};

use super::{ImageError, ImageStore};

/// Unpacks an archive below `work` and makes it the store's, if it is what `diff_id` says.
pub(super) fn unpack_into(
    store: &ImageStore,
    work: &Path,
    blob: &Path,
    diff_id: &str,
    limits: LayerLimits,
) -> Result<(), ImageError> {
    let target = work.join(format!("layer-{}", hex::encode(rand::random::<[u8; 8]>())));
    let archive = File::open(blob).map_err(ImageError::io("open", blob))?;
    let unpacked = unpack_layer(archive, &target, limits)
        .map_err(|e| ImageError::Unpack { layer: diff_id.to_owned(), problem: e.to_string() })?;
    if unpacked.diff_id != diff_id {
        let (what, path) = ("a layer".to_owned(), blob.to_owned());
        return Err(ImageError::Corrupt {
            what,
            path,
            expected: diff_id.to_owned(),
            found: unpacked.diff_id,
        });
    }
    store.put_layer(&target, diff_id)
}
