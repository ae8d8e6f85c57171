//! `smelt check`: everything that is wrong with a description, alone or with a config or a checkpoint.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use smelt::plan::{Config, Finding, Severity, Target, builtin, inspect, load_source};
use smelt::weights::{Index, Repository};
use smelt::{Error, ErrorKind, Result};

#[derive(clap::Args)]
pub struct Arguments {
    /// A YAML file, or the name of a built-in architecture; the one for the config by default
    #[arg(required_unless_present_any = ["config", "model"])]
    spec: Option<String>,
    /// Plan all heads for this config as well
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    config: Option<PathBuf>,
    /// As --config with this directory's config.json, and check names, types and shapes of the tensors there
    #[arg(long, short, value_name = "DIR")]
    model: Option<PathBuf>,
    /// With --model, a head of the architecture, instead of the one that config.json asks for; `embed` for none
    #[arg(long, requires = "model")]
    task: Option<String>,
    /// A list of findings as JSON
    #[arg(long)]
    json: bool,
    /// Exit with 1 on warnings, too
    #[arg(long)]
    deny_warnings: bool,
}

/// Prints what was found; says whether that is nothing to worry about.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let mut name_of_spec = arguments.spec.clone().unwrap_or_default();
    let found = findings(arguments, &mut name_of_spec).unwrap_or_else(|error| Finding::all_of(&error));
    if arguments.json {
        println!("{:#}", Value::Array(found.iter().map(json).collect()));
    } else {
        let texts: Vec<String> =
            found.iter().map(|finding| format!("{}: {}", name(finding), finding.problem)).collect();
        if texts.is_empty() {
            println!("{name_of_spec}: nothing wrong");
        } else {
            eprintln!("{}", texts.join("\n\n"));
        }
    }
    Ok(!found.iter().any(|finding| finding.severity == Severity::Error || arguments.deny_warnings))
}

fn findings(arguments: &Arguments, name: &mut String) -> Result<Vec<Finding>> {
    let source = arguments.spec.as_deref().map(load_source).transpose()?;
    let (config, index, target) = match (&arguments.model, &arguments.config) {
        (Some(dir), _) => {
            let repository = Repository::open(dir)?;
            let target = Target::of(&repository, arguments.task.as_deref());
            (Some(Config::open(&repository)?), Some(Index::open_headers(&repository)?), target)
        }
        (None, Some(file)) => (Some(read_config(file)?), None, Target::Config),
        (None, None) => (None, None, Target::Config),
    };
    let source = match (source, &config) {
        (Some(source), _) => source,
        (None, Some(config)) => builtin::find(config)?,
        (None, None) => return Err(Error::new(ErrorKind::Input, "expected a description")),
    };
    source.name.clone_into(name);
    Ok(inspect(source, config.as_ref(), index.as_ref(), &target))
}

fn read_config(path: &Path) -> Result<Config> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, &e))?;
    Config::parse(path.display().to_string(), text)
}

fn name(finding: &Finding) -> &'static str {
    match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

fn json(finding: &Finding) -> Value {
    let problem = &finding.problem;
    let place = problem.place.as_ref();
    let remarks: Vec<Value> =
        problem.remarks.iter().map(|remark| json!({"tag": remark.tag, "text": remark.text})).collect();
    json!({
        "severity": name(finding),
        "message": problem.message,
        "file": place.map(|place| &place.file),
        "line": place.map(|place| place.line),
        "column": place.map(|place| place.column),
        "path": place.map(|place| &place.path),
        "remarks": remarks,
    })
}
