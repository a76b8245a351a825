//! Several files read as one.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// The files in order, with a position in the whole. Unbuffered.
pub(super) struct Volumes {
    /// Each file, and where it ends in the whole.
    files: Vec<(fs_err::File, u64)>,
    at: u64,
}

impl Volumes {
    pub fn open<P: AsRef<Path>>(paths: &[P]) -> io::Result<Self> {
        let mut end = 0;
        let files = paths.iter().map(|path| {
            let file = fs_err::File::open(path.as_ref())?;
            end += file.metadata()?.len();
            Ok((file, end))
        });
        Ok(Self { files: files.collect::<io::Result<_>>()?, at: 0 })
    }

    pub fn len(&self) -> u64 {
        self.files.last().map_or(0, |(_, end)| *end)
    }
}

impl Read for Volumes {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        // An empty file ends where the one before it ends, so it is skipped.
        let index = self.files.partition_point(|(_, end)| *end <= self.at);
        let start = index.checked_sub(1).map_or(0, |before| self.files[before].1);
        let Some((file, end)) = self.files.get_mut(index) else { return Ok(0) };
        file.seek(SeekFrom::Start(self.at - start))?;
        let room = usize::try_from(*end - self.at).unwrap_or(usize::MAX).min(out.len());
        let count = file.read(&mut out[..room])?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Volumes {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.len().checked_add_signed(by),
        };
        self.at = target.ok_or_else(|| io::Error::other("a position before the start of the archive"))?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_read_and_sought_like_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<_> = ["abc", "", "d", "efgh"]
            .iter()
            .enumerate()
            .map(|(index, text)| {
                let path = folder.path().join(index.to_string());
                fs_err::write(&path, text).unwrap();
                path
            })
            .collect();
        let mut volumes = Volumes::open(&paths).unwrap();
        assert_eq!(volumes.len(), 8);
        for (seek, expected) in [
            (SeekFrom::Start(0), "abcdefgh"),
            (SeekFrom::Start(3), "defgh"),
            (SeekFrom::End(-5), "defgh"),
            (SeekFrom::End(-6), "cdefgh"),
            (SeekFrom::Current(-1), "h"),
            (SeekFrom::Start(99), ""),
        ] {
            volumes.seek(seek).unwrap();
            let mut text = String::new();
            volumes.read_to_string(&mut text).unwrap();
            assert_eq!(text, expected, "{seek:?}");
        }
        assert!(volumes.seek(SeekFrom::End(-9)).is_err());
        assert_eq!(Volumes::open::<&Path>(&[]).unwrap().len(), 0);
    }
}
