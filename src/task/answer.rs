use super::classify::softmax;
use super::model::{Model, Text};
use crate::error::{Error, ErrorKind, Result};
use crate::tokenizer::Encoding;

/// A part of a text that answers a question.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The part.
    pub text: String,
    /// First byte of it in the context.
    pub start: usize,
    /// Byte behind it.
    pub end: usize,
    /// Probability of its first token times that of its last.
    pub score: f32,
}

/// The parts of a context that answer a question.
#[derive(Clone, Debug, PartialEq)]
pub struct Answers {
    /// The best first.
    pub answers: Vec<Answer>,
    /// Tokens that were cut off question and context: there may have been a better answer.
    pub truncated: usize,
}

/// How answers are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerOptions {
    /// How many answers are given.
    pub n: usize,
    /// Most tokens of an answer.
    pub max_tokens: usize,
}

impl Default for AnswerOptions {
    /// One answer of at most 15 tokens.
    fn default() -> Self {
        AnswerOptions { n: 1, max_tokens: 15 }
    }
}

impl Model {
    /// Finds the parts of contexts that answer questions, with a model for extractive question answering. Each text is a
    /// question with its context as the pair.
    ///
    /// ```
    /// use smelt::AnswerOptions;
    /// # fn main() -> smelt::Result<()> {
    /// # let dirs = std::fs::read_dir("tests/golden").unwrap().map(|dir| dir.unwrap().path().join("question-answering"));
    /// # let dir = dirs.into_iter().find(|dir| dir.exists()).unwrap();
    /// let model = smelt::Model::open(dir)?;
    /// let context = "She lives in Rome.";
    /// let found = &model.answer(&[("Where is she?", context).into()], AnswerOptions::default())?[0];
    /// let best = &found.answers[0];
    /// assert_eq!(best.text, context[best.start..best.end]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `Input` when the model is for another task, a text is too long, or a question has no context.
    pub fn answer(&self, texts: &[Text<'_>], options: AnswerOptions) -> Result<Vec<Answers>> {
        self.expect_task(&["question_answering"])?;
        if let Some(text) = texts.iter().find(|text| text.pair.is_none()) {
            let message = format!("the question `{}` has no context", text.text);
            return Err(
                Error::new(ErrorKind::Input, message).help("give the context as the second text of a pair")
            );
        }
        let mut all = Vec::with_capacity(texts.len());
        self.each_batch(
            &self.encode(texts, None)?,
            &["start_logits", "end_logits"],
            |encodings, outputs| {
                let [starts, ends] = ["start_logits", "end_logits"].map(|name| {
                    outputs.iter().find(|o| o.name == name).map(|o| o.value.data()).unwrap_or_default()
                });
                let mut row = 0;
                for encoding in encodings {
                    let rows = row..row + encoding.ids.len();
                    row = rows.end;
                    let context = texts[all.len()].pair.unwrap_or_default();
                    let answers = spans(encoding, &starts[rows.clone()], &ends[rows], context, options);
                    all.push(Answers { answers, truncated: encoding.truncated });
                }
                Ok(())
            },
        )?;
        Ok(all)
    }
}

/// The best spans of tokens of the context. Probabilities are over the context alone.
fn spans(
    encoding: &Encoding,
    starts: &[f32],
    ends: &[f32],
    context: &str,
    options: AnswerOptions,
) -> Vec<Answer> {
    let tokens: Vec<usize> = (0..starts.len()).filter(|t| encoding.texts[*t] == Some(1)).collect();
    let probabilities = |logits: &[f32]| {
        let mut p: Vec<f32> = tokens.iter().map(|t| logits[*t]).collect();
        softmax(&mut p);
        p
    };
    let (starts, ends) = (probabilities(starts), probabilities(ends));
    let mut found = Vec::new();
    let keep_best = |found: &mut Vec<(f32, usize, usize)>| {
        found.sort_by(|a, b| b.0.total_cmp(&a.0)); // of equal ones the first stays first
        found.truncate(options.n);
    };
    for (first, start) in starts.iter().enumerate() {
        for (last, end) in ends.iter().enumerate().skip(first).take(options.max_tokens) {
            found.push((start * end, first, last));
        }
        // There may be as many as the square of the tokens.
        if found.len() / 2 > options.n.max(1024) {
            keep_best(&mut found);
        }
    }
    keep_best(&mut found);
    let answer = |(score, first, last): (f32, usize, usize)| {
        let (start, end) = (encoding.offsets[tokens[first]].0, encoding.offsets[tokens[last]].1);
        Answer { text: context.get(start..end).unwrap_or_default().to_owned(), start, end, score }
    };
    found.into_iter().map(answer).collect()
}
