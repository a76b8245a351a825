//! What a prompt holds that its program does not read as words, and the words without it.

use std::ops::Range;

use super::Source;
use crate::io::words::{count as counted, cut};

/// The most characters of an example.
const EXAMPLE: usize = 40;

/// The prompt as words, by the rules of AUTOMATIC1111's program (`extra_networks.py`, `prompt_parser.py`).
///
/// Tags such as `<lora:x:0.8>` and the word `BREAK` are removed. Of `(word:1.2)`, `((word))` and `[word]`,
/// the words remain; a bracket that is never closed is removed too. `\(` and `\)` become `(` and `)`.
/// Whitespace around what was removed becomes one space. A space is added where a bracket stood within a word,
/// whose parts are words for that program.
///
/// Alternation `[a|b]` and edits `[a:b:0.5]` stay as they are: no text has their meaning.
pub fn strip_a1111(prompt: &str) -> String {
    let without_tags = without(prompt, tags(prompt));
    without_brackets(&without(&without_tags, words(&without_tags, "BREAK")))
}

/// Removes tags or words, and collapses the whitespace around them.
fn without(text: &str, removed: impl IntoIterator<Item = Range<usize>>) -> String {
    let (mut out, mut at) = (String::with_capacity(text.len()), 0);
    for range in removed {
        out.push_str(&text[at..range.start]);
        let rest = text[range.end..].trim_start();
        at = text.len() - rest.len();
        let gap = out.ends_with(char::is_whitespace) || at > range.end || !text[range].starts_with('<');
        out.truncate(out.trim_end().len());
        if gap && !out.is_empty() && !rest.is_empty() {
            out.push(' ');
        }
    }
    out.push_str(&text[at..]);
    out
}

/// Tags of added networks: `<lora:name:0.8>`.
fn tags(text: &str) -> Vec<Range<usize>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(start) = text[at..].find('<').map(|place| at + place) {
        let name = text[start + 1..].find(|letter: char| !letter.is_alphanumeric() && letter != '_');
        let colon = start + 1 + name.unwrap_or_default();
        at = start + 1;
        if colon == at || !text[colon..].starts_with(':') {
            continue;
        }
        match text[colon..].find('>') {
            Some(1) => {}
            Some(length) => {
                at = colon + length + 1;
                found.push(start..at);
            }
            None => break,
        }
    }
    found
}

/// The places of a word.
fn words(text: &str, word: &'static str) -> impl Iterator<Item = Range<usize>> {
    let of_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    text.match_indices(word).map(move |(start, _)| start..start + word.len()).filter(move |range| {
        !text[..range.start].ends_with(of_word) && !text[range.end..].starts_with(of_word)
    })
}

/// What a byte of a prompt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Text,
    /// A backslash before a bracket or a backslash.
    Escape,
    Open,
    Close,
    /// The number of a weight, with its colon.
    Weight,
}

/// The brackets of a prompt.
struct Brackets {
    /// For each byte, what it is.
    marks: Vec<Mark>,
    /// Where the first weight is, and how many there are.
    weight: Option<Range<usize>>,
    weights: usize,
    /// The same for alternation and edits.
    edit: Option<Range<usize>>,
    edits: usize,
}

/// Finds the brackets of a prompt. Round and square ones are paired apart from each other.
fn brackets(text: &str, square: bool) -> Brackets {
    let bytes = text.as_bytes();
    let mut found =
        Brackets { marks: vec![Mark::Text; bytes.len()], weight: None, weights: 0, edit: None, edits: 0 };
    let (mut rounds, mut squares): (Vec<usize>, Vec<(usize, bool)>) = (Vec::new(), Vec::new());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' if bytes.get(at + 1).is_some_and(|next| br"()[]\".contains(next)) => {
                found.marks[at] = Mark::Escape;
                at += 1;
            }
            b'(' => rounds.push(at),
            b')' => {
                if let Some(open) = rounds.pop() {
                    found.marks[number(bytes, at)..at].fill(Mark::Weight);
                    found.is_weight(open..at + 1, Mark::Close);
                }
            }
            b'[' if square => squares.push((at, false)),
            b'|' => {
                if let Some((open, alternates)) = squares.last_mut()
                    && rounds.last().is_none_or(|round| round < open)
                {
                    *alternates = true;
                }
            }
            b']' => match squares.pop() {
                Some((open, alternates)) if alternates || number(bytes, at) < at => {
                    found.edit.get_or_insert(open..at + 1);
                    found.edits += 1;
                }
                Some((open, _)) => found.is_weight(open..at + 1, Mark::Close),
                None => {}
            },
            _ => {}
        }
        at += 1;
    }
    for open in rounds.into_iter().chain(squares.into_iter().map(|(open, _)| open)) {
        found.is_weight(open..bytes.len(), Mark::Text);
    }
    found
}

impl Brackets {
    /// Marks a pair of brackets, or one that is never closed.
    fn is_weight(&mut self, range: Range<usize>, last: Mark) {
        self.marks[range.start] = Mark::Open;
        if last == Mark::Close {
            self.marks[range.end - 1] = last;
        }
        // Of several, the outermost of the first.
        if self.weight.as_ref().is_none_or(|first| range.start < first.start) {
            self.weight = Some(range);
        }
        self.weights += 1;
    }
}

/// Where the colon and number before a closing bracket begin; the bracket, if there are none.
fn number(bytes: &[u8], close: usize) -> usize {
    let before = |end: usize, of: fn(u8) -> bool| {
        bytes[..end].iter().rposition(|byte| !of(*byte)).map_or(0, |last| last + 1)
    };
    let is_space = |byte: u8| byte.is_ascii_whitespace();
    let end = before(close, is_space);
    let digits = before(end, |byte| byte.is_ascii_digit() || byte == b'.');
    let sign = digits - usize::from(bytes[..digits].ends_with(b"-") || bytes[..digits].ends_with(b"+"));
    match bytes[..before(sign, is_space)] {
        [.., b':'] if digits < end => before(sign, is_space) - 1,
        _ => close,
    }
}

fn without_brackets(text: &str) -> String {
    let marks = brackets(text, true).marks;
    let mut out = String::with_capacity(text.len());
    // How many brackets are open, round and square, here and at the last letter; is one removed since?
    let (mut depth, mut last, mut removed) = ([0_usize; 2], [0; 2], false);
    for (at, letter) in text.char_indices() {
        let kind = usize::from(matches!(letter, '[' | ']'));
        match marks[at] {
            Mark::Escape => {}
            Mark::Weight => removed = true,
            Mark::Open => (depth[kind], removed) = (depth[kind] + 1, true),
            Mark::Close => (depth[kind], removed) = (depth[kind] - 1, true),
            Mark::Text if letter.is_whitespace() => {
                if !removed || !(out.is_empty() || out.ends_with(char::is_whitespace)) {
                    out.push(letter);
                }
            }
            Mark::Text => {
                let joins = |before: char| {
                    !before.is_whitespace() && before.is_alphanumeric() == letter.is_alphanumeric()
                };
                if removed && depth != last && out.chars().next_back().is_some_and(joins) {
                    out.push(' ');
                }
                out.push(letter);
                (last, removed) = (depth, false);
            }
        }
    }
    if removed {
        out.truncate(out.trim_end().len());
    }
    out
}

/// What a prompt holds that plain tokenizing does not see as its program did.
pub(super) fn warnings(prompt: &str, source: Source) -> Vec<String> {
    let mut out = Vec::new();
    let a1111 = source == Source::A1111;
    let strip = |count| {
        let what = if count == 1 { "it" } else { "them" };
        format!("set prompt_syntax = \"a1111\" to strip {what}")
    };
    let tags = tags(prompt);
    if !tags.is_empty() {
        let all = |kind: &str| tags.iter().all(|tag| prompt[tag.start + 1..].starts_with(kind));
        let kind = if all("lora:") { "LoRA tag" } else { "tag of an added network" };
        let kinds = if all("lora:") { "LoRA tags" } else { "tags of added networks" };
        let mut names: Vec<String> =
            tags.iter().take(2).map(|tag| cut(&prompt[tag.clone()], EXAMPLE)).collect();
        if tags.len() > names.len() {
            names.push("…".to_owned());
        }
        out.push(format!(
            "{} ({}) {} part of the text: {}",
            counted(tags.len(), kind, kinds),
            names.join(", "),
            if tags.len() == 1 { "is" } else { "are" },
            strip(tags.len())
        ));
    }
    let brackets = brackets(prompt, a1111);
    if let Some(first) = brackets.weight {
        out.push(format!(
            "{} in brackets, for instance {}, {} part of the text: {}",
            counted(brackets.weights, "weight", "weights"),
            cut(&prompt[first], EXAMPLE),
            if brackets.weights == 1 { "is" } else { "are" },
            strip(brackets.weights)
        ));
    }
    if let Some(first) = brackets.edit {
        out.push(format!(
            "{}, for instance {}, changed the text while the picture was made: no one text says that",
            counted(brackets.edits, "alternation or edit", "alternations or edits"),
            cut(&prompt[first], EXAMPLE)
        ));
    }
    if a1111 && words(prompt, "BREAK").next().is_some() {
        out.push(format!("the word BREAK split the text into parts: {}", strip(1)));
    }
    if a1111 && words(prompt, "AND").next().is_some() {
        out.push("the word AND joined several prompts, which no one text says".to_owned());
    }
    let embeddings: Vec<&str> = embeddings(prompt).collect();
    if let Some(first) = embeddings.first() {
        out.push(format!(
            "{} (embedding:{}) stood for learned vectors: as text, only its letters are read",
            counted(embeddings.len(), "name of an embedding", "names of embeddings"),
            cut(first, EXAMPLE)
        ));
    }
    out
}

/// The names after `embedding:`.
fn embeddings(prompt: &str) -> impl Iterator<Item = &str> {
    prompt.split("embedding:").skip(1).map(|rest| {
        let ends = |letter: char| letter.is_whitespace() || matches!(letter, ',' | ')' | '(' | ':' | ']');
        &rest[..rest.find(ends).unwrap_or(rest.len())]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_stripped_to_their_words() {
        for (prompt, expected) in [
            ("a cat,  on a\tsofa", "a cat,  on a\tsofa"),
            ("a cat <lora:x:0.8>", "a cat"),
            ("<lora:x:0.8> a cat <hypernet:y:1>  on a sofa", "a cat on a sofa"),
            // A comma of its own is a token.
            ("a cat, <lora:x:1>, red", "a cat, , red"),
            ("cat<lora:x:1>dog", "catdog"),
            ("a < b, x <3 y, <lora:>, <lora:x", "a < b, x <3 y, <lora:>, <lora:x"),
            ("<lora:BREAK:1>a", "a"),
            ("(word:1.2)", "word"),
            ("a ((word)), [word] and (two words: -0.5 ).", "a word, word and two words."),
            ("( a ) b", "a b"),
            ("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).", "a house on a hill, sun, sky."),
            (r"a smile \(anime\), \[x\], \\ and \n", r"a smile (anime), [x], \ and \n"),
            (r"(\(a\):1.2)", "(a)"),
            ("(ratio 1:2)", "ratio 1"),
            ("[ratio a:b]", "ratio a:b"),
            ("a :) b] c", "a :) b] c"),
            ("(never closed", "never closed"),
            ("a [never closed", "a never closed"),
            ("a BREAK b", "a b"),
            ("a,BREAK,b BREAK", "a, ,b"),
            ("BREAKFAST, unBREAK", "BREAKFAST, unBREAK"),
            ("a <lora:x:1>BREAK<lora:y:1> b", "a b"),
            // Parts of different weight are tokenized apart, parts of one weight together.
            ("mega(structure:1.3)s", "mega structure s"),
            ("(un)(even)", "uneven"),
            ("(a.:1.2), b", "a. , b"),
            ("[cat:dog:0.5], [cat|dog], [(cat:1.2):5]", "[cat:dog:0.5], [cat|dog], [cat:5]"),
            ("(猫:1.2)、犬", "猫、犬"),
            ("", ""),
        ] {
            assert_eq!(strip_a1111(prompt), expected, "{prompt:?}");
        }
    }

    #[test]
    fn what_plain_tokenizing_does_not_see_is_said_in_a_sentence_each() {
        let strip = "set prompt_syntax = \"a1111\" to strip";
        let table = [
            ("a cat", vec![]),
            (r"a cat \(animal\) :)", vec![]),
            ("a <lora:x:0.8>", vec![format!("1 LoRA tag (<lora:x:0.8>) is part of the text: {strip} it")]),
            (
                "<lora:x:0.8><lora:y:1><lora:z:1>",
                vec![format!("3 LoRA tags (<lora:x:0.8>, <lora:y:1>, …) are part of the text: {strip} them")],
            ),
            (
                "<hypernet:x:1> a",
                vec![format!("1 tag of an added network (<hypernet:x:1>) is part of the text: {strip} it")],
            ),
            (
                "a ((word)) [x]",
                vec![format!(
                    "3 weights in brackets, for instance ((word)), are part of the text: {strip} them"
                )],
            ),
            (
                "a [cat:dog:0.5]",
                vec![
                    "1 alternation or edit, for instance [cat:dog:0.5], changed the text while the picture \
                     was made: no one text says that"
                        .to_owned(),
                ],
            ),
            ("a BREAK b", vec![format!("the word BREAK split the text into parts: {strip} it")]),
            ("a AND b", vec!["the word AND joined several prompts, which no one text says".to_owned()]),
            (
                "embedding:easy, b",
                vec![
                    "1 name of an embedding (embedding:easy) stood for learned vectors: as text, only its \
                     letters are read"
                        .to_owned(),
                ],
            ),
        ];
        for (prompt, expected) in table {
            assert_eq!(warnings(prompt, Source::A1111), expected, "{prompt}");
        }
        // ComfyUI knows round brackets only.
        assert_eq!(warnings("[word] BREAK [a|b] AND c", Source::ComfyUi), Vec::<String>::new());
        assert_eq!(warnings("(word:1.2)", Source::ComfyUi).len(), 1);
    }

    #[test]
    fn a_prompt_of_brackets_takes_no_long_time() {
        let many = 1 << 20;
        for part in ["(", "[", "<a:", "(1", ":1)", "\\", "[a|", "<lora:x:1> "] {
            let prompt = part.repeat(many / part.len());
            assert!(strip_a1111(&prompt).len() <= prompt.len());
            warnings(&prompt, Source::A1111);
        }
    }
}
