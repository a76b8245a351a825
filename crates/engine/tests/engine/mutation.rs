//! Mutations of bytes, from a seed: the same seed makes the same ones.

/// Knuth's linear congruential generator; its high bits are random enough to mutate with.
pub struct Mutator(u64);

impl Mutator {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `end`, which is at least 1.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }

    pub fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }

    /// The bytes after one to six edits: bits, snippets, cut-outs, repetitions, and a cut end.
    pub fn mutate(&mut self, bytes: &[u8], snippets: &[&str]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(6) {
            let at = self.below(bytes.len() + 1);
            let length = self.below(1 + (bytes.len() - at).min(40));
            let end = at + length;
            match self.below(8) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                1 if at < bytes.len() => bytes[at] = self.below(256) as u8,
                2 => drop(bytes.drain(at..end)),
                3 => {
                    let part = bytes[at..end].to_vec();
                    let to = self.below(bytes.len() + 1);
                    bytes.splice(to..to, part);
                }
                4 => {
                    let part = bytes[at..end].repeat(1 + self.below(200));
                    bytes.splice(at..at, part);
                }
                5 if self.below(4) == 0 => bytes.truncate(at),
                6 => drop(bytes.splice(at..end, self.pick(snippets).bytes())),
                _ => drop(bytes.splice(at..at, self.pick(snippets).bytes())),
            }
        }
        bytes
    }
}
