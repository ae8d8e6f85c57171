//! What a repository says of its tokenizer beside tokenizer.json.

use crate::error::{Error, ErrorKind, Result};
use crate::plan::Config;
use crate::spec::Tree;
use crate::tokenizer::Tokenizer;
use crate::weights::Repository;

/// The classes that do more than tokenizer.json says.
const CLASSES: &str = include_str!("tokenizers.yaml");

/// The tokenizer of a repository, if it has one, and whether the network sees which text of a pair a token is of.
///
/// # Errors
/// `Tokenizer` when a file is not understood, or its class would use another normalizer than tokenizer.json has.
pub(super) fn open(repository: &Repository, config: &Config) -> Result<Option<(Tokenizer, bool)>> {
    let Some(text) = repository.text("tokenizer.json")? else { return Ok(None) };
    let settings = repository.text("tokenizer_config.json")?;
    let tokenizer = Tokenizer::from_json(&text, &repository.label("tokenizer.json"), settings.as_deref())?;
    let class = class(tokenizer.setting("tokenizer_class").as_str(), config)?;
    let does = |what: &str| class.as_ref().and_then(|class| class.get(what)) == Some(&Tree::Bool(true));
    if does("normalizer") {
        tokenizer.check_normalizer()?;
    }
    let type_ids = match tokenizer.setting("model_input_names").as_array() {
        Some(names) => names.iter().any(|name| name == "token_type_ids"),
        None => does("type_ids"),
    };
    Ok(Some((tokenizer, type_ids)))
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
    let is_it = |entry: &&Tree| match named {
        Some(_) if lists(tree.get("plain"), model_type) => false,
        Some(name) => lists(entry.get("classes"), name.strip_suffix("Fast").unwrap_or(name)),
        None => lists(entry.get("models"), model_type),
    };
    let Some(Tree::List(entries)) = tree.get("classes") else { return Ok(None) };
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
            assert_eq!(keys, ["classes", "models", "type_ids", "normalizer"]);
            let Some(Tree::List(models)) = entry.get("models") else { panic!() };
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
