//! The zip archive that a TorchScript file is.

use super::code::Program;
use super::text::SourceFile;
use super::{FILE_VERSIONS, ModuleError, check_tensors};
use crate::layout::TensorSpec;
use crate::limits::{MAX_JOB_DOCUMENT_BYTES, MAX_TENSORS};
use serde::Deserialize;
use std::collections::{BTreeMap, HashSet};
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};
use zip::result::ZipError;
use zip::write::FileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// Most entries.
const MAX_ENTRIES: usize = 4 * MAX_TENSORS;
/// Most bytes of a version: digits.
const MAX_VERSION_BYTES: u64 = 32;
/// Most bytes of code.
const MAX_CODE_BYTES: u64 = 16 << 20;
/// Where export.py puts what it says of the module.
const ABOUT: &str = "extra/undertone.json";
/// The form of that.
const ABOUT_VERSION: u32 = 1;

/// A TorchScript file that was looked into.
#[derive(Debug)]
pub struct Archive {
    about: About,
    program: Program,
}

/// What export.py says of a module.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    undertone: u32,
    /// The parameters in PyTorch's order.
    tensors: Vec<TensorSpec>,
    /// The version of PyTorch that wrote it, for people.
    #[serde(rename = "torch")]
    _torch: String,
}

impl Archive {
    /// Reads a file's own account of itself, and its code.
    ///
    /// # Errors
    /// [`ModuleError`]: it cannot be read, or must not be trained with.
    pub fn read(file: impl Read + Seek) -> Result<Self, ModuleError> {
        let mut zip = open(file)?;
        // First: what another version has may not even look like code.
        let versions = check_versions(&mut zip)?;
        let mut code = Vec::new();
        let (mut about, mut root, mut left) = (None, None, MAX_CODE_BYTES);
        for i in 0..zip.len() {
            let mut entry = zip.by_index(i).map_err(broken)?;
            let name = entry.name().to_owned();
            // The folder that everything lies in is called as the file was.
            let Some((_, path)) = name.split_once('/') else { continue };
            if path == ABOUT {
                about = Some(text(&mut entry, &name, MAX_JOB_DOCUMENT_BYTES as u64)?);
            } else if path == "data.pkl" {
                root = Some(root_class(&mut entry)?);
            } else if let Some(path) = path.strip_prefix("code/").and_then(|path| path.strip_suffix(".py")) {
                let source = text(&mut entry, &name, left)?;
                left -= source.len() as u64;
                code.push(SourceFile::read(&path.replace('/', "."), &source)?);
            }
        }
        if code.is_empty() {
            return Err(ModuleError::NotAnArchive("there is no code in it".into()));
        }
        let root = root.ok_or_else(|| ModuleError::NotAnArchive("there is no data.pkl in it".into()))?;
        if versions == 0 {
            return Err(ModuleError::NotAnArchive("there is no version in it".into()));
        }
        let program = Program::of(code, root)?;
        let about = about.ok_or_else(|| ModuleError::NotExported(ABOUT.into()))?;
        let about: About = serde_json::from_str(&about)
            .map_err(|e| ModuleError::NotExported(format!("{ABOUT} that can be read ({e})")))?;
        if about.undertone != ABOUT_VERSION {
            return Err(ModuleError::NotExported(format!(
                "{ABOUT} of form {ABOUT_VERSION} (its is {})",
                about.undertone
            )));
        }
        let archive = Self { about, program };
        archive.check()?;
        Ok(archive)
    }

    /// The parameters, as PyTorch names and orders them.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.about.tensors
    }

    /// The names of the buffers, as the code declares them; those that may be `None` are left out.
    pub fn buffers(&self) -> &[String] {
        &self.program.buffers
    }

    fn check(&self) -> Result<(), ModuleError> {
        let tensors = self.tensors();
        check_tensors(tensors).map_err(ModuleError::Inconsistent)?;
        for name in &self.program.parameters {
            if !tensors.iter().any(|t| t.name == *name) {
                return Err(ModuleError::Inconsistent(format!(
                    "its code has the parameter \"{name}\", and {ABOUT} does not: export it again"
                )));
            }
        }
        Ok(())
    }
}

/// The same archive, written anew of what was looked at: no other reader of zip archives can find anything else in it.
///
/// # Errors
/// [`ModuleError::NotAnArchive`]; [`ModuleError::TooLarge`]; [`ModuleError::Memory`].
pub fn rewritten(file: impl Read + Seek, bytes: u64) -> Result<Vec<u8>, ModuleError> {
    let mut zip = open(file)?;
    let mut out = ZipWriter::new(Memory::with_room(bytes).map_err(|e| broken(e.into()))?);
    let mut left = bytes.saturating_add(2 * MAX_CODE_BYTES);
    for i in 0..zip.len() {
        let mut entry = zip.by_index(i).map_err(broken)?;
        let name = entry.name().to_owned();
        // A dictionary of where code came from: of no use here.
        if name.ends_with(".debug_pkl") {
            continue;
        }
        let options = FileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .large_file(entry.size() > u64::from(u32::MAX) / 2);
        // libtorch maps tensors into memory from where they begin, so they begin at whole multiples.
        out.start_file_aligned(name.as_str(), options, 64).map_err(broken)?;
        let copied = io::copy(&mut (&mut entry).take(left), &mut out).map_err(|e| broken(e.into()))?;
        left -= copied;
        if left == 0 {
            return Err(ModuleError::TooLarge("its entries hold more than the file can".into()));
        }
    }
    out.flush().map_err(|e| broken(e.into()))?;
    Ok(out.finish().map_err(broken)?.0.into_inner())
}

/// A file in memory. Where a vector would end the process for want of memory, writing fails.
struct Memory(Cursor<Vec<u8>>);

impl Memory {
    /// How much more room is made at once.
    const MORE: usize = 1 << 20;

    fn with_room(bytes: u64) -> io::Result<Self> {
        let mut memory = Self(Cursor::new(Vec::new()));
        memory.make_room(usize::try_from(bytes).unwrap_or(usize::MAX))?;
        Ok(memory)
    }

    fn make_room(&mut self, bytes: usize) -> io::Result<()> {
        let room = self.0.get_mut().try_reserve_exact(bytes);
        room.map_err(|_| io::ErrorKind::OutOfMemory.into())
    }
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.0.get_ref();
        if written.capacity() - written.len() < bytes.len() {
            self.make_room(bytes.len().max(Self::MORE))?;
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Memory {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

fn open<R: Read + Seek>(file: R) -> Result<ZipArchive<R>, ModuleError> {
    let zip = ZipArchive::new(file).map_err(broken)?;
    if zip.len() > MAX_ENTRIES {
        return Err(ModuleError::TooLarge(format!("{} entries, at most {MAX_ENTRIES}", zip.len())));
    }
    // A name that is there twice is there once in the names.
    if zip.file_names().count() != zip.len() {
        return Err(ModuleError::NotAnArchive("two of its entries have one name".into()));
    }
    // libtorch takes what lies in the folder of the first entry.
    let folders: HashSet<_> =
        zip.file_names().map(|name| name.split_once('/').map(|(folder, _)| folder)).collect();
    if folders.len() > 1 || folders.contains(&None) {
        return Err(ModuleError::NotAnArchive("its entries do not lie in one folder".into()));
    }
    Ok(zip)
}

/// Holds the archive's version against those that libtorch reads. Gives the number of entries that say one: libtorch may look at
/// either.
fn check_versions<R: Read + Seek>(zip: &mut ZipArchive<R>) -> Result<usize, ModuleError> {
    let is_version = |name: &&str| matches!(name.split_once('/'), Some((_, "version" | ".data/version")));
    let names: Vec<String> = zip.file_names().filter(is_version).map(str::to_owned).collect();
    for name in &names {
        let version = text(&mut zip.by_name(name).map_err(broken)?, name, MAX_VERSION_BYTES)?;
        let version = version.trim().parse::<u64>();
        let version = version.map_err(|e| ModuleError::NotAnArchive(format!("{name}: {e}")))?;
        if !(FILE_VERSIONS.0..=FILE_VERSIONS.1).contains(&version) {
            return Err(ModuleError::Version(version));
        }
    }
    Ok(names.len())
}

fn broken(e: ZipError) -> ModuleError {
    ModuleError::NotAnArchive(match e {
        ZipError::Io(e) if e.kind() == io::ErrorKind::OutOfMemory => return ModuleError::Memory,
        ZipError::InvalidArchive(text) | ZipError::UnsupportedArchive(text) => text.into(),
        other => other.to_string(),
    })
}

fn text(entry: &mut impl Read, name: &str, most: u64) -> Result<String, ModuleError> {
    let mut text = String::new();
    let read = entry.take(most + 1).read_to_string(&mut text);
    read.map_err(|e| ModuleError::NotAnArchive(format!("{name}: {e}")))?;
    if text.len() as u64 > most {
        return Err(ModuleError::TooLarge(format!("{name} has over {most} bytes")));
    }
    Ok(text)
}

/// The class of the module itself: the first that the pickle names.
fn root_class(entry: &mut impl Read) -> Result<String, ModuleError> {
    let mut start = Vec::new();
    let no = |e: &dyn std::fmt::Display| ModuleError::NotAnArchive(format!("data.pkl: {e}"));
    entry.take(4096).read_to_end(&mut start).map_err(|e| no(&e))?;
    // PROTO 2, GLOBAL "module\nname\n".
    let names = start.strip_prefix(b"\x80\x02c").ok_or_else(|| no(&"it does not begin with a module"))?;
    let names = names.split(|b| *b == b'\n').take(2).map(|name| std::str::from_utf8(name));
    let names: Vec<&str> = names.collect::<Result<_, _>>().map_err(|e| no(&e))?;
    Ok(names.join("."))
}

/// The account of every class, by its qualified name.
pub(super) type ByName<T> = BTreeMap<String, T>;
