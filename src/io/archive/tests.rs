//! Valid, hostile and damaged archives of each format.

use std::io::Write;

use ::zip::ZipWriter;
use ::zip::write::SimpleFileOptions;

use super::*;

fn archive(entries: &[(&str, &[u8])]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut writer = ZipWriter::new(fs_err::File::create(file.path()).unwrap());
    for (name, bytes) in entries {
        writer.start_file(*name, SimpleFileOptions::default()).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap();
    file
}

#[test]
fn files_and_folders_are_unpacked() {
    let file = archive(&[("a/b/c.txt", b"hello"), ("d.txt", b"")]);
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("new");
    let unpacked = unpack(file.path(), &target, Limits::default()).unwrap();
    assert_eq!(unpacked, Unpacked { files: 2, bytes: 5 });
    assert_eq!(fs_err::read(target.join("a/b/c.txt")).unwrap(), b"hello");
    assert_eq!(fs_err::read(target.join("d.txt")).unwrap(), b"");
}

#[test]
fn nothing_is_written_outside_the_folder() {
    for (name, reason) in [
        ("/etc/x", "its path is absolute"),
        ("C:\\x", "its path is absolute"),
        ("a/../../x", "its path contains `..`"),
        ("..\\x", "its path contains `..`"),
    ] {
        let file = archive(&[("good.txt", b"1"), (name, b"2")]);
        let folder = tempfile::tempdir().unwrap();
        let error = unpack(file.path(), folder.path(), Limits::default()).unwrap_err().to_string();
        assert!(error.ends_with(&format!("refused: {reason}")), "{error}");
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 0, "good.txt was not written either");
    }
}

#[test]
fn links_are_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut writer = ZipWriter::new(fs_err::File::create(file.path()).unwrap());
    writer.add_symlink("link", "/etc/passwd", SimpleFileOptions::default()).unwrap();
    writer.finish().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let error = unpack(file.path(), folder.path(), Limits::default()).unwrap_err().to_string();
    assert!(error.ends_with("entry \"link\" refused: it is a link"), "{error}");
}

#[test]
fn a_bomb_is_refused_by_ratio_and_by_size() {
    let file = archive(&[("zeros", &[0; 1 << 20])]);
    let folder = tempfile::tempdir().unwrap();
    let error = unpack(file.path(), folder.path(), Limits::default()).unwrap_err().to_string();
    assert!(error.contains("unpacks to 1048576 bytes or more"), "{error}");
    let limits = Limits { bytes: 1000, ratio: 5000 };
    let error = unpack(file.path(), folder.path(), limits).unwrap_err().to_string();
    assert!(error.ends_with("expected at most 1000"), "{error}");
    unpack(file.path(), folder.path(), Limits { ratio: 5000, ..Limits::default() }).unwrap();
}

#[test]
fn damage_is_named() {
    let file = archive(&[("a.txt", b"some text that is stored")]);
    let mut bytes = fs_err::read(file.path()).unwrap();
    let at = 30 + "a.txt".len() + 3; // within the first entry's data
    bytes[at] ^= 0x55;
    fs_err::write(file.path(), bytes).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let error = unpack(file.path(), folder.path(), Limits::default()).unwrap_err().to_string();
    assert!(error.contains(": a.txt: "), "{error}");
    fs_err::write(file.path(), "no archive").unwrap();
    let error = unpack(file.path(), folder.path(), Limits::default()).unwrap_err().to_string();
    assert!(
        error.contains("begins with 6e 6f 20 61 72 63, expected a zip, tar, tar.gz or 7z archive"),
        "{error}"
    );
    fs_err::write(file.path(), b"PK\x03\x04 no archive").unwrap();
    let error = unpack(file.path(), folder.path(), Limits::default()).unwrap_err().to_string();
    assert!(error.contains("not a readable zip archive"), "{error}");
}

// Tar and 7z. Where the format does not matter, each is tried.

const EACH: [Format; 4] = [Format::Zip, Format::Tar, Format::TarGz, Format::SevenZ];

/// An archive in memory; its names may be hostile.
fn packed(format: Format, entries: &[(&str, &[u8])]) -> Vec<u8> {
    match format {
        Format::Zip => fs_err::read(archive(entries).path()).unwrap(),
        Format::Tar => {
            let entries = entries.iter().map(|(name, bytes)| (*name, *bytes, ::tar::EntryType::Regular));
            tarred(&entries.collect::<Vec<_>>())
        }
        Format::TarGz => zipped(&packed(Format::Tar, entries)),
        Format::SevenZ => {
            let entries = entries.iter().map(|(name, bytes)| (*name, *bytes, 0));
            sevenzipped(&entries.collect::<Vec<_>>())
        }
    }
}

fn tarred(entries: &[(&str, &[u8], ::tar::EntryType)]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (name, bytes, kind) in entries {
        let mut header = ::tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_entry_type(*kind);
        header.set_cksum();
        builder.append(&header, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn zipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Entries with a name, bytes and attributes; a name that ends with `/` is a folder.
fn sevenzipped(entries: &[(&str, &[u8], u32)]) -> Vec<u8> {
    let mut writer = sevenz_rust2::ArchiveWriter::new(io::Cursor::new(Vec::new())).unwrap();
    for (name, bytes, attributes) in entries {
        let mut entry = match name.strip_suffix('/') {
            Some(name) => sevenz_rust2::ArchiveEntry::new_directory(name),
            None => sevenz_rust2::ArchiveEntry::new_file(name),
        };
        entry.has_windows_attributes = *attributes != 0;
        entry.windows_attributes = *attributes;
        let content = Some(*bytes).filter(|_| !entry.is_directory);
        writer.push_archive_entry(entry, content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// Unpacks bytes, cut into volumes of `size` bytes; also gives the folder.
fn unpacked(
    bytes: &[u8],
    size: usize,
    limits: Limits,
) -> (tempfile::TempDir, Result<Unpacked, ArchiveError>) {
    let folder = tempfile::tempdir().unwrap();
    let volumes: Vec<_> = bytes
        .chunks(size)
        .enumerate()
        .map(|(index, bytes)| {
            let path = folder.path().join(format!("x.{:03}", index + 1));
            fs_err::write(&path, bytes).unwrap();
            path
        })
        .collect();
    let result =
        unpack_volumes(&volumes, &volumes[0], folder.path().join("out"), limits, &|_| Ok(()), &mut |_, _| ());
    (folder, result)
}

fn refusal(bytes: &[u8]) -> String {
    let (folder, result) = unpacked(bytes, usize::MAX, Limits::default());
    assert!(!folder.path().join("out").exists(), "nothing was written");
    result.unwrap_err().to_string().replace(&folder.path().display().to_string(), "FOLDER")
}

#[test]
fn each_format_gives_the_same_folder_whole_or_in_volumes() {
    for format in EACH {
        let bytes = packed(format, &[("./a/b/c.txt", b"hello"), ("d.txt", b""), ("e.txt", &[7; 3000])]);
        for size in [usize::MAX, 100, 7] {
            let (folder, result) = unpacked(&bytes, size, Limits::default());
            assert_eq!(result.unwrap(), Unpacked { files: 3, bytes: 3005 }, "{format} {size}");
            let read = |name| fs_err::read(folder.path().join("out").join(name)).unwrap();
            assert_eq!((read("a/b/c.txt"), read("d.txt")), (b"hello".to_vec(), Vec::new()));
            assert_eq!(read("e.txt"), [7; 3000]);
        }
    }
}

#[test]
fn each_format_is_kept_within_the_folder() {
    for format in EACH {
        for (name, reason) in [("/etc/x", "its path is absolute"), ("a/../../x", "its path contains `..`")] {
            let error = refusal(&packed(format, &[("good.txt", b"1"), (name, b"2")]));
            assert_eq!(error, format!("FOLDER/x.001: entry {name:?} refused: {reason}"), "{format}");
        }
    }
}

#[test]
fn links_and_devices_are_refused_in_tar_and_7z() {
    use ::tar::EntryType;
    for (kind, reason) in [
        (EntryType::Symlink, "it is a link"),
        (EntryType::Link, "it is a link"),
        (EntryType::Fifo, "it is neither a file nor a folder"),
        (EntryType::Block, "it is neither a file nor a folder"),
    ] {
        let error = refusal(&tarred(&[("good.txt", b"1", EntryType::Regular), ("odd", b"", kind)]));
        assert_eq!(error, format!("FOLDER/x.001: entry \"odd\" refused: {reason}"), "{kind:?}");
    }
    for (attributes, reason) in [
        (0x8000 | (0o120_777 << 16), "it is a link"),
        (0x420, "it is a link"),
        (0x8000 | (0o010_644 << 16), "it is neither a file nor a folder"),
    ] {
        let error = refusal(&sevenzipped(&[("good.txt", b"1", 0), ("odd", b"/etc/passwd", attributes)]));
        assert_eq!(error, format!("FOLDER/x.001: entry \"odd\" refused: {reason}"));
    }
}

#[test]
fn folders_and_comments_are_not_counted_as_files() {
    use ::tar::EntryType;
    let tar = tarred(&[
        ("comment", b"20 comment=a commit\n", EntryType::XGlobalHeader),
        ("a/", b"", EntryType::Directory),
        ("b/", b"", EntryType::Regular),
        ("a/c", b"1", EntryType::Regular),
    ]);
    let sevenz =
        sevenzipped(&[("a/", b"", 0x10), ("b/", b"", 0x8010 | (0o040_755 << 16)), ("a/c", b"1", 0x20)]);
    for bytes in [tar, sevenz] {
        let (folder, result) = unpacked(&bytes, usize::MAX, Limits::default());
        assert_eq!(result.unwrap(), Unpacked { files: 1, bytes: 1 });
        assert!(folder.path().join("out/a/c").is_file() && folder.path().join("out/b").is_dir());
    }
}

#[test]
fn bombs_of_each_compressing_format_are_refused() {
    for format in [Format::TarGz, Format::SevenZ] {
        let error = refusal(&packed(format, &[("zeros", &[0; 1 << 22])]));
        assert!(error.starts_with("FOLDER/x.001: unpacks to 4194304 bytes or more"), "{format}: {error}");
    }
    // A hundred thousand empty files: a tar of headers alone.
    let names: Vec<String> = (0..100_000).map(|index| index.to_string()).collect();
    let empty: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    let (_folder, result) =
        unpacked(&packed(Format::TarGz, &empty), usize::MAX, Limits { ratio: 5, ..Limits::default() });
    let error = result.unwrap_err().to_string();
    assert!(error.contains("far more than the limit, most of it headers"), "{error}");
}

#[test]
fn damage_and_missing_volumes_are_errors() {
    let text: Vec<u8> = (0..5000u32).flat_map(|i| (i * i).to_le_bytes()).collect();
    for format in EACH {
        let bytes = packed(format, &[("a.txt", &text)]);
        let (_folder, result) = unpacked(&bytes[..bytes.len() / 2], 1000, Limits::default());
        let error = result.unwrap_err().to_string();
        assert!(error.contains("x.001: "), "{format}: {error}");
        // A tar has no checksum of its content; the others have.
        if format != Format::Tar {
            let mut bytes = bytes;
            bytes[200] ^= 0x10;
            let (_folder, result) = unpacked(&bytes, usize::MAX, Limits::default());
            assert!(result.is_err(), "{format}");
        }
    }
    let missing = unpack_volumes(
        &["/nowhere/x.7z.001"],
        Path::new("/nowhere/x.7z.001"),
        "/nowhere/out",
        Limits::default(),
        &|_| Ok(()),
        &mut |_, _| (),
    );
    assert!(missing.unwrap_err().to_string().contains("/nowhere/x.7z.001"));
}

#[test]
fn volumes_of_another_program_are_read() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/archive");
    let volumes: Vec<_> = (1..=3).map(|number| golden.join(format!("sample.7z.{number:03}"))).collect();
    let folder = tempfile::tempdir().unwrap();
    let mut progress = Vec::new();
    let mut on_progress = |done, all| progress.push((done, all));
    let unpacked = unpack_volumes(
        &volumes,
        &volumes[0],
        folder.path(),
        Limits::default(),
        &|_| Ok(()),
        &mut on_progress,
    )
    .unwrap();
    assert_eq!(unpacked, Unpacked { files: 3, bytes: 640 + 1500 });
    assert!(
        progress.is_sorted()
            && progress.iter().all(|(_, all)| *all == 2140)
            && progress.last().unwrap().0 == 2140
    );
    assert_eq!(fs_err::read(folder.path().join("sample/0.txt")).unwrap(), b"a cat on a sofa\n".repeat(40));
    let numbers: Vec<u8> = (0..1500u32).map(|i| (i * i * 31 % 251) as u8).collect();
    assert_eq!(fs_err::read(folder.path().join("sample/numbers")).unwrap(), numbers);
    assert!(folder.path().join("empty").is_dir() && folder.path().join("none.txt").is_file());
}

#[test]
fn sparse_files_are_refused() {
    use ::tar::EntryType;
    let pax = |pairs: &[(&str, &str)]| {
        let line = |(key, value): &(&str, &str)| {
            let rest = format!(" {key}={value}\n");
            let length = (rest.len()..).find(|length| length.to_string().len() + rest.len() == *length);
            format!("{}{rest}", length.unwrap())
        };
        pairs.iter().map(line).collect::<String>()
    };
    let map = pax(&[("GNU.sparse.major", "1"), ("GNU.sparse.name", "data.bin")]);
    let tar = tarred(&[
        ("good.txt", b"1", EntryType::Regular),
        ("header", map.as_bytes(), EntryType::XHeader),
        ("GNUSparseFile.0/data.bin", b"2\n0\n1\n", EntryType::Regular),
    ]);
    assert!(refusal(&tar).ends_with("refused: it is a sparse file"));
    // Another PAX header is none.
    let other = pax(&[("mtime", "1.5")]);
    let tar = tarred(&[("header", other.as_bytes(), EntryType::XHeader), ("a", b"1", EntryType::Regular)]);
    assert_eq!(unpacked(&tar, usize::MAX, Limits::default()).1.unwrap(), Unpacked { files: 1, bytes: 1 });
}

#[test]
fn a_tar_without_its_end_is_cut_off() {
    let whole =
        tarred(&[("a.txt", b"1", ::tar::EntryType::Regular), ("b.txt", b"2", ::tar::EntryType::Regular)]);
    for length in [1024, 1536, 2048] {
        for bytes in [whole[..length].to_vec(), zipped(&whole[..length])] {
            let error = refusal(&bytes);
            assert!(error.starts_with("FOLDER/x.001: ") && !error.contains("refused"), "{length}: {error}");
        }
    }
    assert!(refusal(&whole[..2048]).contains("it is cut off"));
    // Zeros in a file are not the end, and what follows the end is nobody's.
    let zeros =
        tarred(&[("a", &[0; 1024], ::tar::EntryType::Regular), ("b", b"2", ::tar::EntryType::Regular)]);
    assert!(refusal(&zeros[..1536]).contains("it is cut off"));
    let longer = [&whole[..], b"more"].concat();
    for bytes in [&whole, &whole[..2560].to_vec(), &longer, &zipped(&longer)] {
        assert_eq!(unpacked(bytes, usize::MAX, Limits::default()).1.unwrap().files, 2);
    }
    assert_eq!(unpacked(&zeros, usize::MAX, Limits::default()).1.unwrap().files, 2);
}

#[test]
fn special_files_of_a_zip_and_second_names_are_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut writer = ZipWriter::new(fs_err::File::create(file.path()).unwrap());
    writer.start_file("fifo", SimpleFileOptions::default().unix_permissions(0o644)).unwrap();
    writer.finish().unwrap();
    let mut bytes = fs_err::read(file.path()).unwrap();
    // The mode is in the upper half of the external attributes of the directory's entry.
    let entry = bytes.windows(4).position(|found| found == b"PK\x01\x02").unwrap();
    bytes[entry + 38..entry + 42].copy_from_slice(&(0o010_644_u32 << 16).to_le_bytes());
    assert!(refusal(&bytes).ends_with("entry \"fifo\" refused: it is neither a file nor a folder"));
    for (first, second) in [("a", "./a"), ("x/a", "x//a")] {
        let twice = archive(&[(first, b"1"), (second, b"2")]);
        let folder = tempfile::tempdir().unwrap();
        let error = unpack(twice.path(), folder.path(), Limits::default()).unwrap_err().to_string();
        assert!(error.contains("an earlier entry has the same name"), "{error}");
    }
}

#[test]
fn what_is_no_archive_is_said() {
    let of = |bytes: &[u8]| unpacked(bytes, usize::MAX, Limits::default()).1.unwrap_err().to_string();
    assert!(of(b"<!DOCTYPE html><p>Sign in").contains("it is a web page that begins with"));
    assert!(of(b"version https://git-lfs.github.com/spec/v1\n").contains("it is a Git LFS pointer"));
    assert!(of(b"plain text").contains("begins with 70 6c 61 69 6e 20, expected a zip"));
}

#[test]
fn a_zip_whose_directory_disagrees_is_refused() {
    let whole = fs_err::read(archive(&[("a/1.txt", b"1"), ("b.txt", b"2"), ("c.txt", b"3")]).path()).unwrap();
    let end = whole.windows(4).rposition(|found| found == b"PK\x05\x06").unwrap();
    for count in [0_u8, 1, 2] {
        let mut fewer = whole.clone();
        (fewer[end + 8], fewer[end + 10]) = (count, count);
        let error = refusal(&fewer);
        assert!(error.ends_with(&format!("its directory has 3 entries, its end counts {count}")), "{error}");
    }
    let places: Vec<usize> = (0..whole.len()).filter(|&at| whole[at..].starts_with(b"b.txt")).collect();
    let [local, central] = places[..] else { panic!("{places:?}") };
    for place in [local, central] {
        let mut damaged = whole.clone();
        damaged[place] = b'd';
        assert!(refusal(&damaged).ends_with("the name before its content is another one"));
    }
    let mut twice = whole.clone();
    (twice[local], twice[central]) = (b'c', b'c');
    let error = refusal(&twice);
    assert!(error.ends_with("c.txt: two entries have this name"), "{error}");
}

#[test]
fn names_that_may_be_one_file_are_refused_in_every_format() {
    for (first, second) in [("a", "A"), ("\u{e9}.png", "e\u{301}.png"), ("x", "x/y")] {
        let zip = archive(&[(first, b"1"), (second, b"2")]);
        let tar =
            tarred(&[(first, b"1", ::tar::EntryType::Regular), (second, b"2", ::tar::EntryType::Regular)]);
        for bytes in [fs_err::read(zip.path()).unwrap(), tar] {
            let error = refusal(&bytes);
            assert!(error.contains(&format!("entry {second:?} refused: an earlier entry ")), "{error}");
        }
    }
}

#[test]
fn a_7z_whose_directory_is_elsewhere_is_refused() {
    let mut start = b"7z\xbc\xaf\x27\x1c\0\x04".to_vec();
    start.extend([0; 24]);
    for (offset, size) in [(10, 1 << 62), (u64::MAX, 5)] {
        start[12..20].copy_from_slice(&u64::to_le_bytes(offset));
        start[20..28].copy_from_slice(&u64::to_le_bytes(size));
        let error = refusal(&start);
        assert!(error.ends_with("its directory is said to end beyond its 32 bytes"), "{error}");
    }
}
