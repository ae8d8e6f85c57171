//! Lists the files in `architectures/` and `examples/models/`, so that they can be compiled in without naming any of them.

use std::path::Path;
use std::{env, fs};

fn main() {
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let folder = Path::new(&root).join("architectures");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut files: Vec<_> = fs::read_dir(&folder)
        .expect("the folder `architectures`")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    let mut code = String::from("const ARCHITECTURES: &[(&str, &str)] = &[\n");
    for path in files {
        let name = path.file_stem().and_then(|name| name.to_str()).expect("a UTF-8 name");
        code += &format!("    ({name:?}, include_str!({:?})),\n", path.display().to_string());
    }
    code += "];\n";
    let out = env::var("OUT_DIR").expect("cargo sets it");
    fs::write(Path::new(&out).join("architectures.rs"), code).expect("writing to OUT_DIR");
    fs::write(Path::new(&out).join("models.rs"), models(&Path::new(&root).join("examples/models")))
        .expect("writing to OUT_DIR");
}

/// Files of a model directory that are needed to run it.
const NEEDED: [&str; 5] =
    ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];

fn models(folder: &Path) -> String {
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut code = String::from("const MODELS: &[(&str, &Files)] = &[\n");
    let mut models: Vec<_> = fs::read_dir(folder).expect("the folder `examples/models`").flatten().collect();
    models.sort_by_key(|entry| entry.path());
    for model in models {
        code += &format!("    ({:?}, &[\n", model.file_name().to_str().expect("a UTF-8 name"));
        for file in NEEDED {
            let path = model.path().join(file);
            if path.exists() {
                code += &format!("        ({file:?}, include_bytes!({:?})),\n", path.display().to_string());
            }
        }
        code += "    ]),\n";
    }
    code + "];\n"
}
