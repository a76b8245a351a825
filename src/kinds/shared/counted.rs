//! What is computed in another way than it may seem: counted, with the first example.

use serde::{Deserialize, Serialize};

/// What is counted of captions, and what is done with them.
pub(crate) const CUT: (&str, &str) =
    ("captions longer than the text encoder reads", "their ends are cut off");

/// How many there are, and the first.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Counted {
    count: usize,
    first: Option<String>,
}

impl Counted {
    pub fn count(&mut self, is_one: bool, name: &str) {
        if is_one {
            self.count += 1;
            self.first.get_or_insert_with(|| shortened(name));
        }
    }

    pub fn total(&self) -> usize {
        self.count
    }

    /// The first, for people.
    pub fn example(&self) -> &str {
        self.first.as_deref().unwrap_or_default()
    }

    pub fn add(&mut self, other: Counted) {
        self.count += other.count;
        self.first = self.first.take().or(other.first);
    }

    /// For people, if there is one.
    pub fn line(&self, what: &str, how: &str) -> Option<String> {
        let first = self.first.as_ref()?;
        Some(format!("{what}: {}, the first {first:?}; {how}", self.count))
    }
}

/// The beginning of what may be a long caption.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
