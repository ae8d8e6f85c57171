//! Rounds of a loop that differ in nothing but their number: a few of them say which tensors all of them have. A draft asks that
//! of some hundred descriptions.

use crate::spec::{Address, Item, Scope, Step, Template, Tree};

/// Rounds of a kind that are built. The first number in a name is that of a layer, another one only if several layers have the same
/// behind it.
const ENOUGH: usize = 2;

/// The kinds of rounds that a loop has had.
pub struct Kinds {
    /// What makes rounds differ: what is written in the loop with its index. (`defaults` cannot say the index.)
    templates: Vec<Template>,
    /// What it came to in each round that was built.
    built: Vec<Vec<Tree>>,
}

impl Kinds {
    /// None yet, of a loop over `body` at `path`.
    pub fn new(path: &Option<(Tree, Address)>, body: &[Item], index: &str) -> Self {
        let mut kinds = Kinds { templates: Vec::new(), built: Vec::new() };
        if let Some(path) = path.as_ref().and_then(|(path, _)| path.as_text()) {
            let mut segments: Vec<&str> = path.split('.').collect();
            // The segment that is the number does not make layers differ.
            if let Some(i) = segments.iter().position(|s| s.strip_prefix('$') == Some(index)) {
                segments.remove(i);
            }
            kinds.note_text(&segments.join("."), index);
        }
        kinds.note_all(body, index);
        kinds
    }

    /// Whether enough rounds are like the one in which names stand for what `scope` says; if not, that one is to be built.
    pub fn have_enough(&mut self, scope: &Scope) -> bool {
        let kind: Result<Vec<Tree>, _> =
            self.templates.iter().map(|template| template.value(scope)).collect();
        // What names of inner loops have a part in, or is wrong, may come to anything.
        let Ok(kind) = kind else { return false };
        if self.built.iter().filter(|built| **built == kind).count() == ENOUGH {
            return true;
        }
        self.built.push(kind);
        false
    }

    fn note_all(&mut self, items: &[Item], index: &str) {
        for item in items {
            item.when.iter().for_each(|(when, _)| self.note(when, index));
            match &item.step {
                Step::Residual(body) => self.note_all(body, index),
                Step::Sum(branches) | Step::Product(branches) => {
                    branches.iter().for_each(|branch| self.note_all(branch, index));
                }
                Step::Repeat { count, path, body, .. } => {
                    self.note(&count.0, index);
                    path.iter().for_each(|(path, _)| self.note(path, index));
                    self.note_all(body, index);
                }
                Step::Block { fields, .. } => self.note(fields, index),
            }
        }
    }

    fn note(&mut self, tree: &Tree, index: &str) {
        tree.visit_texts(&Address::root(), &mut |text, _| self.note_text(text, index));
    }

    fn note_text(&mut self, text: &str, index: &str) {
        let template = Template::parse(text).ok();
        self.templates.extend(template.filter(|template| template.names().iter().any(|name| name == index)));
    }
}

#[cfg(test)]
mod tests {
    use crate::plan::{Config, declare};
    use crate::spec::{Problems, Source, Spec};

    #[test]
    fn of_each_kind_a_few_are_built() {
        // A loop, and what stands before `weight` in the names that it asks for.
        let cases = [
            ("{repeat: 9, at: h.$i, body: [rms_norm: n]}", "h.0.n h.1.n"),
            (
                "{repeat: 9, at: h.$i, body: [rms_norm: n, {rms_norm: m, when: '${i == 5}'}]}",
                "h.0.n h.1.n h.5.n h.5.m",
            ),
            (
                "{repeat: 9, at: h.$i, body: [rms_norm: {at: n, eps: '${1 + i % 3}'}]}",
                "h.0.n h.1.n h.2.n h.3.n h.4.n h.5.n",
            ),
            ("{repeat: 4, body: [rms_norm: h.$i]}", "h.0 h.1 h.2 h.3"),
            ("{repeat: 4, at: 'h.${i // 3}', body: [rms_norm: n]}", "h.0.n h.1.n"),
            ("{repeat: 4, at: h.$i.$i, body: [rms_norm: n]}", "h.0.0.n h.1.1.n h.2.2.n h.3.3.n"),
            (
                "{repeat: 9, at: h.$i, body: [{repeat: 3, as: j, at: e.$j, body: [rms_norm: n]}]}",
                "h.0.e.0.n h.0.e.1.n h.0.e.2.n h.1.e.0.n h.1.e.1.n h.1.e.2.n",
            ),
            (
                "{repeat: 3, at: h.$i, body: [{repeat: 1, as: j, at: 'e.${i + j}', body: [rms_norm: n]}]}",
                "h.0.e.0.n h.1.e.1.n h.2.e.2.n",
            ),
        ];
        for (repeat, expected) in cases {
            let table = "embedding: {at: e, of: token_ids, rows: 3, width: 4}";
            let source =
                Source::yaml("a.yaml", format!("model: {{hidden: [{{{table}}}, {repeat}]}}")).unwrap();
            let spec = Spec::parse(source, &mut Problems::unseen());
            let (tensors, _, problems) = declare(&spec, &Config::parse("config.json", "{}").unwrap(), None);
            let paths: Vec<&str> = tensors[1..].iter().map(|t| t.name.trim_end_matches(".weight")).collect();
            assert_eq!((paths.join(" ").as_str(), problems), (expected, Vec::new()), "{repeat}");
        }
    }
}
