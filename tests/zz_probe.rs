use std::fs;
use smelt::weights::*;
#[test]
fn probe() {
    let d = tempfile::TempDir::new().unwrap();
    let real = d.path().join("real.safetensors");
    let link = d.path().join("link.safetensors");
    fs::write(&real, b"old").unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let r = write_bundle(&link, &[("x".into(), vec![1], BundleData::F32(vec![1.0]))]);
    println!("PROBE link write: {r:?}; still a link: {}; real is: {:?}",
        fs::symlink_metadata(&link).unwrap().is_symlink(), fs::read(&real).unwrap().len());
    let keep = d.path().join("o.safetensors.part");
    fs::write(&keep, b"mine").unwrap();
    let r = write_bundle(&d.path().join("o.safetensors"), &[("x".into(), vec![1], BundleData::F32(vec![1.0]))]);
    println!("PROBE .part: {r:?}; user's file exists: {}", keep.exists());
    let e = Repository::open(&d.path().join("missing")).unwrap_err();
    println!("PROBE missing dir: {e}");
    let sub = d.path().join("gguf"); fs::create_dir(&sub).unwrap(); fs::write(sub.join("q.gguf"), b"GGUF").unwrap();
    println!("PROBE open of gguf-only dir is_ok: {}", Repository::open(&sub).is_ok());
    // a shard whose name carries an escape sequence, with a broken header
    let evil = "a\u{1b}[31mRED\n.safetensors";
    let s = d.path().join("s"); fs::create_dir(&s).unwrap();
    fs::write(s.join(evil), b"").unwrap();
    fs::write(s.join("model.safetensors.index.json"), r#"{"weight_map":{"a":"a\u001b[31mRED\n.safetensors"}}"#).unwrap();
    let e = Index::open(&Repository::open(&s).unwrap()).unwrap_err().to_string();
    println!("PROBE control chars raw in message: {} {e:?}", e.contains('\u{1b}'));
}
#[test]
fn wide_shape_memory() {
    let n = 33_000_000usize; // ~99 MB of header in one shape
    let mut h = String::from(r#"{"a":{"dtype":"F32","shape":["#);
    h.push_str(&"0, ".repeat(n - 1)); h.push_str(r#"0],"data_offsets":[0,0]}}"#);
    let mut b = (h.len() as u64).to_le_bytes().to_vec(); b.extend(h.as_bytes());
    let len = b.len(); let d = tempfile::TempDir::new().unwrap();
    fs::write(d.path().join("model.safetensors"), &b).unwrap(); drop(b); drop(h);
    let peak = || fs::read_to_string("/proc/self/status").unwrap().lines().find(|l| l.starts_with("VmHWM")).unwrap().to_owned();
    fs::write("/proc/self/clear_refs", "5").ok();
    println!("PROBE wide before: {}", peak());
    let r = Index::open(&Repository::open(d.path()).unwrap());
    println!("PROBE wide file {len}: ok={} {}", r.is_ok(), peak());
}
