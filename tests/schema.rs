//! The JSON Schema of the language: it is the one that is checked in, every description fits it, and mistakes do not.

use std::path::Path;

use serde_json::Value;
use smelt::spec::Tree;

/// Whether a value fits a schema; knows the keywords that the schema uses, and no others.
fn fits(value: &Tree, schema: &Value, root: &Value) -> bool {
    let Value::Object(keywords) = schema else { panic!("{schema}") };
    keywords.iter().all(|(keyword, expected)| match (keyword.as_str(), value) {
        ("$schema" | "$defs" | "title" | "description", _) => true,
        ("$ref", _) => {
            let path = expected.as_str().unwrap().strip_prefix('#').unwrap();
            fits(value, root.pointer(path).unwrap(), root)
        }
        ("anyOf", _) => expected.as_array().unwrap().iter().any(|choice| fits(value, choice, root)),
        ("const", _) => same(value, expected),
        ("enum", _) => expected.as_array().unwrap().iter().any(|one| same(value, one)),
        ("type", _) => match (expected.as_str().unwrap(), value) {
            ("integer", Tree::Float(x)) => x.fract() == 0.0,
            ("number", Tree::Int(_) | Tree::Float(_))
            | ("integer", Tree::Int(_))
            | ("string", Tree::Text(_))
            | ("boolean", Tree::Bool(_))
            | ("null", Tree::Null)
            | ("array", Tree::List(_))
            | ("object", Tree::Map(_)) => true,
            _ => false,
        },
        ("minimum", Tree::Int(n)) => *n >= expected.as_i64().unwrap(),
        ("maximum", Tree::Int(n)) => *n <= expected.as_i64().unwrap(),
        ("maximum", Tree::Float(x)) => *x <= expected.as_f64().unwrap(),
        ("exclusiveMinimum", Tree::Int(n)) => *n > expected.as_i64().unwrap(),
        ("exclusiveMinimum", Tree::Float(x)) => *x > expected.as_f64().unwrap(),
        ("pattern", Tree::Text(text)) => {
            assert_eq!(expected, "\\$");
            text.contains('$')
        }
        ("items", Tree::List(items)) => items.iter().all(|item| fits(item, expected, root)),
        ("minItems", Tree::List(items)) => items.len() as u64 >= expected.as_u64().unwrap(),
        ("maxItems", Tree::List(items)) => items.len() as u64 <= expected.as_u64().unwrap(),
        ("properties", Tree::Map(entries)) => entries
            .iter()
            .all(|(key, value)| expected.get(key).is_none_or(|schema| fits(value, schema, root))),
        ("additionalProperties", Tree::Map(entries)) => entries.iter().all(|(key, value)| {
            let is_known = schema.get("properties").is_some_and(|known| known.get(key).is_some());
            is_known || *expected != Value::Bool(false) && fits(value, expected, root)
        }),
        ("required", Tree::Map(_)) => {
            expected.as_array().unwrap().iter().all(|key| value.get(key.as_str().unwrap()).is_some())
        }
        ("minProperties", Tree::Map(entries)) => entries.len() as u64 >= expected.as_u64().unwrap(),
        ("dependentRequired", Tree::Map(_)) => expected.as_object().unwrap().iter().all(|(key, needed)| {
            let mut needed = needed.as_array().unwrap().iter();
            value.get(key).is_none() || needed.all(|key| value.get(key.as_str().unwrap()).is_some())
        }),
        (
            "minimum"
            | "maximum"
            | "exclusiveMinimum"
            | "pattern"
            | "items"
            | "properties"
            | "additionalProperties"
            | "required",
            _,
        )
        | ("minProperties" | "dependentRequired" | "minItems" | "maxItems", _) => true,
        (other, _) => panic!("the keyword `{other}` is not known here"),
    })
}

fn same(value: &Tree, expected: &Value) -> bool {
    match value {
        Tree::Text(text) => expected == text,
        Tree::Int(n) => expected == n,
        _ => false,
    }
}

#[test]
fn the_schema_is_up_to_date() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("architectures/schema.json");
    let found: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let is_current = found == smelt::schema::schema();
    assert!(is_current, "out of date: smelt schema > architectures/schema.json");
}

#[test]
fn every_description_fits_and_names_the_schema() {
    let schema = smelt::schema::schema();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for folder in ["architectures", "examples"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|e| e == "yaml") {
                let text = std::fs::read_to_string(&path).unwrap();
                assert!(fits(&Tree::from_yaml(&text).unwrap(), &schema, &schema), "{}", path.display());
                let first = text.lines().next().unwrap();
                let (_, file) = first.split_once("# yaml-language-server: $schema=").expect("the first line");
                assert!(path.parent().unwrap().join(file).exists(), "{}", path.display());
                seen += 1;
            }
        }
    }
    assert!(seen > 40);
}

#[test]
fn mistakes_do_not_fit() {
    let schema = smelt::schema::schema();
    let good = "
smelt: 1
match: {model_type: mine}
config: {heads: num_heads}
model:
  hidden:
    - embedding: {at: a, of: token_ids, rows: 3, width: $heads}
    - repeat: $heads
      at: layer.$i
      body: [{residual: [{layer_norm: n}, {attention: {heads: $heads, q: q, k: k, v: v, o: {at: o, bias: false}}}]}]
heads: {features: {match: Mine, outputs: [hidden]}}
";
    let whether = |text: &str| fits(&Tree::from_yaml(text).unwrap(), &schema, &schema);
    assert!(whether(good));
    let mistakes = [
        ("smelt: 1", "smelt: 2"),
        ("match:", "mach:"),
        ("layer_norm:", "layernorm:"),
        ("heads: $heads, q", "haeds: $heads, q"),
        ("bias: false", "bais: false"),
        ("heads: $heads, q", "heads: many, q"),
        ("rows: 3", "rows: 0"),
        ("heads: $heads, q", "heads: $heads, softcap: 0, q"),
        ("of: token_ids", "of: tokens"),
        ("features:", "feature:"),
        ("at: layer.$i", "att: layer.$i"),
        ("repeat: $heads", "when: true"),
        ("repeat: $heads", "repeat: -1"),
        ("config: {heads: num_heads}", "irrelevant: {a: b}"),
    ];
    for (from, to) in mistakes {
        assert!(good.contains(from), "{from}");
        assert!(!whether(&good.replacen(from, to, 1)), "{to}");
    }
}
