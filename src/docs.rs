//! Documentation that is made from the definitions of the blocks, and what the programs tell of `docs/language.md`.

use crate::nn::{BLOCKS, COMBINATORS, FieldDef, maps};

/// The reference of all blocks as Markdown, as it stands in `docs/language.md`.
pub fn block_reference() -> String {
    let mut text = String::new();
    for block in &BLOCKS {
        section(&mut text, block.name, block.doc, (block.fields)());
    }
    for (name, doc, fields) in maps() {
        section(&mut text, name, doc, fields());
    }
    text
}

/// What `docs/language.md` says of a combinator, as Markdown.
pub fn combinator(name: &str) -> Option<&'static str> {
    let name = COMBINATORS.into_iter().find(|combinator| *combinator == name)?;
    let (_, rest) = include_str!("../docs/language.md").split_once(&format!("\n### `{name}`\n\n"))?;
    rest.split_once("\n##").map(|(text, _)| text.trim_end())
}

fn section(text: &mut String, name: &str, doc: &[&str], fields: &[FieldDef]) {
    *text += &format!("### `{name}`\n\n");
    for line in doc {
        *text += line.trim();
        text.push('\n');
    }
    *text += "\n| field | value | default | |\n|---|---|---|---|\n";
    for field in fields {
        let default = match (field.default, field.required) {
            (Some(default), _) => format!("`{default}`"),
            (None, true) => "required".into(),
            (None, false) => String::new(),
        };
        let doc: Vec<&str> = field.doc.iter().map(|line| line.trim()).collect();
        *text += &format!("| `{}` | {} | {default} | {} |\n", field.name, (field.kind)(), doc.join(" "));
    }
    text.push('\n');
}
