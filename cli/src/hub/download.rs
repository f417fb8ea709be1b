//! One file of a repository: taken up where it broke off, tried again within bounds, held to its sum, and given its name when it is whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tokio::time::{sleep, timeout};

use super::listing::Sum;
use super::session::broke_off;
use super::{HubError, HubFile, Repo, Session};

/// How long a connection may bring nothing.
const IDLE: Duration = Duration::from_secs(60);
/// Tries in a row that bring nothing new, and tries in all, for one file.
const TRIES_IN_VAIN: u32 = 5;
const TRIES: u32 = 200;
/// The pause before the second try; each one after is twice as long, to this bound.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// Bytes hashed at a time of what is there already.
const PIECE: usize = 1 << 20;
/// What a file is called as long as it is not whole.
pub(super) const PART: &str = "part";

/// Gets `file` of `repo` at `commit` into `folder`, unless it is there; `on_bytes` hears how much of it is there, now and then.
pub(crate) async fn download(
    session: &Session,
    (repo, commit): (&Repo, &str),
    file: &HubFile,
    folder: &Path,
    mut on_bytes: impl FnMut(u64),
) -> Result<(), HubError> {
    let whole = folder.join(file.name());
    // It got its name when its sum was right.
    if fs::metadata(&whole).is_ok_and(|found| found.len() == file.size) {
        on_bytes(file.size);
        return Ok(());
    }
    let mut part = Part::open(folder, file).await?;
    let mut from_before = part.length > 0;
    loop {
        let mut tries = Tries::new(part.length);
        while let Err(error) = part.fill(session, (repo, commit), &mut on_bytes).await {
            let Some(pause) = tries.after(part.length).filter(|_| error.is_passing()) else { return Err(error) };
            let pause = pause.max(error.after().unwrap_or_default());
            let why = crate::with_causes(&error.into());
            tracing::warn!(file = %file.path, at = part.length, "{why}; trying again in {pause:?}");
            sleep(pause).await;
        }
        match part.check() {
            // What an earlier process left may be anything: once more, all of it.
            Err(HubError::Changed { .. }) if from_before => {
                tracing::warn!(file = %file.path, "what was there of it is of no use; beginning again");
                part.reset()?;
                from_before = false;
            }
            checked => break checked.inspect_err(|_| part.remove())?,
        }
    }
    part.finish(&whole)
}

/// How often one file is tried. Pure.
struct Tries {
    in_vain: u32,
    all: u32,
    length: u64,
}

impl Tries {
    const fn new(length: u64) -> Self {
        Self { in_vain: 0, all: 0, length }
    }

    /// How long to wait after one that left `length` bytes; `None` where there is no other.
    fn after(&mut self, length: u64) -> Option<Duration> {
        self.all += 1;
        self.in_vain = if length > self.length { 1 } else { self.in_vain + 1 };
        self.length = length;
        let pause = FIRST_PAUSE * 2u32.pow(self.in_vain.min(TRIES_IN_VAIN) - 1);
        (self.all < TRIES && self.in_vain < TRIES_IN_VAIN).then_some(pause.min(LONGEST_PAUSE))
    }
}

/// A file that is not whole yet, and the sum of what is there.
struct Part<'a> {
    file: &'a HubFile,
    path: PathBuf,
    out: File,
    length: u64,
    hasher: Hasher,
}

enum Hasher {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl Hasher {
    fn of(file: &HubFile) -> Self {
        match &file.sum {
            Sum::Sha256(_) => Self::Sha256(Sha256::new()),
            Sum::GitBlob(_) => Self::GitBlob(Sha1::new_with_prefix(format!("blob {}\0", file.size))),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::GitBlob(hasher) => hasher.update(bytes),
        }
    }

    fn hex(self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Self::Sha256(hasher) => hex(&hasher.finalize()),
            Self::GitBlob(hasher) => hex(&hasher.finalize()),
        }
    }
}

/// The sum of the file at `path`, of the kind that `file` has, compared with it.
pub(super) fn check_file(path: &Path, file: &HubFile, mut on_bytes: impl FnMut(u64)) -> Result<(), HubError> {
    let mut from = File::open(path).map_err(io_error(path))?;
    let (mut hasher, mut piece, mut done) = (Hasher::of(file), vec![0; PIECE], 0);
    loop {
        let n = from.read(&mut piece).map_err(io_error(path))?;
        if n == 0 {
            return compare(file, hasher);
        }
        hasher.update(&piece[..n]);
        done += n as u64;
        on_bytes(done);
    }
}

fn compare(file: &HubFile, hasher: Hasher) -> Result<(), HubError> {
    let (sum, wanted) = match &file.sum {
        Sum::Sha256(wanted) => ("SHA-256", wanted),
        Sum::GitBlob(wanted) => ("SHA-1 (git's)", wanted),
    };
    let found = hasher.hex();
    if found == *wanted {
        return Ok(());
    }
    Err(HubError::Changed { file: file.path.clone(), sum, found, wanted: wanted.clone() })
}

pub(super) fn io_error(path: &Path) -> impl Fn(io::Error) -> HubError {
    move |source| HubError::Io { path: path.display().to_string(), source }
}

/// Where `file` grows in `folder`.
pub(super) fn part_path(folder: &Path, file: &HubFile) -> PathBuf {
    folder.join(format!("{}.{PART}", file.name()))
}

impl<'a> Part<'a> {
    /// Takes up what is there.
    async fn open(folder: &Path, file: &'a HubFile) -> Result<Self, HubError> {
        let path = part_path(folder, file);
        let out = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let out = out.map_err(io_error(&path))?;
        let mut part = Self { file, path, out, length: 0, hasher: Hasher::of(file) };
        let mut piece = vec![0; PIECE];
        loop {
            let n = part.out.read(&mut piece).map_err(io_error(&part.path))?;
            if n == 0 {
                break;
            }
            part.hasher.update(&piece[..n]);
            part.length += n as u64;
            // There may be much of it, and somebody may want to end the process.
            tokio::task::yield_now().await;
        }
        if part.length > file.size {
            part.reset()?;
        }
        Ok(part)
    }

    fn reset(&mut self) -> Result<(), HubError> {
        let emptied = self.out.set_len(0).and_then(|()| self.out.seek(SeekFrom::Start(0)));
        emptied.map_err(io_error(&self.path))?;
        (self.length, self.hasher) = (0, Hasher::of(self.file));
        Ok(())
    }

    /// Gets what is missing over one connection.
    async fn fill(
        &mut self,
        session: &Session,
        (repo, commit): (&Repo, &str),
        on_bytes: &mut impl FnMut(u64),
    ) -> Result<(), HubError> {
        let path = &self.file.path;
        on_bytes(self.length);
        if self.length == self.file.size {
            return Ok(());
        }
        let response = session.file(repo, commit, path, self.length).await?;
        if !begins_at(&response, self.length) {
            self.reset()?;
        }
        let mut body = response.into_body();
        loop {
            let frame = timeout(IDLE, body.frame()).await;
            let frame = frame.map_err(|_| broke_off(path, format!("nothing came for {IDLE:?}")))?;
            let Some(frame) = frame.transpose().map_err(|error| broke_off(path, error.to_string()))? else { break };
            let Ok(bytes) = frame.into_data() else { continue };
            if self.length + bytes.len() as u64 > self.file.size {
                self.reset()?;
                return Err(broke_off(path, "more came than the hub says it has".to_owned()));
            }
            self.out.write_all(&bytes).map_err(io_error(&self.path))?;
            self.hasher.update(&bytes);
            self.length += bytes.len() as u64;
            on_bytes(self.length);
        }
        if self.length == self.file.size { Ok(()) } else { Err(broke_off(path, "the connection ended".to_owned())) }
    }

    fn check(&self) -> Result<(), HubError> {
        let hasher = match &self.hasher {
            Hasher::Sha256(hasher) => Hasher::Sha256(hasher.clone()),
            Hasher::GitBlob(hasher) => Hasher::GitBlob(hasher.clone()),
        };
        compare(self.file, hasher)
    }

    fn remove(&self) {
        // What cannot be removed is found to be wrong again.
        _ = fs::remove_file(&self.path);
    }

    fn finish(self, whole: &Path) -> Result<(), HubError> {
        self.out.sync_all().and_then(|()| fs::rename(&self.path, whole)).map_err(io_error(whole))
    }
}

/// Whether the answer is the rest from `offset` on, and not all of it.
fn begins_at(response: &Response<Incoming>, offset: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let begin = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
    offset == 0 || (response.status() == StatusCode::PARTIAL_CONTENT && begin == Some(offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_end_when_they_bring_nothing_and_at_a_bound() {
        let mut tries = Tries::new(0);
        let pauses: Vec<_> = std::iter::from_fn(|| tries.after(0)).map(|pause| pause.as_millis()).collect();
        assert_eq!(pauses, [250, 500, 1000, 2000]);
        let mut tries = Tries::new(0);
        let lengths = (1..).map_while(|length| tries.after(length));
        assert!(lengths.eq([FIRST_PAUSE; TRIES as usize - 1]));
    }

    #[test]
    fn sums_are_sha256_and_gits() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("f");
        fs::write(&path, "hello\n").expect("it can be written");
        let of = |sum| HubFile { path: "f".to_owned(), size: 6, sum };
        // `printf 'hello\n' | sha256sum`, `git hash-object`.
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        for sum in [Sum::Sha256(sha256.to_owned()), Sum::GitBlob("ce013625030ba8dba906f756967f9e9ca394464a".to_owned())]
        {
            check_file(&path, &of(sum), |_| ()).expect("the right sum");
        }
        let wrong = check_file(&path, &of(Sum::Sha256("0".repeat(64))), |_| ()).expect_err("another sum");
        assert!(wrong.to_string().contains(sha256), "{wrong}");
    }
}
