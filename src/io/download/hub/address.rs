//! Addresses on the Hugging Face Hub in fsspec's form: `hf://datasets/OWNER/REPO@REVISION/PATH`.

use std::fmt::{self, Display, Formatter};

use percent_encoding::percent_decode_str;

/// The kind of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RepoKind {
    /// `hf://OWNER/REPO`
    Model,
    /// `hf://datasets/OWNER/REPO`
    Dataset,
}

/// A repository at a revision.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Repo {
    /// Its kind.
    pub kind: RepoKind,
    /// `OWNER/REPO`
    pub name: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

impl Repo {
    /// The path of its page: `datasets/OWNER/REPO` or `OWNER/REPO`.
    pub fn page(&self) -> String {
        match self.kind {
            RepoKind::Model => self.name.clone(),
            RepoKind::Dataset => format!("datasets/{}", self.name),
        }
    }

    /// The commit, if the revision is one.
    pub fn commit(&self) -> Option<&str> {
        let is_commit =
            self.revision.len() == 40 && self.revision.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_commit.then_some(&self.revision)
    }

    /// The full address of a path in it.
    pub fn address(&self, path: &str) -> String {
        format!("hf://{self}/{path}")
    }
}

impl Display for Repo {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.page(), self.revision)
    }
}

/// A file, a folder, or all files that match a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubAddress {
    /// The repository.
    pub repo: Repo,
    /// The path in it, without slashes at its ends; empty for the whole repository. `*` matches any part of a name.
    pub path: String,
    /// Whether it ends with a slash, so that it must be a folder.
    pub folder: bool,
}

const FORM: &str = "expected `hf://datasets/OWNER/REPO[@REVISION]/PATH` or `hf://OWNER/REPO[@REVISION]/PATH`";

impl HubAddress {
    /// Reads an address that begins with `hf://`.
    ///
    /// # Errors
    /// Why it is not a valid address.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |reason: &str| format!("`{text}`: {reason}; {FORM}");
        let rest = text.strip_prefix("hf://").ok_or_else(|| wrong("it does not begin with `hf://`"))?;
        let (kind, rest) = match rest.split_once('/') {
            Some(("datasets", rest)) => (RepoKind::Dataset, rest),
            Some(("spaces" | "buckets", _)) => return Err(wrong("only datasets and models can be read")),
            _ => (RepoKind::Model, rest),
        };
        let mut parts = rest.split('/');
        let owner = parts.next().unwrap_or_default();
        let repo = parts.next().unwrap_or_default();
        let (repo, start) = repo.split_once('@').map_or((repo, None), |(repo, start)| (repo, Some(start)));
        let mut revision = start.unwrap_or("main").to_owned();
        if start == Some("refs") {
            // The two families of references that have slashes in their names.
            for part in parts.by_ref().take(2) {
                revision = format!("{revision}/{part}");
            }
        }
        let revision = percent_decode_str(&revision).decode_utf8_lossy().into_owned();
        let plain = |name: &str| {
            !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c))
        };
        if !plain(owner) || !plain(repo) {
            return Err(wrong("no repository given"));
        }
        if revision.is_empty() || revision.contains(['*', '?', '#', ' ']) {
            return Err(wrong(&format!("invalid revision `{revision}`")));
        }
        let parts: Vec<&str> = parts.collect();
        let folder = parts.last().is_none_or(|last| last.is_empty());
        let path = parts.join("/").trim_end_matches('/').to_owned();
        if !path.is_empty() && path.split('/').any(|part| ["", ".", ".."].contains(&part)) {
            return Err(wrong("its path has an empty part, `.` or `..`"));
        }
        if path.contains("**") {
            return Err(wrong(
                "`**` is not supported: `*` matches any part of a name, and a folder includes all files below it",
            ));
        }
        Ok(Self { repo: Repo { kind, name: format!("{owner}/{repo}"), revision }, path, folder })
    }

    /// Whether it is a pattern.
    pub fn is_pattern(&self) -> bool {
        self.path.contains('*')
    }

    /// The name of the file or folder, or of the repository; `None` for a pattern, which has none.
    pub fn own_name(&self) -> Option<&str> {
        let whole = if self.path.is_empty() { &self.repo.name } else { &self.path };
        whole.rsplit('/').next().filter(|_| !self.is_pattern())
    }

    /// The folder that contains all files it selects, empty for the repository itself.
    pub fn base(&self) -> &str {
        let end = match self.path.find('*') {
            Some(star) => self.path[..star].rfind('/'),
            None if self.folder => Some(self.path.len()),
            None => self.path.rfind('/'),
        };
        &self.path[..end.unwrap_or(0)]
    }

    /// Whether the pattern matches a path.
    pub fn matches(&self, path: &str) -> bool {
        let mut names = path.split('/');
        self.path.split('/').all(|pattern| names.next().is_some_and(|name| name_matches(pattern, name)))
            && names.next().is_none()
    }
}

impl Display for HubAddress {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo.address(&self.path))
    }
}

/// Whether a name consists of the pattern's pieces in order, with anything between them.
fn name_matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(start) else { return false };
    // The first match of each piece leaves the most for the pieces after it.
    let (pieces, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    let Some(mut name) = name.strip_suffix(end) else { return false };
    for piece in pieces.split('*') {
        let Some(at) = name.find(piece) else { return false };
        name = &name[at + piece.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_the_form_of_fsspec() {
        for (text, canonical, base) in [
            ("hf://datasets/o/r/a/b.txt", "hf://datasets/o/r@main/a/b.txt", "a"),
            ("hf://o/r-1.x@v2/b.txt", "hf://o/r-1.x@v2/b.txt", ""),
            ("hf://datasets/o/r@refs/pr/7/a/", "hf://datasets/o/r@refs/pr/7/a", "a"),
            ("hf://datasets/o/r@a%2Fb/a/b/x.7z.*", "hf://datasets/o/r@a/b/a/b/x.7z.*", "a/b"),
            ("hf://datasets/o/r/a/b*/c*", "hf://datasets/o/r@main/a/b*/c*", "a"),
            ("hf://datasets/o/r/*", "hf://datasets/o/r@main/*", ""),
            ("hf://datasets/o/r", "hf://datasets/o/r@main/", ""),
        ] {
            let address = HubAddress::parse(text).unwrap();
            assert_eq!((address.to_string().as_str(), address.base()), (canonical, base));
        }
        let folder = |text: &str| HubAddress::parse(text).unwrap().folder;
        assert!(folder("hf://o/r") && folder("hf://o/r/") && folder("hf://o/r/a/") && !folder("hf://o/r/a"));
        for (text, reason) in [
            ("hf://datasets/o", "no repository given"),
            ("hf://o/", "no repository given"),
            ("hf://o/r@/x", "invalid revision ``"),
            ("hf://o/r/../x", "`..`"),
            ("hf://o/r//x", "an empty part"),
            ("hf://spaces/o/r/x", "only datasets and models"),
            ("hf://o/r/**", "`**` is not supported"),
        ] {
            let error = HubAddress::parse(text).unwrap_err();
            assert!(
                error.contains(reason) && error.contains(text) && error.contains("expected `hf://"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_star_matches_within_a_name() {
        let matches = |pattern: &str, path: &str| {
            HubAddress::parse(&format!("hf://o/r/{pattern}")).unwrap().matches(path)
        };
        assert!(matches("a/x.7z.*", "a/x.7z.001"));
        assert!(!matches("a/x.7z.*", "a/b/x.7z.001") && !matches("a/x.7z.*", "a/x.7z"));
        assert!(matches("*/x", "a/x") && !matches("*/x", "x") && !matches("*", "a/x"));
        assert!(
            matches("a*b*c", "abc")
                && matches("a*b*c", "a-b-b-c")
                && !matches("a*b*c", "ac")
                && !matches("ab*bc", "abc")
        );
        assert!(matches("a", "a") && !matches("a", "ab"));
    }

    #[test]
    fn a_commit_needs_no_request() {
        let commit = |text: &str| HubAddress::parse(text).unwrap().repo.commit().map(str::to_owned);
        let hash = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(commit(&format!("hf://o/r@{hash}/x")).as_deref(), Some(hash));
        assert_eq!(commit("hf://o/r@main/x"), None);
    }
}
