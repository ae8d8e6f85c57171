#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::blob::{Blob, impostor};
use super::header::shown;
use crate::error::{Error, ErrorKind, Result};
use crate::tensor::{Bytes, Storage};

/// Most bytes of a text file: the largest `tokenizer.json` in use has 40 MB.
const MAX_TEXT: u64 = 256 << 20;

/// A model directory, on disk or in memory.
///
/// Files are named by paths relative to it, with `/` between folders (`1_Pooling/config.json`). A name
/// that leaves the directory is refused; a link inside that leads elsewhere is followed, because the cache
/// of Hugging Face consists of them.
#[derive(Clone)]
pub struct Repository {
    name: String,
    place: Where,
}

#[derive(Clone)]
enum Where {
    Disk(PathBuf),
    Memory(Arc<[(String, Bytes)]>),
}

impl Repository {
    /// A directory on disk.
    ///
    /// # Errors
    /// `Io` if it is not a directory that can be read.
    pub fn open(dir: &Path) -> Result<Repository> {
        let name = dir.display().to_string();
        match std::fs::metadata(dir) {
            Ok(meta) if meta.is_dir() => Ok(Repository { name, place: Where::Disk(dir.to_owned()) }),
            Ok(_) => {
                let message = format!("`{name}`: expected a model directory, found a file");
                Err(Error::new(ErrorKind::Io, message).help("give the directory that holds `config.json`"))
            }
            Err(e) => Err(Error::io(dir, &e)),
        }
    }

    /// Files in memory, each with its name: `Vec<u8>`, or `&'static [u8]`, such as those that were compiled into the program
    /// (`include_bytes!(…).as_slice()`). `name` is what messages call the directory.
    ///
    /// ```
    /// use smelt::weights::Repository;
    /// # fn main() -> smelt::Result<()> {
    /// # let read = |name: &str| std::fs::read(format!("examples/models/language-id/{name}")).unwrap();
    /// let names = ["config.json", "model.safetensors", "tokenizer.json"];
    /// let files = names.map(|name| (name, read(name)));
    /// let model = smelt::Model::from_repository(Repository::from_files("mine", files), &Default::default())?;
    /// assert_eq!(model.task(), Some("sequence_classification"));
    /// # Ok(()) }
    /// ```
    pub fn from_files<N: Into<String>, B: Storage + 'static>(
        name: impl Into<String>,
        files: impl IntoIterator<Item = (N, B)>,
    ) -> Repository {
        let shared = |(name, bytes): (N, B)| (name.into(), Arc::new(bytes) as Bytes);
        Repository { name: name.into(), place: Where::Memory(files.into_iter().map(shared).collect()) }
    }

    /// The directory as the user wrote it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path of a file for messages, such as `models/mine/config.json`.
    pub fn label(&self, file: &str) -> String {
        match &self.place {
            // A name may come from a file; control characters in it are not for the terminal.
            Where::Disk(dir) => shown(&dir.join(file).display().to_string()),
            Where::Memory(_) => format!("{}/{file}", self.name),
        }
    }

    /// Whether there is such a file. A name that leaves the directory is none.
    pub fn has(&self, file: &str) -> bool {
        match &self.place {
            Where::Disk(dir) => is_inside(file) && dir.join(file).is_file(),
            Where::Memory(files) => files.iter().any(|(name, _)| name == file),
        }
    }

    /// The text of a file; none if there is no such file.
    ///
    /// # Errors
    /// `Config` if the name leaves the directory, or the file is not UTF-8 or stands for another one (Git
    /// LFS); `Limit` if it is larger than 256 MiB; `Io` if it cannot be read.
    pub fn text(&self, file: &str) -> Result<Option<String>> {
        let Some(blob) = self.blob(file)? else { return Ok(None) };
        let label = self.label(file);
        // One more than allowed, because a file may grow while it is read.
        let bytes = if blob.len() > MAX_TEXT { Vec::new() } else { blob.start(MAX_TEXT + 1)? };
        let len = blob.len().max(bytes.len() as u64);
        if len > MAX_TEXT {
            let message = format!("`{label}`: expected a text of at most {MAX_TEXT} bytes, found {len}");
            return Err(Error::new(ErrorKind::Limit, message));
        }
        if let Some((what, help)) = impostor(&bytes) {
            let message = format!("`{label}`: expected the file itself, found {what}");
            return Err(Error::new(ErrorKind::Config, message).help(help));
        }
        String::from_utf8(bytes).map(Some).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            let message = format!("`{label}`: expected UTF-8 text, found other bytes after byte {at}");
            Error::new(ErrorKind::Config, message).help("save it as UTF-8, or download it again")
        })
    }

    /// The bytes of a file, mapped into memory; none if there is no such file.
    ///
    /// The file must not be changed in place while they are in use.
    ///
    /// # Errors
    /// `Config` if the name leaves the directory; `Io` if the file cannot be read.
    pub fn bytes(&self, file: &str) -> Result<Option<Bytes>> {
        self.blob(file)?.as_ref().map(Blob::bytes).transpose()
    }

    /// A file, opened; none if there is no such file.
    pub(super) fn blob(&self, file: &str) -> Result<Option<Blob>> {
        if !is_inside(file) {
            let message = format!("expected a file inside `{}`, found the name `{file}`", self.name);
            return Err(Error::new(ErrorKind::Config, message).help("do not use this model"));
        }
        match &self.place {
            Where::Disk(dir) => Blob::open(&dir.join(file)),
            Where::Memory(files) => {
                let found = files.iter().find(|(name, _)| name == file);
                Ok(found.map(|(_, bytes)| Blob::Memory(bytes.clone())))
            }
        }
    }

    /// Names of the files directly in a folder (empty for the directory itself), sorted; those that cannot
    /// be listed are left out, as this only serves messages.
    pub(super) fn files_in(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = match &self.place {
            Where::Disk(dir) => std::fs::read_dir(dir.join(folder))
                .into_iter()
                .flatten()
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .collect(),
            Where::Memory(files) => {
                let files = files.iter().map(|(name, _)| name.rsplit_once('/').unwrap_or(("", name)));
                files.filter(|(parent, _)| *parent == folder).map(|(_, name)| name.to_owned()).collect()
            }
        };
        names.sort();
        names
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Repository({})", self.name)
    }
}

/// Whether a name stays inside the directory, on every system: a colon would be a Windows drive, a backslash
/// its separator.
pub(super) fn is_inside(file: &str) -> bool {
    !file.contains(['\\', ':', '\0']) && file.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    static FILES: [(&str, &[u8]); 4] = [
        ("config.json", b"{}"),
        ("1_Pooling/config.json", b"{\"a\": 1}"),
        ("latin1.txt", b"caf\xe9"),
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
    ];

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        let cases = [
            ("config.json", true),
            ("1_Pooling/config.json", true),
            ("a..b", true),
            ("", false),
            ("/etc/passwd", false),
            ("../config.json", false),
            ("a/../../b", false),
            ("a//b", false),
            ("./a", false),
            ("a/", false),
            ("C:\\a", false),
            ("C:a", false),
            ("..\\a", false),
            ("\\\\host\\a", false),
            ("a\0", false),
        ];
        let in_memory = Repository::from_files("tiny", FILES);
        for (name, expected) in cases {
            assert_eq!(is_inside(name), expected, "{name}");
            assert_eq!(in_memory.text(name).is_ok(), expected, "{name}");
        }
    }

    #[test]
    fn files_in_memory_are_read() {
        let repository = Repository::from_files("tiny", FILES);
        assert_eq!(repository.text("1_Pooling/config.json").unwrap().unwrap(), "{\"a\": 1}");
        assert_eq!(repository.text("none.json").unwrap(), None);
        assert!(repository.has("config.json") && !repository.has("1_Pooling"));
        assert_eq!(repository.label("config.json"), "tiny/config.json");
        assert_eq!((*repository.bytes("latin1.txt").unwrap().unwrap()).as_ref(), b"caf\xe9");
        assert_eq!(repository.files_in("1_Pooling"), ["config.json"]);
        let message = |file: &str| repository.text(file).unwrap_err().to_string();
        assert_eq!(
            message("latin1.txt"),
            "`tiny/latin1.txt`: expected UTF-8 text, found other bytes after byte 3\n = help: save it as UTF-8, \
             or download it again"
        );
        assert_eq!(
            message("tokenizer.json"),
            "`tiny/tokenizer.json`: expected the file itself, found a Git LFS pointer\n = help: run `git lfs \
             pull` in the model directory"
        );
    }
}
