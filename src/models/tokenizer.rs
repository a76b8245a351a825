//! CLIP's byte-pair tokenizer, from the folder layout of transformers.
//!
//! The text is normalised (NFC, white space collapsed, lower case), split into words, digits and runs of
//! punctuation, and merged pair by pair; a fixed number of ids comes out, whatever the text.
//! Source: Radford et al. 2021 (arXiv 2103.00020), as in transformers' `CLIPTokenizer`.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, Tokenizer as Backend};

use crate::io::json::{self, JsonError};
use crate::io::mistaken::mistaken;

/// What a word is: a special token, a clitic, letters, a single digit, or anything else that isn't white space.
const WORD: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Why a tokenizer could not be loaded, or a text not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The operating system refused; fs-err puts the path into the message.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A configuration file cannot be read, or is not of the expected form.
    #[error(transparent)]
    Config(#[from] JsonError),
    /// The vocabulary or the merges don't fit together or are damaged.
    #[error("{}: no byte-pair vocabulary: {reason}", folder.display())]
    Vocabulary {
        /// The tokenizer's folder.
        folder: PathBuf,
        /// What the library met.
        reason: String,
    },
    /// A special token that the configuration names has no id.
    #[error("{}: the {role} token {token:?} is not in the vocabulary", folder.display())]
    SpecialToken {
        /// The tokenizer's folder.
        folder: PathBuf,
        /// Which token.
        role: &'static str,
        /// Its text.
        token: String,
    },
    /// There is no room for the start and the end token.
    #[error("{}: model_max_length is {found}, expected at least 2", folder.display())]
    MaxLength {
        /// The tokenizer's folder.
        folder: PathBuf,
        /// The value found.
        found: usize,
    },
    /// The library could not split a text.
    #[error("text {text:?} could not be encoded: {reason}")]
    Text {
        /// The text.
        text: String,
        /// What the library met.
        reason: String,
    },
}

/// A tokenizer with the length, padding and special tokens of its model.
pub struct Tokenizer {
    backend: Backend,
    start: i64,
    end: i64,
    pad: i64,
    max_length: usize,
}

impl Tokenizer {
    /// Reads `tokenizer_config.json`, `vocab.json` and `merges.txt` or else `tokenizer.json`, and, if there is one,
    /// `special_tokens_map.json`.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let folder = folder.as_ref();
        let config = Config::read(folder)?;
        if config.model_max_length < 2 {
            return Err(TokenizerError::MaxLength { folder: folder.into(), found: config.model_max_length });
        }
        let mut backend = backend(folder, config.unk_token.content()).map_err(|error| {
            TokenizerError::Vocabulary { folder: folder.into(), reason: error.to_string() }
        })?;
        let specials = [
            ("start", &config.bos_token),
            ("end", &config.eos_token),
            ("unknown", &config.unk_token),
            ("padding", &config.pad_token),
        ];
        // Looked up before they are added, which would give an unknown one an id that the model has no vector for.
        let id = |(role, token): (&'static str, &Token)| {
            let id = backend.token_to_id(token.content()).map(i64::from);
            let token = token.content().to_owned();
            id.ok_or(TokenizerError::SpecialToken { folder: folder.into(), role, token })
        };
        let (start, end, pad) = (id(specials[0])?, id(specials[1])?, id(specials[3])?);
        id(specials[2])?;
        // A special token is one in the middle of a text too: Stable Diffusion 2, which pads with `!`, reads
        // a caption's exclamation mark as padding.
        // Of tokens with the same text the first one counts; in transformers that is the padding.
        let [start_token, end_token, unknown, padding] = specials.map(|(_, token)| config.added(token));
        backend.add_special_tokens(&[padding, start_token, end_token, unknown]);
        Ok(Self { backend, start, end, pad, max_length: config.model_max_length })
    }

    /// Number of ids of every text.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Whether a text is longer than the model reads, so that its end is cut off.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn is_cut(&self, text: &str) -> Result<bool, TokenizerError> {
        let encoding = self.backend.encode_fast(text, false);
        let encoding = encoding
            .map_err(|error| TokenizerError::Text { text: text.into(), reason: error.to_string() })?;
        Ok(encoding.len() > self.max_length - 2)
    }

    /// The largest id of a token.
    pub fn largest_id(&self) -> i64 {
        self.backend.get_vocab(true).into_values().max().map_or(0, i64::from)
    }

    /// The ids of a text: start, as much of the text as fits, end, padding.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>, TokenizerError> {
        let encoding = self
            .backend
            .encode_fast(text, false)
            .map_err(|error| TokenizerError::Text { text: text.into(), reason: error.to_string() })?;
        let room = self.max_length - 2;
        let mut ids = vec![self.start];
        ids.extend(encoding.get_ids().iter().take(room).map(|&id| i64::from(id)));
        ids.push(self.end);
        ids.resize(self.max_length, self.pad);
        Ok(ids)
    }
}

fn backend(folder: &Path, unknown: &str) -> tokenizers::Result<Backend> {
    let (vocab, merges) = byte_pairs(folder)?;
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .unk_token(unknown.to_owned())
        .end_of_word_suffix("</w>".to_owned())
        .build()?;
    let white_space = Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ")?;
    let words = Split::new(SplitPattern::Regex(WORD.to_owned()), SplitDelimiterBehavior::Removed, true)?;
    let bytes = ByteLevel::default().add_prefix_space(false);
    let mut backend = Backend::new(model);
    backend
        .with_normalizer(Some(Normalizers::new(vec![NFC.into(), white_space.into(), Lowercase.into()])))
        .with_pre_tokenizer(Some(PreTokenizers::new(vec![words.into(), bytes.into()])));
    Ok(backend)
}

/// Checks that the folder has the files of a CLIP tokenizer, and none of another.
///
/// # Errors
/// The file that is missing or wrong.
///
/// Returns the number of tokens that a text becomes.
pub fn check_folder(folder: &Path) -> Result<usize, TokenizerError> {
    let config = Config::read(folder)?;
    files(folder).map_err(|reason| TokenizerError::Vocabulary { folder: folder.into(), reason })?;
    Ok(config.model_max_length)
}

/// Ids by token, and pairs in the order of their merging.
type BytePairs = (Vocab, Vec<(String, String)>);

/// The files of a vocabulary.
enum Files {
    Apart { vocab: PathBuf, merges: PathBuf },
    Whole(PathBuf),
}

fn files(folder: &Path) -> Result<Files, String> {
    let [vocab, merges, both] = ["vocab.json", "merges.txt", "tokenizer.json"].map(|name| folder.join(name));
    if both.exists() && !(vocab.exists() && merges.exists()) {
        return Ok(Files::Whole(both));
    }
    if let Some(file) = [&vocab, &merges].into_iter().find(|file| !file.exists()) {
        return Err(format!("{} is missing, and there is no tokenizer.json", file.display()));
    }
    Ok(Files::Apart { vocab, merges })
}

/// The vocabulary and merges, from `vocab.json` and `merges.txt`, else from `tokenizer.json`, which holds both.
fn byte_pairs(folder: &Path) -> tokenizers::Result<BytePairs> {
    let both = match files(folder)? {
        Files::Whole(both) => both,
        Files::Apart { vocab, merges } => {
            let vocab: HashMap<String, u32> = json::read(vocab)?;
            let text = fs_err::read_to_string(&merges)?;
            let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
            if let Some(found) = mistaken(text.as_bytes()) {
                return Err(format!("{}: it is {found}", merges.display()).into());
            }
            let pairs: Vec<_> = text
                .lines()
                .filter(|line| !line.starts_with("#version"))
                .map(pair)
                .collect::<Result<_, _>>()?;
            if pairs.is_empty() {
                return Err(format!("{}: it has no merges", merges.display()).into());
            }
            return Ok((vocab.into_iter().collect(), pairs));
        }
    };
    let Whole { model } = json::read(&both)?;
    let expected =
        [("type", model.kind.as_deref(), "BPE"), ("end_of_word_suffix", model.end.as_deref(), "</w>")];
    for (key, found, expected) in expected {
        if found != Some(expected) {
            let found = found.unwrap_or("missing");
            return Err(format!("{}: `model.{key}` is {found}, supported: {expected}", both.display()).into());
        }
    }
    let prefix = model.continuing_subword_prefix.filter(|prefix| !prefix.is_empty());
    let dropout = model.dropout.filter(|dropout| *dropout != 0.0).map(|dropout| dropout.to_string());
    for (key, found) in [("continuing_subword_prefix", prefix), ("dropout", dropout)] {
        if let Some(found) = found {
            return Err(format!("{}: `model.{key}` is {found}, supported: null", both.display()).into());
        }
    }
    let pairs = model.merges.into_iter().map(|merge| match merge {
        Merge::Text(text) => pair(&text),
        Merge::Pair(first, second) => Ok((first, second)),
    });
    Ok((model.vocab.into_iter().collect(), pairs.collect::<Result<_, _>>()?))
}

/// The two tokens of a line of `merges.txt`.
fn pair(line: &str) -> Result<(String, String), String> {
    let both = line.split_once(' ').filter(|(_, second)| !second.contains(' '));
    let (first, second) = both.ok_or_else(|| format!("the merge {line:?} is not two tokens"))?;
    Ok((first.to_owned(), second.to_owned()))
}

/// What of `tokenizer.json` matters here.
#[derive(Deserialize)]
struct Whole {
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "end_of_word_suffix")]
    end: Option<String>,
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Text(String),
    Pair(String, String),
}

/// What of `tokenizer_config.json` matters here; the defaults are transformers'.
#[derive(Deserialize)]
struct Config {
    tokenizer_class: Option<String>,
    padding_side: Option<String>,
    truncation_side: Option<String>,
    model_max_length: usize,
    #[serde(default = "Token::start")]
    bos_token: Token,
    #[serde(default = "Token::end")]
    eos_token: Token,
    #[serde(default = "Token::end")]
    unk_token: Token,
    #[serde(default = "Token::end")]
    pad_token: Token,
    /// How tokens behave, by id; newer files give it here instead of in `special_tokens_map.json`.
    added_tokens_decoder: Option<BTreeMap<String, Behaviour>>,
}

/// The older home of the special tokens.
#[derive(Deserialize)]
struct SpecialTokens {
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    unk_token: Option<Token>,
    pad_token: Option<Token>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Full(Behaviour),
}

#[derive(Deserialize)]
struct Behaviour {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
}

impl Config {
    fn read(folder: &Path) -> Result<Self, TokenizerError> {
        let mut config: Self = json::read(folder.join("tokenizer_config.json"))?;
        if let Some(found) = config.tokenizer_class.as_ref().filter(|name| !name.starts_with("CLIPTokenizer"))
        {
            let reason = format!("`tokenizer_class` is {found}, supported: CLIPTokenizer, CLIPTokenizerFast");
            return Err(TokenizerError::Vocabulary { folder: folder.into(), reason });
        }
        for (key, found) in
            [("padding_side", &config.padding_side), ("truncation_side", &config.truncation_side)]
        {
            if let Some(found) = found.as_ref().filter(|side| *side != "right") {
                let reason = format!("`{key}` is {found}, supported: right");
                return Err(TokenizerError::Vocabulary { folder: folder.into(), reason });
            }
        }
        let map = folder.join("special_tokens_map.json");
        if config.added_tokens_decoder.is_none() && map.exists() {
            let map: SpecialTokens = json::read(map)?;
            config.bos_token = map.bos_token.unwrap_or(config.bos_token);
            config.eos_token = map.eos_token.unwrap_or(config.eos_token);
            config.unk_token = map.unk_token.unwrap_or(config.unk_token);
            config.pad_token = map.pad_token.unwrap_or(config.pad_token);
        }
        Ok(config)
    }

    fn added(&self, token: &Token) -> AddedToken {
        let described = || {
            let tokens = self.added_tokens_decoder.iter().flatten();
            tokens.map(|(_, token)| token).find(|described| described.content == token.content())
        };
        match token {
            Token::Full(behaviour) => behaviour.added(),
            Token::Text(text) => {
                described().map_or_else(|| AddedToken::from(text.clone(), true), Behaviour::added)
            }
        }
    }
}

impl Token {
    fn start() -> Self {
        Self::Text("<|startoftext|>".into())
    }

    fn end() -> Self {
        Self::Text("<|endoftext|>".into())
    }

    fn content(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Full(behaviour) => &behaviour.content,
        }
    }
}

impl Behaviour {
    fn added(&self) -> AddedToken {
        AddedToken::from(self.content.clone(), true)
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .normalized(self.normalized)
    }
}
