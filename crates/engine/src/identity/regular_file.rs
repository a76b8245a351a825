//! Reading of files that others may have put there: what is no regular file is refused at once.
//!
//! Opening a FIFO would wait for somebody who writes to it, and a device may never end.

use std::fs::FileType;
use std::io::{self, Read as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use fs_err::os::unix::fs::OpenOptionsExt as _;
use rustix::fs::OFlags;

use super::shared_fs::again;

/// What is neither a file nor a folder.
pub fn special(found: FileType) -> Option<&'static str> {
    let kinds = [
        (found.is_fifo(), "a FIFO"),
        (found.is_socket(), "a socket"),
        (found.is_char_device(), "a character device"),
        (found.is_block_device(), "a block device"),
    ];
    kinds.into_iter().find(|(is, _)| *is).map(|(_, what)| what)
}

/// Opens a regular file, or a link to one.
///
/// # Errors
/// As [`fs_err::File::open`]; what was found instead of a file.
pub fn open(path: impl AsRef<Path>) -> io::Result<fs_err::File> {
    again(|| open_with(path.as_ref(), fs_err::OpenOptions::new().read(true)))
}

/// Opens a regular file to be locked, which it makes if there is none.
///
/// # Errors
/// As [`fs_err::OpenOptions::open`]; what was found instead of a file.
pub fn lock_file(path: impl AsRef<Path>) -> io::Result<fs_err::File> {
    // NFS gives shared locks to those who may read the file, and others to those who may write it.
    again(|| open_with(path.as_ref(), fs_err::OpenOptions::new().create(true).read(true).append(true)))
}

fn open_with(path: &Path, options: &mut fs_err::OpenOptions) -> io::Result<fs_err::File> {
    let refused = |found: FileType| {
        let what = special(found).unwrap_or("a folder");
        io::Error::other(format!("{}: found {what}, expected a file", path.display()))
    };
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = options.custom_flags(flags).open(path).map_err(|error| {
        // Most files that are asked for are not there.
        if error.kind() == io::ErrorKind::NotFound {
            return error;
        }
        // A socket cannot be opened at all, nor a FIFO to be written that nobody reads.
        let found = fs_err::metadata(path).ok().map(|found| found.file_type());
        found.filter(|found| special(*found).is_some()).map_or(error, refused)
    })?;
    let found = file.metadata()?.file_type();
    if found.is_file() { Ok(file) } else { Err(refused(found)) }
}

/// The bytes of a regular file.
///
/// # Errors
/// As [`open`].
pub fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    again(|| {
        let mut file = open(path.as_ref())?;
        let mut bytes = Vec::with_capacity(file.metadata().map_or(0, |found| found.len() as usize));
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    })
}

/// The text of a regular file.
///
/// # Errors
/// As [`open`], and bytes that are not UTF-8.
pub fn read_to_string(path: impl AsRef<Path>) -> io::Result<String> {
    let path = path.as_ref();
    String::from_utf8(read(path)?).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        let text = format!("{}: byte {place} is not UTF-8", path.display());
        io::Error::new(io::ErrorKind::InvalidData, text)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_regular_files_and_links_to_them_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs_err::write(at("file"), "text").unwrap();
        fs_err::os::unix::fs::symlink("file", at("link")).unwrap();
        assert_eq!(read_to_string(at("link")).unwrap(), "text");
        assert_eq!(read(at("none")).unwrap_err().kind(), io::ErrorKind::NotFound);

        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs_err::os::unix::fs::symlink("fifo", at("to fifo")).unwrap();
        let _listener = UnixListener::bind(at("socket")).unwrap();
        let zero = Path::new("/dev/zero").to_path_buf();
        for (path, what) in [
            (at("fifo"), "a FIFO"),
            (at("to fifo"), "a FIFO"),
            (at("socket"), "a socket"),
            (zero, "a character device"),
            (folder.path().to_path_buf(), "a folder"),
        ] {
            let error = read(&path).unwrap_err().to_string();
            assert_eq!(error, format!("{}: found {what}, expected a file", path.display()));
            assert!(lock_file(&path).is_err());
        }
        fs_err::write(at("latin1"), b"caf\xe9").unwrap();
        let error = read_to_string(at("latin1")).unwrap_err();
        assert!(error.to_string().ends_with("latin1: byte 3 is not UTF-8"), "{error}");
    }
}
