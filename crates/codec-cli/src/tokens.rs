//! Token files of the commands: opened for reading and seeking, written so that a file appears when
//! it is whole.

use crate::inputs::{Place, make_folder_of};
use anyhow::{Context, Result, bail};
use codec_core::Codes;
use codec_io::atomic::AtomicFile;
use codec_io::tokens::{TokenHeader, TokenReader, TokenResult, TokenWriter, Totals};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Stdout, Write};
use std::path::Path;

/// Where codes go.
pub(crate) enum TokenSink {
    File { writer: TokenWriter<AtomicFile>, name: String },
    Stdout(TokenWriter<BufWriter<Stdout>>),
}

impl TokenSink {
    pub(crate) fn create(place: &Place, header: TokenHeader) -> Result<Self> {
        match place {
            Place::Std => Ok(Self::Stdout(TokenWriter::new(BufWriter::new(std::io::stdout()), header)?)),
            Place::File(path) => {
                let name = path.display().to_string();
                make_folder_of(path)?;
                let file = AtomicFile::create(path).with_context(|| format!("{name}: cannot create"))?;
                Ok(Self::File { writer: TokenWriter::new(file, header).with_context(|| name.clone())?, name })
            }
        }
    }

    pub(crate) fn push(&mut self, codes: &Codes) -> Result<()> {
        match self {
            Self::File { writer, name } => {
                writer.push(codes).with_context(|| format!("{name}: cannot write"))
            }
            Self::Stdout(writer) => Ok(writer.push(codes)?),
        }
    }

    pub(crate) fn finish(self, totals: Totals) -> Result<()> {
        match self {
            Self::File { writer, name } => {
                let failed = || format!("{name}: cannot write");
                writer.finish_seekable(totals).with_context(failed)?.commit().with_context(failed)
            }
            Self::Stdout(writer) => Ok(writer.finish(totals)?.flush()?),
        }
    }
}

/// Opens a token file or stdin for reading from the start to the end.
pub(crate) fn open(place: &Place) -> Result<Box<dyn Read + Send>> {
    Ok(match place {
        Place::Std => Box::new(std::io::stdin()),
        Place::File(path) => Box::new(BufReader::new(open_file(path)?)),
    })
}

/// Opens a token file in which the reader can seek; stdin is copied to a temporary file first.
pub(crate) fn open_seekable(place: &Place) -> Result<TokenReader<BufReader<File>>> {
    let file = match place {
        Place::Std => {
            let mut file = tempfile::tempfile().context("no temporary file for stdin")?;
            std::io::copy(&mut std::io::stdin(), &mut file).context("stdin cannot be copied")?;
            file
        }
        Place::File(path) => open_file(path)?,
    };
    TokenReader::open(BufReader::new(file)).with_context(|| place.to_string())
}

fn open_file(path: &Path) -> Result<File> {
    let file = File::open(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    if file.metadata().is_ok_and(|found| found.is_dir()) {
        bail!("{}: is a folder", path.display());
    }
    Ok(file)
}

/// Where an edited token file goes.
#[derive(Debug)]
pub(crate) struct EditTarget {
    place: Place,
}

impl EditTarget {
    pub(crate) fn new(path: &Path) -> Self {
        Self { place: Place::parse(path) }
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Lets `edit` write the file, which appears when it is whole.
    pub(crate) fn write<T>(
        &self,
        edit: impl FnOnce(Box<dyn Finish>) -> TokenResult<(Box<dyn Finish>, T)>,
    ) -> Result<T> {
        let failed = || format!("{}: cannot write", self.place);
        let sink: Box<dyn Finish> = match &self.place {
            Place::Std => Box::new(BufWriter::new(std::io::stdout())),
            Place::File(path) => {
                make_folder_of(path)?;
                Box::new(AtomicFile::create(path).with_context(failed)?)
            }
        };
        let (sink, value) = edit(sink)?;
        sink.finish().with_context(failed)?;
        Ok(value)
    }
}

/// A sink that is told when it holds all.
pub(crate) trait Finish: Write {
    fn finish(self: Box<Self>) -> std::io::Result<()>;
}

impl Finish for BufWriter<Stdout> {
    fn finish(mut self: Box<Self>) -> std::io::Result<()> {
        self.flush()
    }
}

impl Finish for AtomicFile {
    fn finish(self: Box<Self>) -> std::io::Result<()> {
        self.commit()
    }
}
