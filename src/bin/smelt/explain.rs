//! `smelt explain`: what a model is made of, what it costs, and which tensor is whose.

use std::path::PathBuf;

use serde_json::{Value, json};

use smelt::plan::{Stored, Tokens, Use};
use smelt::{Arch, Compute, Result, WeightType};

use crate::diff::Difference;
use crate::explained::{Explained, Request};
use crate::picture::svg;
use crate::show::{bytes, plain, shape, short, table};

#[derive(clap::Args)]
pub struct Arguments {
    /// A YAML file, or the name of a built-in architecture; the one for the config by default
    spec: Option<Arch>,
    /// Directory with config.json and *.safetensors, of which only the headers are read
    #[arg(long, short, value_name = "DIR")]
    model: PathBuf,
    /// A head of the architecture, instead of the one that config.json asks for; `embed` for none
    #[arg(long)]
    task: Option<String>,
    /// Tokens of one sequence that are computed
    #[arg(long, default_value_t = 128, allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    tokens: u64,
    /// Tokens before them, of which keys and values or a state are kept
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(0..=1 << 20))]
    past: u64,
    /// Sequences at once, for the memory
    #[arg(long, default_value_t = 1, allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    sequences: u64,
    /// How weights are kept, instead of as they are stored
    #[arg(long, value_name = "TYPE")]
    dtype: Option<WeightType>,
    /// How products are computed, see smelt-run
    #[arg(long, value_name = "TYPE")]
    compute: Option<Compute>,
    /// Threads to compute with, 1 to 1024; one per core by default
    #[arg(long, allow_negative_numbers = true, value_parser = crate::threads())]
    threads: Option<usize>,
    /// A row for each layer, also where layers are the same
    #[arg(long)]
    all: bool,
    /// What each stored tensor is used as
    #[arg(long)]
    tensors: bool,
    /// In what two descriptions differ on the checkpoint: blocks, settings, tensors, totals
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["spec", "tensors", "svg"])]
    diff: Option<Vec<Arch>>,
    /// A picture of the blocks, as SVG
    #[arg(long, conflicts_with_all = ["json", "tensors"])]
    svg: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Prints what the arguments ask for.
pub fn run(arguments: &Arguments) -> Result<()> {
    let request = Request {
        model: &arguments.model,
        task: arguments.task.as_deref(),
        tokens: Tokens { new: arguments.tokens, past: arguments.past },
        sequences: arguments.sequences,
        dtype: arguments.dtype,
        compute: arguments.compute,
        threads: arguments.threads,
        all: arguments.all,
    };
    if let Some([before, after]) = arguments.diff.as_deref() {
        let (before, after) =
            (Explained::new(&request, Some(before))?, Explained::new(&request, Some(after))?);
        let difference = Difference::between(&before, &after);
        if arguments.json {
            println!("{:#}", difference.json());
        } else {
            print!("{}", difference.text());
        }
        return Ok(());
    }
    let explained = Explained::new(&request, arguments.spec.as_ref())?;
    if arguments.svg {
        print!("{}", svg(&explained.plan, &explained.rows));
    } else if arguments.json {
        println!("{:#}", json(arguments, &explained));
    } else if arguments.tensors {
        print!("{}", table(&tensor_lines(&explained), &[]));
    } else {
        print!("{}", text(arguments, &explained));
    }
    Ok(())
}

fn text(arguments: &Arguments, explained: &Explained) -> String {
    let Explained { plan, rows, total, memory, .. } = explained;
    let title = ["block", "path", "output", "parameters", "flops", "weights"];
    let mut lines = vec![title.map(str::to_owned).to_vec()];
    let mut value = "";
    for row in rows {
        let block = &plan.blocks[row.block];
        if block.value != value {
            value = &block.value;
            lines.push(vec![format!("{value}:")]);
        }
        let times = if row.count() > 1 { format!(" ×{}", row.count()) } else { String::new() };
        lines.push(vec![
            format!("  {}{times}", block.name),
            row.path.clone(),
            shape(block.output),
            short(row.cost.parameters),
            short(row.cost.flops),
            bytes(row.cost.weight_bytes),
        ]);
    }
    let head = plan.task.as_deref().unwrap_or("embed");
    let past = if arguments.past > 0 { format!(" after {}", arguments.past) } else { String::new() };
    let n = arguments.tokens;
    format!(
        "{}, {head}, N = {n} tokens{past}\n\n{}\n\
         parameters             {}\n\
         flops                  {}\n\
         weights                {}\n\
         tables in the file     {}\n\
         keys and values        {} per token\n\
         peak memory, about     {}\n",
        plan.name,
        table(&lines, &[3, 4, 5]),
        short(total.parameters),
        short(total.flops),
        bytes(memory.weights),
        bytes(memory.mapped),
        bytes(memory.cache_per_token),
        bytes(explained.peak),
    )
}

fn tensor_lines(explained: &Explained) -> Vec<Vec<String>> {
    let name = &explained.plan.spec.source.name;
    let line = |tensor: &Stored| {
        let mut line = vec![tensor.name.clone(), format!("{:?}", tensor.shape)];
        line.extend(match &tensor.role {
            Use::Declared(declared, label, at) => {
                let at = at.map_or(String::new(), |line| format!(":{line}"));
                vec![declared.clone(), label.clone(), format!("{name}{at}")]
            }
            Use::Twin(one) => vec![format!("as {one}")],
            Use::Ignored => vec!["ignored".to_owned()],
            Use::Elsewhere => vec!["unused here".to_owned()],
        });
        line
    };
    explained.tensors.iter().map(line).collect()
}

fn json(arguments: &Arguments, explained: &Explained) -> Value {
    let Explained { plan, rows, total, memory, tensors, .. } = explained;
    let rows = rows.iter().map(|row| {
        let block = &plan.blocks[row.block];
        let settings = block.settings.iter().map(|(name, value)| (name.clone(), plain(value)));
        json!({
            "value": block.value,
            "block": block.name,
            "path": row.path,
            "count": row.count(),
            "output": shape(block.output),
            "line": plan.spec.source.line(&block.at),
            "settings": settings.collect::<serde_json::Map<_, _>>(),
            "parameters": row.cost.parameters,
            "flops": row.cost.flops,
            "weight_bytes": row.cost.weight_bytes,
        })
    });
    let mut whole = json!({
        "architecture": plan.name,
        "task": plan.task,
        "tokens": arguments.tokens,
        "past": arguments.past,
        "blocks": rows.collect::<Vec<_>>(),
        "total": {
            "parameters": total.parameters,
            "flops": total.flops,
            "weight_bytes": memory.weights,
            "mapped_bytes": memory.mapped,
            "cache_bytes_per_token": memory.cache_per_token,
            "peak_bytes": explained.peak,
        },
    });
    if arguments.tensors {
        let tensors = tensors.iter().map(|tensor| {
            let (role, other, label, line) = match &tensor.role {
                Use::Declared(name, label, line) => ("used", Some(name), Some(label), *line),
                Use::Twin(one) => ("twin", Some(one), None, None),
                Use::Ignored => ("ignored", None, None, None),
                Use::Elsewhere => ("unused", None, None, None),
            };
            json!({"name": tensor.name, "shape": tensor.shape, "use": role, "as": other, "field": label, "line": line})
        });
        whole["tensors"] = tensors.collect();
    }
    whole
}
