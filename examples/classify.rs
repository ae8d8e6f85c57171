//! Classifies texts.
//!
//! ```sh
//! cargo run --release --example classify
//! cargo run --release --example classify -- path/to/model "one text" "another"
//! ```

use smelt::{Model, Text};

fn main() -> smelt::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().unwrap_or_else(|| "examples/models/language-id".into());
    let mut texts: Vec<String> = arguments.collect();
    if texts.is_empty() {
        texts = vec!["Where is the nearest station?".into(), "Wo ist der nächste Bahnhof?".into()];
    }

    let model = Model::open(dir)?;
    let batch: Vec<Text<'_>> = texts.iter().map(|text| text.as_str().into()).collect();
    for (text, answer) in texts.iter().zip(model.classify(&batch)?) {
        println!("{text}");
        for label in answer.labels.iter().take(3) {
            println!("  {:.4} {}", label.score, label.label);
        }
    }
    Ok(())
}
