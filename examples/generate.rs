//! Continues a text, as it comes: `cargo run --example generate [DIR]`.

use std::io::Write;

use smelt::{GenerateOptions, Model, SamplingOptions};

fn main() -> smelt::Result<()> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| "examples/models/prose".into());
    let model = Model::open(dir)?;
    let prompt = "The template engine";
    let options = GenerateOptions {
        max_tokens: 60,
        sampling: SamplingOptions {
            temperature: 0.8,
            top_k: Some(20),
            seed: 1,
            ..SamplingOptions::default()
        },
        ..GenerateOptions::default()
    };
    print!("{prompt}");
    for piece in model.stream(prompt.into(), &options)? {
        print!("{}", piece?);
        // A failing terminal is no reason to stop generating.
        let _ = std::io::stdout().flush();
    }
    println!();
    Ok(())
}
