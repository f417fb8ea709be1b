//! `tramontane top`: a cluster, live. This file has the terminal and the clock; what is shown is decided by [`model`], and drawn by
//! [`draw`], both pure.

mod draw;
mod model;

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::future::join_all;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tramontane_cluster::admin::{AdminClient, AdminClientError, ClusterStatus};

use super::args::TopArgs;
use super::failed;
use crate::signals::Signals;
use draw::draw;
use model::{Key, Model, Sample};

/// Keys that were pressed and are not taken yet; more wait in the terminal.
const KEYS: usize = 16;

/// Shows the cluster until the operator has seen enough.
pub(crate) async fn top(args: &TopArgs) -> anyhow::Result<u8> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        bail!("top draws on a terminal, and this is none; `tramontane status --watch` prints lines");
    }
    let first = sample(&args.endpoint).await;
    if let Some(error) = nobody(&first) {
        return Err(failed(error));
    }
    let mut signals = Signals::new()?;
    let mut screen = Screen::open()?;
    let mut model = Model::new(first.sample());
    let (mut keys, mut samples) = (keys(), samples(args));
    loop {
        screen.0.draw(|frame| draw(frame, &model)).context("drawing on the terminal")?;
        tokio::select! {
            key = keys.recv() => match key {
                Some(Pressed::End) | None => return Ok(0),
                Some(Pressed::Key(key)) => model.press(key),
                // The terminal has another size; it is drawn anew.
                Some(Pressed::Other) => {}
            },
            sample = samples.recv() => match sample {
                Some(sample) => model.see(sample),
                None => bail!("the cluster is not looked at any more"),
            },
            () = signals.next() => return Ok(0),
        }
    }
}

/// The terminal while it is ours. It is given back as it was when this is dropped, and before a panic says anything.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> anyhow::Result<Self> {
        ratatui::try_init().map(Self).context("the terminal cannot be drawn on")
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// What was pressed.
enum Pressed {
    End,
    Key(Key),
    Other,
}

/// Reads keys on a thread of its own, which ends with the process or with its reader.
fn keys() -> mpsc::Receiver<Pressed> {
    let (sender, receiver) = mpsc::channel(KEYS);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(meaning(&event)).is_err() {
                return;
            }
        }
    });
    receiver
}

fn meaning(event: &Event) -> Pressed {
    let Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press, .. }) = event else { return Pressed::Other };
    match code {
        KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => Pressed::End,
        KeyCode::Char('q') => Pressed::End,
        KeyCode::Char('p' | ' ') => Pressed::Key(Key::Pause),
        KeyCode::Char('s') | KeyCode::Right => Pressed::Key(Key::NextColumn),
        KeyCode::Left => Pressed::Key(Key::ColumnBefore),
        KeyCode::Char('r') => Pressed::Key(Key::Reverse),
        _ => Pressed::Other,
    }
}

/// What all coordinators say, again and again. A slow one holds up the next look, and no key.
fn samples(args: &TopArgs) -> mpsc::Receiver<Sample> {
    let (sender, receiver) = mpsc::channel(1);
    let (endpoints, every) = (args.endpoint.clone(), Duration::from_secs(args.every));
    tokio::spawn(async move {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is now, and the first look was a moment ago.
        ticks.tick().await;
        loop {
            ticks.tick().await;
            if sender.send(sample(&endpoints).await.sample()).await.is_err() {
                return;
            }
        }
    });
    receiver
}

/// What each coordinator said when it was asked.
struct Answers {
    at: Instant,
    all: Vec<(String, Result<ClusterStatus, AdminClientError>)>,
}

impl Answers {
    fn sample(self) -> Sample {
        let said = |(endpoint, answer): (String, Result<ClusterStatus, AdminClientError>)| {
            (endpoint, answer.map_err(|error| error.to_string()))
        };
        Sample { at: self.at, all: self.all.into_iter().map(said).collect() }
    }
}

/// Why there is nothing to show, if nobody has answered.
fn nobody(answers: &Answers) -> Option<AdminClientError> {
    let mut errors = answers.all.iter().filter_map(|(_, answer)| answer.as_ref().err());
    if answers.all.iter().all(|(_, answer)| answer.is_err()) { errors.next().cloned() } else { None }
}

async fn sample(endpoints: &[String]) -> Answers {
    let ask = async |endpoint: &String| {
        let status = async { AdminClient::connect(endpoint).await?.status().await };
        (endpoint.clone(), status.await)
    };
    let all = join_all(endpoints.iter().map(ask)).await;
    Answers { at: Instant::now(), all }
}
