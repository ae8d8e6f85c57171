use super::Tokenizer;
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
}

impl<'t> Stream<'t> {
    /// Nothing decoded yet. Special tokens are left out.
    pub fn new(tokenizer: &'t Tokenizer) -> Self {
        Stream { tokenizer, ids: Vec::new(), start: 0, given: 0 }
    }

    /// Adds a token; gives the text that is now certain.
    ///
    /// # Errors
    /// `Tokenizer` when the tokens cannot be turned into text.
    pub fn push(&mut self, id: u32) -> Result<String> {
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
        Ok(now.get(before.len()..).unwrap_or_default().to_owned())
    }

    /// The text of the last tokens that were given out, and the same with the new ones behind it. The former is needed
    /// because a decoder treats the first token differently.
    fn texts(&self) -> Result<(String, String)> {
        let before = self.tokenizer.decode(&self.ids[self.start..self.given], true)?;
        let mut now = self.tokenizer.decode(&self.ids[self.start..], true)?;
        if !now.starts_with(&before) {
            now = before.clone();
        }
        Ok((before, now))
    }
}

/// Whether a token stands for one byte: `<0xE2>`.
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}
