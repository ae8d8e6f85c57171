use super::{CLEAN, Tokenizer, clean_up};
use crate::error::Result;

/// Decodes tokens as they come, giving out only text that later tokens cannot change.
///
/// All pieces together are the text of all tokens.
#[derive(Debug)]
pub struct Stream<'t> {
    tokenizer: &'t Tokenizer,
    ids: Vec<u32>,
    /// Tokens before this one are given out and have no influence any more.
    start: usize,
    /// Tokens before this one are given out.
    given: usize,
    /// Decoded text that waits for what comes behind it, where spaces are cleaned up.
    held: String,
}

impl<'t> Stream<'t> {
    /// Nothing decoded yet. Special tokens are left out.
    pub fn new(tokenizer: &'t Tokenizer) -> Self {
        Stream { tokenizer, ids: Vec::new(), start: 0, given: 0, held: String::new() }
    }

    /// Adds a token; gives the text that is now certain.
    ///
    /// # Errors
    /// `Tokenizer` when the tokens cannot be turned into text.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let piece = self.push_as_is(id)?;
        if !self.tokenizer.cleans_up() {
            return Ok(piece);
        }
        self.held += &piece;
        let rest = self.held.split_off(certain(&self.held));
        Ok(clean_up(&std::mem::replace(&mut self.held, rest)))
    }

    fn push_as_is(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        // What a run of single bytes stands for is certain when it has ended: one wrong byte changes all of it.
        if self.tokenizer.token(id).is_some_and(|token| is_byte(&token)) {
            return Ok(String::new());
        }
        let (before, now) = self.texts()?;
        // An incomplete character decodes to the replacement character.
        if now.len() <= before.len() || now.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        self.start = self.given;
        self.given = self.ids.len();
        Ok(now[before.len()..].to_owned())
    }

    /// Gives whatever is left: what [`push`](Self::push) held back.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(&mut self) -> Result<String> {
        let (before, now) = self.texts()?;
        self.start = self.ids.len();
        self.given = self.ids.len();
        let rest = now.get(before.len()..).unwrap_or_default();
        if !self.tokenizer.cleans_up() {
            return Ok(rest.to_owned());
        }
        self.held += rest;
        Ok(clean_up(&std::mem::take(&mut self.held)))
    }

    /// The text of the last tokens that were given out, and the same with the new ones behind it. The former is needed
    /// because a decoder treats the first token differently.
    fn texts(&self) -> Result<(String, String)> {
        let before = self.tokenizer.decode_as_is(&self.ids[self.start..self.given], true)?;
        let mut now = self.tokenizer.decode_as_is(&self.ids[self.start..], true)?;
        if !now.starts_with(&before) {
            now = before.clone();
        }
        Ok((before, now))
    }
}

/// How much of a text is cleaned up without regard to what comes behind it.
fn certain(text: &str) -> usize {
    if !CLEAN.iter().any(|(from, _)| (1..from.len()).any(|n| text.ends_with(&from[..n]))) {
        return text.len();
    }
    // What is cleaned up begins with a space. Only ` ' ` also ends with one.
    let is_cut = |at: &(usize, char)| at.1 == ' ' && !text[..at.0].ends_with(" '");
    text.char_indices().rfind(is_cut).map_or(0, |(at, _)| at)
}

/// Whether a token stands for one byte: `<0xE2>`.
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}
