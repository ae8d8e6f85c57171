//! Reading `generation_config.json`.

use super::model::Model;
use crate::error::{Error, ErrorKind, Result};
use crate::generate::Constraints;
use crate::plan::Config;
use crate::spec::Tree;

/// A file that says how to generate.
pub(super) struct GenerationConfig<'c> {
    config: &'c Config,
    /// Whether it is `config.json`.
    is_of_model: bool,
}

const FORCE_BOS: &str = "force_bos_token_to_be_generated";

/// Settings that change even the likeliest text, with the only value that is implemented; none is always allowed.
pub(super) const PLAIN: [(&str, Tree); 13] = [
    ("token_healing", Tree::Bool(false)),
    ("max_time", Tree::Null),
    ("dola_layers", Tree::Null),
    ("penalty_alpha", Tree::Null),
    ("stop_strings", Tree::Null),
    ("watermarking_config", Tree::Null),
    ("guidance_scale", Tree::Float(1.0)),
    ("sequence_bias", Tree::Null),
    ("encoder_repetition_penalty", Tree::Float(1.0)),
    ("encoder_no_repeat_ngram_size", Tree::Int(0)),
    ("exponential_decay_length_penalty", Tree::Null),
    ("force_words_ids", Tree::Null),
    ("constraints", Tree::Null),
];

impl<'c> GenerationConfig<'c> {
    /// `generation_config.json`, or `config.json` without one.
    pub fn of(model: &'c Model) -> Self {
        match &model.generation {
            Some(config) => GenerationConfig { config, is_of_model: false },
            None => GenerationConfig::of_config(model),
        }
    }

    /// `config.json`.
    pub fn of_config(model: &'c Model) -> Self {
        GenerationConfig { config: &model.config, is_of_model: true }
    }

    /// What is said about the tokens of texts.
    pub fn constraints(&self) -> Result<Constraints> {
        self.expect(&PLAIN)?;
        Ok(Constraints {
            forced_bos: match self.id("forced_bos_token_id")? {
                // As configs said it before there were files for generation.
                None if self.is_of_model && self.get(FORCE_BOS) == Some(&Tree::Bool(true)) => {
                    self.id("bos_token_id")?
                }
                id => id,
            },
            forced_eos: self.ids("forced_eos_token_id")?,
            suppressed: self.ids("suppress_tokens")?,
            begin_suppressed: self.ids("begin_suppress_tokens")?,
            bad_words: self.lists_of_ids("bad_words_ids")?,
            no_repeat_ngram: self.count("no_repeat_ngram_size")?,
            min_length: self.count("min_length")?,
            min_new_tokens: self.count("min_new_tokens")?,
        })
    }

    /// What logits of tokens that occurred already are divided by.
    pub fn repetition_penalty(&self) -> Result<f32> {
        let Some(value) = self.get("repetition_penalty") else { return Ok(1.0) };
        let penalty = match value {
            Tree::Float(penalty) => *penalty as f32,
            Tree::Int(penalty) => *penalty as f32,
            _ => 0.0,
        };
        if penalty > 0.0 && penalty.is_finite() {
            return Ok(penalty);
        }
        Err(self.wrong(&format!("`repetition_penalty`: expected a positive number, found `{value}`")))
    }

    /// An error if a setting has another value than the one that is implemented.
    pub fn expect(&self, settings: &[(&str, Tree)]) -> Result<()> {
        for (key, accepted) in settings {
            if let Some(found) = self.get(key)
                && found != accepted
                && !matches!((found, accepted), (Tree::Int(1), Tree::Float(1.0)))
            {
                let message = format!("`{}`: unsupported `{key}`: `{found}`", self.config.name());
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        }
        Ok(())
    }

    /// The value of a key; null is none.
    pub fn get(&self, key: &str) -> Option<&Tree> {
        self.config.find(key).map(|(value, _)| value).filter(|value| **value != Tree::Null)
    }

    pub fn wrong(&self, what: &str) -> Error {
        Error::new(ErrorKind::Config, format!("`{}`: {what}", self.config.name()))
    }

    fn as_id(&self, key: &str, value: &Tree) -> Result<u32> {
        let id = if let Tree::Int(id) = value {
            u32::try_from(*id).ok().filter(|id| *id < u32::MAX)
        } else {
            None
        };
        id.ok_or_else(|| self.wrong(&format!("`{key}`: expected a token id, found `{value}`")))
    }

    pub fn id(&self, key: &str) -> Result<Option<u32>> {
        self.get(key).map(|value| self.as_id(key, value)).transpose()
    }

    /// A list of ids, or one alone. One below 0 is no token's: some files say none in this way.
    pub fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let items = match self.get(key) {
            None => &[],
            Some(Tree::List(items)) => &items[..],
            Some(id) => std::slice::from_ref(id),
        };
        let is_none = |id: &&Tree| matches!(id, Tree::Int(..0));
        items.iter().filter(|id| !is_none(id)).map(|id| self.as_id(key, id)).collect()
    }

    /// What the decoder of an encoder-decoder begins with.
    pub fn decoder_start(&self) -> Result<u32> {
        for key in ["decoder_start_token_id", "bos_token_id"] {
            if let Some(id) = self.ids(key)?.first() {
                return Ok(*id);
            }
        }
        Err(self.wrong("neither `decoder_start_token_id` nor `bos_token_id`"))
    }

    fn lists_of_ids(&self, key: &str) -> Result<Vec<Vec<u32>>> {
        let wrong = |found| self.wrong(&format!("`{key}`: expected lists of token ids, found `{found}`"));
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Tree::List(lists)) => lists
                .iter()
                .map(|list| match list {
                    Tree::List(ids) => ids.iter().map(|id| self.as_id(key, id)).collect(),
                    other => Err(wrong(other)),
                })
                .collect(),
            Some(other) => Err(wrong(other)),
        }
    }

    /// A number from 0 on; 0 if there is none.
    pub fn count(&self, key: &str) -> Result<usize> {
        let Some(value) = self.get(key) else { return Ok(0) };
        let count = if let Tree::Int(count) = value { usize::try_from(*count).ok() } else { None };
        let found = value.quoted();
        count.ok_or_else(|| self.wrong(&format!("`{key}`: expected a number from 0 on, found {found}")))
    }

    /// Ids by their names, without `<|` and `|>`.
    pub fn ids_by_name(&self, key: &str) -> Result<Vec<(String, u32)>> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Tree::Map(entries)) => {
                let entry = |(name, id): &(String, Tree)| Ok((bare(name).to_owned(), self.as_id(key, id)?));
                entries.iter().map(entry).collect()
            }
            Some(other) => Err(self.wrong(&format!("`{key}`: expected ids by their names, found `{other}`"))),
        }
    }

    /// Tokens at the places 1, 2 and so on; null for one that is not given.
    pub fn forced_ids(&self) -> Result<Vec<Option<u32>>> {
        let key = "forced_decoder_ids";
        let Some(tree) = self.get(key) else { return Ok(Vec::new()) };
        let wrong = || {
            self.wrong(&format!(
                "`{key}`: expected [place, id] for the places 1, 2 and so on, found `{tree}`"
            ))
        };
        let Tree::List(items) = tree else { return Err(wrong()) };
        let mut ids = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let Tree::List(pair) = item else { return Err(wrong()) };
            match &pair[..] {
                [Tree::Int(place), Tree::Null] if usize::try_from(*place) == Ok(i + 1) => ids.push(None),
                [Tree::Int(place), id] if usize::try_from(*place) == Ok(i + 1) => {
                    ids.push(Some(self.as_id(key, id)?))
                }
                _ => return Err(wrong()),
            }
        }
        Ok(ids)
    }
}

/// `en` of `<|en|>`.
pub(super) fn bare(token: &str) -> &str {
    token.strip_prefix("<|").and_then(|token| token.strip_suffix("|>")).unwrap_or(token)
}
