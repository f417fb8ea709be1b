//! `tramontane models pull` and `models list`: the folder of models is filled from a hub, and shown.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;
use tramontane_model::checkpoint::Checkpoint;
use tramontane_model::tools;

use super::args::{ListArgs, PullArgs};
use super::print;
use crate::Unreachable;
use crate::files::read_text;
use crate::hub::{
    Choice, Chosen, Entry, HubError, Listing, Place, Record, Session, State, choose, default_folder, download, list,
};
use crate::output::{bytes, out};
use crate::progress::Transfer;
use crate::signals::Signals;

/// Largest file of a token, in bytes.
const MAX_TOKEN: u64 = 4096;

/// Pulls a model; what is there of it stays when it is interrupted.
pub(super) async fn pull(args: &PullArgs) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    tokio::select! {
        pulled = pull_all(args) => pulled.map_err(with_exit_code),
        () = signals.next() => bail!("interrupted; the same command goes on where it was"),
    }
}

/// The error as one that ends the program, and says how: by 3 where there was no hub.
fn with_exit_code(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<HubError>() {
        Some(HubError::Unreachable { .. }) => Unreachable(error).into(),
        _ => error,
    }
}

async fn pull_all(args: &PullArgs) -> anyhow::Result<()> {
    let models = args.models_dir.clone().unwrap_or_else(|| default_folder(|name| std::env::var_os(name)));
    if std::env::var("HF_HUB_OFFLINE")
        .is_ok_and(|value| ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str()))
    {
        bail!("HF_HUB_OFFLINE is set, so no hub is asked");
    }
    let reference = &args.reference;
    let choice = match (&args.file, args.quantization.as_ref().or(reference.quantization.as_ref())) {
        (Some(file), _) => Choice::File(file.clone()),
        (None, Some(quantization)) => Choice::Quantization(quantization.clone()),
        (None, None) => Choice::Only,
    };
    let token = token(args.token_file.as_deref())?;
    let session = Session::new(args.endpoint.clone(), token.as_deref())?;
    let listing = session.listing(&reference.repo, reference.revision.as_deref().unwrap_or("main")).await?;
    let chosen: Chosen = choose(&reference.repo, &listing, &choice)?;
    let record = Record::new(&reference.repo, Listing { files: Vec::new(), ..listing }, chosen);
    let mut place = Place::of(&models, &reference.repo, &record);
    if place.whole().exists() {
        if let State::Damaged(file) = record.state_in(place.whole()) {
            bail!("{}: {file} is not as it was pulled: remove the folder and pull again", place.whole().display());
        }
        return pulled(&record, place.whole());
    }
    place.claim(&record)?;
    place.check_room(&record)?;
    let mut transfer = Transfer::start(record.bytes());
    let mut before = 0;
    for file in &record.files {
        transfer.begin(file.name());
        let of = (&reference.repo, record.commit.as_str());
        download(&session, of, file, place.partial(), |done| transfer.set(before + done)).await?;
        before += file.size;
    }
    drop(transfer);
    pulled(&record, &place.finish()?)
}

/// Says where the model is, and what is to be known of it.
fn pulled(record: &Record, folder: &Path) -> anyhow::Result<()> {
    let path = record.model_in(folder);
    let checkpoint = Checkpoint::open(&path);
    let license = checkpoint.as_ref().ok().and_then(Checkpoint::license).or_else(|| record.license.clone());
    match license {
        Some(license) => eprintln!("licence: {license}"),
        None => eprintln!("licence: not named: ask its makers what you may do with it"),
    }
    let served = checkpoint.and_then(|checkpoint| checkpoint.validate(&checkpoint.config()?));
    if let Err(error) = served {
        tracing::warn!("it is whole, but no model that can be served: {error}");
    }
    out(&format!("{}\n", path.display()))
}

/// The token: from the file that was named, from `HF_TOKEN`, or where Hugging Face's own tools keep it.
fn token(file: Option<&Path>) -> anyhow::Result<Option<String>> {
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let read = |path: &Path| {
        read_text(path, MAX_TOKEN).with_context(|| format!("cannot read the token in {}", path.display()))
    };
    let text = match (file, env("HF_TOKEN")) {
        (Some(file), _) => read(file)?,
        (None, Some(token)) => token,
        (None, None) => {
            let home = env("HF_HOME").map(PathBuf::from);
            let home = home.or_else(|| Some(Path::new(&env("HOME")?).join(".cache/huggingface")));
            match home.map(|home| home.join("token")).filter(|path| path.is_file()) {
                Some(path) => read(&path)?,
                None => return Ok(None),
            }
        }
    };
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!("the token is wanted as one printable word");
    }
    Ok(Some(token.to_owned()))
}

/// A model, as `list` shows it.
#[derive(Debug, Serialize)]
pub(super) struct Listed {
    pub(super) repo: String,
    pub(super) commit: String,
    pub(super) format: &'static str,
    /// The type in which most of its bytes are; none where it cannot be opened.
    pub(super) quantization: Option<String>,
    pub(super) bytes: u64,
    pub(super) license: Option<String>,
    pub(super) whole: bool,
    /// What there is to say of it, for people.
    pub(super) state: String,
    pub(super) path: PathBuf,
}

/// Shows the folder of models.
pub(super) fn show(args: &ListArgs) -> anyhow::Result<()> {
    let models = args.models_dir.clone().unwrap_or_else(|| default_folder(|name| std::env::var_os(name)));
    let listed: Vec<Listed> = list(&models)?.into_iter().map(listed).collect();
    if args.json {
        return out(&format!("{}\n", serde_json::to_string(&listed)?));
    }
    if listed.is_empty() {
        eprintln!("no models in {}", models.display());
        return Ok(());
    }
    out(&print::models(&listed))
}

fn listed(Entry { record, folder, state }: Entry) -> Listed {
    let path = record.model_in(&folder);
    let report = Checkpoint::open(&path).ok().filter(|_| state == State::Whole).map(|open| tools::inspect(&open));
    let types = report.map(|report| report.types).unwrap_or_default();
    let quantization = types.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(name, _)| name);
    let total = record.bytes();
    let said = match &state {
        State::Whole => "whole".to_owned(),
        State::Partial(there) => format!("{} of it", bytes(*there)),
        State::Damaged(file) => format!("damaged: {file}"),
    };
    Listed {
        format: if record.variant.is_some() { "gguf" } else { "safetensors" },
        quantization,
        bytes: total,
        whole: state == State::Whole,
        state: said,
        path,
        repo: record.repo,
        commit: record.commit,
        license: record.license,
    }
}
