use super::{Address, Source};
use crate::error::{Error, ErrorKind, Problem, Result};

/// Most problems that one error reports: whoever has more begins with these.
const MAX_PROBLEMS: usize = 50;

/// Collects what is wrong with a file, so that all of it is reported in one go.
#[derive(Debug, Default)]
pub struct Problems {
    list: Vec<Problem>,
    /// Whether nobody will see them: then no places are looked for.
    unseen: bool,
}

impl Problems {
    /// Those that nobody will see.
    pub fn unseen() -> Problems {
        Problems { unseen: true, ..Problems::default() }
    }

    /// Adds a problem at a place of `source`; `label` is said under the excerpt. Remarks may be added to the result.
    pub fn at(
        &mut self,
        source: &Source,
        at: &Address,
        message: impl Into<String>,
        label: &str,
    ) -> &mut Problem {
        let mut problem = Problem::new(message);
        if self.list.len() < MAX_PROBLEMS && !self.unseen {
            problem.place =
                source.place(at).map(|place| crate::error::Place { label: label.into(), ..place });
        }
        self.push(problem)
    }

    /// As [`at`](Self::at) without an excerpt, for a problem that lies in another file.
    pub fn brief(
        &mut self,
        source: &Source,
        at: &Address,
        message: impl Into<String>,
        label: &str,
    ) -> &mut Problem {
        let problem = self.at(source, at, message, label);
        if let Some(place) = &mut problem.place {
            place.excerpt = None;
        }
        problem
    }

    /// Adds a problem.
    pub fn push(&mut self, problem: Problem) -> &mut Problem {
        self.list.push(problem);
        let last = self.list.len() - 1;
        &mut self.list[last]
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// An error of everything that was found, or nothing.
    pub fn finish(&mut self, kind: ErrorKind) -> Result<()> {
        if self.list.is_empty() {
            return Ok(());
        }
        let mut list = std::mem::take(&mut self.list);
        // The same mistake may be met on several ways.
        let mut seen = std::collections::HashSet::new();
        list.retain(|p| seen.insert(p.to_string()));
        let more = list.len().saturating_sub(MAX_PROBLEMS);
        list.truncate(MAX_PROBLEMS);
        if more > 0
            && let Some(last) = list.last_mut()
        {
            last.remarks
                .push(crate::error::Remark { tag: "note", text: format!("and {more} more problems") });
        }
        Err(Error::many(kind, list))
    }
}
