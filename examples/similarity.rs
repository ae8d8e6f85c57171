//! Compares texts by the angle between their vectors: 1 for the same direction.
//!
//! ```sh
//! cargo run --release --example similarity
//! cargo run --release --example similarity -- path/to/sentence-model "a text" "another" "a third"
//! ```
//!
//! The model that is taken by default was trained to tell languages apart, so texts of one language come out close. One
//! that was trained for sentences makes texts close that mean the same.

use smelt::{Model, OpenOptions, Text};

fn main() -> smelt::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().unwrap_or_else(|| "examples/models/language-id".into());
    let mut texts: Vec<String> = arguments.collect();
    if texts.is_empty() {
        let some =
            ["Please enter your password.", "The file was not found.", "Die Datei wurde nicht gefunden."];
        texts = some.map(String::from).to_vec();
    }

    let options = OpenOptions { task: Some("embed".into()), ..OpenOptions::default() };
    let model = Model::open_with(dir, &options)?;
    let batch: Vec<Text<'_>> = texts.iter().map(|text| text.as_str().into()).collect();
    let embeddings = model.embed(&batch, None)?;
    for (i, a) in embeddings.iter().enumerate() {
        for (j, b) in embeddings.iter().enumerate().skip(i + 1) {
            println!("{:.4}  {} | {}", cosine(&a.vector, &b.vector), texts[i], texts[j]);
        }
    }
    Ok(())
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
