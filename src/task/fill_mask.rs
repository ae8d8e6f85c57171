use super::classify::softmax;
use super::model::{Model, Text};
use crate::error::{Error, ErrorKind, Result};

/// A token that may stand for a mask.
#[derive(Clone, Debug, PartialEq)]
pub struct Fill {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub token: String,
    /// Its probability.
    pub score: f32,
}

/// What may stand for the masks of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskFills {
    /// For each mask the best tokens, the best first.
    pub masks: Vec<Vec<Fill>>,
    /// Tokens that were cut off the text.
    pub truncated: usize,
}

impl Model {
    /// The `n` likeliest tokens for each mask (`[MASK]` or what the tokenizer calls it) in texts, with a model for masked
    /// language modelling.
    ///
    /// ```
    /// # fn main() -> smelt::Result<()> {
    /// # let dirs = std::fs::read_dir("tests/golden").unwrap().map(|dir| dir.unwrap().path().join("masked-lm"));
    /// # let has_mask = |dir: &std::path::PathBuf| {
    /// #     std::fs::read_to_string(dir.join("tokenizer.json")).is_ok_and(|text| text.contains("[MASK]"))
    /// # };
    /// # let dir = dirs.into_iter().find(has_mask).unwrap();
    /// let model = smelt::Model::open(dir)?;
    /// let fills = &model.fill_mask(&["Paris is the [MASK] of France.".into()], 3)?[0];
    /// for fill in &fills.masks[0] {
    ///     println!("{} {}", fill.score, fill.token);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `Input` when the model is for another task, a text is too long or has no mask; `Tokenizer` when there is no mask
    /// token.
    pub fn fill_mask(&self, texts: &[Text<'_>], n: usize) -> Result<Vec<MaskFills>> {
        self.expect_task(&["masked_lm"])?;
        let tokenizer = self.tokenizer()?;
        let mask = tokenizer.roles().mask.ok_or_else(|| {
            Error::new(ErrorKind::Tokenizer, "the tokenizer has no mask token")
                .help("`mask_token` in tokenizer_config.json names it")
        })?;
        let encodings = self.encode(texts, None)?;
        for (encoding, text) in encodings.iter().zip(texts) {
            if !encoding.ids.contains(&mask) {
                let name = tokenizer.token(mask).unwrap_or_default();
                let place = if encoding.truncated > 0 { "what is left of the text" } else { "the text" };
                return Err(Error::new(ErrorKind::Input, format!("no `{name}` in {place} `{}`", text.text)));
            }
        }
        let mut all = Vec::with_capacity(texts.len());
        self.each_batch(&encodings, &["logits"], |encodings, outputs| {
            let mut row = 0;
            for encoding in encodings {
                let mut masks = Vec::new();
                for id in &encoding.ids {
                    if *id == mask {
                        let mut scores = outputs[0].value.row(row).to_vec();
                        softmax(&mut scores);
                        let mut order: Vec<u32> = (0..scores.len() as u32).collect();
                        order.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]));
                        let fill = |id: u32| -> Result<Fill> {
                            Ok(Fill {
                                id,
                                token: tokenizer.decode(&[id], false)?,
                                score: scores[id as usize],
                            })
                        };
                        masks.push(order.into_iter().take(n).map(fill).collect::<Result<_>>()?);
                    }
                    row += 1;
                }
                all.push(MaskFills { masks, truncated: encoding.truncated });
            }
            Ok(())
        })?;
        Ok(all)
    }
}
