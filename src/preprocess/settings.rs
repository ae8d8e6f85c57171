use std::cell::RefCell;
use std::collections::BTreeSet;

use crate::error::{Error, ErrorKind, Result};
use crate::plan::Config;
use crate::spec::{Tree, listed};
use crate::weights::Repository;

/// The processors that are known, with what they do where a file does not say.
const PROCESSORS: &str = include_str!("processors.yaml");

/// What a processor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Images,
    Sounds,
}

/// The settings of a processor: what its file says, else what its class does by default.
#[derive(Debug)]
pub(super) struct Settings {
    label: String,
    file: Tree,
    class: String,
    defaults: Tree,
    ignored: Vec<String>,
    read: RefCell<BTreeSet<String>>,
}

impl Settings {
    /// Reads the settings of a model directory: of `processor_config.json` if they are part of it, else of
    /// `preprocessor_config.json`.
    pub(super) fn open(repository: &Repository, config: &Config, kind: Kind) -> Result<Settings> {
        let part = if kind == Kind::Images { "image_processor" } else { "feature_extractor" };
        let (own, joint) = ("preprocessor_config.json", "processor_config.json");
        let within = read(repository, joint)?.and_then(|tree| tree.get(part).cloned());
        let (name, file) = match within {
            Some(tree) => (joint, tree),
            None => match read(repository, own)? {
                Some(tree) => (own, tree),
                None => {
                    let message = format!("no `{}`", repository.label(own));
                    return Err(Error::new(ErrorKind::Config, message)
                        .help("take it from the model's repository, or give tensors (`--inputs`)"));
                }
            },
        };
        let label = repository.label(name);
        if !matches!(file, Tree::Map(_)) {
            return Err(wrong(&label, &format!("expected a map of settings, found {}", file.kind())));
        }
        let mut seen = BTreeSet::new();
        if let Some((key, _)) = file.entries().iter().find(|(key, _)| !seen.insert(key)) {
            return Err(wrong(&label, &format!("repeated key `{key}`")));
        }
        let known = known(kind)?;
        // The older name of the key, and of the class.
        let named = ["image_processor_type", "feature_extractor_type"].map(|key| file.get(key));
        let class = named.into_iter().flatten().find_map(Tree::as_text).unwrap_or_default();
        let model_type = config.text("model_type").unwrap_or_default();
        let is_it = |entry: &&Tree| {
            let has = |key: &str, name: &str| texts(entry.get(key)).any(|text| text == name);
            let bare = class.strip_suffix("Fast").or(class.strip_suffix("Pil")).unwrap_or(class);
            if class.is_empty() { has("models", model_type) } else { has("classes", bare) }
        };
        let Some(entry) = known.iter().find(is_it) else {
            let classes: Vec<&str> =
                known.iter().flat_map(|entry| texts(entry.get("classes")).take(1)).collect();
            let what =
                if class.is_empty() { "it names no processor".into() } else { format!("found `{class}`") };
            let message = format!("`{label}`: expected the processor {}, {what}", listed(&classes));
            return Err(Error::new(ErrorKind::Unsupported, message).help("give tensors (`--inputs`)"));
        };
        Ok(Settings {
            label,
            class: texts(entry.get("classes")).next().unwrap_or_default().to_owned(),
            defaults: entry.get("defaults").cloned().unwrap_or(Tree::Null),
            ignored: texts(entry.get("ignored")).map(str::to_owned).collect(),
            read: RefCell::default(),
            file,
        })
    }

    /// The value of a key, else what the class does by default. As in transformers, a null of the file is no value, and not the
    /// default.
    pub(super) fn get(&self, key: &str) -> Option<&Tree> {
        self.read.borrow_mut().insert(key.to_owned());
        self.file.get(key).or_else(|| self.defaults.get(key)).filter(|value| **value != Tree::Null)
    }

    /// Whether something is done; not where neither the file nor the class says so.
    pub(super) fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None => Ok(false),
            Some(Tree::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.unexpected(key, "true or false")),
        }
    }

    /// A finite number.
    pub(super) fn number(&self, key: &str) -> Result<f64> {
        match self.get(key) {
            Some(Tree::Int(x)) => Ok(*x as f64),
            Some(Tree::Float(x)) if x.is_finite() => Ok(*x),
            _ => Err(self.unexpected(key, "a number")),
        }
    }

    /// A whole number of `1..=most`.
    pub(super) fn count(&self, key: &str, most: usize) -> Result<usize> {
        match self.get(key) {
            Some(Tree::Int(n)) if usize::try_from(*n).is_ok_and(|n| (1..=most).contains(&n)) => {
                Ok(*n as usize)
            }
            _ => Err(self.unexpected(key, &format!("a whole number of 1 to {most}"))),
        }
    }

    /// Refuses all values but these, and none, unless the class has one by default.
    pub(super) fn only(&self, key: &str, accepted: &[Tree]) -> Result<()> {
        let needed = self.defaults.get(key).map(|_| &Tree::Null);
        match self.get(key).or(needed) {
            Some(found) if !accepted.contains(found) => {
                let accepted: Vec<String> = accepted.iter().map(Tree::to_string).collect();
                let accepted: Vec<&str> = accepted.iter().map(String::as_str).collect();
                let message = format!(
                    "`{}`: unsupported `{key}`: expected {}, found `{found}`",
                    self.label,
                    listed(&accepted)
                );
                Err(Error::new(ErrorKind::Unsupported, message).help("give tensors (`--inputs`)"))
            }
            _ => Ok(()),
        }
    }

    /// The error for a value that is not as it should be.
    pub(super) fn unexpected(&self, key: &str, expected: &str) -> Error {
        let null = self.file.get(key).map(|_| &Tree::Null);
        let found = self.get(key).or(null).map_or("nothing".to_owned(), Tree::quoted);
        wrong(&self.label, &format!("`{key}`: expected {expected}, found {found}"))
    }

    /// Refuses keys that nothing has read.
    pub(super) fn finish(&self) -> Result<()> {
        let read = self.read.borrow();
        let unread = |(key, value): &&(String, Tree)| {
            *value != Tree::Null && !read.contains(key) && !self.ignored.contains(key)
        };
        let Some((key, value)) = self.file.entries().iter().find(unread) else { return Ok(()) };
        let message = format!("`{}`: unsupported `{key}` ({value}) of {}", self.label, self.class);
        let known = self.read.borrow();
        let near = crate::error::closest(key, known.iter().map(String::as_str));
        let error = Error::new(ErrorKind::Unsupported, message);
        Err(match near {
            Some(near) => error.help(format!("did you mean `{near}`?")),
            None => error.help("give tensors (`--inputs`)"),
        })
    }
}

/// The processors of a kind.
fn known(kind: Kind) -> Result<Vec<Tree>> {
    let tree = Tree::from_yaml(PROCESSORS).map_err(|e| wrong("processors.yaml", &e.to_string()))?;
    match tree.get(if kind == Kind::Images { "images" } else { "sounds" }) {
        Some(Tree::List(entries)) => Ok(entries.clone()),
        _ => Err(wrong("processors.yaml", "expected `images` and `sounds`")),
    }
}

fn texts(tree: Option<&Tree>) -> impl Iterator<Item = &str> {
    let items = if let Some(Tree::List(items)) = tree { &items[..] } else { &[] };
    items.iter().filter_map(Tree::as_text)
}

fn read(repository: &Repository, file: &str) -> Result<Option<Tree>> {
    let Some(text) = repository.text(file)? else { return Ok(None) };
    Tree::from_json(&text).map(Some).map_err(|e| wrong(&repository.label(file), &e.to_string()))
}

fn wrong(label: &str, what: &str) -> Error {
    Error::new(ErrorKind::Config, format!("`{label}`: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocess::{ImageProcessor, SoundProcessor};

    #[test]
    fn each_known_processor_has_a_class_and_defaults() {
        for kind in [Kind::Images, Kind::Sounds] {
            let known = known(kind).unwrap();
            assert!(!known.is_empty());
            for entry in known {
                // Each of its names is enough.
                for class in texts(entry.get("classes")) {
                    let folder = tempfile::tempdir().unwrap();
                    let text = format!("{{\"feature_extractor_type\": \"{class}Fast\"}}");
                    std::fs::write(folder.path().join("preprocessor_config.json"), text).unwrap();
                    let repository = Repository::open(folder.path()).unwrap();
                    let config = Config::parse("config.json", "{}").unwrap();
                    match kind {
                        Kind::Images => drop(ImageProcessor::open(&repository, &config).unwrap()),
                        Kind::Sounds => drop(SoundProcessor::open(&repository, &config).unwrap()),
                    }
                }
                let keys: Vec<&str> = entry.entries().iter().map(|(key, _)| key.as_str()).collect();
                assert_eq!(keys, ["classes", "models", "defaults", "ignored"]);
                assert!(
                    texts(entry.get("classes")).count() > 0
                        && !entry.get("defaults").unwrap().entries().is_empty()
                );
            }
        }
    }
}
