//! Compares texts by their vectors: `cargo run --example similarity [DIR]`. The default model tells languages apart, so texts
//! of one language are close to each other; a sentence-transformers directory compares what they mean.

use smelt::{Model, OpenOptions, Text};

fn main() -> smelt::Result<()> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| "examples/models/language-id".into());
    let model = Model::open_with(dir, &OpenOptions { task: Some("embed".into()), ..OpenOptions::default() })?;
    let texts = ["The weather is nice today.", "It is raining in the city.", "Heute scheint die Sonne."];
    let vectors = model.embed(&texts.map(Text::from), None)?;
    for (i, a) in vectors.iter().enumerate() {
        for (j, b) in vectors.iter().enumerate().skip(i + 1) {
            println!("{:.3}  {} / {}", cosine(&a.vector, &b.vector), texts[i], texts[j]);
        }
    }
    Ok(())
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
