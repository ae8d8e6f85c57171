//! The documents agree with the program: the block reference is the one that the blocks give, the
//! table of architectures what the files say, every YAML snippet can be read, and what is shown of a run
//! is what is printed.

mod common;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use smelt::plan::{Config, builtin, check_spec};
use smelt::spec::{Problems, Source, Spec, Tree};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documents() -> Vec<PathBuf> {
    let docs = std::fs::read_dir(root().join("docs")).unwrap().flatten().map(|entry| entry.path());
    let mut found: Vec<_> = docs.filter(|path| path.extension().is_some_and(|e| e == "md")).collect();
    found.push(root().join("README.md"));
    found.sort();
    found
}

/// The snippets of a document in that language, each with the number of its first line.
fn snippets(text: &str, language: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (i, line) in text.lines().enumerate() {
        match &mut open {
            None if line.strip_prefix("```") == Some(language) => open = Some((i + 2, String::new())),
            None => {}
            Some(_) if line == "```" => found.extend(open.take()),
            Some((_, snippet)) => *snippet += &format!("{line}\n"),
        }
    }
    assert!(open.is_none(), "a snippet without an end");
    found
}

#[test]
fn the_block_reference_is_up_to_date() {
    let text = std::fs::read_to_string(root().join("docs/language.md")).unwrap();
    let (_, rest) = text.split_once("<!-- blocks -->\n").expect("the mark before the blocks");
    let (found, _) = rest.split_once("<!-- /blocks -->").expect("the mark behind the blocks");
    assert!(
        found == smelt::docs::block_reference(),
        "docs/language.md is out of date: put the output of `smelt blocks --markdown` between its marks"
    );
}

/// The table of architectures: model types, and the tasks of each file, in italics where no fixture has the head.
fn architectures() -> String {
    let classes: HashSet<String> = common::cases()
        .iter()
        .flat_map(|dir| {
            let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
            let config = Config::parse("config.json", text).unwrap();
            config.texts("architectures").into_iter().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    let (mut table, mut types) = (String::from("| model types | tasks |\n|---|---|\n"), 0);
    for name in builtin::names() {
        let source = Source::yaml(name, builtin::text(name).unwrap()).unwrap();
        let spec = Spec::parse(source, &mut Problems::default());
        let accepted = spec.matches.iter().flat_map(|test| &test.accepted).filter_map(|tree| tree.as_text());
        let accepted: Vec<String> = accepted.map(|name| format!("`{name}`")).collect();
        types += accepted.len();
        let tasks = spec.heads.iter().map(|head| match head.classes.iter().any(|c| classes.contains(c)) {
            true => head.task.clone(),
            false => format!("*{}*", head.task),
        });
        let tasks = tasks.collect::<Vec<_>>().join(", ");
        table += &format!("| {} | {tasks} |\n", accepted.join(", "));
    }
    format!("{types} model types, {} files, no model code.\n\n{table}", builtin::names().len())
}

#[test]
fn the_table_of_architectures_is_up_to_date() {
    let path = root().join("README.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once("<!-- architectures -->\n").expect("the mark before the table");
    let (found, after) = rest.split_once("<!-- /architectures -->").expect("the mark behind the table");
    let expected = architectures();
    if std::env::var_os("SMELT_BLESS").is_some() {
        let text = format!("{before}<!-- architectures -->\n{expected}<!-- /architectures -->{after}");
        std::fs::write(path, text).unwrap();
    } else {
        assert!(found == expected, "README.md is out of date: SMELT_BLESS=1 cargo test --test docs");
    }
}

#[test]
fn every_yaml_snippet_can_be_read() {
    let (mut files, mut fragments) = (0, 0);
    for path in documents() {
        for (line, snippet) in snippets(&std::fs::read_to_string(&path).unwrap(), "yaml") {
            let place = format!("{}:{line}", path.strip_prefix(root()).unwrap().display());
            if snippet.starts_with("smelt: 1") && snippet.contains("\nmodel:") {
                let checked = Source::yaml(place.as_str(), snippet).and_then(check_spec);
                checked.unwrap_or_else(|e| panic!("{place}: {e}"));
                files += 1;
            } else {
                Tree::from_yaml(&snippet).unwrap_or_else(|e| panic!("{place}: {e}"));
                fragments += 1;
            }
        }
    }
    assert!(files >= 2 && fragments >= 20, "{files} files, {fragments} fragments");
}

/// What a document shows of a program, in the order of its fenced texts.
enum Shown {
    /// What another program prints.
    Else,
    /// What `smelt` prints, given these arguments and this `my.yaml`: the end of it, or the beginning if it ends in `...`.
    Smelt(&'static str, String),
}

/// A description with parts of it replaced.
fn changed(yaml: &str, changes: &[(&str, &str)]) -> String {
    changes.iter().fold(yaml.to_owned(), |yaml, (old, new)| {
        assert!(yaml.contains(old), "`{old}` is not there");
        yaml.replacen(old, new, 1)
    })
}

/// A text without the differences that other processors may round otherwise, and without what pads tables.
fn plain(text: &str) -> String {
    let word = |word: &str| {
        let number = word.trim_end_matches(')');
        let is_tolerance = number == "1e-4";
        match number.contains('e') && !is_tolerance && number.parse::<f64>().is_ok() {
            true => word.replace(number, "#"),
            false => word.to_owned(),
        }
    };
    let line = |line: &str| line.split_whitespace().map(word).collect::<Vec<_>>().join(" ");
    text.trim_end().lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Checks all fenced texts of a document.
fn check_texts(document: &str, shown: &[Shown]) {
    let text = std::fs::read_to_string(root().join("docs").join(document)).unwrap();
    let texts = snippets(&text, "text");
    assert_eq!(texts.len(), shown.len(), "{document}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("my.yaml");
    let mut wrong = Vec::new();
    for ((line, expected), shown) in texts.iter().zip(shown) {
        let Shown::Smelt(arguments, yaml) = shown else { continue };
        std::fs::write(&file, yaml).unwrap();
        let arguments = arguments.split_whitespace();
        let arguments = arguments.map(|word| if word == "my.yaml" { file.to_str().unwrap() } else { word });
        let mut command = Command::new(env!("CARGO_BIN_EXE_smelt"));
        let output = command.args(arguments).current_dir(root()).output().unwrap();
        let printed = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        let printed = printed.replace(file.to_str().unwrap(), "my.yaml");
        let printed_so = match expected.strip_suffix("...\n") {
            Some(beginning) => plain(&printed).starts_with(&plain(beginning)),
            None => plain(&printed).ends_with(&plain(expected)),
        };
        if !printed_so {
            wrong.push(format!("docs/{document}:{line} is another text than\n{printed}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_verdicts_in_the_docs_are_printed() {
    let yaml = std::fs::read_to_string(root().join("architectures/bert.yaml")).unwrap();
    let verify = |changes: &[(&str, &str)]| {
        let arguments = "verify --arch my.yaml --model tests/golden/bert/masked-lm \
                         tests/golden/modules/bert-masked-lm.safetensors";
        Shown::Smelt(arguments, changed(&yaml, changes))
    };
    let (q, k) = ("q: attention.self.query", "k: attention.self.key");
    let norm = "        - layer_norm: attention.output.LayerNorm\n";
    let mlp = "- mlp: {up: intermediate.dense, down: output.dense, inner: $inner, act: $act}";
    let shown = [
        Shown::Else,
        verify(&[]),
        verify(&[
            (k, "k: {at: attention.self.key, bias: false}"),
            ("ignore: [", "ignore: [encoder.layer.*.attention.self.key.bias, "),
        ]),
        verify(&[(&format!("{q}, {k}"), "q: attention.self.key, k: attention.self.query")]),
        verify(&[(&format!("- residual:\n            {mlp}"), mlp)]),
        verify(&[(norm, ""), ("- residual:\n", &format!("- residual:\n    {norm}"))]),
        verify(&[
            ("layer_norm: {eps: $eps}", "layer_norm: {eps: 1e-5}"),
            ("  eps: {key: layer_norm_eps, default: 1e-12}\n", ""),
        ]),
    ];
    check_texts("debugging.md", &shown);
}

#[test]
fn the_worked_case_prints_what_the_docs_show() {
    let text = std::fs::read_to_string(root().join("docs/adding-an-architecture.md")).unwrap();
    let yaml: Vec<String> = snippets(&text, "yaml").into_iter().map(|(_, snippet)| snippet).collect();
    let draft = yaml.iter().find(|snippet| snippet.starts_with("smelt: 1")).unwrap();
    let base = &format!("{draft}irrelevant: [sinusoidal_pos_embds]\n");
    let head = yaml.iter().find(|snippet| snippet.contains("  sequence_classification:")).unwrap();
    let (config, head) = head.split_once("heads:\n").unwrap();
    let head = changed(base, &[("config:\n", config), ("heads:\n", &format!("heads:\n{head}"))]);
    let prefix = yaml.iter().find(|snippet| snippet.starts_with("weights: {prefix")).unwrap();
    let whole = changed(&head, &[("defaults:", &format!("{prefix}defaults:"))]);

    let norm = "        - layer_norm: sa_layer_norm\n";
    let inside = changed(base, &[(norm, ""), ("- residual:\n", &format!("- residual:\n    {norm}"))]);
    let act = "  act: {key: activation, default: gelu}\n";
    let other_act = changed(base, &[(act, ""), ("act: $act", "act: gelu_new")]);
    let misspelt = changed(base, &[("- layer_norm: sa", "- layernorm: sa"), ("inner: $inner, ", "")]);

    let modules = "verify --arch my.yaml --model tests/golden/distilbert/base \
                   tests/golden/modules/distilbert.safetensors";
    let outputs = "verify --arch my.yaml --model tests/golden/distilbert/base \
                   tests/golden/distilbert/base/reference.safetensors";
    let classifier = "verify --arch my.yaml --model tests/golden/distilbert/sequence-classification \
                      tests/golden/distilbert/sequence-classification/reference.safetensors";
    let shown = [
        Shown::Else,
        Shown::Smelt("check my.yaml", draft.clone()),
        Shown::Smelt("check my.yaml", misspelt),
        Shown::Smelt("check my.yaml --model tests/golden/distilbert/base", draft.clone()),
        Shown::Smelt(outputs, base.clone()),
        Shown::Smelt(modules, inside),
        Shown::Smelt(modules, other_act),
        Shown::Smelt(classifier, base.clone()),
        Shown::Smelt(classifier, head),
        Shown::Smelt(classifier, whole),
    ];
    check_texts("adding-an-architecture.md", &shown);
}

#[test]
fn links_between_documents_lead_somewhere() {
    for path in documents() {
        let text = std::fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            let file = link.split('#').next().unwrap_or_default();
            if !file.is_empty() && !link.contains("://") {
                assert!(path.parent().unwrap().join(file).exists(), "{}: {link}", path.display());
            }
        }
    }
}
