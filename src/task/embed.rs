use super::model::{Model, Text};
use super::sentence::{Pipeline, Pooling};
use crate::error::{Error, ErrorKind, Result};
use crate::nn::{Rows, Stream};
use crate::spec::Tree;
use crate::tokenizer::Encoding;

/// A text as a vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// The vector: as many numbers as a token vector has, or as the last Dense module of the pipeline gives.
    pub vector: Vec<f32>,
    /// Tokens that were cut off the text.
    pub truncated: usize,
}

impl Model {
    /// Vectors of texts.
    ///
    /// A model of the task `text_embedding` or `similarity` has them by itself: `text_embeds`. Others make them the way that the
    /// repository's own pipeline says, if it has one (`modules.json` with Pooling, Dense and Normalize modules); else, or if `pooling` is
    /// given, by pooling the token vectors, by default with their mean, and by nothing else: no prompt, no modules, no `truncate_dim`.
    /// That pipeline also cuts texts, where sentence-transformers 6.2 does: at `max_seq_length`, else at the smaller of `model_max_length`
    /// and `max_position_embeddings`.
    ///
    /// ```
    /// # fn main() -> smelt::Result<()> {
    /// use smelt::{Model, OpenOptions};
    /// let options = OpenOptions { task: Some("embed".into()), ..OpenOptions::default() };
    /// let model = Model::open_with("examples/models/language-id", &options)?;
    /// let embeddings = model.embed(&["one text".into(), "another".into()], None)?;
    /// assert_eq!(embeddings.len(), 2);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `Unsupported` when the pipeline has a module that is not known; `Config` when its files are not understood or do not fit the
    /// model; `Input` when the model has no token vectors or a text is too long.
    pub fn embed(&self, texts: &[Text<'_>], pooling: Option<Pooling>) -> Result<Vec<Embedding>> {
        let plan = self.network.plan();
        if pooling.is_none() && plan.output("text_embeds").is_some() {
            return self.text_embeds(texts);
        }
        let states = ["last_hidden_state", "encoder_last_hidden_state"];
        let Some(name) = states.into_iter().find(|name| plan.output(name).is_some()) else {
            return Err(Error::new(ErrorKind::Input, "this model has no token vectors"));
        };
        if plan.has_decoder() {
            let message = "an encoder-decoder has no vectors of texts";
            return Err(Error::new(ErrorKind::Input, message).help("open it for the task `embed`"));
        }
        let own = if pooling.is_none() { self.pipeline()? } else { None };
        let cut_at = match own {
            Some(pipeline) => pipeline.max_tokens.or(self.max_length()?),
            None => None,
        };
        let plain = Pipeline::of(pooling.unwrap_or(Pooling::Mean));
        let pipeline = own.unwrap_or(&plain);
        let prompted: Vec<String> = texts.iter().map(|t| format!("{}{}", pipeline.prompt, t.text)).collect();
        let texts: Vec<Text<'_>> =
            texts.iter().zip(&prompted).map(|(t, text)| Text { text, pair: t.pair }).collect();
        let skip = if pipeline.without_prompt { self.prompt_tokens(&pipeline.prompt, cut_at)? } else { 0 };
        let encodings = self.encode(&texts, cut_at)?;
        if let Some((_, text)) = encodings.iter().zip(&texts).find(|(encoding, _)| encoding.ids.len() <= skip)
        {
            let message = format!("the text `{}` has no tokens beside the prompt", text.text);
            return Err(Error::new(ErrorKind::Input, message));
        }
        let mut all = Vec::with_capacity(texts.len());
        self.each_batch(&encodings, &[name], |encodings, outputs| {
            let states = &outputs[0].value;
            if outputs[0].rows != Rows::Tokens(Stream::Input) {
                let message = format!("`{name}` has no row for each token");
                return Err(Error::new(ErrorKind::Input, message));
            }
            let mut rest = states.data();
            let mut texts = Vec::with_capacity(encodings.len());
            for encoding in encodings {
                let (tokens, behind) = rest.split_at(encoding.ids.len() * states.cols());
                texts.push(tokens);
                rest = behind;
            }
            let vectors = pipeline.apply(&texts, states.cols(), skip)?;
            if vectors.iter().flatten().any(|x| !x.is_finite()) {
                let message = "the vector of a text is not a finite number";
                return Err(Error::new(ErrorKind::Checkpoint, message));
            }
            let embedding = |(vector, encoding): (Vec<f32>, &Encoding)| Embedding {
                vector,
                truncated: encoding.truncated,
            };
            all.extend(vectors.into_iter().zip(encodings).map(embedding));
            Ok(())
        })?;
        Ok(all)
    }

    /// The vectors of texts that a model has an output of its own for.
    fn text_embeds(&self, texts: &[Text<'_>]) -> Result<Vec<Embedding>> {
        let mut all = Vec::with_capacity(texts.len());
        self.each_batch(&self.encode(texts, None)?, &["text_embeds"], |encodings, outputs| {
            let embedding = |(i, encoding): (usize, &Encoding)| Embedding {
                vector: outputs[0].value.row(i).to_vec(),
                truncated: encoding.truncated,
            };
            all.extend(encodings.iter().enumerate().map(embedding));
            Ok(())
        })?;
        Ok(all)
    }

    /// What the repository says of vectors of texts, read when it is asked for first.
    fn pipeline(&self) -> Result<Option<&Pipeline>> {
        if self.pipeline.get().is_none() {
            let pipeline = Pipeline::open(&self.repository, self.network.backend())?;
            // Another thread may have been quicker, and has read the same.
            let _ = self.pipeline.set(pipeline);
        }
        Ok(self.pipeline.get().and_then(Option::as_ref))
    }

    /// With how many tokens texts begin that a prompt is put before: its own, without the special token at the end.
    fn prompt_tokens(&self, prompt: &str, cut_at: Option<usize>) -> Result<usize> {
        if prompt.is_empty() {
            return Ok(0);
        }
        let tokens = self.encode(&[prompt.into()], cut_at)?.remove(0).texts;
        Ok(tokens.len() - usize::from(tokens.last() == Some(&None)))
    }

    /// The smaller of `model_max_length` and `max_position_embeddings`.
    fn max_length(&self) -> Result<Option<usize>> {
        let positions = match self.config.find("max_position_embeddings") {
            Some((Tree::Int(positions), _)) => usize::try_from(*positions).ok(), // -1 is any number
            _ => None,
        };
        Ok(self.tokenizer()?.max_length().into_iter().chain(positions).min())
    }
}
