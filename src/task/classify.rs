use std::collections::HashMap;

use super::model::{Model, Text};
use crate::error::Result;
use crate::plan::Config;
use crate::spec::Tree;

/// A label with its score.
#[derive(Clone, Debug, PartialEq)]
pub struct Label {
    /// The name that the config gives it, else `LABEL_3`.
    pub label: String,
    /// Its probability; for a regression the value itself.
    pub score: f32,
}

/// What a text is classified as.
#[derive(Clone, Debug, PartialEq)]
pub struct Classification {
    /// All labels, the best first.
    pub labels: Vec<Label>,
    /// Tokens that were cut off the text.
    pub truncated: usize,
}

/// What the tokens of a text are classified as.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLabels {
    /// All tokens but the special ones.
    pub tokens: Vec<TokenLabel>,
    /// Tokens that were cut off the text.
    pub truncated: usize,
}

/// What a token is classified as.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLabel {
    /// The part of the text that the token stands for.
    pub text: String,
    /// First byte of that part.
    pub start: usize,
    /// Byte behind it.
    pub end: usize,
    /// The best label.
    pub label: Label,
}

impl Model {
    /// Classifies texts, with a model for sequence classification.
    ///
    /// Scores are probabilities over all labels; probabilities of each label by itself if the config says
    /// `multi_label_classification` or there is one label; plain values if it says `regression`.
    ///
    /// ```
    /// # fn main() -> smelt::Result<()> {
    /// let model = smelt::Model::open("examples/models/language-id")?;
    /// let answers = model.classify(&["Das ist ein kurzer Satz.".into(), "Where is the station?".into()])?;
    /// assert_eq!(answers[0].labels[0].label, "de");
    /// assert_eq!(answers[1].labels[0].label, "en");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `Input` when the model is for another task or a text is too long.
    pub fn classify(&self, texts: &[Text<'_>]) -> Result<Vec<Classification>> {
        self.expect_task(&["sequence_classification"])?;
        let mut all = Vec::with_capacity(texts.len());
        self.each_batch(&self.encode(texts, None)?, &["logits"], |encodings, outputs| {
            let logits = &outputs[0].value;
            for (i, encoding) in encodings.iter().enumerate() {
                let labels = self.labels(logits.row(i).to_vec());
                all.push(Classification { labels, truncated: encoding.truncated });
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// Classifies each token of texts, with a model for token classification.
    ///
    /// ```
    /// # fn main() -> smelt::Result<()> {
    /// # let dirs = std::fs::read_dir("tests/golden").unwrap().map(|dir| dir.unwrap().path().join("token-classification"));
    /// # let dir = dirs.into_iter().find(|dir| dir.exists()).unwrap();
    /// let model = smelt::Model::open(dir)?;
    /// for token in &model.classify_tokens(&["Marie Curie was born in Warsaw.".into()])?[0].tokens {
    ///     println!("{} {}", token.text, token.label.label);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `Input` when the model is for another task or a text is too long.
    pub fn classify_tokens(&self, texts: &[Text<'_>]) -> Result<Vec<TokenLabels>> {
        self.expect_task(&["token_classification"])?;
        let mut all = Vec::with_capacity(texts.len());
        self.each_batch(&self.encode(texts, None)?, &["logits"], |encodings, outputs| {
            let mut row = 0;
            for encoding in encodings {
                let mut tokens = Vec::new();
                for token in 0..encoding.ids.len() {
                    let mut scores = outputs[0].value.row(row).to_vec();
                    row += 1;
                    let Some(text) = encoding.texts[token] else { continue };
                    softmax(&mut scores);
                    let best = crate::generate::argmax(&scores) as usize;
                    let (start, end) = encoding.offsets[token];
                    let source = &texts[all.len()];
                    let source = if text == 0 { source.text } else { source.pair.unwrap_or_default() };
                    let label = Label { label: self.label(best), score: scores[best] };
                    let text = source.get(start..end).unwrap_or_default().to_owned();
                    tokens.push(TokenLabel { text, start, end, label });
                }
                all.push(TokenLabels { tokens, truncated: encoding.truncated });
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// All labels with what their logits mean, the best first.
    pub(super) fn labels(&self, mut scores: Vec<f32>) -> Vec<Label> {
        match self.config.text("problem_type") {
            Some("regression") => {}
            Some("multi_label_classification") => sigmoid(&mut scores),
            _ if scores.len() == 1 => sigmoid(&mut scores),
            _ => softmax(&mut scores),
        }
        let label = |(id, score)| Label { label: self.label(id), score };
        let mut labels: Vec<Label> = scores.into_iter().enumerate().map(label).collect();
        labels.sort_by(|a, b| b.score.total_cmp(&a.score));
        labels
    }

    fn label(&self, id: usize) -> String {
        self.labels.get(&id.to_string()).cloned().unwrap_or_else(|| format!("LABEL_{id}"))
    }
}

/// The names that a config has for classes, by their numbers as it writes them.
pub(super) fn labels_of(config: &Config) -> HashMap<String, String> {
    let entries = config.find("id2label").map(|(tree, _)| tree.entries()).unwrap_or_default();
    let text = |label: &Tree| label.as_text().map_or_else(|| label.to_string(), str::to_owned);
    entries.iter().map(|(id, label)| (id.clone(), text(label))).collect()
}

/// `exp(x) / Σ exp(x)`, in place.
pub(super) fn softmax(x: &mut [f32]) {
    let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = x.iter().map(|x| f64::from(x - largest).exp()).sum();
    x.iter_mut().for_each(|x| *x = (f64::from(*x - largest).exp() / total) as f32);
}

pub(super) fn sigmoid(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = (1.0 / (1.0 + f64::from(-*x).exp())) as f32);
}
