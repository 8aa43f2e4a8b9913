//! The built-in image `barque/hello:1.0`: one layer with one static binary, `/barque`.
//!
//! Made without compression and with the kernel's own copying where the filesystem can (reflink or
//! copy_file_range), because it is made on every first start of a cluster.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use ring::digest::{Context, SHA256};

use super::config::{
    ConfigFile, Descriptor, Index, MEDIA_CONFIG, MEDIA_INDEX, MEDIA_LAYER_TAR, MEDIA_MANIFEST, Manifest,
    NAME_ANNOTATION, REF_NAME_ANNOTATION, RootFs,
};
use super::index::Committed;
use super::manifest::architecture;
use super::{ImageConfig, ImageError, ImageStore, Reference, sha256_hex};

/// The name of the image that every node can have without a registry.
pub const BUILTIN_IMAGE: &str = "barque/hello:1.0";

const BLOCK_BYTES: usize = 512;
const HASH_BUFFER_BYTES: usize = 1 << 20;

/// The image's documents; the layer itself is described, not held.
struct Documents {
    config: Vec<u8>,
    manifest: Vec<u8>,
    diff_id: String,
}

/// Writes an OCI image layout directory with one image, `name`, that runs `exe` as `/barque hello`.
pub fn build_builtin(exe: &Path, name: &str, layout: &Path) -> Result<(), ImageError> {
    let reference = Reference::parse(name)?;
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(ImageError::io("create", &blobs))?;
    let (header, size) = layer_header(exe)?;
    let documents = describe(exe, &header, size)?;
    write_layer(exe, &header, size, &blobs.join(documents.diff_id.trim_start_matches("sha256:")))?;
    let write = |bytes: &[u8]| -> Result<String, ImageError> {
        let hex = sha256_hex(bytes);
        let path = blobs.join(&hex);
        fs::write(&path, bytes).map_err(ImageError::io("write", &path))?;
        Ok(format!("sha256:{hex}"))
    };
    write(&documents.config)?;
    let digest = write(&documents.manifest)?;
    let mut entry = descriptor(MEDIA_MANIFEST, digest, documents.manifest.len() as u64);
    entry.annotations.insert(NAME_ANNOTATION.into(), reference.to_string());
    entry.annotations.insert(REF_NAME_ANNOTATION.into(), reference.tag().unwrap_or("latest").into());
    let index = Index { schema_version: 2, media_type: MEDIA_INDEX.into(), manifests: vec![entry] };
    let index = serde_json::to_vec(&index).expect("an index has string keys only");
    for (file, bytes) in
        [("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.as_slice()), ("index.json", index.as_slice())]
    {
        let path = layout.join(file);
        fs::write(&path, bytes).map_err(ImageError::io("write", &path))?;
    }
    Ok(())
}

/// Makes the image directly inside a store: one pass to hash, one in-kernel copy. Does nothing when the
/// store has it already, made of the very same file. Returns whether it was made.
pub fn import_builtin(store: &ImageStore, exe: &Path, name: &str) -> Result<bool, ImageError> {
    let reference = Reference::parse(name)?;
    let metadata = fs::metadata(exe).map_err(ImageError::io("read", exe))?;
    let source = format!(
        "{}:{}:{}:{}.{}",
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec()
    );
    if store.source(&reference).as_deref() == Some(source.as_str()) {
        return Ok(false);
    }
    let _using = store.using()?;
    let (header, size) = layer_header(exe)?;
    let documents = describe(exe, &header, size)?;
    if !store.layer_dir(&documents.diff_id).is_dir() {
        let work = store.ingest_dir()?;
        let layer = work.join("layer");
        fs::create_dir(&layer).map_err(ImageError::io("create", &layer))?;
        fs::set_permissions(&layer, fs::Permissions::from_mode(0o755))
            .map_err(ImageError::io("set the mode of", &layer))?;
        let binary = layer.join("barque");
        fs::copy(exe, &binary).map_err(ImageError::io("copy the binary to", &binary))?;
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))
            .map_err(ImageError::io("set the mode of", &binary))?;
        store.put_layer(&layer, &documents.diff_id)?;
    }
    store.put_blob_bytes(&documents.config)?;
    let digest = store.put_blob_bytes(&documents.manifest)?;
    store.commit(&[reference], Committed { manifest: &digest, target: None, source: Some(&source) })?;
    Ok(true)
}

/// Makes the archive of a built-in image's layer out of what was unpacked of it.
pub(super) fn archive_layer(store: &ImageStore, diff_id: &str) -> Result<(), ImageError> {
    let binary = store.layer_dir(diff_id).join("barque");
    let (header, size) = layer_header(&binary)?;
    let work = store.ingest_dir()?;
    let archive = work.join("layer.tar");
    write_layer(&binary, &header, size, &archive)?;
    let found = super::archive::hash_file(&archive)?;
    if found != diff_id {
        let what = "the layer's archive is not kept, and what was unpacked of it".to_owned();
        return Err(ImageError::Corrupt { what, path: binary, expected: diff_id.to_owned(), found });
    }
    store.put_blob(&archive, diff_id)
}

/// The tar header of the one file, and the file's size. Times and owners are fixed, so that the same binary
/// always gives the same digest.
fn layer_header(exe: &Path) -> Result<(tar::Header, u64), ImageError> {
    let size = fs::metadata(exe).map_err(ImageError::io("read", exe))?.len();
    let mut header = tar::Header::new_ustar();
    header.set_path("barque").map_err(ImageError::io("name", "barque"))?;
    header.set_size(size);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    Ok((header, size))
}

fn padding(size: u64) -> usize {
    (BLOCK_BYTES - (size % BLOCK_BYTES as u64) as usize) % BLOCK_BYTES
}

fn describe(exe: &Path, header: &tar::Header, size: u64) -> Result<Documents, ImageError> {
    let mut file = fs::File::open(exe).map_err(ImageError::io("open", exe))?;
    let mut context = Context::new(&SHA256);
    context.update(header.as_bytes());
    let mut buffer = vec![0; HASH_BUFFER_BYTES];
    loop {
        let count = file.read(&mut buffer).map_err(ImageError::io("read", exe))?;
        if count == 0 {
            break;
        }
        context.update(&buffer[..count]);
    }
    let end = vec![0; padding(size) + 2 * BLOCK_BYTES];
    context.update(&end);
    let diff_id = format!("sha256:{}", hex::encode(context.finish()));
    let layer_size = (BLOCK_BYTES + end.len()) as u64 + size;
    let config = ConfigFile {
        architecture: architecture().into(),
        os: "linux".into(),
        config: Some(ImageConfig {
            entrypoint: vec!["/barque".into(), "hello".into()],
            env: vec!["PATH=/".into()],
            working_dir: "/".into(),
            exposed_ports: [("8080/tcp".to_owned(), serde_json::json!({}))].into(),
            ..ImageConfig::default()
        }),
        rootfs: RootFs { kind: "layers".into(), diff_ids: vec![diff_id.clone()] },
    };
    let config = serde_json::to_vec(&config).expect("a configuration has string keys only");
    let config_digest = format!("sha256:{}", sha256_hex(&config));
    let manifest = Manifest {
        schema_version: 2,
        media_type: MEDIA_MANIFEST.into(),
        config: descriptor(MEDIA_CONFIG, config_digest, config.len() as u64),
        layers: vec![descriptor(MEDIA_LAYER_TAR, diff_id.clone(), layer_size)],
    };
    let manifest = serde_json::to_vec(&manifest).expect("a manifest has string keys only");
    Ok(Documents { config, manifest, diff_id })
}

fn write_layer(exe: &Path, header: &tar::Header, size: u64, target: &Path) -> Result<(), ImageError> {
    let mut input = fs::File::open(exe).map_err(ImageError::io("open", exe))?;
    let mut output = fs::File::create(target).map_err(ImageError::io("create", target))?;
    output.write_all(header.as_bytes()).map_err(ImageError::io("write", target))?;
    // std's copy uses copy_file_range between files.
    std::io::copy(&mut input, &mut output).map_err(ImageError::io("write", target))?;
    output.write_all(&vec![0; padding(size) + 2 * BLOCK_BYTES]).map_err(ImageError::io("write", target))
}

fn descriptor(media_type: &str, digest: String, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.into(),
        digest,
        size,
        platform: None,
        annotations: Default::default(),
    }
}
