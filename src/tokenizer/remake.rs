//! Parts that a class of transformers makes anew instead of taking them from `tokenizer.json`.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{
    AddedToken, AddedVocabulary, DecoderWrapper, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper,
};

use super::{MAX_STRING, Tokenizer, guarded, text_of, wrong_for_class, wrong_settings};
use crate::error::{Error, ErrorKind, Result};

/// The special tokens that settings may name.
const NAMES: [&str; 7] = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];

impl Tokenizer {
    /// Puts the parts of a class in the place of the file's: `model`, `normalizer`, `pre_tokenizer`, `decoder` and `post_processor`, as
    /// `tokenizer.json` writes them, the last in short. `tokens` are the class's special tokens, where the settings name no others.
    ///
    /// # Errors
    /// `Tokenizer` when the file has another kind of model, or lacks a special token.
    pub(crate) fn remake(&mut self, parts: &Map<String, Value>, tokens: &Map<String, Value>) -> Result<()> {
        if let Some(model) = parts.get("model") {
            self.remake_model(model)?;
        }
        if let Some(part) = parts.get("normalizer") {
            let table = self.table();
            let part = with_table(part.clone(), table.as_ref());
            let part: Option<NormalizerWrapper> = self.part("normalizer", part)?;
            guarded(|| self.inner.with_normalizer(part).map(|_| ())).map_err(|e| self.failed(&e))?;
        }
        if let Some(part) = parts.get("pre_tokenizer") {
            let part: Option<PreTokenizerWrapper> = self.part("pre_tokenizer", part.clone())?;
            self.inner.with_pre_tokenizer(part);
        }
        if let Some(part) = parts.get("decoder") {
            let part: Option<DecoderWrapper> = self.part("decoder", part.clone())?;
            self.inner.with_decoder(part);
        }
        let keep = !self.settings["added_tokens_decoder"].is_object();
        self.add_tokens(tokens, keep)?;
        if let Some(part) = parts.get("post_processor") {
            let part = self.post_processor(part, tokens)?;
            self.inner.with_post_processor(Some(part));
        }
        Ok(())
    }

    /// Whether the normalizer of the file has a table of `Precompiled`.
    pub(crate) fn has_table(&self) -> bool {
        self.table().is_some()
    }

    /// Adds the tokens that the settings list or name, as transformers does for every class. Unless all of the file's are kept, those
    /// that the settings do not list go.
    pub(super) fn add_tokens(&mut self, defaults: &Map<String, Value>, keep: bool) -> Result<()> {
        let decoder = self.inner.get_added_tokens_decoder();
        let mut known: HashMap<&str, &AddedToken> =
            decoder.values().map(|token| (token.content.as_str(), token)).collect();
        let mut names: HashSet<String> = HashSet::new();
        if keep {
            names.extend(known.keys().map(|name| (*name).to_owned()));
        }
        let mut tokens = self.listed();
        names.extend(tokens.iter().map(|token| token.content.clone()));
        for token in self.special(defaults).filter_map(|token| added_token(token, true)) {
            if names.insert(token.content.clone()) {
                tokens.push(token);
            }
        }
        if let Some(len) = tokens.iter().map(|token| token.content.len()).find(|len| *len > MAX_STRING) {
            let what = format!("expected tokens of at most {MAX_STRING} bytes, found one of {len}");
            return Err(wrong_settings(&self.label, &what));
        }
        if known.keys().any(|name| !names.contains(*name)) {
            self.inner.with_added_vocabulary(AddedVocabulary::new());
            known.clear();
        }
        self.inner.set_encode_special_tokens(self.settings["split_special_tokens"] == true);
        tokens.retain(|token| !known.get(token.content.as_str()).is_some_and(|known| same(known, token)));
        if tokens.is_empty() {
            return Ok(());
        }
        guarded(|| self.inner.add_tokens(tokens).map(|_| ())).map_err(|e| self.failed(&e))
    }

    /// The tokens of `added_tokens_decoder`, by their numbers.
    fn listed(&self) -> Vec<AddedToken> {
        let entries = self.settings["added_tokens_decoder"].as_object().into_iter().flatten();
        let mut listed: Vec<(u32, AddedToken)> =
            entries.filter_map(|(id, token)| id.parse().ok().zip(added_token(token, false))).collect();
        listed.sort_by_key(|(id, _)| *id);
        listed.into_iter().map(|(_, token)| token).collect()
    }

    /// The special tokens, with a name or without.
    fn special<'a>(&'a self, defaults: &'a Map<String, Value>) -> impl Iterator<Item = &'a Value> {
        let named = NAMES.iter().filter_map(|name| self.named(name, defaults));
        let others = self.settings.as_object().into_iter().flatten().filter(|(key, value)| {
            let name = key.strip_suffix("_token");
            value.is_string() && name.is_some_and(|name| !NAMES.contains(&name))
        });
        let unnamed = |key: &str| match &self.settings[key] {
            Value::Array(tokens) => Some(tokens.iter().collect()),
            Value::Object(tokens) => Some(tokens.values().collect()),
            Value::Null => Some(Vec::new()),
            _ => None,
        };
        let mut extra = unnamed("extra_special_tokens");
        if extra.as_ref().is_some_and(Vec::is_empty) {
            extra = unnamed("additional_special_tokens");
        }
        named.chain(others.map(|(_, token)| token)).chain(extra.into_iter().flatten())
    }

    /// What the settings, or else the class, call a special token.
    fn named<'a>(&'a self, name: &str, defaults: &'a Map<String, Value>) -> Option<&'a Value> {
        self.settings
            .get(format!("{name}_token"))
            .or_else(|| defaults.get(name))
            .filter(|token| !token.is_null())
    }

    /// The text of a special token.
    pub(crate) fn named_text(&self, name: &str, defaults: &Map<String, Value>) -> Option<String> {
        text_of(self.named(name, defaults)?).map(str::to_owned)
    }

    fn remake_model(&mut self, model: &Value) -> Result<()> {
        let kind = match self.inner.get_model() {
            ModelWrapper::BPE(_) => "BPE",
            ModelWrapper::WordPiece(_) => "WordPiece",
            ModelWrapper::WordLevel(_) => "WordLevel",
            ModelWrapper::Unigram(_) => "Unigram",
        };
        if model["type"] != *kind {
            let expected = model["type"].as_str().unwrap_or_default();
            let what = format!("expected the model of its class, `{expected}`, found `{kind}`");
            return Err(wrong_for_class(&self.label, &what));
        }
        let flag = |key: &str| model[key] == true;
        let text = |key: &str| model[key].as_str().filter(|text| !text.is_empty());
        // A copy of a vocabulary takes time: only where it is another model.
        match self.inner.get_model() {
            ModelWrapper::BPE(found) => {
                let affix = |found: &Option<String>, key: &str| {
                    let found = found.as_deref().unwrap_or_default();
                    let expected = text(key).unwrap_or_default();
                    let message = format!("`{}`: expected `{key}` `{expected}`, found `{found}`", self.label);
                    if found == expected { Ok(()) } else { Err(Error::new(ErrorKind::Tokenizer, message)) }
                };
                affix(&found.continuing_subword_prefix, "continuing_subword_prefix")?;
                affix(&found.end_of_word_suffix, "end_of_word_suffix")?;
                // With tokens for all bytes nothing is unknown.
                let knows_all = found.byte_fallback
                    && (0..256).all(|byte| self.inner.token_to_id(&format!("<0x{byte:02X}>")).is_some());
                let unk = found.unk_token.as_deref().filter(|unk| !unk.is_empty());
                let is_it = (knows_all || unk == text("unk_token") && found.fuse_unk == flag("fuse_unk"))
                    && found.byte_fallback == flag("byte_fallback")
                    && !found.ignore_merges;
                if !is_it {
                    let mut new = found.clone();
                    new.unk_token = text("unk_token").map(str::to_owned);
                    new.fuse_unk = flag("fuse_unk");
                    new.byte_fallback = flag("byte_fallback");
                    new.ignore_merges = false;
                    self.inner.with_model(new);
                }
            }
            ModelWrapper::WordPiece(found) => {
                if let Some(unk) = text("unk_token").filter(|unk| *unk != found.unk_token) {
                    let mut new = found.clone();
                    new.unk_token = unk.to_owned();
                    self.inner.with_model(new);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The table of `Precompiled` in the normalizer, in base64.
    fn table(&self) -> Option<Value> {
        fn find(part: &Value) -> Option<&Value> {
            if part["type"] == "Precompiled" {
                return part.get("precompiled_charsmap");
            }
            part["normalizers"].as_array()?.iter().find_map(find)
        }
        let part = serde_json::to_value(self.inner.get_normalizer()?).ok()?;
        find(&part).cloned()
    }

    /// A part as the `tokenizers` crate has it.
    fn part<T: serde::de::DeserializeOwned>(&self, name: &str, part: Value) -> Result<Option<T>> {
        guarded(|| Ok(serde_json::from_value(part)?)).map_err(|e| {
            let message = format!("invalid tokenizer `{}`: {name} of its class: {e}", self.label);
            Error::new(ErrorKind::Tokenizer, message)
        })
    }

    /// A post-processor that is written in short.
    fn post_processor(&self, part: &Value, tokens: &Map<String, Value>) -> Result<PostProcessorWrapper> {
        let token = |name: &str| -> Result<(String, u32)> {
            let lacks = |what: String| {
                Error::new(ErrorKind::Tokenizer, format!("`{}`: expected a token {what}", self.label))
            };
            let text =
                self.named_text(name, tokens).ok_or_else(|| lacks(format!("that is `{name}_token`")))?;
            let id =
                self.inner.token_to_id(&text).ok_or_else(|| lacks(format!("`{text}`, `{name}_token`")))?;
            Ok((text, id))
        };
        if part["type"] == "RobertaProcessing" {
            let mut whole = part.clone();
            for key in ["sep", "cls"] {
                let (text, id) = token(part[key].as_str().unwrap_or_default())?;
                whole[key] = serde_json::json!([text, id]);
            }
            // A map is no null.
            return self.part("post_processor", whole).map(|part| part.expect("a map"));
        }
        let mut special = Map::new();
        let mut pieces = |key: &str| {
            let names = part[key].as_array().into_iter().flatten().filter_map(Value::as_str);
            let pieces = names.map(|name| {
                let (name, kind) = name.split_once(':').unwrap_or((name, "0"));
                let kind: u32 = kind.parse().unwrap_or_default();
                if ["A", "B"].contains(&name) {
                    return Ok(serde_json::json!({"Sequence": {"id": name, "type_id": kind}}));
                }
                let (text, id) = token(name)?;
                special.insert(text.clone(), serde_json::json!({"id": text, "ids": [id], "tokens": [text]}));
                Ok(serde_json::json!({"SpecialToken": {"id": text, "type_id": kind}}))
            });
            pieces.collect::<Result<Vec<Value>>>()
        };
        let (single, pair) = (pieces("single")?, pieces("pair")?);
        let whole = serde_json::json!({"single": single, "pair": pair, "special_tokens": special});
        let template: Option<TemplateProcessing> = self.part("post_processor", whole)?;
        // A map is no null.
        Ok(template.expect("a map").into())
    }
}

/// A token of the settings: its text, or an object that holds it.
fn added_token(token: &Value, special: bool) -> Option<AddedToken> {
    let flag = |key: &str, default: bool| token[key].as_bool().unwrap_or(default);
    let content = text_of(token)?;
    let special = special || flag("special", false);
    Some(
        AddedToken::from(content, special)
            .single_word(flag("single_word", false))
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .normalized(flag("normalized", !special)),
    )
}

/// Whether two tokens are alike in all.
fn same(a: &AddedToken, b: &AddedToken) -> bool {
    let flags = |t: &AddedToken| (t.single_word, t.lstrip, t.rstrip, t.normalized, t.special);
    a.content == b.content && flags(a) == flags(b)
}

/// A normalizer with the table of the file.
fn with_table(mut part: Value, table: Option<&Value>) -> Value {
    match (&mut part, table) {
        (Value::Object(fields), Some(table)) if fields.get("type") == Some(&"Precompiled".into()) => {
            fields.insert("precompiled_charsmap".into(), table.clone());
        }
        (Value::Object(fields), table) => {
            fields.values_mut().for_each(|part| *part = with_table(part.take(), table));
        }
        (Value::Array(parts), table) => {
            parts.iter_mut().for_each(|part| *part = with_table(part.take(), table))
        }
        _ => {}
    }
    part
}
