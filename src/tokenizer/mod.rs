//! `tokenizer.json` to token ids and back. The work is done by the `tokenizers` crate; this module adds limits, the
//! roles of special tokens, what their class makes anew, and decoding piece by piece.

#![forbid(unsafe_code)]

mod remake;
mod stream;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use tokenizers::{ModelWrapper, TruncationDirection, TruncationParams, TruncationStrategy};

use crate::error::{Error, ErrorKind, Result};
pub use stream::Stream;

/// Turns text into token ids and back.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    label: String,
    roles: Roles,
    /// `tokenizer_config.json`; null without it.
    settings: serde_json::Value,
    max_length: Option<usize>,
    /// At which end texts are cut.
    direction: TruncationDirection,
    /// A copy that truncates, with its limit: made when the first text is too long.
    truncating: Mutex<Option<(usize, Arc<tokenizers::Tokenizer>)>>,
}

/// Ids of the special tokens that `tokenizer_config.json` names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    /// Stands for a word to be filled in.
    pub mask: Option<u32>,
    /// Fills up rows.
    pub pad: Option<u32>,
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Stands for what the vocabulary lacks.
    pub unk: Option<u32>,
}

/// How many tokens a text may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Most tokens, special ones included; none for any number.
    pub max_tokens: Option<usize>,
    /// Whether longer texts are cut instead of refused.
    pub truncate: bool,
}

/// A text as tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids.
    pub ids: Vec<u32>,
    /// 0 for the first text, 1 for the second, as the tokenizer says.
    pub type_ids: Vec<u32>,
    /// Bytes of the text that each token stands for.
    pub offsets: Vec<(usize, usize)>,
    /// Which text each token is of; none for special tokens.
    pub texts: Vec<Option<usize>>,
    /// How many tokens were cut off.
    pub truncated: usize,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`; `label` names it in messages. `config` is the text of the `tokenizer_config.json` beside it,
    /// which names the special tokens. What its `tokenizer_class` does beyond that is left to [`Model::open`](crate::Model::open).
    ///
    /// As in transformers 5.23 a length in `tokenizer.json` cuts nothing: [`encode`](Self::encode) obeys its limit alone.
    ///
    /// # Errors
    /// `Tokenizer` when either file is not understood.
    pub fn from_json(text: &str, label: &str, config: Option<&str>) -> Result<Tokenizer> {
        let wrong =
            |what: String| Error::new(ErrorKind::Tokenizer, format!("invalid tokenizer `{label}`: {what}"));
        if let Some(len) = longest_string(text) {
            return Err(wrong(format!("expected strings of at most {MAX_STRING} bytes, found one of {len}")));
        }
        check_charsmaps(text).map_err(wrong)?;
        let mut inner: tokenizers::Tokenizer = guarded(|| text.parse()).map_err(|e| wrong(e.to_string()))?;
        for rules in [
            serde_json::to_value(inner.get_normalizer()),
            serde_json::to_value(inner.get_post_processor()),
            serde_json::to_value(inner.get_decoder()),
        ] {
            let growth = growth(&rules.map_err(|e| wrong(e.to_string()))?);
            if growth > MAX_STRING as f64 {
                let what = format!(
                    "expected rules that make texts at most {MAX_STRING} times as long, found {growth:.0}"
                );
                return Err(wrong(what));
            }
        }
        if let ModelWrapper::BPE(bpe) = inner.get_model()
            && bpe.dropout.is_some_and(|p| p > 0.0)
        {
            return Err(wrong("unsupported `dropout`: it would give other tokens each time".into()));
        }
        let own_side = inner.get_truncation().map(|own| own.direction);
        inner.with_truncation(None).map_err(|e| wrong(e.to_string()))?;
        inner.with_padding(None); // a ragged batch needs none
        let config: serde_json::Value = match config {
            Some(text) => match serde_json::from_str(text) {
                Ok(settings @ serde_json::Value::Object(_)) => settings,
                Ok(_) => return Err(wrong_settings(label, "expected a map of settings")),
                Err(e) => return Err(wrong_settings(label, &e.to_string())),
            },
            None => serde_json::Value::Null,
        };
        let max_length = match config.get("model_max_length").unwrap_or(&config["max_len"]) {
            serde_json::Value::Null => None,
            // transformers writes 1e30 for any number, and takes all above 1e20 for that.
            length => match length.as_f64() {
                Some(length) if length > 1e20 => None,
                Some(length) if length >= 1.0 && length.fract() == 0.0 => Some(length as usize),
                _ => {
                    let what =
                        format!("`model_max_length`: expected a positive whole number, found `{length}`");
                    return Err(wrong_settings(label, &what));
                }
            },
        };
        let direction = match config["truncation_side"].as_str() {
            Some("left") => TruncationDirection::Left,
            Some("right") => TruncationDirection::Right,
            _ => own_side.unwrap_or_default(),
        };
        let mut tokenizer = Tokenizer {
            inner,
            label: label.to_owned(),
            roles: Roles::default(),
            settings: config,
            max_length,
            direction,
            truncating: Mutex::default(),
        };
        tokenizer.add_tokens(&serde_json::Map::new(), true)?;
        tokenizer.roles = tokenizer.named_roles();
        Ok(tokenizer)
    }

    /// The roles that the settings name.
    fn named_roles(&self) -> Roles {
        let inner = &self.inner;
        let named = |role: &str| inner.token_to_id(text_of(&self.settings[role])?);
        Roles {
            mask: named("mask_token")
                .or_else(|| ["[MASK]", "<mask>"].iter().find_map(|t| inner.token_to_id(t))),
            pad: named("pad_token"),
            bos: named("bos_token"),
            eos: named("eos_token"),
            unk: named("unk_token"),
        }
    }

    /// `model_max_length` of `tokenizer_config.json`; none for any number of tokens.
    pub fn max_length(&self) -> Option<usize> {
        self.max_length
    }

    /// What `tokenizer_config.json` says; null where it says nothing.
    pub(crate) fn setting(&self, key: &str) -> &serde_json::Value {
        &self.settings[key]
    }

    /// The special tokens.
    pub fn roles(&self) -> Roles {
        self.roles
    }

    /// Tokens of a text, or of a pair of texts, special tokens added.
    ///
    /// # Errors
    /// `Input` when the text has more tokens than `limit` allows and may not be cut; `Tokenizer` when the file's rules fail
    /// on this text.
    pub fn encode(&self, text: &str, pair: Option<&str>, limit: Limit) -> Result<Encoding> {
        let whole = self.run(&self.inner, text, pair)?;
        let len = whole.ids.len();
        match limit.max_tokens {
            Some(max) if len > max && limit.truncate => {
                let mut cut = self.run(&*self.truncating(max, pair.is_some())?, text, pair)?;
                cut.truncated = len - cut.ids.len();
                Ok(cut)
            }
            Some(max) if len > max => {
                let message = format!("the text has {len} tokens, the model takes at most {max}");
                Err(Error::new(ErrorKind::Input, message).help("cut it (`--truncate`)"))
            }
            _ => Ok(whole),
        }
    }

    /// Tokens with so many of the pad token that there are `len`, on the side that `padding_side` of `tokenizer_config.json` says, by
    /// default the right one.
    ///
    /// # Errors
    /// `Tokenizer` when there is no pad token.
    pub(crate) fn padded(&self, mut encoding: Encoding, len: usize) -> Result<Encoding> {
        let Some(pad) = self.roles.pad else {
            let message = format!("`{}`: texts are to be padded, and there is no pad token", self.label);
            let help = "name it in `tokenizer_config.json`, as `pad_token`";
            return Err(Error::new(ErrorKind::Tokenizer, message).help(help));
        };
        let missing = len.saturating_sub(encoding.ids.len());
        let at = if self.setting("padding_side") == "left" { 0 } else { encoding.ids.len() };
        encoding.ids.splice(at..at, vec![pad; missing]);
        encoding.type_ids.splice(at..at, vec![0; missing]);
        encoding.offsets.splice(at..at, vec![(0, 0); missing]);
        encoding.texts.splice(at..at, vec![None; missing]);
        Ok(encoding)
    }

    /// The tokenizer set to cut at `max` tokens.
    fn truncating(&self, max: usize, is_pair: bool) -> Result<Arc<tokenizers::Tokenizer>> {
        use tokenizers::PostProcessor;
        let added = self.inner.get_post_processor().map_or(0, |p| p.added_tokens(is_pair));
        if max <= added {
            let message = format!("a limit of {max} tokens leaves no room beside {added} special tokens");
            return Err(Error::new(ErrorKind::Input, message));
        }
        // A poisoned lock means that another thread panicked while it replaced the copy: it is whole.
        let mut kept = self.truncating.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((limit, tokenizer)) = &*kept
            && *limit == max
        {
            return Ok(tokenizer.clone());
        }
        let params = TruncationParams {
            direction: self.direction,
            strategy: TruncationStrategy::LongestFirst,
            max_length: max,
            stride: 0,
        };
        let mut tokenizer = self.inner.clone();
        tokenizer.with_truncation(Some(params)).map_err(|e| self.failed(&e))?;
        let tokenizer = Arc::new(tokenizer);
        *kept = Some((max, tokenizer.clone()));
        Ok(tokenizer)
    }

    fn run(&self, tokenizer: &tokenizers::Tokenizer, text: &str, pair: Option<&str>) -> Result<Encoding> {
        let encoded = guarded(|| match pair {
            Some(pair) => tokenizer.encode((text, pair), true),
            None => tokenizer.encode(text, true),
        });
        let encoded = encoded.map_err(|e| self.failed(&e))?;
        let texts = (0..encoded.len()).map(|token| encoded.token_to_sequence(token));
        let special = encoded.get_special_tokens_mask().iter().map(|mask| *mask == 1);
        Ok(Encoding {
            texts: texts.zip(special).map(|(text, special)| text.filter(|_| !special)).collect(),
            ids: encoded.get_ids().to_vec(),
            type_ids: encoded.get_type_ids().to_vec(),
            offsets: encoded.get_offsets().to_vec(),
            truncated: 0,
        })
    }

    /// The text of tokens. Ids that the vocabulary lacks stand for nothing. Where `clean_up_tokenization_spaces` asks for it, and the
    /// model is not BPE, spaces before punctuation are taken out, as transformers does.
    ///
    /// # Errors
    /// `Tokenizer` when its decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let text = self.decode_as_is(ids, skip_special)?;
        Ok(if self.cleans_up() { clean_up(&text) } else { text })
    }

    /// The text of tokens as the file's decoder gives it.
    fn decode_as_is(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        guarded(|| self.inner.decode(ids, skip_special)).map_err(|e| self.failed(&e))
    }

    /// Whether spaces before punctuation are taken out of decoded texts.
    fn cleans_up(&self) -> bool {
        let is_set = |key: &str| self.settings[key] == true;
        is_set("clean_up_tokenization_spaces")
            && (!matches!(self.inner.get_model(), ModelWrapper::BPE(_))
                || is_set("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"))
    }

    /// The spelling of a token.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    fn failed(&self, cause: &tokenizers::Error) -> Error {
        Error::new(ErrorKind::Tokenizer, format!("`{}` cannot be applied: {cause}", self.label))
    }
}

/// What is put in the place of what, one after another: transformers' `clean_up_tokenization`. All begin with a space.
const CLEAN: [(&str, &str); 10] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

/// A text without spaces before punctuation.
fn clean_up(text: &str) -> String {
    CLEAN.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// The text of a token of the settings, which is given by it, or by an object that holds it.
fn text_of(token: &serde_json::Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

/// That the file `label` is not what its class needs.
pub(crate) fn wrong_for_class(label: &str, what: &str) -> Error {
    Error::new(ErrorKind::Tokenizer, format!("`{label}`: {what}"))
        .help("is `tokenizer_class` right? with `PreTrainedTokenizerFast` the file counts as it is")
}

/// That `tokenizer_config.json` beside the file `label` is not as it should be.
pub(crate) fn wrong_settings(label: &str, what: &str) -> Error {
    let folder = label.strip_suffix("tokenizer.json").unwrap_or_default();
    let message = format!("invalid tokenizer settings `{folder}tokenizer_config.json`: {what}");
    Error::new(ErrorKind::Tokenizer, message)
}

/// Longest string of a tokenizer file, in bytes. The crate frees its tables by recursion, one call a byte, so a long token
/// would end the process. Also how many times as long rules may make a text, as one replacement of such a length can.
const MAX_STRING: usize = 16 << 10;

/// The length of a string that is too long, if the file has one. Normalisation tables, which are long, are not meant.
fn longest_string(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut i = 0;
    while let Some(start) = bytes[i..].iter().position(|b| *b == b'"').map(|at| i + at) {
        let mut end = start + 1;
        while end < bytes.len() && bytes[end] != b'"' {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        let end = end.min(bytes.len());
        let before = text.get(..start).unwrap_or_default().trim_end().trim_end_matches(':').trim_end();
        if end - start > MAX_STRING && !before.ends_with("\"precompiled_charsmap\"") {
            return Some(end - start);
        }
        i = (end + 1).min(bytes.len());
    }
    None
}

/// Refuses normalisation tables that say that they are longer than the string that holds them: the crate would allocate as much as
/// they say.
fn check_charsmaps(text: &str) -> std::result::Result<(), String> {
    #[derive(serde::Deserialize)]
    struct File {
        #[serde(default)]
        normalizer: serde_json::Value,
    }
    fn is_cut_off(rules: &serde_json::Value) -> bool {
        match rules {
            serde_json::Value::Array(rules) => rules.iter().any(is_cut_off),
            serde_json::Value::Object(rule) => {
                charsmap(&rules["precompiled_charsmap"]).is_none() || rule.values().any(is_cut_off)
            }
            _ => false,
        }
    }
    // Few files have one, and reading takes time. Its letters may be written as escapes.
    if !["charsmap", "\\u005", "\\u006", "\\u007"].iter().any(|part| text.contains(part)) {
        return Ok(());
    }
    match serde_json::from_str::<File>(text) {
        Ok(file) if is_cut_off(&file.normalizer) => {
            Err("a `precompiled_charsmap` ends within its table".into())
        }
        // The crate would read each of two normalizers.
        Err(e) if e.is_data() => Err(e.to_string()),
        // What is no JSON is found below.
        _ => Ok(()),
    }
}

/// The texts of a normalisation table, each followed by a zero; none if the table is cut off, and nothing without one.
fn charsmap(table: &serde_json::Value) -> Option<Vec<u8>> {
    let digit = |b: u8| match b {
        b'A'..=b'Z' => Some(b - b'A'),
        b'a'..=b'z' => Some(b - b'a' + 26),
        b'0'..=b'9' => Some(b - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let Some(text) = table.as_str() else { return Some(Vec::new()) };
    let digits: Vec<u8> = text.bytes().filter_map(digit).collect();
    let bytes = digits.chunks(4).flat_map(|four| {
        let bits = four.iter().fold(0, |bits, digit| bits << 6 | u32::from(*digit)) << (6 * (4 - four.len()));
        bits.to_be_bytes().into_iter().skip(1).take(four.len() - 1)
    });
    let bytes: Vec<u8> = bytes.collect();
    let (len, rest) = bytes.split_first_chunk()?;
    Some(rest.get(u32::from_le_bytes(*len) as usize / 4 * 4..)?.to_vec())
}

/// How many times as long a text may become by all rules of a normalizer, post-processor or decoder, one after another.
fn growth(rules: &serde_json::Value) -> f64 {
    let len = |text: &serde_json::Value| text.as_str().unwrap_or_default().len() as f64;
    match rules {
        serde_json::Value::Array(rules) => rules.iter().map(growth).product(),
        serde_json::Value::Object(rule) => match rules["type"].as_str() {
            Some("Replace") => match rules["pattern"]["String"].as_str() {
                Some(found) if !found.is_empty() => (len(&rules["content"]) / found.len() as f64).max(1.0),
                // An expression may match between all bytes.
                _ => 1.0 + len(&rules["content"]),
            },
            Some("Prepend") => 1.0 + len(&rules["prepend"]),
            Some("Precompiled") => {
                let texts = charsmap(&rules["precompiled_charsmap"]).unwrap_or_default();
                1.0 + texts.split(|b| *b == 0).map(<[u8]>::len).max().unwrap_or(0) as f64
            }
            // A text and special tokens may each occur several times.
            Some("TemplateProcessing") => {
                let tokens = |piece: &serde_json::Value| match piece["SpecialToken"]["id"].as_str() {
                    Some(id) => rules["special_tokens"][id]["ids"].as_array().map_or(0, Vec::len),
                    None => 1,
                };
                let all =
                    ["single", "pair"].map(|key| rules[key].as_array().into_iter().flatten().map(tokens));
                all.map(Iterator::sum::<usize>).into_iter().max().unwrap_or(0).max(1) as f64
            }
            _ => rule.values().map(growth).product(),
        },
        _ => 1.0,
    }
}

/// Calls into the `tokenizers` crate, which on some malformed files panics instead of giving an error (a syntax error inside of
/// `decoder`, a damaged normalisation table, a template with unknown tokens). Nothing that it may leave half-changed is used
/// afterwards.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err("the rules of the file contradict each other".into()))
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({})", self.label)
    }
}
