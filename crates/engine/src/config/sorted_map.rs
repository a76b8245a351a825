//! A map for few keys, sorted: a table of a pipeline has a handful, and a tree of them would take ten times the memory.

use std::ops::Index;
use std::{iter, slice, vec};

/// Values by name, in the order of the names.
#[derive(Debug, Clone, PartialEq)]
pub struct SortedMap<V>(Vec<(String, V)>);

impl<V> Default for SortedMap<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<V> SortedMap<V> {
    fn place(&self, key: &str) -> Result<usize, usize> {
        // Most are filled in order.
        match self.0.last() {
            Some((last, _)) if last.as_str() < key => Err(self.0.len()),
            _ => self.0.binary_search_by(|(known, _)| known.as_str().cmp(key)),
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&V> {
        self.place(key).ok().map(|place| &self.0[place].1)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut V> {
        self.place(key).ok().map(|place| &mut self.0[place].1)
    }

    /// Whether a key has a value.
    pub fn contains_key(&self, key: &str) -> bool {
        self.place(key).is_ok()
    }

    /// Sets the value of a key, and returns the one before.
    pub fn insert(&mut self, key: String, value: V) -> Option<V> {
        match self.place(&key) {
            Ok(place) => Some(std::mem::replace(&mut self.0[place].1, value)),
            Err(place) => {
                self.0.insert(place, (key, value));
                None
            }
        }
    }

    /// The value of a key, made where there is none.
    pub fn get_or_insert_with(&mut self, key: String, make: impl FnOnce() -> V) -> &mut V {
        let place = self.place(&key).unwrap_or_else(|place| {
            self.0.insert(place, (key, make()));
            place
        });
        &mut self.0[place].1
    }

    /// Removes a key, and returns its value.
    pub fn remove(&mut self, key: &str) -> Option<V> {
        self.place(key).ok().map(|place| self.0.remove(place).1)
    }

    /// Keeps the entries of which this is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&String, &mut V) -> bool) {
        self.0.retain_mut(|(key, value)| keep(key, value));
    }

    /// The entries, in order.
    pub fn iter(&self) -> Iter<'_, V> {
        self.into_iter()
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.0.iter().map(|(key, _)| key)
    }

    /// The values, in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.0.iter().map(|(_, value)| value)
    }

    /// The same, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.0.iter_mut().map(|(_, value)| value)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<V> Index<&str> for SortedMap<V> {
    type Output = V;
    fn index(&self, key: &str) -> &V {
        self.get(key).unwrap_or_else(|| panic!("no entry for `{key}`"))
    }
}

impl<V> FromIterator<(String, V)> for SortedMap<V> {
    fn from_iter<I: IntoIterator<Item = (String, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        map.extend(entries);
        map
    }
}

impl<V> Extend<(String, V)> for SortedMap<V> {
    fn extend<I: IntoIterator<Item = (String, V)>>(&mut self, entries: I) {
        let entries = entries.into_iter();
        self.0.reserve_exact(entries.size_hint().0);
        entries.for_each(|(key, value)| _ = self.insert(key, value));
    }
}

impl<V> IntoIterator for SortedMap<V> {
    type Item = (String, V);
    type IntoIter = vec::IntoIter<(String, V)>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// Borrowed entries, in order.
pub type Iter<'m, V> = iter::Map<slice::Iter<'m, (String, V)>, fn(&'m (String, V)) -> (&'m String, &'m V)>;

impl<'m, V> IntoIterator for &'m SortedMap<V> {
    type Item = (&'m String, &'m V);
    type IntoIter = Iter<'m, V>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().map(|(key, value)| (key, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_sorted_and_the_last_value_of_a_key_counts() {
        let named = |(name, value): (&str, i32)| (name.to_owned(), value);
        let mut map: SortedMap<i32> =
            [("b", 1), ("a", 2), ("c", 3), ("a", 4)].into_iter().map(named).collect();
        assert_eq!(
            map.iter().map(|(key, value)| (key.as_str(), *value)).collect::<Vec<_>>(),
            [("a", 4), ("b", 1), ("c", 3)]
        );
        assert_eq!((map.get("b"), map.get("d"), map.contains_key("c")), (Some(&1), None, true));
        assert_eq!(map.insert("b".into(), 5), Some(1));
        *map.get_or_insert_with("aa".into(), || 6) += 1;
        *map.get_or_insert_with("aa".into(), || 0) += 1;
        *map.get_mut("c").unwrap() = 9;
        assert_eq!(map.remove("a"), Some(4));
        assert_eq!(map.remove("a"), None);
        map.retain(|_, value| *value != 9);
        assert_eq!(map.into_iter().collect::<Vec<_>>(), [("aa", 8), ("b", 5)].map(named));
    }
}
