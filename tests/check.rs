//! `inspect`, which `smelt check` prints: nothing where nothing is wrong, and everything where something is.

mod common;

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use smelt::plan::{Config, Finding, Plan, Target, builtin, check_spec, inspect, load_source};
use smelt::spec::Source;
use smelt::weights::{Index, Repository};

/// What is found of a fixture with the built-in description.
fn found(dir: &Path) -> Vec<Finding> {
    let repository = Repository::open(dir).unwrap();
    let config = Config::open(&repository).unwrap();
    let target = Target::of(&repository, None);
    let index = Index::open(&repository).unwrap();
    inspect(builtin::find(&config).unwrap(), Some(&config), Some(&index), &target)
}

#[test]
fn nothing_is_found_of_any_fixture() {
    let mut wrong = Vec::new();
    for dir in common::cases() {
        let found = found(&dir).into_iter();
        wrong.extend(found.map(|finding| format!("{}: {}", dir.display(), finding.problem)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_default_holds_beside_keys_of_other_tokens() {
    let mut seen = 0;
    for dir in common::cases() {
        let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
        let text = text.replace("\"eos_token_id\"", "\"other_token_id\"");
        if !text.contains("bos_token_id") {
            continue;
        }
        let config = Config::parse("config.json", text).unwrap();
        let found = inspect(builtin::find(&config).unwrap(), Some(&config), None, &Target::Config);
        let misspelt = found.iter().find(|finding| finding.problem.message.contains("which nothing reads"));
        assert!(misspelt.is_none(), "{}: {}", dir.display(), misspelt.unwrap().problem);
        seen += 1;
    }
    assert!(seen > 10, "{seen} configs");
}

fn smelt(arguments: &[&str]) -> (Option<i32>, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smelt"));
    let output = command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default())
}

/// The example with `config` added to its config and `spec` changed in its description, its weights beside them.
fn edited(config: &str, spec: (&str, &str)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let model = root.join("examples/models/language-id");
    let text = std::fs::read_to_string(model.join("config.json")).unwrap();
    std::fs::write(folder.path().join("config.json"), text.replacen('{', &format!("{{\n{config}"), 1))
        .unwrap();
    std::fs::copy(model.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let text = std::fs::read_to_string(root.join("examples/classifier.yaml")).unwrap();
    std::fs::write(folder.path().join("mine.yaml"), text.replacen(spec.0, spec.1, 1)).unwrap();
    folder
}

#[test]
fn a_key_that_nobody_reads_is_a_warning() {
    let folder = edited("\"new_kind_of_norm\": true,\n\"a_dropout\": 0.5,\n\"other\": null,", ("", ""));
    let (spec, dir) = (folder.path().join("mine.yaml"), folder.path().to_str().unwrap());
    let arguments = ["check", spec.to_str().unwrap(), "--json", "--model", dir];
    let (code, list) = smelt(&arguments);
    assert_eq!((code, list.as_array().unwrap().len()), (Some(0), 1), "{list}");
    assert_eq!(list[0]["severity"], "warning");
    assert!(list[0]["message"].as_str().unwrap().starts_with("`new_kind_of_norm` is `true`"));
    assert!(list[0]["file"].as_str().unwrap().ends_with("config.json"));
    assert_eq!((&list[0]["line"], &list[0]["column"]), (&Value::from(2), &Value::from(1)));
    assert_eq!(smelt(&[&arguments[..], &["--deny-warnings"]].concat()).0, Some(1));
    let text = std::fs::read_to_string(&spec).unwrap();
    std::fs::write(&spec, text.replacen("\nconfig:", "\nirrelevant: [new_*]\nconfig:", 1)).unwrap();
    assert_eq!(smelt(&[&arguments[..], &["--deny-warnings"]].concat()), (Some(0), Value::Array(vec![])));
    // What is read cannot be irrelevant.
    std::fs::write(&spec, text.replacen("\nconfig:", "\nirrelevant: [hidden_size]\nconfig:", 1)).unwrap();
    let (code, list) = smelt(&arguments);
    assert_eq!(code, Some(1));
    assert!(list[0]["message"].as_str().unwrap().contains("listed as irrelevant"), "{list}");
}

#[test]
fn tensors_are_checked_with_a_model() {
    let folder = edited("", ("layer_norm: emb", "layer_norm: nonesuch.emb"));
    let (spec, dir) = (folder.path().join("mine.yaml"), folder.path().to_str().unwrap());
    let config = folder.path().join("config.json");
    let (spec, config) = (spec.to_str().unwrap(), config.to_str().unwrap());
    assert_eq!(smelt(&["check", spec, "--json", "--config", config]), (Some(0), Value::Array(vec![])));
    let (code, list) = smelt(&["check", spec, "--json", "--model", dir]);
    assert_eq!(code, Some(1));
    let text = list.to_string();
    assert!(text.contains("missing tensor `nonesuch") && text.contains("not used by"), "{text}");
    assert_eq!(smelt(&["check", "--config", config, "--model", dir]).0, Some(2));
    let (code, list) = smelt(&["check", spec, "--json", "--model", "no/such/directory"]);
    assert_eq!((code, &list[0]["severity"]), (Some(1), &Value::from("error")));
}

/// What no config can make work is found in the file alone, and what some config can is not.
#[test]
fn what_cannot_work_is_found_without_a_config() {
    const TOKENS: &str = "{embedding: {at: e, of: token_ids, rows: 2, width: 2}}";
    let cases = [
        ("{}", Some("expected a value of `model`, found none")),
        ("{a: []}", Some("a sequence without blocks")),
        ("{a: [TOKENS], b: [{sum: [[{from: a}], []]}]}", Some("a sequence without blocks")),
        ("{a: [{repeat: 2, body: []}]}", Some("a sequence without blocks")),
        ("{a: [{linear: {at: l, out: 2}}, TOKENS]}", Some("`linear` has no input")),
        ("{a: [{residual: [TOKENS]}]}", Some("`residual` has no input")),
        ("{a: [{product: [TOKENS, {activation: relu}]}]}", Some("`activation` has no input")),
        ("{a: [{repeat: 2, body: [{scale: 2}]}]}", Some("`scale` has no input")),
        ("{a: [{scale: 2, when: $yes}, {scale: 3}]}", Some("`scale` has no input")),
        (
            "{a: [TOKENS, {repeat: -1, body: [{scale: 2}]}]}",
            Some("expected to repeat 0 to 4096 times, found `-1`"),
        ),
        ("{a: [TOKENS, {repeat: 4097, body: [{scale: 2}]}]}", Some("0 to 4096 times, found `4097`")),
        ("{a: [TOKENS, {repeat: 1.0, body: [{scale: 2}]}]}", Some("0 to 4096 times, found `1.0`")),
        ("{a: [TOKENS, {repeat: '2', body: [{scale: 2}]}]}", Some("0 to 4096 times, found the text `2`")),
        ("{a: [TOKENS, {sum: []}]}", Some("`sum` without branches")),
        ("{a: [TOKENS, {product: []}]}", Some("`product` without branches")),
        (
            "{a: [TOKENS, {attention: {q: q, k: k, v: v, o: o, heads: 2, rope: {theta: -5}}}]}",
            Some("expected a positive number, found `-5`"),
        ),
        (
            "{a: [TOKENS, {attention: {q: q, k: k, v: v, o: o, heads: 2, rope: {partial: 1.5}}}]}",
            Some("expected a number above 0, up to 1, found `1.5`"),
        ),
        (
            "{a: [TOKENS, {pool: {rows: first, skip: 0}}]}",
            Some("`skip` has an effect only with `rows: last`"),
        ),
        ("{a: [TOKENS, {pool: {rows: '${yes}', skip: 0}}]}", None),
        ("{a: [{from: a}]}", Some("values need each other: `a` needs `a`")),
        (
            "{a: [{from: b}], b: [{sum: [{from: c}, TOKENS]}], c: [{from: b}]}",
            Some("`b` needs `c` needs `b`"),
        ),
        ("{a: [{concat: [b, a]}], b: TOKENS}", Some("values need each other: `a` needs `a`")),
        ("{a: [{from: b}], b: TOKENS}", None),
        ("{a: [TOKENS, {residual: []}, {sum: [[], {from: b}]}], b: [{scale: 2, when: $yes}, TOKENS]}", None),
        ("{a: [{from: b, when: $yes}, TOKENS], b: [{from: a}]}", None),
        ("{a: [{sum: [TOKENS, {scale: 2, when: $yes}]}]}", None),
    ];
    for (model, expected) in cases {
        let outputs = if model == "{}" { "[]" } else { "[a]" };
        let text = format!(
            "smelt: 1\nmatch: {{}}\nconfig: {{yes: yes}}\nmodel: {}\n\
             heads: {{features: {{match: [], when: $yes, outputs: {outputs}}}}}\n",
            model.replace("TOKENS", TOKENS),
        );
        let found = check_spec(Source::yaml("a.yaml", text).unwrap()).err();
        let found: Vec<String> =
            found.iter().flat_map(|error| error.problems()).map(|problem| problem.message.clone()).collect();
        let fits = match expected {
            Some(part) => found.len() == 1 && found[0].contains(part),
            None => found.is_empty(),
        };
        assert!(fits, "{model}: expected {expected:?}, found {found:?}");
    }
}

#[test]
fn the_same_suggestion_comes_every_time() {
    let names = ["size_a", "size_b", "size_c", "size_d", "size_e"].map(|name| format!("{name}: key"));
    let text = format!(
        "smelt: 1\nmatch: {{}}\nconfig: {{{}}}\nmodel: {{a: {{embedding: {{at: e, of: token_ids, rows: 2, width: $size_x}}}}}}\n",
        names.join(", "),
    );
    for _ in 0..20 {
        let error = check_spec(Source::yaml("a.yaml", text.as_str()).unwrap()).unwrap_err().to_string();
        assert!(error.contains("did you mean `size_a`?"), "{error}");
    }
}

#[test]
fn names_are_no_expressions() {
    let texts = |line: &str| {
        format!(
            "smelt: 1\nmatch: {{}}\nmodel: {{a: {{embedding: {{at: e, of: token_ids, rows: 2, width: 2}}}}}}\n{line}\n"
        )
    };
    for (line, place) in [
        ("weights: {prefix: [x, $a]}", "weights"),
        ("weights: {ignore: a.$i}", "weights"),
        ("weights: {rename: {a.$i: b}}", "weights"),
        ("weights: {rename: {a: $b}}", "weights"),
        ("irrelevant: [$a]", "irrelevant"),
        ("heads: {features: {match: $a, outputs: [a]}}", "match"),
        ("require: {a: $b}", "require"),
        ("config: {b: {key: [x, $a], default: 1}}", "key"),
    ] {
        let error = check_spec(Source::yaml("a.yaml", texts(line)).unwrap()).unwrap_err().to_string();
        let message = format!("values under `{place}` are plain, `$` has no meaning here\n");
        assert!(error.starts_with(&message), "{line}: {error}");
    }
}

/// What is wrong with a head only where it is asked for.
#[test]
fn what_opening_refuses_checking_refuses() {
    let task = "  sequence_classification:\n";
    let cases = [
        ("    when: false\n", "the config has no `sequence_classification`"),
        ("    when: \"${labels | length}\"\n", "expected `when` to be true or false"),
        ("    decoder_start: nonsense\n", "expected a token id, found `nonsense`"),
        ("    decoder_start: -1\n", "expected a token id, found `-1`"),
        ("    decoder_start: \"${labels[0]}\"\n", "cannot evaluate"),
    ];
    for (line, part) in cases {
        let folder = edited("", (task, &format!("{task}{line}")));
        let source = || load_source(folder.path().join("mine.yaml").to_str().unwrap()).unwrap();
        let repository = Repository::open(folder.path()).unwrap();
        let (config, index) = (Config::open(&repository).unwrap(), Index::open(&repository).unwrap());
        let opened = Plan::new(source(), &config, &index, &Target::Config).unwrap_err();
        assert!(opened.to_string().contains(part), "{opened}");
        let found = inspect(source(), Some(&config), Some(&index), &Target::Config);
        let found: Vec<&str> = found.iter().map(|finding| finding.problem.message.as_str()).collect();
        assert!(matches!(found[..], [message] if message.contains(part)), "{line}: {found:?}");
    }
}

#[test]
fn heads_have_what_their_tasks_need() {
    let check = |head: &str| {
        let model = "model: {a: {embedding: {at: e, of: token_ids, rows: 2, width: 1}}}";
        let text = format!("smelt: 1\nmatch: {{}}\n{model}\nheads: {{{head}}}\n");
        check_spec(Source::yaml("a.yaml", text).unwrap()).map_err(|error| error.to_string())
    };
    for (head, part) in [
        ("features: {match: []}", "`features` has no outputs"),
        (
            "token_classification: {match: [], outputs: [a]}",
            "`token_classification` needs an output `logits`",
        ),
        ("question_answering: {match: [], outputs: {start_logits: a}}", "needs an output `end_logits`"),
    ] {
        let error = check(head).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
    check("token_classification: {match: [], outputs: {logits: a}}").unwrap();
}

#[test]
fn a_head_may_have_all_values() {
    let head = "{match: [], logits: {embedding: {at: e, of: token_ids, rows: 2, width: 2}}}";
    let text = format!("smelt: 1\nmatch: {{}}\nmodel: {{}}\nheads: {{causal_lm: {head}}}\n");
    check_spec(Source::yaml("a.yaml", text).unwrap()).unwrap();
}

/// A circle through a value of a head; the values of another head have the same names.
#[test]
fn heads_have_values_of_their_own() {
    let text = "smelt: 1
match: {}
model: {hidden: {embedding: {at: e, of: token_ids, rows: 2, width: 2}}}
heads:
  masked_lm: {match: [], a: {from: hidden}, logits: {from: a}}
  causal_lm: {match: [], logits: {from: hidden}, a: {from: logits}}
";
    check_spec(Source::yaml("a.yaml", text).unwrap()).unwrap();
    let text = text.replace("logits: {from: hidden}", "logits: {from: a}");
    let error = check_spec(Source::yaml("a.yaml", text).unwrap()).unwrap_err().to_string();
    assert!(error.starts_with("values need each other: `logits` needs `a` needs `logits`\n"), "{error}");
}

#[test]
fn a_directory_hides_no_name() {
    let folder = tempfile::tempdir().unwrap();
    let name = builtin::names()[0];
    std::fs::create_dir(folder.path().join(name)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_smelt"));
    let output = command.args(["check", name]).current_dir(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let error = load_source(folder.path().to_str().unwrap()).unwrap_err().to_string();
    assert!(error.contains("neither a file nor a built-in name"), "{error}");
}

#[test]
fn a_description_is_text() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.yaml");
    std::fs::write(&file, b"smelt: 1 # caf\xe9\n").unwrap();
    let error = load_source(file.to_str().unwrap()).unwrap_err().to_string();
    assert!(
        error.contains("mine.yaml`: expected UTF-8 text, found other bytes\n = help: save it"),
        "{error}"
    );
}

#[test]
#[cfg(unix)]
fn a_name_that_is_no_text_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9.yaml");
    let error = smelt::load_from_spec(name, "examples/models/language-id").unwrap_err().to_string();
    assert!(error.starts_with("expected the name of a description in UTF-8, found `caf"), "{error}");
}
