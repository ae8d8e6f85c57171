//! `smelt verify`: how a model agrees with its reference, and the line that is to blame where it does not.

use std::path::PathBuf;

use serde_json::{Value, json};

use smelt::error::Place;
use smelt::plan::{Arch, Config, Severity, Target, inspect, source_for};
use smelt::task::{
    Bundle, Comparison, Culprit, Difference, Fault, ModuleComparison, ModuleTrace, OtherToken,
};
use smelt::weights::{Index, Repository, read_bundle};
use smelt::{BackendKind, Error, ErrorKind, Model, OpenOptions, Result};

#[derive(clap::Args)]
pub struct Arguments {
    /// Reference: inputs and outputs as a safetensors file, with modules as tools/reference.py writes them
    bundle: PathBuf,
    /// Directory with config.json and *.safetensors
    #[arg(long, short, value_name = "DIR")]
    model: PathBuf,
    /// Architecture: a YAML file, or the name of a built-in one
    #[arg(long, value_name = "FILE|NAME")]
    arch: Option<Arch>,
    /// A head of the architecture, instead of the one that config.json asks for
    #[arg(long)]
    task: Option<String>,
    /// An output of the reference that is not compared, such as `hidden_states` or `generate.0`; repeatable
    #[arg(long, value_name = "NAME")]
    skip: Vec<String>,
    /// Largest difference that is accepted: of outputs absolute, of modules relative to their largest value
    #[arg(long, default_value_t = 1e-4, allow_negative_numbers = true, value_parser = tolerance)]
    tolerance: f32,
    /// Threads to compute with, 1 to 1024; one per core by default
    #[arg(long, allow_negative_numbers = true, value_parser = crate::threads())]
    threads: Option<usize>,
    /// Compute with the plain reference implementation
    #[arg(long)]
    reference: bool,
    /// List every module, not only the first that differs
    #[arg(long)]
    all: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Prints how each output agrees, and the first module that does not; says whether all agree.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let backend = if arguments.reference { BackendKind::Reference } else { BackendKind::Cpu };
    let (arch, task, threads) = (arguments.arch.clone(), arguments.task.clone(), arguments.threads);
    let options = OpenOptions { arch, task, threads, backend, ..OpenOptions::default() };
    let model = Model::open_with(&arguments.model, &options)?;
    let mut tensors = read_bundle(&arguments.bundle)?;
    if let Some(name) = arguments.skip.iter().find(|skipped| !tensors.keys().any(|name| is_of(name, skipped)))
    {
        let message = format!("`{}` has no output `{name}` to skip", arguments.bundle.display());
        return Err(Error::new(ErrorKind::Input, message));
    }
    let is_skipped = |name: &str| arguments.skip.iter().any(|skipped| is_of(name, skipped));
    tensors.retain(|name, _| match name.rsplit_once('.') {
        // Tokens and logits of a continuation are computed together: of one alone only the comparison is left out.
        Some((of, "tokens" | "logits")) if of.starts_with(CONTINUATION) => {
            !["tokens", "logits"].iter().all(|part| is_skipped(&format!("{of}.{part}")))
        }
        _ => !is_skipped(name),
    });
    let bundle = Bundle::new(tensors).map_err(|error| {
        error.help(format!("`{}` is to hold inputs and a reference", arguments.bundle.display()))
    })?;
    let mut outputs = bundle.compare(model.network())?;
    outputs.retain(|output| !is_skipped(&output.name));
    let trace = if bundle.has_modules() { Some(bundle.trace(model.network())?) } else { None };
    if outputs.is_empty() && trace.as_ref().is_none_or(|trace| trace.compared.is_empty()) {
        if !arguments.skip.is_empty() {
            return Err(Error::new(ErrorKind::Input, "nothing is left to compare beside what is skipped"));
        }
        let message = format!("`{}` has no reference outputs", arguments.bundle.display());
        return Err(Error::new(ErrorKind::Input, message).help(
            "reference outputs are named `output.…` and `generate.…`, those of modules `module.NAME.output`",
        ));
    }
    let tolerance = arguments.tolerance;
    let culprit = trace.as_ref().and_then(|trace| trace.culprit(&outputs, tolerance));
    let agrees = culprit.is_none() && outputs.iter().all(|output| output.agrees(tolerance));
    if arguments.json {
        println!("{}", to_json(&outputs, trace.as_ref(), culprit.as_ref(), agrees, tolerance));
        return Ok(agrees);
    }
    if arguments.all
        && let Some(trace) = &trace
    {
        print_modules(trace, tolerance);
    }
    print_outputs(&outputs, tolerance);
    match (&trace, &culprit) {
        (_, Some(culprit)) => println!("\nfirst to diverge: {}", culprit.problem()),
        (Some(trace), None) => {
            println!(
                "each of {} modules agrees within {tolerance:e} of its largest value",
                trace.compared.len()
            );
            if let Some(suspect) = trace.suspect(&outputs, tolerance) {
                println!("\nmore than rounding: {}", suspect.problem());
            }
        }
        (None, None) => {}
    }
    if !agrees {
        let differences = outputs.iter().map(|output| output.largest);
        let nearly =
            differences.chain(culprit.map(|culprit| culprit.difference)).all(|x| x <= NEARLY * tolerance);
        if nearly && !bundle.has_noise() {
            println!(
                "\nthat little may be rounding: `tools/reference.py --noise` writes how far the reference is from exact"
            );
        }
        print_warnings(arguments);
    }
    Ok(agrees)
}

fn tolerance(text: &str) -> std::result::Result<f32, String> {
    let number = text.parse::<f32>().ok().filter(|x| *x >= 0.0 && x.is_finite());
    number.ok_or_else(|| "expected a number from 0 on".into())
}

/// An ill-conditioned model may be so many tolerances off by rounding alone.
const NEARLY: f32 = 10.0;

/// Prints what `smelt check --model` warns of: what the config asks for and the description does not read is often the reason.
fn print_warnings(arguments: &Arguments) {
    let found = Repository::open(&arguments.model).and_then(|repository| {
        let (config, index) = (Config::open(&repository)?, Index::open_headers(&repository)?);
        let source = source_for(arguments.arch.as_ref(), &config)?;
        Ok(inspect(source, Some(&config), Some(&index), &Target::Config))
    });
    // The model is open already: what cannot be read again says nothing new.
    for finding in found.unwrap_or_default() {
        if finding.severity == Severity::Warning {
            println!("\nwarning: {}", finding.problem);
        }
    }
}

fn print_outputs(outputs: &[Comparison], tolerance: f32) {
    if outputs.is_empty() {
        return;
    }
    let width = outputs.iter().map(|c| c.name.len()).max().unwrap_or(0);
    println!("{:width$}  largest difference", "output");
    for c in outputs {
        let verdict = if c.agrees(tolerance) { "" } else { "  differs" };
        println!("{:width$}  {}{verdict}", c.name, difference(c));
    }
    match outputs.iter().find(|c| !c.agrees(tolerance)) {
        Some(first) => println!("\nfirst to differ by more than {tolerance:e}: {}", first.name),
        None => println!("\neach of {} agrees within {}", outputs.len(), allowed(outputs, tolerance)),
    }
}

/// What is allowed, where all agree.
fn allowed(outputs: &[Comparison], tolerance: f32) -> String {
    let is_within = outputs.iter().all(|c| c.largest <= tolerance);
    format!("{tolerance:e}{}", if is_within { "" } else { " or rounding" })
}

fn difference(c: &Comparison) -> String {
    match c.other_token {
        Some(OtherToken { index, found, expected }) => {
            let shown = |token: Option<u32>| token.map_or("missing".into(), |token| token.to_string());
            format!("token {} of {} is {}, not {}", index + 1, c.elements, shown(found), shown(expected))
        }
        None if c.name.ends_with(".tokens") => format!("{} equal", c.elements),
        None if c.noise > 0.0 => format!("{:.2e}  (reference itself {:.2e})", c.largest, c.noise),
        None => format!("{:.2e}", c.largest),
    }
}

fn print_modules(trace: &ModuleTrace, tolerance: f32) {
    let width = trace.compared.iter().map(|c| c.name.len()).max().unwrap_or(0);
    println!("{:width$}  input     of at most  output    of at most", "module");
    for c in &trace.compared {
        let verdict = if c.agrees(tolerance) { "" } else { "  differs" };
        let shown = |difference: &Difference| {
            (format!("{:.2e}", difference.largest), format!("{:.2e}", difference.magnitude))
        };
        let (input, of_input) = c.input.as_ref().map_or(("-".into(), "-".into()), shown);
        let (output, of_output) = shown(&c.output);
        println!("{:width$}  {input:8}  {of_input:10}  {output:8}  {of_output}{verdict}", c.name);
    }
    for (what, names) in
        [("only in the reference", &trace.only_recorded), ("not in the reference", &trace.only_computed)]
    {
        if !names.is_empty() {
            println!("\n{what}:");
            names.iter().for_each(|name| println!("  {name}"));
        }
    }
    println!();
}

fn to_json(
    outputs: &[Comparison],
    trace: Option<&ModuleTrace>,
    culprit: Option<&Culprit>,
    agrees: bool,
    tolerance: f32,
) -> Value {
    let output = |c: &Comparison| json!({"name": c.name, "largest": number(c.largest), "magnitude": c.magnitude, "noise": c.noise});
    let suspect = trace.filter(|_| culprit.is_none()).and_then(|trace| trace.suspect(outputs, tolerance));
    let modules = trace.map(|trace| trace.compared.iter().map(module).collect::<Vec<_>>());
    json!({
        "agrees": agrees,
        "outputs": outputs.iter().map(output).collect::<Vec<_>>(),
        "modules": modules,
        "only_recorded": trace.map(|trace| &trace.only_recorded),
        "only_computed": trace.map(|trace| &trace.only_computed),
        "culprit": culprit.map(blamed),
        "suspect": suspect.as_ref().map(blamed),
    })
}

/// How tensors of the reference begin that are compared: outputs, which are named without it, and continuations.
const OUTPUT: &str = "output.";
const CONTINUATION: &str = "generate.";

/// Whether a tensor of the reference is the output `name`, as it is printed, or a part of it.
fn is_of(tensor: &str, name: &str) -> bool {
    let is_compared = |t: &&str| t.starts_with(CONTINUATION) && !t.ends_with(".prompt");
    let printed = tensor.strip_prefix(OUTPUT).or(Some(tensor).filter(is_compared));
    let rest = printed.and_then(|printed| printed.strip_prefix(name));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn module(c: &ModuleComparison) -> Value {
    let difference =
        |d: &Difference| json!({"largest": number(d.largest), "magnitude": d.magnitude, "noise": d.noise});
    json!({
        "name": c.name,
        "recorded": c.recorded,
        "input": c.input.as_ref().map(difference),
        "output": difference(&c.output),
        "place": c.place.as_ref().map(place),
    })
}

fn blamed(culprit: &Culprit) -> Value {
    let fault = match culprit.fault {
        Fault::Module => "module",
        Fault::Block => "block",
        Fault::StepBefore => "step before",
        Fault::Input => "input",
        Fault::Layer => "layer",
        Fault::End => "end",
    };
    json!({
        "name": culprit.name,
        "fault": fault,
        "difference": number(culprit.difference),
        "before": culprit.before.map(number),
        "place": culprit.place.as_ref().map(place),
        "notes": culprit.notes,
    })
}

fn place(place: &Place) -> Value {
    json!({"file": place.file, "line": place.line, "column": place.column, "label": place.label})
}

/// JSON has no infinity.
fn number(x: f32) -> Value {
    if x.is_finite() { json!(x) } else { json!("infinite") }
}
