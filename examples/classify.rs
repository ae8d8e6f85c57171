//! Classifies texts: `cargo run --example classify [DIR]`.

use smelt::{Model, Text};

fn main() -> smelt::Result<()> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| "examples/models/language-id".into());
    let model = Model::open(dir)?;
    let texts = [
        "Where is the nearest station?",
        "Die Bücher stehen im Regal neben dem Fenster.",
        "La bibliothèque est fermée le dimanche.",
    ];
    let answers = model.classify(&texts.map(Text::from))?;
    for (text, answer) in texts.iter().zip(answers) {
        let best = &answer.labels[0];
        println!("{:.3} {}  {text}", best.score, best.label);
    }
    Ok(())
}
