//! Lists the files in `architectures/`, so that they can be compiled in without naming any of them.

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
}
