//! What a sentence-transformers repository does with token vectors: its modules, in order.

use crate::backend::{Activation, Backend, Epilogue, Layout, Linear, LinearPart, WeightType};
use crate::error::{Error, ErrorKind, Result};
use crate::spec::{Tree, listed};
use crate::tensor::Tensor;
use crate::weights::{Checkpoint, Index, Repository};

/// How token vectors become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first token's.
    Cls,
    /// The mean of all.
    Mean,
    /// The largest value of each element.
    Max,
    /// The sum divided by the square root of their number.
    MeanSqrtLen,
    /// The mean, the i-th weighted by i.
    WeightedMean,
    /// The last token's.
    LastToken,
}

/// The names of the ways to pool: newest spelling, and the key of older files.
const POOLINGS: [(&str, &str, Pooling); 6] = [
    ("cls", "pooling_mode_cls_token", Pooling::Cls),
    ("max", "pooling_mode_max_tokens", Pooling::Max),
    ("mean", "pooling_mode_mean_tokens", Pooling::Mean),
    ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens", Pooling::MeanSqrtLen),
    ("weightedmean", "pooling_mode_weightedmean_tokens", Pooling::WeightedMean),
    ("lasttoken", "pooling_mode_lasttoken", Pooling::LastToken),
];

impl Pooling {
    /// The way of that name.
    pub fn from_name(name: &str) -> Option<Pooling> {
        POOLINGS.iter().find(|(n, ..)| *n == name).map(|(.., pooling)| *pooling)
    }

    /// The names.
    pub fn names() -> [&'static str; 6] {
        POOLINGS.map(|(name, ..)| name)
    }

    /// Pools rows of `width` columns but the first `skip`. Weights of positions count those too.
    fn apply(self, tokens: &[f32], width: usize, skip: usize) -> Vec<f32> {
        let tokens = &tokens[skip * width..];
        let n = tokens.len() / width;
        let sum = |weight: &dyn Fn(usize) -> f64, total: f64| -> Vec<f32> {
            let mut sums = vec![0f64; width];
            for (i, row) in tokens.chunks(width).enumerate() {
                sums.iter_mut().zip(row).for_each(|(s, x)| *s += weight(i) * f64::from(*x));
            }
            sums.into_iter().map(|s| (s / total) as f32).collect()
        };
        match self {
            Pooling::Cls => tokens[..width].to_vec(),
            Pooling::LastToken => tokens[(n - 1) * width..].to_vec(),
            Pooling::Mean => sum(&|_| 1.0, n as f64),
            Pooling::MeanSqrtLen => sum(&|_| 1.0, (n as f64).sqrt()),
            Pooling::WeightedMean => sum(&|i| (skip + i + 1) as f64, (n * skip + n * (n + 1) / 2) as f64),
            Pooling::Max => {
                let mut largest = tokens[..width].to_vec();
                for row in tokens.chunks(width) {
                    largest.iter_mut().zip(row).for_each(|(m, x)| *m = m.max(*x));
                }
                largest
            }
        }
    }
}

/// The modules behind the transformer, and what is said of texts beside them.
#[derive(Debug, Default)]
pub struct Pipeline {
    pooling: Vec<Pooling>,
    modules: Vec<Module>,
    /// Elements of the vector that are kept; all by default.
    kept: Option<usize>,
    /// Longer texts are cut to this many tokens, where the repository says so beside its modules.
    pub max_tokens: Option<usize>,
    /// Put before each text.
    pub prompt: String,
    /// Whether its tokens are left out of the pooling.
    pub without_prompt: bool,
}

/// A module behind the pooling.
#[derive(Debug)]
enum Module {
    Dense { label: String, map: Box<dyn Linear>, bias: Option<Vec<f32>>, act: Option<Activation> },
    Normalize,
}

/// Where the settings of the transformer may be: the first that says something counts.
const TRANSFORMER_FILES: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

/// Most modules of a repository: each has memory of its own, even where a long list names the same files again and again.
const MAX_MODULES: usize = 64;

/// What modules may be named as the place of what they take and give.
const SENTENCE: [(&str, &str); 2] =
    [("module_input_name", "\"sentence_embedding\""), ("module_output_name", "\"sentence_embedding\"")];

impl Pipeline {
    /// Pooling alone.
    pub fn of(pooling: Pooling) -> Pipeline {
        Pipeline { pooling: vec![pooling], ..Pipeline::default() }
    }

    /// The pipeline of a repository that has a `modules.json`, as sentence-transformers 6.2 reads it.
    ///
    /// # Errors
    /// `Unsupported` for modules and settings that are not known; `Config` for files that are not understood.
    pub fn open(repository: &Repository, backend: &dyn Backend) -> Result<Option<Pipeline>> {
        let file = "modules.json";
        let Some(modules) = read(repository, file)? else { return Ok(None) };
        let Tree::List(modules) = modules else {
            return Err(wrong(repository, file, "expected a list of modules"));
        };
        if modules.len() > MAX_MODULES {
            let message = format!("expected at most {MAX_MODULES} modules, found {}", modules.len());
            return Err(wrong(repository, file, &message));
        }
        let mut pipeline = Pipeline::default();
        for (i, module) in modules.iter().enumerate() {
            let text = |key: &str| module.get(key).and_then(Tree::as_text).unwrap_or_default();
            let (kind, path) = (text("type"), text("path"));
            let own = kind.starts_with("sentence_transformers.");
            match (i, kind.rsplit('.').next().filter(|_| own).unwrap_or_default()) {
                (0, "Transformer") if path.is_empty() => {}
                (0, "Transformer") => {
                    let message =
                        format!("expected the Transformer in the directory itself, found it in `{path}`");
                    return Err(wrong(repository, file, &message));
                }
                (1, "Pooling") => pipeline.pool(&Settings::open(repository, path)?)?,
                (2.., "Dense") => pipeline.modules.push(dense(repository, path, backend)?),
                (2.., "Normalize") => {
                    if repository.has(&format!("{path}/config.json")) {
                        Settings::open(repository, path)?.check(&[], &SENTENCE)?;
                    }
                    pipeline.modules.push(Module::Normalize);
                }
                _ => {
                    let expected: &[&str] = match i {
                        0 => &["Transformer"],
                        1 => &["Pooling"],
                        _ => &["Dense", "Normalize"],
                    };
                    let message = format!(
                        "`{}`: unsupported module {i} `{kind}`: expected {} of sentence-transformers",
                        repository.label(file),
                        listed(expected)
                    );
                    return Err(Error::new(ErrorKind::Unsupported, message));
                }
            }
        }
        if pipeline.pooling.is_empty() {
            return Err(wrong(repository, file, "expected a Transformer and a Pooling module"));
        }
        for file in TRANSFORMER_FILES {
            if let Some(tree) = read(repository, file)?.filter(|tree| !tree.entries().is_empty()) {
                pipeline.transformer(&Settings { label: repository.label(file), tree })?;
                break;
            }
        }
        let file = "config_sentence_transformers.json";
        if let Some(tree) = read(repository, file)? {
            pipeline.defaults(&Settings { label: repository.label(file), tree })?;
        }
        Ok(Some(pipeline))
    }

    /// The settings of the transformer.
    fn transformer(&mut self, settings: &Settings) -> Result<()> {
        let text = r#"{"text": {"method": "forward", "method_output_name": "last_hidden_state"}}"#;
        let accepted = [
            ("do_lower_case", "false"),
            ("transformer_task", "\"feature-extraction\""),
            ("modality_config", text),
            ("module_output_name", "\"token_embeddings\""),
            ("model_args", "{}"),
            ("model_kwargs", "{}"),
            ("tokenizer_args", "{}"),
            ("processor_kwargs", "{}"),
            ("config_args", "{}"),
            ("config_kwargs", "{}"),
            ("processing_kwargs", "{}"),
        ];
        settings.check(&["max_seq_length", "unpad_inputs"], &accepted)?;
        self.max_tokens = settings.count("max_seq_length")?;
        Ok(())
    }

    /// The settings of the pooling.
    fn pool(&mut self, settings: &Settings) -> Result<()> {
        let mut known =
            vec!["embedding_dimension", "word_embedding_dimension", "include_prompt", "pooling_mode"];
        known.extend(POOLINGS.map(|(_, old, _)| old));
        settings.check(&known, &[])?;
        self.without_prompt = !settings.flag("include_prompt", true)?;
        let of = |name: &Tree| {
            let found = name.as_text().and_then(Pooling::from_name);
            found.ok_or_else(|| settings.wrong(&format!("unsupported pooling `{name}`")))
        };
        match settings.get("pooling_mode") {
            Some(Tree::List(names)) => self.pooling = names.iter().map(of).collect::<Result<_>>()?,
            Some(name) => self.pooling = vec![of(name)?],
            None => {
                // Several ways are put side by side in this order.
                for (_, old, way) in POOLINGS {
                    if settings.flag(old, false)? {
                        self.pooling.push(way);
                    }
                }
            }
        }
        if self.pooling.is_empty() {
            return Err(settings.wrong("no way of pooling is set"));
        }
        if self.pooling.len() > POOLINGS.len() {
            let (most, found) = (POOLINGS.len(), self.pooling.len());
            return Err(settings.wrong(&format!("expected at most {most} ways of pooling, found {found}")));
        }
        Ok(())
    }

    /// What is said of texts and vectors.
    fn defaults(&mut self, settings: &Settings) -> Result<()> {
        settings.only("model_type", "\"SentenceTransformer\"")?;
        self.kept = settings.count("truncate_dim")?;
        let Some(name) = settings.get("default_prompt_name") else { return Ok(()) };
        let prompts = settings.get("prompts").map(Tree::entries).unwrap_or_default();
        let prompt = prompts.iter().find(|(key, _)| Some(key.as_str()) == name.as_text());
        match (prompt.map(|(_, prompt)| prompt), name.as_text()) {
            (Some(Tree::Text(prompt)), _) => self.prompt = prompt.clone(),
            // These two are there, empty, unless something else is said.
            (None | Some(Tree::Null), Some("query" | "document")) => {}
            _ => {
                let keys: Vec<&str> = prompts.iter().map(|(key, _)| key.as_str()).collect();
                let known = if keys.is_empty() { "none".to_owned() } else { listed(&keys) };
                let message = format!(
                    "`default_prompt_name`: expected the name of a text in `prompts` ({known}), found `{name}`"
                );
                return Err(settings.wrong(&message));
            }
        }
        Ok(())
    }

    /// A vector for each text from its token vectors, rows of `width` columns, of which the pooling leaves out the first
    /// `skip`. There must be more.
    ///
    /// # Errors
    /// `Config` when a module does not fit the width.
    pub fn apply(&self, texts: &[&[f32]], width: usize, skip: usize) -> Result<Vec<Vec<f32>>> {
        let pooled =
            texts.iter().flat_map(|tokens| self.pooling.iter().map(|way| way.apply(tokens, width, skip)));
        let mut x = Tensor::from_vec(texts.len(), self.pooling.len() * width, pooled.flatten().collect());
        for module in &self.modules {
            match module {
                Module::Dense { label, map, bias, act } => {
                    let (expected, found) = (map.inputs(), x.cols());
                    if found != expected {
                        let message =
                            format!("`{label}`: expected vectors of {expected} elements, found {found}");
                        return Err(Error::new(ErrorKind::Config, message));
                    }
                    let epilogue = Epilogue { bias: bias.as_deref(), act: *act, ..Epilogue::default() };
                    let mut y = Tensor::zeros(x.rows(), map.outputs());
                    map.apply(&x, &epilogue, &mut y);
                    x = y;
                }
                Module::Normalize => {
                    for i in 0..x.rows() {
                        // As torch.nn.functional.normalize: a norm below 1e-12 counts as that.
                        let squares = x.row(i).iter().map(|x| f64::from(*x).powi(2));
                        let norm = squares.sum::<f64>().sqrt().max(1e-12);
                        x.row_mut(i).iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
                    }
                }
            }
        }
        let kept = self.kept.map_or(x.cols(), |kept| kept.min(x.cols()));
        Ok((0..x.rows()).map(|i| x.row(i)[..kept].to_vec()).collect())
    }
}

fn dense(repository: &Repository, path: &str, backend: &dyn Backend) -> Result<Module> {
    let settings = Settings::open(repository, path)?;
    let known = ["in_features", "out_features", "bias", "activation_function"];
    settings.check(&known, &[SENTENCE[0], SENTENCE[1], ("use_residual", "false")])?;
    let activation = settings.get("activation_function").and_then(Tree::as_text).unwrap_or("torch.nn.Tanh");
    let act = match activation.rsplit('.').next() {
        Some("Tanh") if activation.starts_with("torch.") => Some(Activation::Tanh),
        Some("Identity") if activation.starts_with("torch.") => None,
        _ => return Err(settings.wrong(&format!("unsupported activation `{activation}`"))),
    };
    let index = Index::open_in(repository, path)?;
    let checkpoint = Checkpoint::map(repository, &index)?;
    let weight = checkpoint.array("linear.weight")?;
    let [outputs, inputs] =
        [settings.count("out_features")?, settings.count("in_features")?].map(Option::unwrap_or_default);
    if *weight.shape() != [outputs, inputs] || inputs == 0 {
        let message =
            format!("expected `linear.weight` of [{outputs}, {inputs}], found {:?}", weight.shape());
        return Err(settings.wrong(&message));
    }
    let mut bias = None;
    if settings.flag("bias", true)? {
        let found = checkpoint.array("linear.bias")?;
        if *found.shape() != [outputs] {
            let message = format!("expected `linear.bias` of [{outputs}], found {:?}", found.shape());
            return Err(settings.wrong(&message));
        }
        bias = Some(found.to_f32());
    }
    if let Some((name, _)) =
        index.iter().find(|(name, _)| *name != "linear.weight" && (bias.is_none() || *name != "linear.bias"))
    {
        return Err(
            settings.wrong(&format!("expected `linear.weight` and its bias alone, found `{name}` too"))
        );
    }
    let part = LinearPart { weight: &weight, layout: Layout::OutIn, outputs: None };
    let map = backend.linear(&[part], WeightType::F32);
    Ok(Module::Dense { label: settings.label, map, bias, act })
}

/// A file of settings.
struct Settings {
    label: String,
    tree: Tree,
}

impl Settings {
    /// Those of a module.
    fn open(repository: &Repository, path: &str) -> Result<Settings> {
        let file = format!("{path}/config.json");
        let tree = read(repository, &file)?.ok_or_else(|| wrong(repository, &file, "the file is missing"))?;
        Ok(Settings { label: repository.label(&file), tree })
    }

    /// The value of a key; null is none.
    fn get(&self, key: &str) -> Option<&Tree> {
        self.tree.get(key).filter(|value| **value != Tree::Null)
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Tree::Bool(flag)) => Ok(*flag),
            Some(found) => Err(self.wrong(&format!("`{key}`: expected true or false, found `{found}`"))),
        }
    }

    /// A positive number.
    fn count(&self, key: &str) -> Result<Option<usize>> {
        match self.get(key) {
            None => Ok(None),
            Some(Tree::Int(n)) if *n > 0 => Ok(usize::try_from(*n).ok()),
            Some(found) => Err(self.wrong(&format!("`{key}`: expected a positive number, found `{found}`"))),
        }
    }

    /// Refuses all values but this one, in JSON, and none.
    fn only(&self, key: &str, accepted: &str) -> Result<()> {
        match self.get(key) {
            Some(found) if Tree::from_json(accepted).ok().as_ref() != Some(found) => {
                let message =
                    format!("`{}`: unsupported `{key}`: expected {accepted}, found {found}", self.label);
                Err(Error::new(ErrorKind::Unsupported, message))
            }
            _ => Ok(()),
        }
    }

    /// Refuses keys that are neither `known` nor have the one value that is accepted.
    fn check(&self, known: &[&str], accepted: &[(&str, &str)]) -> Result<()> {
        for (key, value) in self.tree.entries() {
            match accepted.iter().find(|(name, _)| name == key) {
                Some((key, accepted)) => self.only(key, accepted)?,
                None if *value == Tree::Null || known.contains(&key.as_str()) => {}
                None => {
                    let message = format!("`{}`: unsupported `{key}` ({value})", self.label);
                    return Err(Error::new(ErrorKind::Unsupported, message));
                }
            }
        }
        Ok(())
    }

    fn wrong(&self, what: &str) -> Error {
        Error::new(ErrorKind::Config, format!("`{}`: {what}", self.label))
    }
}

fn read(repository: &Repository, file: &str) -> Result<Option<Tree>> {
    let Some(text) = repository.text(file)? else { return Ok(None) };
    Tree::from_json(&text).map(Some).map_err(|e| wrong(repository, file, &e.to_string()))
}

fn wrong(repository: &Repository, file: &str, what: &str) -> Error {
    Error::new(ErrorKind::Config, format!("`{}`: {what}", repository.label(file)))
}
