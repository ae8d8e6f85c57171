//! Continues a text and prints each piece as soon as it is certain.
//!
//! ```sh
//! cargo run --release --example generate
//! cargo run --release --example generate -- path/to/model "Once upon a time"
//! ```

use std::io::Write;

use smelt::{GenerateOptions, Model, SamplingOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().unwrap_or_else(|| "examples/models/prose".into());
    let prompt = arguments.next().unwrap_or_else(|| "The template engine".into());

    let model = Model::open(dir)?;
    let options = GenerateOptions {
        max_tokens: 60,
        // Without `sampling` the likeliest token is taken each time. The same seed gives the same text.
        sampling: SamplingOptions {
            temperature: 0.8,
            top_p: Some(0.95),
            seed: 1,
            ..SamplingOptions::default()
        },
        ..GenerateOptions::default()
    };
    let mut out = std::io::stdout().lock();
    write!(out, "{prompt}")?;
    for piece in model.stream(prompt.as_str().into(), &options)? {
        write!(out, "{}", piece?)?;
        out.flush()?;
    }
    writeln!(out)?;
    Ok(())
}
