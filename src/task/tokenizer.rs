//! What a repository says of its tokenizer beside tokenizer.json.

use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};
use crate::plan::Config;
use crate::spec::{Scope, Template, Tree};
use crate::tokenizer::{Tokenizer, wrong_for_class, wrong_settings};
use crate::weights::Repository;

/// The classes that do more than tokenizer.json says.
const CLASSES: &str = include_str!("tokenizers.yaml");

/// The tokenizer of a repository, if it has one, and whether the network sees which text of a pair a token is of.
///
/// # Errors
/// `Tokenizer` when a file is not understood, or is not what its class needs.
pub(super) fn open(repository: &Repository, config: &Config) -> Result<Option<(Tokenizer, bool)>> {
    let Some(text) = repository.text("tokenizer.json")? else { return Ok(None) };
    let settings = settings(repository)?;
    let label = repository.label("tokenizer.json");
    let mut tokenizer = Tokenizer::from_json(&text, &label, settings.as_deref())?;
    let class = class(tokenizer.setting("tokenizer_class").as_str(), config)?;
    let counts_as_it_is = |class: &Tree| {
        let part = class.get("unless").and_then(Tree::as_text);
        part.is_some_and(|part| text.contains(&format!("\"{part}\"")))
    };
    if let Some(class) = class.as_ref().filter(|class| !counts_as_it_is(class)) {
        remake(&mut tokenizer, class, &text, &label)?;
    }
    let type_ids = match tokenizer.setting("model_input_names").as_array() {
        Some(names) => names.iter().any(|name| name == "token_type_ids"),
        None => class.as_ref().and_then(|class| class.get("type_ids")) == Some(&Tree::Bool(true)),
    };
    Ok(Some((tokenizer, type_ids)))
}

/// The text of `tokenizer_config.json`. Where it does not list the added tokens, `special_tokens_map.json` names the special ones.
fn settings(repository: &Repository) -> Result<Option<String>> {
    const NAMES: &str = "special_tokens_map.json";
    let text = repository.text("tokenizer_config.json")?;
    let mut settings = match text.as_deref().map(serde_json::from_str) {
        None => Map::new(),
        Some(Ok(Value::Object(settings))) if !settings.contains_key("added_tokens_decoder") => settings,
        Some(_) => return Ok(text),
    };
    let Some(names) = repository.text(NAMES)? else { return Ok(text) };
    let names: Map<String, Value> = serde_json::from_str(&names).map_err(|e| {
        let message = format!("invalid special tokens `{}`: {e}", repository.label(NAMES));
        Error::new(ErrorKind::Tokenizer, message)
    })?;
    settings.extend(names);
    Ok(Some(Value::from(settings).to_string()))
}

/// Does to a tokenizer what its class does.
fn remake(tokenizer: &mut Tokenizer, class: &Tree, text: &str, label: &str) -> Result<()> {
    let entries = |key: &str| class.get(key).map(Tree::entries).unwrap_or_default();
    let mut scope = Scope::default();
    for (name, default) in entries("settings") {
        let value = match tokenizer.setting(name) {
            Value::Null => default.clone(),
            Value::Bool(value) => Tree::Bool(*value),
            other => {
                return Err(wrong_settings(
                    label,
                    &format!("`{name}`: expected true or false, found `{other}`"),
                ));
            }
        };
        scope.insert(name.clone(), value);
    }
    let none = Scope::default();
    let tokens: Map<String, Value> = entries("tokens")
        .iter()
        .map(|(name, text)| Ok((name.clone(), made(text, &none)?.unwrap_or_default())))
        .collect::<Result<_>>()?;
    for name in tokens.keys() {
        let text = tokenizer.named_text(name, &tokens);
        scope.insert(name.clone(), text.map_or(Tree::Null, Tree::Text));
    }
    scope.insert("table".into(), Tree::Bool(tokenizer.has_table()));
    let mut parts = Map::new();
    for part in ["model", "normalizer", "pre_tokenizer", "decoder", "post_processor"] {
        if let Some(tree) = class.get(part) {
            parts.insert(part.into(), made(tree, &scope)?.unwrap_or_default());
        }
    }
    tokenizer.remake(&parts, &tokens)?;
    let Some(expected) = parts.get("model").and_then(|model| model["unk_id"].as_u64()) else { return Ok(()) };
    match unknown(text) {
        Some(found) if found == expected => Ok(()),
        found => {
            let found = found.map_or("none".into(), |found| found.to_string());
            let what = format!("expected the unknown token of its class, {expected}, found {found}");
            Err(wrong_for_class(label, &what))
        }
    }
}

/// `unk_id` of a tokenizer.json.
fn unknown(text: &str) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct File {
        model: Model,
    }
    #[derive(serde::Deserialize)]
    struct Model {
        unk_id: Option<u64>,
    }
    serde_json::from_str::<File>(text).ok()?.model.unk_id
}

/// A part of a class with its settings put in; none where its `when` says so.
fn made(tree: &Tree, scope: &Scope) -> Result<Option<Value>> {
    let value = |text: &str| {
        Template::parse(text)
            .and_then(|template| template.value(scope))
            .map_err(|e| Error::new(ErrorKind::Tokenizer, format!("`tokenizers.yaml`: {e}")))
    };
    Ok(Some(match tree {
        Tree::Text(text) if text.contains('$') => match value(text)? {
            Tree::Text(text) => text.into(),
            Tree::Bool(flag) => flag.into(),
            _ => Value::Null,
        },
        Tree::Text(text) => text.as_str().into(),
        Tree::Bool(flag) => (*flag).into(),
        Tree::Int(number) => (*number).into(),
        Tree::List(items) => {
            let items: Vec<Option<Value>> =
                items.iter().map(|item| made(item, scope)).collect::<Result<_>>()?;
            items.into_iter().flatten().collect()
        }
        Tree::Map(fields) => {
            let mut map = Map::new();
            for (key, field) in fields {
                match (key.as_str(), made(field, scope)?) {
                    ("when", Some(Value::Bool(true))) => {}
                    ("when", _) => return Ok(None),
                    (key, field) => drop(map.insert(key.to_owned(), field.unwrap_or_default())),
                }
            }
            map.into()
        }
        _ => Value::Null,
    }))
}

/// The entry of the class that transformers takes, if there is one.
fn class(named: Option<&str>, config: &Config) -> Result<Option<Tree>> {
    let tree = Tree::from_yaml(CLASSES)
        .map_err(|e| Error::new(ErrorKind::Tokenizer, format!("`tokenizers.yaml`: {e}")))?;
    let lists = |tree: Option<&Tree>, name: &str| match tree {
        Some(Tree::List(names)) => names.iter().any(|item| item.as_text() == Some(name)),
        _ => false,
    };
    let model_type = config.text("model_type").unwrap_or_default();
    let named = named.or(config.text("tokenizer_class")).filter(|name| !name.is_empty());
    let Some(Tree::List(entries)) = tree.get("classes") else { return Ok(None) };
    if let Some(entry) = entries.iter().find(|entry| lists(entry.get("always"), model_type)) {
        return Ok(Some(entry.clone()));
    }
    let is_it = |entry: &&Tree| match named {
        Some(_) if lists(tree.get("plain"), model_type) => false,
        Some(name) => lists(entry.get("classes"), name.strip_suffix("Fast").unwrap_or(name)),
        None => lists(entry.get("models"), model_type),
    };
    Ok(entries.iter().find(is_it).cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_found_as_transformers_finds_them() {
        let type_ids = |named: Option<&str>, config: &str| {
            let config = Config::parse("config.json", config).unwrap();
            class(named, &config).unwrap().map(|class| class.get("type_ids") == Some(&Tree::Bool(true)))
        };
        let tree = Tree::from_yaml(CLASSES).unwrap();
        let Some(Tree::List(entries)) = tree.get("classes") else { panic!() };
        for entry in entries {
            let keys: Vec<&str> = entry.entries().iter().map(|(key, _)| key.as_str()).collect();
            let known = [
                "classes",
                "models",
                "always",
                "unless",
                "type_ids",
                "settings",
                "tokens",
                "model",
                "normalizer",
                "pre_tokenizer",
                "decoder",
                "post_processor",
            ];
            assert!(keys.iter().all(|key| known.contains(key)), "{keys:?}");
            let Some(Tree::List(models)) = entry.get("models") else { continue };
            if entry.get("always").is_some() {
                continue;
            }
            let of = |model: &Tree| format!("{{\"model_type\": \"{model}\"}}");
            let expected = Some(entry.get("type_ids") == Some(&Tree::Bool(true)));
            for model in models {
                assert_eq!(type_ids(None, &of(model)), expected, "{model}");
                assert_eq!(type_ids(Some("PreTrainedTokenizerFast"), &of(model)), None, "{model}");
                assert_eq!(type_ids(Some("BertTokenizerFast"), &of(model)), Some(true), "{model}");
            }
        }
        let Some(Tree::List(plain)) = tree.get("plain") else { panic!() };
        let config = format!("{{\"model_type\": \"{}\"}}", plain[0]);
        assert_eq!(type_ids(Some("BertTokenizer"), &config), None);
        assert_eq!(type_ids(Some("DistilBertTokenizer"), "{}"), Some(false));
        assert_eq!(type_ids(None, "{\"tokenizer_class\": \"BertTokenizer\"}"), Some(true));
        assert_eq!(type_ids(None, "{}"), None);
    }
}
