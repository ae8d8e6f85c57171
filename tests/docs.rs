//! The documents agree with the program: the block reference is the one that the blocks give, the
//! table of architectures what the files say, every YAML snippet can be read, and what is shown of a run
//! is what is printed.

mod common;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
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
            config.texts("architectures").unwrap().into_iter().map(str::to_owned).collect::<Vec<_>>()
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

/// The entries of `tests/docs.yaml`.
#[derive(Deserialize)]
struct Document {
    document: String,
    yaml: String,
    texts: Vec<Shown>,
}

#[derive(Deserialize)]
struct Shown {
    run: Option<String>,
    #[serde(default)]
    snippets: Vec<String>,
    #[serde(default)]
    changes: Vec<(String, String)>,
}

/// Puts a snippet into a description: what a section holds behind the line that begins it, other sections at the end.
fn put(yaml: &mut String, snippet: &str) {
    let mut end = None;
    for line in snippet.lines().map(|line| format!("{line}\n")) {
        let begins = !line.starts_with(' ');
        if begins {
            end = yaml.find(&format!("\n{line}")).map(|i| i + 1 + line.len());
        }
        match &mut end {
            Some(_) if begins => {}
            Some(end) => {
                yaml.insert_str(*end, &line);
                *end += line.len();
            }
            None => *yaml += &line,
        }
    }
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

/// Each fenced text is the end of what is printed, or its beginning if it ends in `...`.
#[test]
fn what_is_shown_of_runs_is_printed() {
    let text = std::fs::read_to_string(root().join("tests/docs.yaml")).unwrap();
    let documents: Vec<Document> = serde_yaml::from_str(&text).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("my.yaml");
    let (mut run, mut wrong) = (0, Vec::new());
    for Document { document, yaml, texts } in documents {
        let text = std::fs::read_to_string(root().join("docs").join(&document)).unwrap();
        let of_yaml = snippets(&text, "yaml");
        let snippet = |part: &str| {
            let mut texts = of_yaml.iter().map(|(_, text)| text.as_str());
            texts.find(|text| text.contains(part)).unwrap_or_else(|| panic!("no snippet has `{part}`"))
        };
        let base = std::fs::read_to_string(root().join(&yaml)).unwrap_or_else(|_| snippet(&yaml).to_owned());
        let fenced = snippets(&text, "text");
        assert_eq!(fenced.len(), texts.len(), "{document}");
        for ((line, expected), shown) in fenced.iter().zip(texts) {
            let Some(arguments) = shown.run else { continue };
            let mut yaml = base.clone();
            shown.snippets.iter().for_each(|part| put(&mut yaml, snippet(part)));
            for (old, new) in &shown.changes {
                assert!(yaml.contains(old), "{document}:{line}: `{old}` is not there");
                yaml = yaml.replacen(old, new, 1);
            }
            std::fs::write(&file, yaml).unwrap();
            let my = file.to_str().unwrap();
            let arguments =
                arguments.split_whitespace().map(|word| if word == "my.yaml" { my } else { word });
            let mut command = Command::new(env!("CARGO_BIN_EXE_smelt"));
            let output = command.args(arguments).current_dir(root()).output().unwrap();
            let printed = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            let printed = printed.replace(my, "my.yaml");
            let printed_so = match expected.strip_suffix("...\n") {
                Some(beginning) => plain(&printed).starts_with(&plain(beginning)),
                None => plain(&printed).ends_with(&plain(expected)),
            };
            run += 1;
            if !printed_so {
                wrong.push(format!("docs/{document}:{line} is another text than\n{printed}"));
            }
        }
    }
    assert!(run >= 15, "{run}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
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
