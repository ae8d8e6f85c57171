//! What a sentence-transformers repository does with token vectors: its modules, in order.

use crate::error::{Error, ErrorKind, Result};
use crate::spec::{Tree, listed};
use crate::tensor::Array;
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

    /// Pools rows of `width` columns.
    fn apply(self, tokens: &[f32], width: usize) -> Vec<f32> {
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
            Pooling::WeightedMean => sum(&|i| (i + 1) as f64, (n * (n + 1) / 2) as f64),
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

/// The modules behind the transformer.
#[derive(Debug, Default)]
pub struct Pipeline {
    modules: Vec<Module>,
    /// Longer texts are cut to this many tokens, where the repository says so beside its modules.
    pub max_tokens: Option<usize>,
    /// Put before each text.
    pub prompt: String,
}

#[derive(Debug)]
enum Module {
    Pool(Vec<Pooling>),
    Dense { weight: Vec<f32>, bias: Option<Vec<f32>>, inputs: usize, tanh: bool },
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

impl Pipeline {
    /// Pooling alone.
    pub fn of(pooling: Pooling) -> Pipeline {
        Pipeline { modules: vec![Module::Pool(vec![pooling])], ..Pipeline::default() }
    }

    /// The pipeline of a repository that has a `modules.json`.
    ///
    /// # Errors
    /// `Unsupported` for modules and settings that are not known; `Config` for files that are not understood.
    pub fn open(repository: &Repository) -> Result<Option<Pipeline>> {
        let Some(modules) = read(repository, "modules.json")? else { return Ok(None) };
        let Tree::List(modules) = modules else {
            return Err(wrong(repository, "modules.json", "expected a list of modules"));
        };
        let mut pipeline = Pipeline::default();
        for (i, module) in modules.iter().enumerate() {
            let kind = module.get("type").and_then(Tree::as_text).unwrap_or_default();
            let path = module.get("path").and_then(Tree::as_text).unwrap_or_default();
            match kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" if i == 0 => {}
                "Pooling" => pipeline.modules.push(pooling(repository, path)?),
                "Dense" => pipeline.modules.push(dense(repository, path)?),
                "Normalize" => pipeline.modules.push(Module::Normalize),
                _ => {
                    let message = format!(
                        "unsupported module `{kind}` in `{}`: expected {}",
                        repository.label("modules.json"),
                        listed(&["Transformer", "Pooling", "Dense", "Normalize"])
                    );
                    return Err(Error::new(ErrorKind::Unsupported, message));
                }
            }
        }
        for file in TRANSFORMER_FILES {
            let Some(settings) = read(repository, file)? else { continue };
            if settings.entries().is_empty() {
                continue;
            }
            match settings.get("max_seq_length") {
                Some(Tree::Int(n)) if *n > 0 => pipeline.max_tokens = Some(*n as usize),
                None | Some(Tree::Null) => {}
                Some(other) => {
                    let message = format!("expected a positive `max_seq_length`, found `{other}`");
                    return Err(wrong(repository, file, &message));
                }
            }
            if settings.get("do_lower_case") == Some(&Tree::Bool(true)) {
                let message = "unsupported `do_lower_case`: the tokenizer decides";
                return Err(wrong(repository, file, message));
            }
            break;
        }
        if let Some(settings) = read(repository, "config_sentence_transformers.json")?
            && let Some(Tree::Text(name)) = settings.get("default_prompt_name")
        {
            let prompt =
                settings.get("prompts").and_then(|prompts| prompts.get(name)).and_then(Tree::as_text);
            pipeline.prompt = prompt.unwrap_or_default().to_owned();
        }
        Ok(Some(pipeline))
    }

    /// One vector from the token vectors of a text, rows of `width` columns.
    ///
    /// # Errors
    /// `Config` when a module does not fit the width.
    pub fn apply(&self, tokens: &[f32], width: usize) -> Result<Vec<f32>> {
        let mut x: Option<Vec<f32>> = None;
        for module in &self.modules {
            x = Some(match (module, x) {
                (Module::Pool(ways), None) => ways.iter().flat_map(|way| way.apply(tokens, width)).collect(),
                (Module::Dense { weight, bias, inputs, tanh }, Some(x)) if x.len() == *inputs => {
                    let row = |(i, row): (usize, &[f32])| {
                        let sum: f64 = row.iter().zip(&x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                        let y = sum + bias.as_ref().map_or(0.0, |b| f64::from(b[i]));
                        (if *tanh { y.tanh() } else { y }) as f32
                    };
                    weight.chunks(*inputs).enumerate().map(row).collect()
                }
                (Module::Normalize, Some(mut x)) => {
                    // As torch.nn.functional.normalize: a norm below 1e-12 counts as that.
                    let norm = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(1e-12);
                    x.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
                    x
                }
                _ => {
                    let message = "the sentence modules do not fit together: expected Pooling first, and matching widths";
                    return Err(Error::new(ErrorKind::Config, message));
                }
            });
        }
        x.ok_or_else(|| Error::new(ErrorKind::Unsupported, "the repository has no Pooling module"))
    }
}

fn pooling(repository: &Repository, path: &str) -> Result<Module> {
    let file = format!("{path}/config.json");
    let settings = read(repository, &file)?.ok_or_else(|| wrong(repository, &file, "the file is missing"))?;
    let mut ways = Vec::new();
    match settings.get("pooling_mode") {
        Some(Tree::Text(name)) => ways.push(name.as_str()),
        Some(Tree::List(names)) => ways.extend(names.iter().filter_map(Tree::as_text)),
        _ => {
            for (key, value) in settings.entries() {
                if key.starts_with("pooling_mode_") && *value == Tree::Bool(true) {
                    ways.push(key);
                }
            }
            // Several ways are put side by side in a fixed order.
            ways.sort_by_key(|key| POOLINGS.iter().position(|(_, old, _)| old == key));
        }
    }
    let known = |way: &str| {
        let found = POOLINGS.iter().find(|(name, old, _)| *name == way || *old == way);
        found
            .map(|(.., pooling)| *pooling)
            .ok_or_else(|| wrong(repository, &file, &format!("unsupported pooling `{way}`")))
    };
    let ways: Vec<Pooling> = ways.into_iter().map(known).collect::<Result<_>>()?;
    if ways.is_empty() {
        return Err(wrong(repository, &file, "no way of pooling is set"));
    }
    Ok(Module::Pool(ways))
}

fn dense(repository: &Repository, path: &str) -> Result<Module> {
    let file = format!("{path}/config.json");
    let settings = read(repository, &file)?.ok_or_else(|| wrong(repository, &file, "the file is missing"))?;
    let activation = settings.get("activation_function").and_then(Tree::as_text).unwrap_or_default();
    let tanh = match activation.rsplit('.').next().unwrap_or_default() {
        "Tanh" => true,
        "Identity" => false,
        _ => return Err(wrong(repository, &file, &format!("unsupported activation `{activation}`"))),
    };
    let index = Index::open_in(repository, path)?;
    let checkpoint = Checkpoint::map(repository, &index)?;
    let weight = checkpoint.array("linear.weight")?;
    let bias = if index.get("linear.bias").is_some() { Some(checkpoint.array("linear.bias")?) } else { None };
    let [outputs, inputs] = *weight.shape() else {
        return Err(wrong(repository, &file, "`linear.weight` is not a matrix"));
    };
    if inputs == 0 || bias.as_ref().is_some_and(|bias| bias.len() != outputs) {
        return Err(wrong(repository, &file, "`linear.weight` and `linear.bias` do not fit"));
    }
    Ok(Module::Dense { weight: weight.to_f32(), bias: bias.as_ref().map(Array::to_f32), inputs, tanh })
}

fn read(repository: &Repository, file: &str) -> Result<Option<Tree>> {
    let Some(text) = repository.text(file)? else { return Ok(None) };
    Tree::from_json(&text).map(Some).map_err(|e| wrong(repository, file, &e.to_string()))
}

fn wrong(repository: &Repository, file: &str, what: &str) -> Error {
    Error::new(ErrorKind::Config, format!("`{}`: {what}", repository.label(file)))
}
