//! Documentation that is made from the definitions of the blocks.

use crate::nn::{BLOCKS, FieldDef, maps};

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
