//! A model is a description, not code: no Rust file knows the name of one.

use std::path::{Path, PathBuf};

use smelt::spec::{Problems, Source, Spec, Tree};

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn no_rust_file_names_a_model() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root.join("architectures")).unwrap().flatten() {
        if entry.path().extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        names.push(entry.path().file_stem().unwrap().to_str().unwrap().to_lowercase());
        let source = Source::yaml("spec", std::fs::read_to_string(entry.path()).unwrap()).unwrap();
        for test in Spec::parse(source, &mut Problems::default()).matches {
            names.extend(test.accepted.iter().filter_map(Tree::as_text).map(str::to_lowercase));
        }
    }
    assert!(names.len() >= 8);
    let mut files = vec![root.join("build.rs")];
    for dir in ["src", "tests", "examples"] {
        rust_files(&root.join(dir), &mut files);
    }
    assert!(files.len() > 60);
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap().to_lowercase();
        for word in text.split(|c: char| !c.is_alphanumeric() && c != '_') {
            assert!(!names.iter().any(|name| name == word), "`{word}` in {}", file.display());
        }
    }
}
