//! Manifests and indexes as registries and archives give them: what they are, which one is for this machine,
//! and whether it is an image that can be run. Pure; everything in here comes from outside.

use serde_json::Value;

use super::ImageError;
use super::config::{
    Descriptor, Index, MEDIA_CONFIG, MEDIA_DOCKER_CONFIG, MEDIA_DOCKER_LAYER, MEDIA_DOCKER_LAYER_TAR,
    MEDIA_DOCKER_LIST, MEDIA_DOCKER_MANIFEST, MEDIA_INDEX, MEDIA_LAYER_GZIP, MEDIA_LAYER_TAR,
    MEDIA_LAYER_ZSTD, MEDIA_MANIFEST, Manifest, Platform,
};

/// Longer manifests and indexes are refused unread.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Longer configurations likewise.
pub(crate) const CONFIG_BYTES_MAX: u64 = 8 << 20;
/// An overlay takes about as many.
const LAYERS_MAX: usize = 400;
const INDEX_ENTRIES_MAX: usize = 10_000;

/// What is asked for when a tag is resolved.
pub(crate) const ACCEPTED: &[&str] = &[MEDIA_INDEX, MEDIA_MANIFEST, MEDIA_DOCKER_LIST, MEDIA_DOCKER_MANIFEST];

/// A document that a tag or digest may lead to.
#[derive(Debug, Clone)]
pub(crate) enum Document {
    /// One image.
    Image(Manifest),
    /// One image per platform.
    Index(Index),
}

/// How the documents of an image are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// As the OCI image specification has it.
    Oci,
    /// Docker's schema 2.
    Docker,
}

/// Reads a document. `declared` is the type that it was delivered with, which its own word overrides.
pub(crate) fn parse(what: &str, bytes: &[u8], declared: Option<&str>) -> Result<Document, ImageError> {
    let refuse = |problem: String| ImageError::malformed(what, problem);
    if bytes.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(refuse(format!("it is larger than {MANIFEST_BYTES_MAX} bytes")));
    }
    let value: Value = serde_json::from_slice(bytes).map_err(|e| refuse(e.to_string()))?;
    let own = value.get("mediaType").and_then(Value::as_str).filter(|own| !own.is_empty());
    let declared = declared.map(|d| d.split(';').next().unwrap_or_default().trim());
    let media_type = own.or(declared).unwrap_or_default().to_owned();
    let schema = value.get("schemaVersion").and_then(Value::as_u64);
    if schema == Some(1) || media_type.starts_with("application/vnd.docker.distribution.manifest.v1+") {
        return Err(refuse(
            "it has Docker's schema 1, which is obsolete and not supported; push the image again with a tool of \
             this decade"
                .into(),
        ));
    }
    let (manifests, layers) = (value.get("manifests").is_some(), value.get("layers").is_some());
    if manifests && layers {
        return Err(refuse("it is a manifest and an index at once".into()));
    }
    if manifests || [MEDIA_INDEX, MEDIA_DOCKER_LIST].contains(&media_type.as_str()) {
        let index: Index = serde_json::from_value(value).map_err(|e| refuse(e.to_string()))?;
        if index.manifests.len() > INDEX_ENTRIES_MAX {
            return Err(refuse(format!("it lists more than {INDEX_ENTRIES_MAX} manifests")));
        }
        return Ok(Document::Index(index));
    }
    let mut manifest: Manifest = serde_json::from_value(value).map_err(|e| refuse(e.to_string()))?;
    if manifest.media_type.is_empty() {
        manifest.media_type = if media_type.is_empty() { MEDIA_MANIFEST.to_owned() } else { media_type };
    }
    check(&manifest).map_err(refuse)?;
    Ok(Document::Image(manifest))
}

/// Whether a manifest is that of an image whose layers can be unpacked.
fn check(manifest: &Manifest) -> Result<(), String> {
    if manifest.layers.len() > LAYERS_MAX {
        return Err(format!("it has more than {LAYERS_MAX} layers"));
    }
    if ![MEDIA_CONFIG, MEDIA_DOCKER_CONFIG, ""].contains(&manifest.config.media_type.as_str()) {
        let kind = &manifest.config.media_type;
        return Err(format!("it is no container image: its configuration is of type {kind:?}"));
    }
    if manifest.config.size > CONFIG_BYTES_MAX {
        return Err(format!("its configuration is larger than {CONFIG_BYTES_MAX} bytes"));
    }
    for descriptor in std::iter::once(&manifest.config).chain(&manifest.layers) {
        if !is_digest(&descriptor.digest) {
            return Err(format!("{:?} is not sha256:<64 hex digits>", descriptor.digest));
        }
    }
    for layer in &manifest.layers {
        let (digest, kind) = (&layer.digest, layer.media_type.as_str());
        if kind.contains("foreign") || kind.contains("nondistributable") {
            return Err(format!(
                "layer {digest} is a foreign layer ({kind}), which registries do not hold; such images are not supported"
            ));
        }
        let known = [
            MEDIA_LAYER_TAR,
            MEDIA_LAYER_GZIP,
            MEDIA_LAYER_ZSTD,
            MEDIA_DOCKER_LAYER,
            MEDIA_DOCKER_LAYER_TAR,
            "application/vnd.docker.image.rootfs.diff.tar.zstd",
            "",
        ];
        if !known.contains(&kind) {
            return Err(format!("layer {digest} is of the unknown type {kind:?}"));
        }
    }
    Ok(())
}

/// The entry of an index that is for this machine.
pub(crate) fn select<'a>(what: &str, index: &'a Index) -> Result<&'a Descriptor, ImageError> {
    let fits = |descriptor: &&Descriptor| {
        let kinds = [MEDIA_MANIFEST, MEDIA_DOCKER_MANIFEST, MEDIA_INDEX, MEDIA_DOCKER_LIST, ""];
        kinds.contains(&descriptor.media_type.as_str()) && is_digest(&descriptor.digest)
    };
    let ours = |d: &&Descriptor| d.platform.as_ref().is_some_and(is_this_platform);
    let usable = || index.manifests.iter().filter(fits);
    // A plain one runs everywhere; variants may want a newer processor.
    let plain =
        |d: &&Descriptor| d.platform.as_ref().is_some_and(|p| matches!(p.variant.as_str(), "" | "v1" | "v8"));
    let chosen = usable().find(|d| ours(d) && plain(d)).or_else(|| usable().find(ours));
    chosen.or_else(|| usable().find(|d| d.platform.is_none())).ok_or_else(|| {
        let offered: Vec<String> =
            index.manifests.iter().filter_map(|d| d.platform.as_ref()).map(Platform::to_string).collect();
        let offered = if offered.is_empty() { "none".to_owned() } else { offered.join(", ") };
        let problem = format!("it has no manifest for linux/{}; it has: {offered}", architecture());
        ImageError::malformed(what, problem)
    })
}

/// The same image in another form. Its layers stay; its digest changes, and with it that of nothing else.
pub(crate) fn convert(manifest: &Manifest, format: Format) -> Result<Manifest, ImageError> {
    let mut converted = manifest.clone();
    converted.schema_version = 2;
    let (kind, config) = match format {
        Format::Oci => (MEDIA_MANIFEST, MEDIA_CONFIG),
        Format::Docker => (MEDIA_DOCKER_MANIFEST, MEDIA_DOCKER_CONFIG),
    };
    converted.media_type = kind.to_owned();
    converted.config.media_type = config.to_owned();
    for layer in &mut converted.layers {
        let kind = layer.media_type.as_str();
        let converted = match (format, compression(kind)) {
            (Format::Oci, Compression::None) => MEDIA_LAYER_TAR,
            (Format::Oci, Compression::Gzip) => MEDIA_LAYER_GZIP,
            (Format::Oci, Compression::Zstd) => MEDIA_LAYER_ZSTD,
            (Format::Docker, Compression::None) => MEDIA_DOCKER_LAYER_TAR,
            (Format::Docker, Compression::Gzip) => MEDIA_DOCKER_LAYER,
            (Format::Docker, Compression::Zstd) => {
                let problem =
                    "it is compressed with zstd, for which Docker's schema 2 has no name; use the OCI format";
                return Err(ImageError::malformed(format!("layer {}", layer.digest), problem));
            }
        };
        layer.media_type = converted.to_owned();
    }
    Ok(converted)
}

enum Compression {
    None,
    Gzip,
    Zstd,
}

fn compression(kind: &str) -> Compression {
    match kind {
        k if k.ends_with("zstd") => Compression::Zstd,
        k if k.ends_with("gzip") => Compression::Gzip,
        _ => Compression::None,
    }
}

/// Whether text is `sha256:` and 64 lower-case hex digits: what may become a file's name.
pub(crate) fn is_digest(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or_default();
    hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

pub(crate) fn is_this_platform(platform: &Platform) -> bool {
    platform.os == "linux" && platform.architecture == architecture()
}

/// The machine's architecture in the words of image platforms.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn image(layer_type: &str) -> Value {
        json!({"schemaVersion": 2, "config": {"mediaType": MEDIA_CONFIG, "digest": DIGEST, "size": 1},
               "layers": [{"mediaType": layer_type, "digest": DIGEST, "size": 1}]})
    }

    fn parsed(value: &Value, declared: Option<&str>) -> Result<Document, String> {
        parse("m", value.to_string().as_bytes(), declared).map_err(|e| e.to_string())
    }

    #[test]
    fn every_form_is_told_apart() {
        assert!(matches!(parsed(&image(MEDIA_LAYER_GZIP), None), Ok(Document::Image(_))));
        let docker = format!("{MEDIA_DOCKER_MANIFEST}; charset=utf-8");
        match parsed(&image(MEDIA_DOCKER_LAYER), Some(&docker)) {
            Ok(Document::Image(manifest)) => assert_eq!(manifest.media_type, MEDIA_DOCKER_MANIFEST),
            other => panic!("{other:?}"),
        }
        let index = json!({"schemaVersion": 2, "manifests": []});
        assert!(matches!(parsed(&index, None), Ok(Document::Index(_))));
        let says = |value: &Value, word: &str| {
            let error = parsed(value, None).unwrap_err();
            assert!(error.contains(word), "{error}");
        };
        says(&json!({"schemaVersion": 1, "fsLayers": [], "name": "x"}), "schema 1");
        says(&image("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"), "foreign layer");
        says(&image("application/vnd.oci.image.layer.nondistributable.v1.tar"), "foreign layer");
        says(&image("application/x-squashfs"), "unknown type");
        let mut both = image(MEDIA_LAYER_TAR);
        both["manifests"] = json!([]);
        says(&both, "at once");
        let mut chart = image(MEDIA_LAYER_TAR);
        chart["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json".into();
        says(&chart, "no container image");
        for evil in ["sha256:../../../../etc/passwd", "sha512:00", "", "sha256:BA78"] {
            let mut escaping = image(MEDIA_LAYER_TAR);
            escaping["layers"][0]["digest"] = evil.into();
            says(&escaping, "is not sha256");
        }
        let mut many = image(MEDIA_LAYER_TAR);
        let layer = many["layers"][0].clone();
        many["layers"] = Value::Array(vec![layer; LAYERS_MAX + 1]);
        says(&many, "more than");
    }

    #[test]
    fn the_platform_decides() {
        let entry = |arch: &str, os: &str, variant: &str, last: &str| {
            let digest = format!("{}{last}", &DIGEST[..DIGEST.len() - 1]);
            let mut platform = json!({"architecture": arch, "os": os});
            if !variant.is_empty() {
                platform["variant"] = variant.into();
            }
            json!({"mediaType": MEDIA_MANIFEST, "digest": digest, "size": 1, "platform": platform})
        };
        let arch = architecture();
        let index = json!({"manifests": [
            entry("unknown", "unknown", "", "0"),
            entry("s390x", "linux", "", "1"),
            entry(arch, "windows", "", "2"),
            entry(arch, "linux", "v3", "3"),
            entry(arch, "linux", "", "4"),
        ]});
        let Ok(Document::Index(index)) = parsed(&index, None) else { panic!("an index") };
        assert!(select("i", &index).unwrap().digest.ends_with('4'));
        let others = Index { manifests: index.manifests[..3].to_vec(), ..index };
        let error = select("i", &others).unwrap_err().to_string();
        assert!(error.contains("it has: unknown/unknown, linux/s390x"), "{error}");
    }

    /// Whatever comes, nothing breaks, and what is accepted names no file outside.
    #[test]
    fn damaged_documents_are_harmless() {
        let index = json!({"manifests": [{"digest": DIGEST, "size": 1, "mediaType": MEDIA_MANIFEST,
                                          "platform": {"os": "linux", "architecture": architecture()}}]});
        let pieces: &[&[u8]] =
            &[b"null", b"{}", b"[]", b"-1", b"\"../x\"", b"1e999", b"18446744073709551616"];
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % below as u64) as usize
        };
        for whole in [image(MEDIA_LAYER_GZIP).to_string(), index.to_string()] {
            for _ in 0..20_000 {
                let mut bytes = whole.clone().into_bytes();
                for _ in 0..=random(3) {
                    let at = random(bytes.len());
                    match random(3) {
                        0 => bytes[at] = random(256) as u8,
                        1 => bytes.truncate(at.max(1)),
                        _ => drop(
                            bytes.splice(at..(at + random(20)).min(bytes.len()), pieces[random(7)].to_vec()),
                        ),
                    }
                }
                match parse("m", &bytes, None) {
                    Ok(Document::Image(manifest)) => {
                        let all = std::iter::once(&manifest.config).chain(&manifest.layers);
                        assert!(all.into_iter().all(|d| is_digest(&d.digest)));
                    }
                    Ok(Document::Index(index)) => {
                        assert!(
                            select("i", &index).is_ok_and(|d| is_digest(&d.digest))
                                || select("i", &index).is_err()
                        );
                    }
                    Err(_) => {}
                }
            }
        }
    }

    #[test]
    fn forms_convert_both_ways() {
        let Ok(Document::Image(oci)) = parsed(&image(MEDIA_LAYER_GZIP), None) else { panic!("a manifest") };
        let docker = convert(&oci, Format::Docker).unwrap();
        assert_eq!(docker.media_type, MEDIA_DOCKER_MANIFEST);
        assert_eq!(docker.layers[0].media_type, MEDIA_DOCKER_LAYER);
        assert_eq!(docker.layers[0].digest, oci.layers[0].digest);
        let back = convert(&docker, Format::Oci).unwrap();
        assert_eq!(serde_json::to_value(&back).unwrap(), serde_json::to_value(&oci).unwrap());
        let Ok(Document::Image(zstd)) = parsed(&image(MEDIA_LAYER_ZSTD), None) else { panic!("a manifest") };
        assert!(convert(&zstd, Format::Docker).is_err());
    }
}
