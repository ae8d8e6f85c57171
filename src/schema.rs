//! A JSON Schema of the language, made from the definitions of the blocks: editors complete and check files with it.
//!
//! It is as strict as can be without a config: unknown blocks and fields are refused, and values of the wrong type. What
//! must be given is not checked, because `defaults` may give it.

#![forbid(unsafe_code)]

use serde_json::{Map, Value, json};

use crate::nn::{BLOCKS, FieldDef, FieldShape, GROUPS, block, maps};
use crate::plan::{MAX_REPEAT, TASKS};

/// The schema, as it stands in `architectures/schema.json`.
pub fn schema() -> Value {
    let texts = json!({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]});
    let sequence = json!({"$ref": "#/$defs/sequence"});
    let any_map = json!({"type": "object"});
    let tasks = TASKS.iter().map(|task| ((*task).to_owned(), json!({"$ref": "#/$defs/head"})));
    let sections = [
        ("smelt", json!({"const": 1, "description": "Version of the language."})),
        ("match", described(any_map.clone(), "Config keys with the values that this file describes.")),
        ("config", described(any_map.clone(), "Names for values of the config.")),
        ("require", described(any_map, "Config keys that must have one of the values that are implemented.")),
        ("irrelevant", described(texts.clone(), "Config keys that do not change results.")),
        (
            "weights",
            object([
                ("prefix", described(texts.clone(), "Prefixes under which a tensor is looked up.")),
                (
                    "rename",
                    json!({"type": "object", "additionalProperties": {"type": "string"},
                           "description": "Runs of segments in stored names and what they are read as."}),
                ),
                ("ignore", described(texts.clone(), "Patterns of names that do not matter.")),
            ]),
        ),
        ("defaults", described(object(names()), "Fields that blocks take when they do not name them.")),
        (
            "model",
            json!({"type": "object", "additionalProperties": sequence,
                   "description": "The values of the model, each computed by a sequence of blocks."}),
        ),
        (
            "heads",
            json!({"type": "object", "properties": tasks.collect::<Map<_, _>>(),
                   "additionalProperties": false, "description": "What answers which task."}),
        ),
    ];
    let outputs = json!({"anyOf": [
        texts.clone(),
        {"type": "object", "additionalProperties": {"type": "string"}},
    ]});
    let head = json!({
        "type": "object",
        "properties": {
            "match": described(texts, "Classes in the config's `architectures` that ask for this head."),
            "when": described(or_expression(json!({"type": "boolean"})), "Whether the config has this head."),
            "outputs": described(outputs, "Values of the model that are outputs too."),
            "decoder_start": {"description": "The token that begins what a decoder writes."},
            "pad_to": {"description": "How many tokens shorter texts are filled up to."},
        },
        "additionalProperties": sequence,
        "required": ["match"],
    });
    let mut whole = object(sections);
    whole["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    whole["title"] = json!("smelt architecture");
    whole["required"] = json!(["smelt", "match", "model"]);
    whole["$defs"] = json!({
        "sequence": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/step"}}, {"$ref": "#/$defs/step"}]},
        "step": step(),
        "head": head,
        "expression": {"type": "string", "pattern": "\\$"},
    });
    for (name, of) in defaults() {
        whole["$defs"][name] = fields(of());
    }
    whole
}

/// The blocks and groups that can have defaults.
fn names() -> impl Iterator<Item = (&'static str, Value)> {
    let names = defaults().map(|(name, _)| name).filter(|name| *name != "projection");
    names.map(|name| (name, json!({"$ref": format!("#/$defs/{name}")})))
}

/// A map of these keys and no others.
fn object<'k>(properties: impl IntoIterator<Item = (&'k str, Value)>) -> Value {
    let properties = properties.into_iter().map(|(key, value)| (key.to_owned(), value));
    json!({
        "type": "object",
        "properties": properties.collect::<Map<_, _>>(),
        "additionalProperties": false,
    })
}

fn described(mut schema: Value, text: &str) -> Value {
    schema["description"] = json!(text);
    schema
}

fn joined(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

/// One step of a sequence: a block or combinator.
fn step() -> Value {
    let sequence = json!({"$ref": "#/$defs/sequence"});
    let branches = json!({"type": "array", "items": sequence, "minItems": 1});
    let rounds = json!({"type": "integer", "minimum": 0, "maximum": MAX_REPEAT});
    let combinators = [
        ("residual", described(sequence.clone(), "`x + body(x)`.")),
        ("sum", described(branches.clone(), "The sum of all branches.")),
        ("product", described(branches, "The product of all branches.")),
        ("repeat", described(or_expression(rounds), "The body again and again.")),
        ("at", json!({"type": "string", "description": "Put before every path inside."})),
        ("as", json!({"type": "string", "description": "Name of the loop index; `i` by default."})),
        ("body", described(sequence, "What is repeated.")),
        (
            "when",
            described(or_expression(json!({"type": "boolean"})), "The step is left out unless this holds."),
        ),
    ];
    let blocks = BLOCKS.iter().map(|block| {
        let mut choices = vec![json!({"$ref": format!("#/$defs/{}", block.name)}), json!({"type": "null"})];
        choices
            .extend((block.fields)().first().map(|field| any_of(field_value(field))).into_iter().flatten());
        (block.name, described(json!({"anyOf": choices}), &joined(block.doc)))
    });
    let mut step = object(blocks.chain(combinators));
    step["minProperties"] = json!(1);
    step["dependentRequired"] =
        json!({"at": ["repeat"], "as": ["repeat"], "body": ["repeat"], "repeat": ["body"]});
    step
}

/// The fields of all blocks and groups, each under its name.
fn defaults() -> impl Iterator<Item = (&'static str, fn() -> &'static [FieldDef])> {
    let blocks = BLOCKS.iter().map(|block| (block.name, block.fields));
    // Linear maps inside of other blocks have fewer fields than the block of that name.
    let inner = GROUPS.iter().find(|(name, ..)| block(name).is_some()).map(|(_, _, of)| ("projection", *of));
    blocks.chain(maps().map(|(name, _, of)| (*name, *of))).chain(inner)
}

/// A map of fields.
fn fields(fields: &'static [FieldDef]) -> Value {
    object(fields.iter().map(|field| (field.name, described(field_value(field), &joined(field.doc)))))
}

fn field_value(field: &FieldDef) -> Value {
    let mut choices = match field.shape {
        FieldShape::Fields(group, of) => {
            let first = of().first().map(|field| any_of(field_value(field))).unwrap_or_default();
            [vec![json!({"$ref": format!("#/$defs/{group}")})], first].concat()
        }
        FieldShape::PathOrFields(..) => {
            vec![json!({"type": "string"}), json!({"$ref": "#/$defs/projection"})]
        }
        FieldShape::ValueName => vec![json!({"type": "string"})],
        FieldShape::ValueNames => vec![json!({"type": "array", "items": {"type": "string"}})],
        FieldShape::Plain | FieldShape::Path => any_of(plain(&(field.kind)())),
    };
    if !field.required {
        choices.push(json!({"type": "null"}));
    }
    or_expression(json!({"anyOf": choices}))
}

/// The choices of a schema.
fn any_of(schema: Value) -> Vec<Value> {
    match schema.get("anyOf") {
        Some(Value::Array(choices)) => choices.clone(),
        _ => vec![schema],
    }
}

/// Every value may be an expression.
fn or_expression(value: Value) -> Value {
    let mut choices = any_of(value);
    let is_text = |choice: &Value| *choice == json!({"type": "string"}) || *choice == json!({});
    if !choices.iter().any(is_text) {
        choices.push(json!({"$ref": "#/$defs/expression"}));
    }
    json!({"anyOf": choices})
}

/// What people read of a type tells what its values are; of a type that is not known here, anything goes.
fn plain(kind: &str) -> Value {
    match kind {
        // A float of a whole value is an integer in YAML's eyes as well.
        "a positive integer" => json!({"type": "integer", "minimum": 1}),
        "an integer from 0 on" => json!({"type": "integer", "minimum": 0}),
        "an integer" => json!({"type": "integer"}),
        "a number" => json!({"type": "number"}),
        "a positive number" => json!({"type": "number", "exclusiveMinimum": 0}),
        "a number above 0, up to 1" => json!({"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
        "a number from 0 on" => json!({"type": "number", "minimum": 0}),
        "true or false" => json!({"type": "boolean"}),
        "a map" => json!({"type": "object"}),
        "a path" => json!({"type": "string"}),
        "true, false or a path" => json!({"anyOf": [{"type": "boolean"}, {"type": "string"}]}),
        "a path, or a list of paths" => {
            json!({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})
        }
        "a positive integer, or a list of two" => json!({"anyOf": [
            {"type": "integer", "minimum": 1},
            {"type": "array", "items": or_expression(json!({"type": "integer", "minimum": 1}))},
        ]}),
        "two numbers, the smaller one first" => json!({
            "type": "array", "items": or_expression(json!({"type": "number"})), "minItems": 2, "maxItems": 2,
        }),
        kind if kind.starts_with('`') => {
            let words: Vec<&str> = kind.split('`').skip(1).step_by(2).collect();
            json!({"enum": words})
        }
        _ => json!({}),
    }
}
