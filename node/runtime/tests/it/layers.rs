//! Unpacked layers, as files and under a real overlay.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use runtime::layers::{self, Error, LayerLimits, Unpacked};
use tar::{Builder, EntryType, Header};

use crate::Test;
use crate::support::Host;

pub(crate) const TESTS: &[Test] = &[
    ("layers::everything_an_archive_can_hold", everything_an_archive_can_hold),
    ("layers::nothing_gets_out", nothing_gets_out),
    ("layers::later_entries_replace_earlier_ones", later_entries_replace_earlier_ones),
    ("layers::bombs_are_bounded", bombs_are_bounded),
    ("layers::whatever_comes_stays_inside", whatever_comes_stays_inside),
    ("layers::damaged_archives_are_refused", damaged_archives_are_refused),
    ("layers::whiteouts_hide_what_is_below", whiteouts_hide_what_is_below),
];

fn unpack_layer(archive: &[u8], dest: &Path) -> Result<Unpacked, Error> {
    layers::unpack_layer(archive, dest, LayerLimits::default())
}

/// An archive under construction.
struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Layer {
        Layer(Builder::new(Vec::new()))
    }

    fn header(kind: EntryType, mode: u32) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1234);
        header.set_gid(5678);
        header.set_mtime(1_000_000_000);
        header.set_size(0);
        header
    }

    /// Any name, also those that the builder would refuse to write.
    fn raw(mut self, mut header: Header, name: &str, content: &[u8]) -> Layer {
        header.as_old_mut().name = [0; 100];
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, name: &str, content: &str) -> Layer {
        self.raw(Layer::header(EntryType::Regular, 0o4755), name, content.as_bytes())
    }

    fn dir(self, name: &str) -> Layer {
        self.raw(Layer::header(EntryType::Directory, 0o751), name, b"")
    }

    fn link(self, kind: EntryType, name: &str, to: &str) -> Layer {
        let mut header = Layer::header(kind, 0o777);
        header.set_link_name_literal(to).unwrap();
        self.raw(header, name, b"")
    }

    fn device(self, name: &str, major: u32, minor: u32) -> Layer {
        let mut header = Layer::header(EntryType::Char, 0o640);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.raw(header, name, b"")
    }

    /// Attributes for the entry that follows.
    fn attributes(mut self, list: &[(&str, &[u8])]) -> Layer {
        let keys: Vec<String> = list.iter().map(|(name, _)| format!("SCHILY.xattr.{name}")).collect();
        let pairs = keys.iter().zip(list).map(|(key, (_, value))| (key.as_str(), *value));
        self.0.append_pax_extensions(pairs).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }

    fn unpack(self, dest: &Path) -> Result<Unpacked, Error> {
        unpack_layer(&self.bytes()[..], dest)
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[expect(unsafe_code, reason = "no safe wrapper reads an attribute")]
fn attribute(path: &Path, name: &std::ffi::CStr) -> Option<Vec<u8>> {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let mut value = vec![0_u8; 64];
    // SAFETY: both names are C strings, and the buffer is as long as is said.
    let length =
        unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(length).ok()?);
    Some(value)
}

fn everything_an_archive_can_hold() {
    let dir = tempfile::tempdir().unwrap();
    let layer = Layer::new()
        .dir("./")
        .dir("./usr/")
        .attributes(&[("user.note", b"kept"), ("trusted.overlay.redirect", b"/evil")])
        .file("./usr/tool", "content")
        .file("deep/down/below", "no directories before it")
        .link(EntryType::Symlink, "usr/pointer", "../../../etc/passwd")
        .link(EntryType::Link, "usr/twin", "usr/tool")
        .device("usr/null", 1, 3)
        .raw(Layer::header(EntryType::Fifo, 0o600), "usr/pipe", b"")
        .bytes();
    let plain = unpack_layer(&layer[..], &dir.path().join("plain")).unwrap();
    let packed = unpack_layer(&gzip(&layer)[..], &dir.path().join("packed")).unwrap();
    assert_eq!(plain, packed);
    assert_eq!(plain.bytes, "content".len() as u64 + "no directories before it".len() as u64);
    let digest = ring::digest::digest(&ring::digest::SHA256, &layer);
    assert_eq!(plain.diff_id, format!("sha256:{}", hex::encode(digest)));
    let at = |name: &str| dir.path().join("packed").join(name);
    let look = |name: &str| fs::symlink_metadata(at(name)).unwrap();
    let tool = look("usr/tool");
    assert_eq!((tool.uid(), tool.gid(), tool.mode() & 0o7777), (1234, 5678, 0o4755));
    assert_eq!(tool.mtime(), 1_000_000_000);
    assert_eq!((tool.ino(), tool.nlink()), (look("usr/twin").ino(), 2));
    assert_eq!((look("usr").mode() & 0o7777, look("usr").mtime()), (0o751, 1_000_000_000));
    assert_eq!((look("").uid(), look("").mode() & 0o7777), (1234, 0o751));
    assert_eq!(fs::read_link(at("usr/pointer")).unwrap(), Path::new("../../../etc/passwd"));
    assert_eq!(look("usr/pointer").uid(), 1234);
    let null = look("usr/null");
    assert!(null.file_type().is_char_device());
    assert_eq!((null.rdev(), null.mode() & 0o7777), (nix::sys::stat::makedev(1, 3), 0o640));
    assert!(look("usr/pipe").file_type().is_fifo());
    assert_eq!(fs::read_to_string(at("deep/down/below")).unwrap(), "no directories before it");
    assert_eq!(attribute(&at("usr/tool"), c"user.note").as_deref(), Some(&b"kept"[..]));
    assert_eq!(attribute(&at("usr/tool"), c"trusted.overlay.redirect"), None);
}

fn nothing_gets_out() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    let outside_name = outside.to_str().unwrap();
    let dest = |name: &str| dir.path().join(name);
    for name in ["../x", "a/../../x", "usr/../.."] {
        let refused = Layer::new().file(name, "x").unpack(&dest("parents"));
        assert!(matches!(refused, Err(Error::Escape { .. })), "{name}: {refused:?}");
    }
    let refused = Layer::new().link(EntryType::Link, "stolen", "../outside/secret").unpack(&dest("hard"));
    assert!(matches!(refused, Err(Error::Escape { .. })), "{refused:?}");
    // An absolute name, a link out and what is below it stay inside.
    Layer::new().file("/absolute", "x").unpack(&dest("absolute")).unwrap();
    assert!(dest("absolute").join("absolute").exists());
    let through = Layer::new()
        .link(EntryType::Symlink, "way", outside_name)
        .file("way/secret", "overwritten")
        .unpack(&dest("through"));
    assert!(through.is_err(), "the link dangles inside: {through:?}");
    let relative = Layer::new()
        .link(EntryType::Symlink, "way", "../../outside")
        .dir("outside")
        .file("way/secret", "overwritten")
        .unpack(&dest("relative"));
    assert!(relative.is_ok(), "{relative:?}");
    assert_eq!(fs::read_to_string(dest("relative").join("outside/secret")).unwrap(), "overwritten");
    let beside = Layer::new()
        .dir("usr")
        .dir("usr/lib")
        .link(EntryType::Symlink, "lib", "usr/lib")
        .dir("lib/modules")
        .file("lib/modules/one", "x")
        .unpack(&dest("beside"));
    assert!(beside.is_ok(), "links inside are followed inside: {beside:?}");
    assert!(dest("beside").join("usr/lib/modules/one").exists());
    // A hard link made through a symbolic link finds nothing of the host's.
    let stolen = Layer::new()
        .link(EntryType::Symlink, "way", outside_name)
        .link(EntryType::Link, "stolen", "way/secret")
        .unpack(&dest("stolen"));
    assert!(matches!(stolen, Err(Error::Io { .. })), "{stolen:?}");
    // A file is written in a link's place, not where the link leads.
    let target = outside.join("secret");
    Layer::new()
        .link(EntryType::Symlink, "file", target.to_str().unwrap())
        .file("file", "new")
        .unpack(&dest("place"))
        .unwrap();
    assert_eq!(fs::read_to_string(dest("place").join("file")).unwrap(), "new");
    for name in [".wh.", ".wh..", ".wh..."] {
        let refused = Layer::new().file(name, "").unpack(&dest("whiteout"));
        assert!(matches!(refused, Err(Error::Escape { .. })), "{name}: {refused:?}");
    }
    assert_eq!(fs::read_to_string(&target).unwrap(), "secret");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

fn later_entries_replace_earlier_ones() {
    let dir = tempfile::tempdir().unwrap();
    Layer::new()
        .file("a", "file")
        .dir("a")
        .file("a/b/c", "x")
        .link(EntryType::Symlink, "a/b/l", "/nowhere")
        .file("a", "file again")
        .dir("d")
        .dir("d")
        .file("d/e", "1")
        .file("d/e", "2")
        .unpack(dir.path())
        .unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "file again");
    assert_eq!(fs::read_to_string(dir.path().join("d/e")).unwrap(), "2");
}

/// Damaged archives of everything that can be in one, thousands of them: no panic, and nothing outside changes.
fn whatever_comes_stays_inside() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    let whole = Layer::new()
        .dir("usr")
        .link(EntryType::Symlink, "way", "../../outside")
        .link(EntryType::Symlink, "usr/way", outside.to_str().unwrap())
        .file("usr/tool", "content")
        .link(EntryType::Link, "usr/twin", "usr/tool")
        .file("usr/.wh.tool", "")
        .device("usr/null", 1, 3)
        .attributes(&[("user.note", b"kept"), ("path", b"x")])
        .file("way/secret", "overwritten")
        .bytes();
    let names: &[&[u8]] =
        &[b"way/secret", b"../outside/secret", b"/", b"..", b".", b"usr/way/secret", b".wh..", b""];
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..1_000 {
        let mut bytes = whole.clone();
        for _ in 0..=random(4) {
            let block = random(bytes.len() / 512) * 512;
            match random(5) {
                0 => {
                    let at = block + random(512);
                    bytes[at] = random(256) as u8;
                }
                1 => {
                    // Another name, or another link.
                    let field = block + [0, 157][random(2)];
                    let name = names[random(names.len())];
                    bytes[field..field + 100].fill(0);
                    bytes[field..field + name.len()].copy_from_slice(name);
                }
                2 => bytes[block + 156] = b"012345678LKxgS"[random(14)],
                3 => {
                    let from = random(bytes.len() / 512) * 512;
                    bytes.copy_within(from..from + 512, block);
                }
                _ => bytes.truncate((block + random(512)).max(512)),
            }
        }
        // Checksums are right, so that what is behind them is reached.
        for header in bytes.chunks_exact_mut(512).filter(|b| b[257..262] == *b"ustar") {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let limits = LayerLimits { bytes: 1 << 20, entries: 100 };
        let dest = dir.path().join("dest");
        match layers::unpack_layer(&bytes[..], &dest, limits) {
            Ok(_) => taken += 1,
            Err(_) => refused += 1,
        }
        fs::remove_dir_all(&dest).unwrap();
        assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
        assert_eq!(fs::metadata(outside.join("secret")).unwrap().nlink(), 1);
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
    assert!(taken > 30 && refused > 30, "both ways were gone: {taken} taken, {refused} refused");
}

/// Small archives that would become large ones: content, names, counts, holes.
fn bombs_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let limits = LayerLimits { bytes: 8 << 20, entries: 100 };
    let unpack = |bytes: &[u8], name: &str| {
        let refused = layers::unpack_layer(bytes, &dir.path().join(name), limits);
        match refused {
            Err(Error::TooLarge { what, .. }) => what,
            other => panic!("{name}: {other:?}"),
        }
    };
    let zeros = gzip(&Layer::new().file("zeros", &"\0".repeat(32 << 20)).bytes());
    assert!(zeros.len() < 1 << 20);
    assert_eq!(unpack(&zeros, "zeros"), "bytes");
    let padding = gzip(&[Layer::new().file("a", "").bytes(), vec![0; 32 << 20]].concat());
    assert_eq!(unpack(&padding, "padding"), "bytes");
    let many = (0..101).fold(Layer::new(), |layer, n| layer.file(&format!("f{n}"), ""));
    assert_eq!(unpack(&many.bytes(), "many"), "entries");
    for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
        let long = Layer::new().raw(Layer::header(kind, 0), "././@Long", &vec![b'a'; 4 << 20]).file("a", "");
        assert_eq!(unpack(&gzip(&long.bytes()), "names"), "bytes of headers of one entry", "{kind:?}");
    }
    // A file of a thousand terabytes with nothing in it.
    let mut header = Layer::header(EntryType::GNUSparse, 0o644);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(1 << 50);
    gnu.sparse[0].offset.copy_from_slice(b"00000000000\0");
    gnu.sparse[0].numbytes.copy_from_slice(b"00000000000\0");
    gnu.sparse[1].set_offset(1 << 50);
    gnu.sparse[1].numbytes.copy_from_slice(b"00000000000\0");
    let holes = Layer::new().raw(header, "holes", b"").bytes();
    assert_eq!(unpack(&holes, "holes"), "bytes");
    let written: u64 = fs::metadata(dir.path().join("holes/holes")).unwrap().blocks() * 512;
    assert!(written < 1 << 20, "holes stay holes: {written}");
    // A directory that carries content, as no archiver makes them.
    let odd = Layer::new().raw(Layer::header(EntryType::Directory, 0o755), "d", &[1; 3000]).file("f", "x");
    unpack_layer(&odd.bytes(), &dir.path().join("odd")).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("odd/f")).unwrap(), "x");
    // Numbers that were left out.
    let mut blank = Header::new_gnu();
    blank.set_entry_type(EntryType::Regular);
    unpack_layer(&Layer::new().raw(blank, "blank", b"y").bytes(), &dir.path().join("odd")).unwrap();
    assert_eq!(fs::metadata(dir.path().join("odd/blank")).unwrap().uid(), 0);
}

fn damaged_archives_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let whole = Layer::new().file("a", &"x".repeat(5000)).file("b", "y").bytes();
    let unpack = |bytes: &[u8]| unpack_layer(bytes, &dir.path().join("d"));
    assert!(matches!(unpack(&whole[..3000]), Err(Error::Archive(_))));
    let mut torn = whole.clone();
    torn[10] ^= 0xff;
    assert!(matches!(unpack(&torn), Err(Error::Archive(_))));
    let packed = gzip(&whole);
    assert!(matches!(unpack(&packed[..packed.len() / 2]), Err(Error::Archive(_))));
    assert!(matches!(unpack(b"\x28\xb5\x2f\xfd...."), Err(Error::Archive(_))));
    assert!(matches!(unpack(b"BZh9...."), Err(Error::Compression { algorithm: "bzip2" })));
    assert!(matches!(unpack(&[b'x'; 1024]), Err(Error::Archive(_))));
    assert!(unpack(&whole).is_ok());
}

fn whiteouts_hide_what_is_below() {
    let host = Host::new();
    host.sandbox("s");
    let at = |name: &str| host.dir.path().join(name);
    Layer::new()
        .file("gone", "x")
        .file("dir/old", "x")
        .file("whole/old", "x")
        .file("remade/old", "x")
        .file("remade-first/old", "x")
        .file("kept/old", "x")
        .unpack(&at("lower"))
        .unwrap();
    let upper = Layer::new()
        .file(".wh.gone", "")
        .file("dir/.wh.old", "")
        .file("dir/new", "x")
        .file("whole/new", "x")
        .file("whole/.wh..wh..opq", "")
        .file(".wh.remade", "")
        .dir("remade")
        .file("remade/new", "x")
        .dir("remade-first")
        .file("remade-first/new", "x")
        .file(".wh.remade-first", "")
        .file(".wh..wh.plnk", "aufs's own")
        .file("kept/new", "x")
        .file("kept/.wh.new", "")
        .unpack(&at("upper"))
        .unwrap();
    assert_eq!(upper.entries, 14);
    let listing = |dir: &str| {
        let id = format!("list{}", dir.replace('/', "-"));
        let mut spec = host.spec(&id, "s", &["list", dir]);
        spec.rootfs.lower_dirs.insert(0, at("lower"));
        spec.rootfs.lower_dirs.insert(0, at("upper"));
        host.run(&spec).1.trim().to_owned()
    };
    let root = listing("/");
    assert_eq!(root, "bin dev dir etc kept proc remade remade-first sys tmp whole");
    assert_eq!(listing("/dir"), "new");
    assert_eq!(listing("/whole"), "new");
    assert_eq!(listing("/remade"), "new");
    assert_eq!(listing("/remade-first"), "new");
    assert_eq!(listing("/kept"), "new old", "a layer's whiteout does not hide its own file");
    host.finish();
}
