//! Images in, answers out.

use super::classify::{sigmoid, softmax};
use super::embed::Embedding;
use super::model::{Model, Text};
use super::sentence::{Pipeline, Pooling};
use super::{Classification, Label};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Batch, Output};
use crate::nn::Stream;
use crate::preprocess::{Image, ImageProcessor};

/// Images that go through the network at once.
const BATCH_IMAGES: usize = 8;

impl Model {
    /// What images go through before the network sees them.
    ///
    /// # Errors
    /// As [`ImageProcessor::open`].
    pub fn image_processor(&self) -> Result<ImageProcessor> {
        ImageProcessor::open(&self.repository, &self.config)
    }

    /// Classifies images, with a model for image classification. Scores are as in [`classify`](Self::classify).
    ///
    /// ```
    /// use smelt::{Image, Model};
    /// # fn main() -> smelt::Result<()> {
    /// # let dirs = std::fs::read_dir("tests/golden").unwrap().map(|dir| dir.unwrap().path().join("image-classification"));
    /// # let dir = dirs.into_iter().find(|dir| dir.join("preprocessor_config.json").exists()).unwrap();
    /// let model = Model::open(dir)?;
    /// let grey = Image::from_rgb(40, 40, vec![128; 40 * 40 * 3])?; // or Image::open("photo.jpg")?
    /// let best = &model.classify_images(&[grey])?[0].labels[0];
    /// println!("{:.4} {}", best.score, best.label);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `Input` when the model is for another task; whatever [`image_processor`](Self::image_processor) and its
    /// [`pixel_values`](ImageProcessor::pixel_values) give.
    pub fn classify_images(&self, images: &[Image]) -> Result<Vec<Classification>> {
        self.expect_task(&["image_classification"])?;
        let mut all = Vec::with_capacity(images.len());
        self.each_image_batch(images, "logits", |count, logits| {
            rows_per_image(logits, count, Some(1))?;
            for i in 0..count {
                all.push(Classification { labels: self.labels(logits.value.row(i).to_vec()), truncated: 0 });
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// Vectors of images: the output `image_embeds` if the model has it, else `pooler_output`; with `pooling` the rows of
    /// `last_hidden_state` pooled, which are those of its parts and any learned ones before them. A model for similarity has vectors of
    /// texts as well, by [`embed`](Self::embed), to compare them with.
    ///
    /// # Errors
    /// `Input` when the model takes no images, or has no vector of a whole image and no `pooling` is given; whatever
    /// [`image_processor`](Self::image_processor) and its [`pixel_values`](ImageProcessor::pixel_values) give.
    pub fn embed_images(&self, images: &[Image], pooling: Option<Pooling>) -> Result<Vec<Embedding>> {
        let plan = self.network.plan();
        if !self.takes(Stream::Images) {
            let message = "expected a model that takes images";
            return Err(Error::new(ErrorKind::Input, message));
        }
        let names: &[&str] =
            if pooling.is_some() { &["last_hidden_state"] } else { &["image_embeds", "pooler_output"] };
        let is_of_images = |name: &&&str| plan.output(name).is_some_and(|id| plan.is_of(id, Stream::Images));
        let Some(name) = names.iter().find(is_of_images) else {
            let message = "this model has no vector of a whole image";
            return Err(Error::new(ErrorKind::Input, message)
                .help("say how to pool those of its parts (`--pooling`)"));
        };
        let mut all = Vec::with_capacity(images.len());
        self.each_image_batch(images, name, |count, output| {
            rows_per_image(output, count, pooling.is_none().then_some(1))?;
            let data = output.value.data();
            let images: Vec<&[f32]> = data.chunks_exact(data.len() / count).collect();
            let vectors = match pooling {
                Some(pooling) => Pipeline::of(pooling).apply(&images, output.value.cols(), 0)?,
                None => images.into_iter().map(<[f32]>::to_vec).collect(),
            };
            all.extend(vectors.into_iter().map(|vector| Embedding { vector, truncated: 0 }));
            Ok(())
        })?;
        Ok(all)
    }

    /// How well texts describe images, with a model for similarity: for each image the texts as labels, the best first. Scores
    /// are probabilities over the texts; of each text by itself where the model's similarity has a bias.
    ///
    /// # Errors
    /// `Input` when the model is for another task, there are no texts, or one is too long; whatever
    /// [`image_processor`](Self::image_processor) and its [`pixel_values`](ImageProcessor::pixel_values) give.
    pub fn describe_images(&self, images: &[Image], texts: &[&str]) -> Result<Vec<Classification>> {
        self.expect_task(&["similarity"])?;
        if texts.is_empty() {
            let message = "expected texts to compare images with, found none";
            return Err(Error::new(ErrorKind::Input, message).help("give some (`--label`)"));
        }
        let plan = self.network.plan();
        // With a bias, each score is that of one text by itself (Zhai et al., arXiv:2303.15343, 2023).
        let has_bias = plan.declared.tensors.iter().any(|tensor| tensor.label == "`bias` of `similarity`");
        let processor = self.image_processor()?;
        let asked: Vec<Text<'_>> = texts.iter().map(|text| Text::from(*text)).collect();
        let encodings = self.encode(&asked, None)?;
        let truncated = encodings.iter().map(|encoding| encoding.truncated).sum();
        let mut batch = Batch::default();
        for encoding in &encodings {
            batch.input.push(&encoding.ids, 0);
        }
        // The texts are the same for all images.
        let known = match plan.output("text_embeds").filter(|id| plan.is_of(*id, Stream::Input)) {
            Some(id) => vec![(id, self.network.forward(&batch, &["text_embeds"], false)?.remove(0).value)],
            None => Vec::new(),
        };
        let mut all = Vec::with_capacity(images.len());
        for some in images.chunks(BATCH_IMAGES) {
            batch.images = Some(processor.pixel_values(some)?);
            let outputs = self.network.forward_from(&batch, &["logits_per_image"], &known)?;
            rows_per_image(&outputs[0], some.len(), Some(1))?;
            for i in 0..some.len() {
                let mut scores = outputs[0].value.row(i).to_vec();
                if has_bias {
                    sigmoid(&mut scores)
                } else {
                    softmax(&mut scores)
                }
                let label = |(text, score): (&&str, f32)| Label { label: (*text).to_owned(), score };
                let mut labels: Vec<Label> = texts.iter().zip(scores).map(label).collect();
                labels.sort_by(|a, b| b.score.total_cmp(&a.score));
                all.push(Classification { labels, truncated });
            }
        }
        Ok(all)
    }

    /// Runs images through the network, some at a time, and hands the output `name` of each batch to `take` with their number.
    fn each_image_batch(
        &self,
        images: &[Image],
        name: &str,
        mut take: impl FnMut(usize, &Output) -> Result<()>,
    ) -> Result<()> {
        let processor = self.image_processor()?;
        for some in images.chunks(BATCH_IMAGES) {
            let batch = Batch { images: Some(processor.pixel_values(some)?), ..Batch::default() };
            take(some.len(), &self.network.forward(&batch, &[name], false)?[0])?;
        }
        Ok(())
    }
}

/// Checks that an output has as many rows for each image as expected, one or more without a number: a description may say
/// otherwise.
fn rows_per_image(output: &Output, images: usize, expected: Option<usize>) -> Result<()> {
    let (rows, cols) = (output.value.rows(), output.value.cols());
    let each = rows.checked_div(images).filter(|each| each * images == rows && each * cols > 0);
    if each.is_none() || expected.is_some() && each != expected {
        let message = format!(
            "expected `{}` with a row for each of {images} images, found {rows} of {cols}",
            output.name
        );
        return Err(Error::new(ErrorKind::Input, message));
    }
    Ok(())
}
