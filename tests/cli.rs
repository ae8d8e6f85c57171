//! The programs, as a user runs them.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use smelt::weights::{BundleData, read_bundle, write_bundle};

fn start(program: &str, arguments: &[&str]) -> Child {
    Command::new(program)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("NO_COLOR", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn run(program: &str, arguments: &[&str], input: impl AsRef<[u8]>) -> Output {
    let mut child = start(program, arguments);
    // A program that needs no input may have ended by now.
    let _ = child.stdin.take().unwrap().write_all(input.as_ref());
    child.wait_with_output().unwrap()
}

fn smelt_run(arguments: &[&str]) -> Output {
    run(env!("CARGO_BIN_EXE_smelt-run"), arguments, "")
}

fn smelt(arguments: &[&str]) -> Output {
    run(env!("CARGO_BIN_EXE_smelt"), arguments, "")
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.is_empty(), "answers only on standard output");
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Tokens before count only where something of them is kept.
#[test]
fn explain_refuses_a_past_that_nothing_keeps() {
    let past = |model: &str, n: &str| smelt(&["explain", "-m", model, "--past", n]);
    let error = stderr(&past("examples/models/language-id", "1000"), 1);
    assert!(error.starts_with("error: `--past`: expected 0, found 1000\n = help: "), "{error}");
    stdout(&past("examples/models/language-id", "0"));
    assert!(stdout(&past("examples/models/prose", "1000")).contains(" after 1000"));
}

/// The fixture directory `tests/golden/*/case`, of the first family that has it.
fn fixture(case: &str) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut dirs: Vec<_> = std::fs::read_dir(golden).unwrap().map(|e| e.unwrap().path().join(case)).collect();
    dirs.sort();
    dirs.into_iter().find(|dir| dir.exists()).unwrap()
}

/// The directory of a fixture that has a `preprocessor_config.json` with this key.
fn perceiving(key: &str) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let folders =
        |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut dirs: Vec<_> = folders(&golden).flat_map(|family| folders(&family).collect::<Vec<_>>()).collect();
    dirs.sort();
    let has = |dir: &PathBuf| {
        let text = std::fs::read_to_string(dir.join("preprocessor_config.json"));
        text.is_ok_and(|text| text.contains(&format!("\"{key}\"")))
    };
    dirs.into_iter().find(has).unwrap()
}

#[test]
fn the_embedded_models_answer() {
    let text = stdout(&smelt_run(&["Where is the nearest station?"]));
    assert!(text.ends_with(" en\n") && text.lines().count() == 1, "{text}");
    assert_eq!(stdout(&smelt_run(&["This is a test", "-n", "3"])).lines().count(), 3);
    let text = stdout(&smelt_run(&["--task", "causal_lm", "The template engine", "--max-tokens", "12"]));
    assert!(text.split_whitespace().count() > 3, "{text}");
    let other = smelt_run(&["--model", "prose", "The template engine", "--max-tokens", "12"]);
    assert_eq!(stdout(&other), text);
}

#[test]
fn lines_of_standard_input_become_lines_of_json() {
    let program = env!("CARGO_BIN_EXE_smelt-run");
    let text = stdout(&run(program, &["--json", "-n", "2"], "This is a test\nDas ist ein kurzer Satz.\n"));
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["text"], "This is a test");
    for (line, language) in lines.iter().zip(["en", "de"]) {
        assert_eq!(line["labels"].as_array().unwrap().len(), 2);
        assert_eq!(line["labels"][0]["label"], language);
        assert!(line["labels"][0]["score"].as_f64().unwrap() > 0.3);
    }
    let text = stdout(&smelt_run(&["--json", "--task", "embed", "a text"]));
    let line: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["embedding"].as_array().unwrap().len(), 96);
    let text = stdout(&smelt_run(&["--json", "--task", "causal_lm", "--max-tokens", "4", "You", "The"]));
    assert!(text.lines().all(|line| serde_json::from_str::<Value>(line).unwrap()["generated"].is_string()));
}

#[test]
fn lines_are_answered_as_they_come() {
    let sampled = ["--json", "--task", "causal_lm", "--max-tokens", "4", "--temperature", "1", "--seed", "3"];
    for arguments in [&["--json"][..], &sampled] {
        let texts = ["You can use", "The template engine", "You can use"];
        let mut child = start(env!("CARGO_BIN_EXE_smelt-run"), arguments);
        let mut input = child.stdin.take().unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut found = Vec::new();
        for text in texts {
            writeln!(input, "{text}").unwrap();
            // There is an answer before there is more to read.
            found.push(answers.next().unwrap().unwrap());
        }
        drop(input);
        assert!(answers.next().is_none() && child.wait().unwrap().success());
        // Chance does not depend on what came when.
        let together = stdout(&smelt_run(&[arguments, &texts].concat()));
        assert_eq!(together.lines().collect::<Vec<_>>(), found);
    }
    // It does depend on the place.
    let at_places = stdout(&smelt_run(&[&sampled[..], &["You can use"; 4]].concat()));
    let mut texts: Vec<&str> = at_places.lines().collect();
    texts.sort_unstable();
    texts.dedup();
    assert!(texts.len() > 1, "{at_places}");
    let help = stdout(&smelt_run(&["--help"])).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.contains("gives the same text at the same place among the texts"), "{help}");
    // So it is without --json: the first has no name, because nobody knows yet that others come.
    let one_line = ["--task", "causal_lm", "--max-tokens", "4", "--stop", "\n"];
    for arguments in [&[][..], &one_line] {
        let mut child = start(env!("CARGO_BIN_EXE_smelt-run"), arguments);
        let mut input = child.stdin.take().unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        writeln!(input, "This is a test").unwrap();
        assert_eq!(answers.next().map(|line| line.starts_with("  ")), Some(false));
        for text in ["You can use", "The template engine"] {
            writeln!(input, "{text}").unwrap();
            assert_eq!(answers.next().as_deref(), Some(text));
            assert!(answers.next().unwrap().starts_with("  "));
        }
        drop(input);
        assert!(answers.next().is_none() && child.wait().unwrap().success());
    }
    // One text alone is not named.
    let program = env!("CARGO_BIN_EXE_smelt-run");
    for (input, lines) in
        [("This is a test\n", 1), ("This is a test", 1), ("This is a test\r\nC'est ça\n", 4)]
    {
        assert_eq!(stdout(&run(program, &[], input)).lines().count(), lines, "{input:?}");
    }
}

#[test]
fn what_stands_before_a_wrong_line_is_answered() {
    let [pairs, masks] = ["question-answering", "masked-lm"].map(fixture);
    let (pairs, masks) = (pairs.to_str().unwrap(), masks.to_str().unwrap());
    let long = [b"a\n".to_vec(), vec![b'a'; (1 << 24) + 1]].concat();
    let cases: [(&[&str], &[u8], usize, &str); 6] = [
        (&[], b"a\nb\n\xff\nd\n", 2, "line 3: expected UTF-8, found the byte 0xff"),
        (&[], b"c\xe7a", 0, "line 1: expected UTF-8, found the byte 0xe7"),
        (&[], &long, 1, "line 2: expected at most 16777216 bytes"),
        (&["-m", pairs, "--pair"], b"who?\tthe cat\nwho?\n", 1, "line 2: expected two texts with a tab"),
        (&["-m", masks], b"the [MASK]\na [MASK]\nthe cat\nthe [MASK]\n", 2, "line 3: "),
        (&["-m", masks], b"the cat\n", 0, "line 1: "),
    ];
    for (arguments, input, answers, expected) in cases {
        let output = run(env!("CARGO_BIN_EXE_smelt-run"), &[arguments, &["--json"]].concat(), input);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {message}");
        assert!(message.starts_with(&format!("error: {expected}")), "{arguments:?}: {message}");
        assert_eq!(output.stdout.split(|b| *b == b'\n').count() - 1, answers, "{arguments:?}");
    }
}

#[test]
fn the_embedded_model_reads_the_beginning_of_a_long_text() {
    let output = smelt_run(&[&"Where is the nearest station? ".repeat(40)]);
    assert!(stdout(&output).trim_end().ends_with(" en"), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("tokens were cut off"), "{output:?}");
}

#[test]
fn pairs_are_questions_with_contexts() {
    let dir = fixture("question-answering");
    let dir = dir.to_str().unwrap();
    let text = stdout(&smelt_run(&["-m", dir, "--json", "--pair", "who sat?", "the cat sat."]));
    let line: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&line["text"], &line["pair"]), (&"who sat?".into(), &"the cat sat.".into()));
    assert_eq!(line["answers"].as_array().unwrap().len(), 1);
    assert!(stderr(&smelt_run(&["-m", dir, "--pair", "one"]), 2).contains("in pairs"));
    let long = "the cat sat. ".repeat(20);
    let output = smelt_run(&["-m", dir, "--json", "--pair", "--truncate", "who sat?", &long]);
    let line: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let note = format!("note: {} tokens were cut off `who sat?`", line["truncated"]);
    assert!(line["truncated"].as_u64() > Some(0), "{line}");
    assert!(String::from_utf8_lossy(&output.stderr).contains(&note), "{output:?}");
}

#[test]
fn raw_tensors_go_in_and_out() {
    let dir = fixture("causal");
    let bundle = dir.join("reference.safetensors");
    let reference = read_bundle(&bundle).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (inputs, outputs) = (folder.path().join("in.safetensors"), folder.path().join("out.safetensors"));
    // Without the prefix `input.`.
    let tensors: Vec<_> = reference
        .iter()
        .filter_map(|(name, a)| {
            Some((name.strip_prefix("input.")?.to_owned(), a.shape().to_vec(), BundleData::I64(a.to_i64()?)))
        })
        .collect();
    write_bundle(&inputs, &tensors).unwrap();
    let steps = "3";
    let arguments = [
        "-m",
        dir.to_str().unwrap(),
        "--inputs",
        inputs.to_str().unwrap(),
        "--outputs",
        outputs.to_str().unwrap(),
        "--hidden-states",
        "--greedy",
        steps,
    ];
    assert_eq!(stdout(&smelt_run(&arguments)), "");
    let found = read_bundle(&outputs).unwrap();
    let mask = reference["input.attention_mask"].to_i64().unwrap();
    for name in ["output.logits", "output.hidden_states.0", "output.hidden_states.2"] {
        assert_eq!(found[name].shape(), reference[name].shape(), "{name}");
        let (a, b) = (found[name].to_f32(), reference[name].to_f32());
        let cols = a.len() / mask.len();
        for (i, on) in mask.iter().enumerate() {
            for (a, b) in a[i * cols..(i + 1) * cols].iter().zip(&b[i * cols..]) {
                let expected = if *on == 1 { *b } else { 0.0 };
                assert!((a - expected).abs() < 1e-4, "{name}: {a} instead of {expected}");
            }
        }
    }
    for row in 0..3 {
        assert_eq!(found[&format!("generate.{row}.tokens")].shape(), [3]);
        assert_eq!(found[&format!("generate.{row}.logits")].shape()[0], 3);
    }
}

#[test]
fn verify_tells_whether_a_model_agrees() {
    let dir = fixture("base");
    let bundle = dir.join("reference.safetensors");
    let arguments = ["verify", "-m", dir.to_str().unwrap(), bundle.to_str().unwrap()];
    let text = stdout(&smelt(&arguments));
    assert!(text.contains("hidden_states.1") && text.contains("agrees within 1e-4"), "{text}");
    let output = smelt(&[&arguments[..], &["--tolerance", "1e-12"]].concat());
    assert_eq!(output.status.code(), Some(1));
    for tolerance in ["nan", "inf", "-1", "little"] {
        let message = stderr(&smelt(&[&arguments[..], &["--tolerance", tolerance]].concat()), 2);
        assert!(message.contains("expected a number from 0 on"), "{message}");
    }
    let message = stderr(&smelt(&[&arguments[..], &["--skip", "nope"]].concat()), 1);
    assert!(message.contains("has no output `nope` to skip"), "{message}");
    let outputs = ["last_hidden_state", "pooler_output", "hidden_states"];
    let all: Vec<&str> = outputs.iter().flat_map(|name| ["--skip", name]).collect();
    let message = stderr(&smelt(&[&arguments[..], &all].concat()), 1);
    assert!(message.contains("nothing is left to compare"), "{message}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("first to differ by more than 1e-12: hidden_states."), "{text}");
    // An architecture of one's own.
    let spec = ["--arch", "examples/classifier.yaml", "-m", "examples/models/language-id"];
    let bundle = "tests/golden/embedded/language-id.safetensors";
    stdout(&smelt(&[&["verify", bundle][..], &spec].concat()));
}

#[test]
fn verify_skips_what_it_prints() {
    let dir = fixture("causal");
    let bundle = dir.join("reference.safetensors");
    let arguments = ["verify", "-m", dir.to_str().unwrap(), bundle.to_str().unwrap()];
    let names = |more: &[&str]| -> Vec<String> {
        let found: Value =
            serde_json::from_str(&stdout(&smelt(&[&arguments[..], &["--json"], more].concat()))).unwrap();
        let outputs = found["outputs"].as_array().unwrap().iter();
        outputs.map(|output| output["name"].as_str().unwrap().to_owned()).collect()
    };
    let all = names(&[]);
    assert!(all.iter().any(|name| name == "generate.0.tokens"), "{all:?}");
    // Each as it is printed, and what begins like it.
    for skipped in all.iter().map(String::as_str).chain(["generate", "generate.0", "hidden_states"]) {
        let is_part = |name: &str| name == skipped || name.starts_with(&format!("{skipped}."));
        let left: Vec<&String> = all.iter().filter(|name| !is_part(name)).collect();
        assert!(left.len() < all.len() && names(&["--skip", skipped]).iter().eq(left), "{skipped}");
    }
    for name in ["generate.0.prompt", "input.input_ids", "generat"] {
        let message = stderr(&smelt(&[&arguments[..], &["--skip", name]].concat()), 1);
        assert!(message.contains(&format!("has no output `{name}` to skip")), "{message}");
    }
    // Only what is missing can be left out.
    type Tensors = Vec<(String, Vec<usize>, BundleData)>;
    let rewritten = |change: &dyn Fn(&mut Tensors)| {
        let tensor = |(name, a): (String, smelt::tensor::Array)| {
            let data = a.to_i64().map_or_else(|| BundleData::F32(a.to_f32()), BundleData::I64);
            (name, a.shape().to_vec(), data)
        };
        let mut tensors: Tensors = read_bundle(&bundle).unwrap().into_iter().map(tensor).collect();
        change(&mut tensors);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("other.safetensors");
        write_bundle(&file, &tensors).unwrap();
        stderr(&smelt(&["verify", "-m", dir.to_str().unwrap(), file.to_str().unwrap()]), 1)
    };
    for name in ["output.pooler_output", "output.hidden_states.99"] {
        let message = rewritten(&|all| all.push((name.into(), vec![1], BundleData::F32(vec![0.0]))));
        assert!(message.contains("help: `--skip NAME`"), "{message}");
    }
    let message = rewritten(&|tensors| {
        for (name, _, data) in tensors {
            if let ("input.input_ids", BundleData::I64(ids)) = (name.as_str(), data) {
                ids[0] = 1_000_000;
            }
        }
    });
    assert!(message.starts_with("error: ") && !message.contains("--skip"), "{message}");
}

#[test]
fn verify_names_the_line_to_blame() {
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/modules");
    let mut files = std::fs::read_dir(modules).unwrap().map(|entry| entry.unwrap().path());
    let bundle = files.find(|path| path.to_string_lossy().ends_with("-masked-lm.safetensors")).unwrap();
    let family = bundle.file_name().unwrap().to_str().unwrap().split('-').next().unwrap().to_owned();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{family}/masked-lm"));
    let (dir, bundle) = (dir.to_str().unwrap(), bundle.to_str().unwrap());
    let text = stdout(&smelt(&["verify", "-m", dir, bundle, "--all"]));
    assert!(text.contains("only in the reference:") && text.contains("each of 25 modules agrees"), "{text}");
    let right: Value =
        serde_json::from_str(&stdout(&smelt(&["verify", "-m", dir, bundle, "--json"]))).unwrap();
    assert!(right["agrees"] == true && right["culprit"].is_null() && right["suspect"].is_null());
    assert_eq!(right["modules"].as_array().unwrap().len(), 25);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.yaml");
    let text = std::fs::read_to_string(format!("architectures/{family}.yaml")).unwrap();
    let wrong = text.replacen("inner: $inner, act: $act", "inner: $inner, act: tanh", 1);
    let line = wrong.lines().position(|line| line.contains("act: tanh")).unwrap() + 1;
    std::fs::write(&file, &wrong).unwrap();
    let arguments = ["verify", "-m", dir, bundle, "--arch", file.to_str().unwrap()];
    let output = smelt(&arguments);
    assert_eq!(output.status.code(), Some(1));
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains("first to diverge: input of `encoder.layer.0.output.dense` by"), "{shown}");
    assert!(shown.contains(&format!("mine.yaml:{line}:15 (`mlp`, layer 0 of 2)")), "{shown}");
    let output = smelt(&[&arguments[..], &["--json"]].concat());
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &found["culprit"]["fault"]), (Some(1), &"block".into()));
    assert_eq!(found["culprit"]["place"]["line"], line);
}

#[test]
fn a_mistake_is_shown_where_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.yaml");
    let text = std::fs::read_to_string("examples/classifier.yaml").unwrap();
    std::fs::write(&file, text.replacen("layer_norm: emb", "layernorm: emb", 1)).unwrap();
    let file = file.to_str().unwrap();
    for output in
        [smelt(&["check", file]), smelt_run(&["--arch", file, "-m", "examples/models/language-id", "x"])]
    {
        let message = stderr(&output, 1);
        assert!(message.starts_with("error: unknown block `layernorm`\n"), "{message}");
        assert!(
            message.contains("mine.yaml:26:7") && message.contains("did you mean `layer_norm`?"),
            "{message}"
        );
    }
    assert!(stdout(&smelt(&["check", "examples/classifier.yaml"])).contains("nothing wrong"));
    let task = |task| smelt(&["check", "-m", "examples/models/language-id", "--task", task]);
    assert!(stdout(&task("embed")).contains("nothing wrong"));
    assert!(stderr(&task("masked_lm"), 1).contains("missing tensor `cls."));
}

#[test]
fn wrong_requests_have_their_exit_codes() {
    let cases: [(&[&str], i32, &str); 34] = [
        (&["--no-such-option", "x"], 2, "--no-such-option"),
        (&["-n", "many", "x"], 2, "many"),
        (&["--pooling", "middle", "x"], 2, "lasttoken"),
        (&["--inputs", "a.safetensors"], 2, "--outputs"),
        (&["-m", "no/such/directory", "x"], 1, "no/such/directory"),
        (&["--arch", "no-such-arch", "x"], 1, "built in are"),
        (&["--memory-limit", "1k", "x"], 1, "limit of 1.0 kB"),
        (&["--memory-limit", "2kB", "x"], 1, "limit of 2.0 kB"),
        (&["--memory-limit", "7b", "x"], 1, "limit of 7 B"),
        (&["--memory-limit", "-1", "x"], 2, "expected a number of bytes, such as 500M or 8G"),
        (&["--memory-limit", "8GBBB", "x"], 2, "expected a number of bytes, such as 500M or 8G"),
        (&["--memory-limit", "8BG", "x"], 2, "expected a number of bytes, such as 500M or 8G"),
        (&["--memory-limit", "B", "x"], 2, "expected a number of bytes, such as 500M or 8G"),
        (&["--task", "causal_lm", "--top-p", "3", "x"], 2, "top_p"),
        (&["--task", "causal_lm", "--temperature", "-1", "x"], 2, "a number from 0 on, found -1"),
        (&["--task", "causal_lm", "--top-k", "0", "x"], 2, "0 is not in 1.."),
        (&["--task", "causal_lm", "--top-k", "3", "x"], 2, "`--top-k` needs a `--temperature` above 0"),
        (&["--task", "causal_lm", "--top-p", "1", "x"], 2, "`--top-p` needs a `--temperature` above 0"),
        (&["--task", "causal_lm", "--min-p", "0", "x"], 2, "`--min-p` needs a `--temperature` above 0"),
        (&["--task", "causal_lm", "--seed", "1", "x"], 2, "`--seed` needs a `--temperature` above 0"),
        (
            &["--task", "causal_lm", "--seed", "1", "--temperature", "0", "x"],
            2,
            "`--seed` needs a `--temperature` above 0",
        ),
        (&["--task", "causal_lm", "--stop", "a", "--stop", "", "x"], 2, "`--stop`: expected a text"),
        (&["-n", "0", "x"], 2, "0 is not in 1.."),
        (&["--threads", "0", "x"], 2, "0 is not in 1..=1024"),
        (&["--threads", "100000", "x"], 2, "100000 is not in 1..=1024"),
        (&["--threads", "-1", "x"], 2, "invalid value '-1'"),
        (&["--outputs", "b.safetensors", "x"], 2, "error: `--outputs` needs `--inputs`"),
        (&["--outputs", "b.safetensors"], 2, "error: `--outputs` needs `--inputs`"),
        (&["--hidden-states", "x"], 2, "error: `--hidden-states` needs `--inputs`"),
        (&["--greedy", "2", "x"], 2, "error: `--greedy` needs `--inputs`"),
        // Raw tensors have no words.
        (&["--inputs", "a.safetensors", "--outputs", "b.safetensors", "--json"], 2, "cannot be used with"),
        (&["--inputs", "a.safetensors", "--outputs", "b.safetensors", "-n", "2"], 2, "cannot be used with"),
        (
            &["--inputs", "a.safetensors", "--outputs", "b.safetensors", "--seed", "2"],
            2,
            "cannot be used with",
        ),
        (
            &["--inputs", "a.safetensors", "--outputs", "b.safetensors", "--stop", "x"],
            2,
            "cannot be used with",
        ),
    ];
    for (arguments, code, part) in cases {
        let message = stderr(&smelt_run(arguments), code);
        assert!(message.contains(part), "{arguments:?}: {message}");
    }
}

#[test]
fn options_that_mean_nothing_to_the_model_are_refused() {
    let cases: [(&str, &[&str]); 3] = [
        (
            "sequence_classification",
            &[
                "--pooling mean",
                "--max-tokens 3",
                "--temperature 0",
                "--top-k 3 --temperature 1",
                "--top-p 1 --temperature 1",
                "--min-p 0 --temperature 1",
                "--repetition-penalty 1",
                "--seed 1 --temperature 1",
                "--stop x",
                "--label x",
                "--language en",
                "--translate",
            ],
        ),
        ("causal_lm", &["-n 2", "--pooling mean", "--label x", "--language en"]),
        ("embed", &["-n 2", "--max-tokens 3"]),
    ];
    for (task, options) in cases {
        for option in options {
            let option: Vec<&str> = option.split(' ').collect();
            let message = stderr(&smelt_run(&[&["--task", task, "x"], &option[..]].concat()), 1);
            let expected = format!("error: `{}` is for models that ", option[0]);
            assert!(message.starts_with(&expected), "{task}, {option:?}: {message}");
        }
    }
    stdout(&smelt_run(&["--task", "embed", "--pooling", "max", "x"]));
}

#[test]
fn a_file_of_its_name_does_not_hide_the_embedded_model() {
    let folder = tempfile::tempdir().unwrap();
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_smelt-run"));
        command.args(arguments).arg("This is a test").current_dir(&folder).output().unwrap()
    };
    std::fs::write(folder.path().join("language-id"), "").unwrap();
    assert!(stdout(&ask(&[])).ends_with(" en\n"));
    assert!(stdout(&ask(&["--model", "language-id"])).ends_with(" en\n"));
    // A directory may be meant where a model is named.
    std::fs::remove_file(folder.path().join("language-id")).unwrap();
    std::fs::create_dir(folder.path().join("language-id")).unwrap();
    assert!(stdout(&ask(&[])).ends_with(" en\n"));
    assert!(stderr(&ask(&["--model", "language-id"]), 1).contains("config.json"));
}

#[test]
fn the_programs_tell_their_names() {
    assert!(stdout(&smelt_run(&["--version"])).starts_with("smelt-run "));
    assert!(stdout(&smelt(&["--version"])).starts_with("smelt "));
}

#[test]
fn blocks_are_explained() {
    assert!(stdout(&smelt(&["blocks"])).lines().count() >= 13);
    assert!(stdout(&smelt(&["blocks", "attention"])).contains("kv_heads"));
    let all = stdout(&smelt(&["blocks"]));
    for name in ["residual", "sum", "product", "repeat", "when"] {
        let line = all.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        assert!(line.ends_with('.'), "{line}");
        let text = stdout(&smelt(&["blocks", name]));
        assert!(text.starts_with(&format!("{name}\n\n")) && text.ends_with("\n"), "{text}");
        assert!(text.contains(&format!("{name}:")) && !text.contains("\n#"), "{text}");
    }
    assert!(stderr(&smelt(&["blocks", "layernorm"]), 2).contains("'layer_norm'"));
}

#[test]
fn new_drafts_from_headers_and_overwrites_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("model");
    std::fs::create_dir(&dir).unwrap();
    std::fs::copy("examples/models/language-id/config.json", dir.join("config.json")).unwrap();
    let mut bytes = std::fs::read("examples/models/language-id/model.safetensors").unwrap();
    // A file may end behind its header.
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    bytes.truncate(8 + usize::try_from(header).unwrap());
    std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
    let out = folder.path().join("mine.yaml");
    let arguments = ["new", "-m", dir.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let output = smelt(&arguments);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{message}");
    // Of descriptions that fit as well that for the config's own type.
    let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let own = config["model_type"].as_str().unwrap();
    assert_eq!(message, format!("made from {own}; 0 things not explained\n"));
    std::fs::write(&out, "precious").unwrap();
    let message = stderr(&smelt(&arguments), 1);
    assert!(message.contains("exists already") && message.contains("--force"), "{message}");
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "precious");
    assert!(smelt(&[&arguments[..], &["--force"]].concat()).status.success());
    assert!(std::fs::read_to_string(&out).unwrap().starts_with("# Draft by"));
    // A file is written in one go: other names of the old one keep what it was.
    let other = folder.path().join("other.yaml");
    std::fs::write(&out, "precious").unwrap();
    std::fs::hard_link(&out, &other).unwrap();
    assert!(smelt(&[&arguments[..], &["--force"]].concat()).status.success());
    assert_eq!(std::fs::read_to_string(&other).unwrap(), "precious");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3, "the model and both files");
    let nowhere = folder.path().join("nowhere/mine.yaml");
    for path in [nowhere.as_path(), folder.path()] {
        let path = path.to_str().unwrap();
        let message = stderr(&smelt(&["new", "-m", dir.to_str().unwrap(), "--out", path]), 1);
        assert!(message.starts_with(&format!("error: cannot write `{path}`: ")), "{message}");
    }
}

#[test]
fn bench_tells_times_as_json() {
    let arguments = ["bench", "-m", "examples/models/prose", "decode:4:3", "2x8", "--runs", "2", "--json"];
    let text = stdout(&smelt(&[&arguments[..], &["--compute", "f32"]].concat()));
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    for (line, shape) in lines.iter().zip(["decode:4:3", "2x8"]) {
        assert_eq!((&line["contender"], &line["shape"]), (&Value::from("smelt"), &Value::from(shape)));
        assert_eq!((&line["dtype"], &line["runs"]), (&Value::from("f16"), &Value::from(2)));
        assert_eq!(line["compute"], "f32");
        for key in ["ms_median", "ms_min", "tokens_per_s", "gb_per_s", "gflops_per_s", "peak_gb_per_s"] {
            assert!(line[key].as_f64().unwrap() > 0.0, "{key} of {line}");
        }
    }
    assert!(lines[0]["cold_ms"].as_f64().unwrap() > 0.0 && lines[1]["cold_ms"].is_null());
    // The memory of the model, not that of what measures the machine.
    if cfg!(target_os = "linux") {
        assert!(lines[0]["rss_mb"].as_u64().unwrap() < 100, "{text}");
    }
    assert!(lines[1]["rss_mb"].is_null());
    let arguments = ["bench", "-m", "examples/models/prose", "prefill:8", "--runs", "1", "--compute", "bf16"];
    let text = stdout(&smelt(&arguments));
    assert!(text.starts_with("prefill:8: ") && text.contains(".yaml, bf16, compute bf16, "), "{text}");
    assert!(text.contains("in 1 run), ") && text.contains("tokens/s"), "{text}");
}

#[test]
fn bench_takes_turns_with_other_programs() {
    let arguments = ["bench", "--worker", "-m", "examples/models/prose", "mixed2", "--dtype", "q8"];
    let text = stdout(&run(env!("CARGO_BIN_EXE_smelt"), &arguments, "run\n\nrun\n"));
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0]["ready"] == true && lines[0]["cold_ms"].as_f64().unwrap() > 0.0);
    assert!(lines[1..].iter().all(|line| line["ms"].as_f64().unwrap() > 0.0));
}

#[test]
fn bench_times_encoder_decoders_images_and_sounds() {
    let [texts, images, both] = ["conditional-generation", "image-classification", "model"].map(fixture);
    let sounds = perceiving("sampling_rate");
    // With how many tokens, images or sounds one of the times stands for.
    let cases = [
        (&texts, "2x8", "tokens", 16.0),
        (&texts, "decode:20:4", "tokens", 1.0),
        (&texts, "batch:3:20:4", "tokens", 3.0),
        (&texts, "prefill:20", "tokens", 21.0), // and the one that the decoder begins with
        (&texts, "total:2:20:4", "tokens", 48.0),
        (&sounds, "decode:4:4", "tokens", 1.0),
        (&sounds, "prefill:4", "tokens", 4.0),
        (&sounds, "total:2:4:4", "tokens", 14.0),
        (&sounds, "sounds2", "sounds", 2.0),
        (&images, "images3", "images", 3.0),
        (&both, "images3", "images", 3.0),
    ];
    let mut work = std::collections::HashMap::new();
    for (dir, shape, unit, expected) in cases {
        let dir = dir.to_str().unwrap();
        let text = stdout(&smelt(&["bench", "-m", dir, shape, "--runs", "1", "--threads", "1", "--json"]));
        let line: Value = serde_json::from_str(&text).unwrap();
        let number = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{key} of {line}"));
        let amount = number(&format!("{unit}_per_s")) * number("ms_median") / 1e3;
        assert!((amount / expected - 1.0).abs() < 0.2, "{dir} {shape}: {amount}");
        work.insert((dir.to_owned(), shape), number("gflops_per_s") * number("ms_median"));
        let text = stdout(&run(
            env!("CARGO_BIN_EXE_smelt"),
            &["bench", "-m", dir, shape, "--threads", "1", "--worker"],
            "run\n",
        ));
        let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert!(text.lines().count() == 2 && last["ms"].as_f64().unwrap() > 0.0, "{text}");
    }
    // What the encoder does belongs to the first token.
    for (dir, decode, prefill) in
        [(&texts, "decode:20:4", "prefill:20"), (&sounds, "decode:4:4", "prefill:4")]
    {
        let work = [decode, prefill].map(|shape| work[&(dir.to_str().unwrap().to_owned(), shape)]);
        assert!(work[0] > 0.0 && 3.0 * work[0] < work[1], "{work:?}");
    }
}

#[test]
fn bench_says_what_a_model_reads() {
    let [texts, images, both] = ["conditional-generation", "image-classification", "model"].map(fixture);
    let (tower, sounds) = (fixture("vision-projection"), perceiving("sampling_rate"));
    let cases = [
        (&texts, "texts", "`8x128` or `decode:16:32`", "images1|sounds1"),
        (&images, "images", "`images8`", "1x8|mixed2|lengths:8|decode:4:3|prefill:4|sounds1"),
        (&tower, "images", "`images8`", "1x8|decode:4:3|sounds1"),
        (&sounds, "sounds", "`sounds1` or `decode:4:32`", "1x8|images1"),
        (&both, "texts and images", "`8x128` or `images8`", "decode:4:3|sounds1"),
    ];
    for (dir, reads, fitting, shapes) in cases {
        for shape in shapes.split('|') {
            let message = stderr(&smelt(&["bench", "-m", dir.to_str().unwrap(), shape]), 1);
            let expected =
                format!("error: expected a shape for a model that reads {reads}, found `{shape}`\n");
            assert!(message.starts_with(&expected) && message.contains(fitting), "{message}");
        }
    }
    let cases = [
        (&texts, "decode:38:2", "expected at most 37 tokens in a sequence"),
        (&sounds, "total:1:4:28", "expected at most 30 tokens in a sequence"),
        (&images, "images1000000", "expected at most 268435456 numbers in all, found [1000000, 3, "),
    ];
    for (dir, shape, expected) in cases {
        let message = stderr(&smelt(&["bench", "-m", dir.to_str().unwrap(), shape]), 1);
        assert!(message.contains(expected), "{shape}: {message}");
    }
}

/// What `smelt` answers into `out`: its exit code and its messages.
fn smelt_into(out: impl Into<Stdio>, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smelt"));
    command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
    let output = command.stdout(out).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn output_that_nobody_reads_is_no_mistake_and_a_full_disk_is_one() {
    const MODEL: &str = "examples/models/language-id";
    const SPEC: &str = "examples/classifier.yaml";
    let bundle = "tests/golden/embedded/language-id.safetensors";
    let prose = "examples/models/prose";
    let cases: [&[&str]; 12] = [
        &["explain", "-m", MODEL],
        &["explain", "-m", MODEL, "--svg"],
        &["explain", "-m", MODEL, "--tensors"],
        &["explain", "-m", MODEL, "--json"],
        &["explain", "-m", MODEL, "--diff", SPEC, SPEC],
        &["new", "-m", MODEL],
        &["check", "-m", MODEL],
        &["verify", "-m", MODEL, bundle],
        &["bench", "-m", prose, "decode:4:2", "--runs", "1"],
        &["bench", "-m", prose, "decode:4:2", "--worker"],
        &["blocks"],
        &["schema"],
    ];
    for arguments in cases {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (code, message) = smelt_into(writer, arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {message}");
        assert!(!message.contains("error"), "{arguments:?}: {message}");
        if cfg!(target_os = "linux") {
            let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
            let (code, message) = smelt_into(full, arguments);
            assert_eq!(code, Some(1), "{arguments:?}: {message}");
            assert!(message.contains("error: cannot write the output"), "{arguments:?}: {message}");
        }
    }
    // A verdict stays what it is.
    for arguments in [
        &["verify", "-m", MODEL, bundle, "--tolerance", "0"][..],
        &["verify", "-m", MODEL, bundle, "--tolerance", "0", "--json"],
        &["check", "--json", "no-such-arch"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (code, message) = smelt_into(writer, arguments);
        assert_eq!(code, Some(1), "{arguments:?}: {message}");
    }
    // Nor is there a panic where nobody reads what is wrong.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_smelt"));
    let status =
        command.args(["check", "no-such-arch"]).stdout(Stdio::null()).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn bench_refuses_what_is_no_shape() {
    let cases = [
        ("expected a shape such as 8x128", "|8|0x8|8x|x|mixed|mixed0|mixed4,5|decode:4|lengths:|total:1:2"),
        ("expected a shape such as 8x128", "images|images0|images-1|images2x2|sounds|sounds0|sounds:2"),
        ("expected at most 64 sequences", "mixed65"),
        ("expected at most 1048576 images in all", "images1048577"),
        ("expected at most 1048576 sounds in all", "sounds99999999999999"),
        ("expected at least 2 new tokens", "decode:4:1|batch:2:4:1"),
        (
            "expected at most 1048576 tokens in all",
            "1048576x1048576|1x1048577|lengths:1048576,1|batch:1048576:1048576:2|prefill:1048576",
        ),
    ];
    for (expected, shapes) in cases {
        for shape in shapes.split('|') {
            let message = stderr(&smelt(&["bench", "-m", "examples/models/prose", shape]), 2);
            assert!(message.contains(expected), "{shape}: {message}");
        }
    }
    let message = stderr(&smelt(&["bench", "-m", "examples/models/prose", "1x8", "2x8", "--worker"]), 2);
    assert!(message.contains("expected one shape for `--worker`"), "{message}");
    assert!(message.contains("Usage: smelt bench "), "{message}");
    for arguments in [["bench", "1x8"], ["explain", "examples/classifier.yaml"]] {
        let given = ["-m", "examples/models/prose", "--threads", "0"];
        let message = stderr(&smelt(&[&arguments[..], &given].concat()), 2);
        assert!(message.contains("0 is not in 1..=1024"), "{message}");
    }
    let message = stderr(&smelt(&["bench", "-m", fixture("base").to_str().unwrap(), "1x8"]), 1);
    assert!(message.contains("expected a vocabulary of more than 300 tokens, found "), "{message}");
    let message = stderr(&smelt(&["bench", "-m", "examples/models/prose", "1x100000"]), 1);
    assert!(message.contains("expected at most"), "{message}");
}

#[test]
fn weights_of_fewer_bits_give_nearly_the_same_answer() {
    let answer = |dtype: &str| {
        let text = stdout(&smelt_run(&["--json", "--dtype", dtype, "Where is the nearest station?"]));
        let answer: Value = serde_json::from_str(&text).unwrap();
        let label = &answer["labels"][0];
        (label["label"].as_str().unwrap().to_owned(), label["score"].as_f64().unwrap())
    };
    let exact = answer("f32");
    for (dtype, bound) in [("bf16", 0.01), ("q8", 0.01), ("q4", 0.2)] {
        let found = answer(dtype);
        assert_eq!(found.0, exact.0, "{dtype}");
        assert!(found.1 != exact.1 && (found.1 - exact.1).abs() < bound, "{dtype}: {found:?}, {exact:?}");
    }
    let message = stderr(&smelt_run(&["--dtype", "q5", "a text"]), 2);
    assert!(message.contains("expected one of f32, f16, bf16, q8, q4"), "{message}");
}

#[test]
fn the_reference_implementation_multiplies_in_float32() {
    let message = stderr(&smelt_run(&["--reference", "--compute", "bf16", "a text"]), 1);
    assert!(message.contains("the reference implementation multiplies in float32"), "{message}");
    let options = ["--reference", "--compute", "f32", "--dtype", "bf16", "This is a test"];
    assert!(stdout(&smelt_run(&options)).ends_with(" en\n"));
}

#[test]
fn packed_weights_are_kept_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("packed");
    let file = file.to_str().unwrap();
    let answer =
        |more: &[&str]| stdout(&smelt_run(&[&["-n", "2", "Where is the nearest station?"], more].concat()));
    for dtype in ["f32", "q4"] {
        let expected = answer(&["--dtype", dtype]);
        assert_eq!(answer(&["--dtype", dtype, "--packed", file]), expected);
        let written = std::fs::read(file).unwrap();
        assert_eq!(answer(&["--dtype", dtype, "--packed", file]), expected);
        assert!(std::fs::read(file).unwrap() == written);
    }
    let model = fixture("causal");
    let model = ["bench", "--model", model.to_str().unwrap(), "--runs", "1", "--packed", file, "decode:4:2"];
    for _ in 0..2 {
        stdout(&smelt(&model));
    }
    let message = stderr(&smelt_run(&["--packed", "Cargo.toml", "a text"]), 1);
    assert!(message.contains("Cargo.toml") && message.contains("name another file"), "{message}");
    stderr(&smelt_run(&["--packed", file, "--reference", "a text"]), 2);
}

#[test]
#[cfg(not(feature = "image"))]
fn images_need_their_feature() {
    let dir = perceiving("resample");
    let message = stderr(&smelt_run(&["-m", dir.to_str().unwrap(), "photo.jpg"]), 1);
    assert!(message.contains("`photo.jpg` needs the feature `image`"), "{message}");
    assert!(message.contains("cargo install --path . --features image,audio"), "{message}");
}

#[test]
#[cfg(not(feature = "audio"))]
fn sounds_need_their_feature() {
    let dir = perceiving("sampling_rate");
    let message = stderr(&smelt_run(&["-m", dir.to_str().unwrap(), "speech.wav"]), 1);
    assert!(message.contains("`speech.wav` needs the feature `audio`"), "{message}");
    assert!(message.contains("cargo install --path . --features image,audio"), "{message}");
}
