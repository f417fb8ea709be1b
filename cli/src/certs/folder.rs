//! The authority's folder: ca.pem, ca.key, and two files a certificate. Files are written whole, keys for their owner alone.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tramontane_cluster::tls::{Certificate, Issued, pem_certificates};

use crate::files::read_text;

/// Bytes of a file, at most.
const MAX_FILE: u64 = 1 << 20;
/// The authority's own name among the files.
const AUTHORITY: &str = "ca";

pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Where the authorities are that are trusted.
    pub(super) fn authority(&self) -> PathBuf {
        self.certificate(AUTHORITY)
    }

    pub(super) fn has_authority(&self) -> bool {
        self.key(AUTHORITY).exists() || self.authority().exists()
    }

    /// All authorities that are trusted, the one that signs first, and its key.
    pub(super) fn read_authority(&self) -> anyhow::Result<Issued> {
        let first = || format!("{}: `tramontane certs init` makes an authority", self.0.display());
        let certificate = read_text(&self.authority(), MAX_FILE).with_context(first)?;
        Ok(Issued { certificate, key: read_text(&self.key(AUTHORITY), MAX_FILE).with_context(first)? })
    }

    pub(super) fn write_authority(&self, certificates: &str, key: &str) -> anyhow::Result<()> {
        fs::create_dir_all(&self.0).with_context(|| format!("cannot make the folder {}", self.0.display()))?;
        write(&self.key(AUTHORITY), key, 0o600)?;
        write(&self.authority(), certificates, 0o644)
    }

    /// What is trusted, the newest first.
    pub(super) fn trusted(&self) -> anyhow::Result<Vec<Certificate>> {
        certificates(&self.authority())
    }

    /// The newest authority's certificate alone, in PEM.
    pub(super) fn newest(&self) -> anyhow::Result<String> {
        let all = self.read_authority()?.certificate;
        let end = "-----END CERTIFICATE-----";
        let (first, _) = all.split_once(end).with_context(|| format!("{} is not PEM", self.authority().display()))?;
        Ok(format!("{first}{end}\n"))
    }

    /// What has been signed.
    pub(super) fn names(&self) -> anyhow::Result<Vec<String>> {
        let failed = || format!("cannot read the folder {}", self.0.display());
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.0).with_context(failed)? {
            let name = entry.with_context(failed)?.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(".pem")).filter(|&name| name != AUTHORITY);
            names.extend(name.filter(|name| self.key(name).exists()).map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    pub(super) fn has(&self, name: &str) -> anyhow::Result<bool> {
        let sound = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if name.is_empty() || name == AUTHORITY || name.starts_with('.') || !sound {
            bail!("`{name}` is no name for a file here: letters, digits, `-`, `_` and `.` are, and not `{AUTHORITY}`");
        }
        Ok(self.certificate(name).exists() || self.key(name).exists())
    }

    pub(super) fn read(&self, name: &str) -> anyhow::Result<Certificate> {
        let path = self.certificate(name);
        certificates(&path)?.into_iter().next().with_context(|| format!("{}: no certificate in it", path.display()))
    }

    /// Writes a certificate and its key; where the certificate is.
    pub(super) fn write(&self, name: &str, issued: &Issued) -> anyhow::Result<PathBuf> {
        write(&self.key(name), &issued.key, 0o600)?;
        let path = self.certificate(name);
        write(&path, &issued.certificate, 0o644)?;
        Ok(path)
    }

    fn certificate(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.pem"))
    }

    fn key(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.key"))
    }
}

fn certificates(path: &Path) -> anyhow::Result<Vec<Certificate>> {
    let text = read_text(path, MAX_FILE).with_context(|| format!("cannot read {}", path.display()))?;
    let read = pem_certificates(path, text.as_bytes())?;
    let parsed: Result<_, _> = read.iter().map(Certificate::of).collect();
    parsed.with_context(|| path.display().to_string())
}

/// Puts `text` where `path` says, all at once.
fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside).with_context(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).with_context(failed)?;
    fs::rename(&beside, path).with_context(failed)
}
