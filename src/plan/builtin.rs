//! The descriptions in `architectures/`, compiled in.

use super::config::{Config, accepts};
use crate::error::{Error, ErrorKind, Result};
use crate::spec::{Problems, Source, Spec, listed};

include!(concat!(env!("OUT_DIR"), "/architectures.rs"));

/// The names of all built-in descriptions, sorted.
pub fn names() -> Vec<&'static str> {
    ARCHITECTURES.iter().map(|(name, _)| *name).collect()
}

/// The text of a built-in description, with or without `.yaml` behind its name.
pub fn text(name: &str) -> Option<&'static str> {
    let name = name.strip_suffix(".yaml").unwrap_or(name);
    ARCHITECTURES.iter().find(|(n, _)| *n == name).map(|(_, text)| *text)
}

/// The built-in description that matches a config.
///
/// # Errors
/// `Unsupported` when none does; `Config` when `architectures` is no list of strings.
pub fn find(config: &Config) -> Result<Source> {
    let classes = config.texts("architectures")?;
    let mut by_class = None;
    for (name, text) in ARCHITECTURES {
        let source = Source::yaml(format!("{name}.yaml"), *text)?;
        let spec = Spec::parse(source, &mut Problems::unseen());
        let found: Vec<_> =
            spec.matches.iter().map(|test| config.find(&test.key).map(|(x, _)| accepts(test, x))).collect();
        if found.iter().all(|f| *f == Some(true)) {
            return Ok(spec.source);
        }
        // The oldest configs do not say their type; then the class tells.
        let is_class =
            spec.heads.iter().any(|head| head.classes.iter().any(|c| classes.contains(&c.as_str())));
        if is_class && !found.contains(&Some(false)) {
            by_class.get_or_insert(spec.source);
        }
    }
    by_class.ok_or_else(|| {
        let message = match (config.text("model_type"), classes.first()) {
            (Some(model_type), _) => format!("no architecture for the model type `{model_type}`"),
            (None, Some(class)) => format!("no architecture for `{class}`, and no `model_type`"),
            (None, None) => format!("`{}` has neither `model_type` nor `architectures`", config.name()),
        };
        Error::new(ErrorKind::Unsupported, message)
            .help(format!("built in are {}", listed(&names())))
            .help("`smelt new` drafts a YAML file for another; docs/adding-an-architecture.md tells the rest")
    })
}
