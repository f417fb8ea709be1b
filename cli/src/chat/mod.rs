//! `tramontane chat`: a conversation on a terminal, or one question. Answers come as they are made; Ctrl-C ends the answer, at the
//! server too, and not the program.

mod args;
mod conversation;

use std::io::{BufRead, IsTerminal, Read, Write};
use std::thread;

use anyhow::{Context, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

pub(crate) use args::ChatArgs;
use conversation::{Answer, Conversation};

use crate::client::{ClientError, Endpoint, with_exit_code};
use crate::output::out;

/// Most bytes of a message: as many as a server of ours reads.
const MAX_MESSAGE: u64 = 8 << 20;
const HELP: &str = "/clear forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C ends an answer.";

/// Talks.
pub(crate) async fn run(args: ChatArgs) -> anyhow::Result<()> {
    let endpoint = args.server.open()?;
    let model = match &args.server.model {
        Some(model) => model.clone(),
        None => endpoint.first_model().await.map_err(|error| with_exit_code(error.into()))?,
    };
    let chat = Chat { endpoint, model, args };
    match &chat.args.message {
        Some(message) => chat.once(message.clone()).await,
        None if std::io::stdin().is_terminal() => chat.repeatedly().await,
        None => chat.once(stdin()?).await,
    }
}

/// All of stdin.
fn stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    let read = std::io::stdin().lock().take(MAX_MESSAGE + 1).read_to_string(&mut text).context("stdin")?;
    if read as u64 > MAX_MESSAGE {
        bail!("stdin: more than {MAX_MESSAGE} bytes");
    }
    if text.trim().is_empty() {
        bail!("stdin: no message");
    }
    Ok(text)
}

struct Chat {
    endpoint: Endpoint,
    model: String,
    args: ChatArgs,
}

impl Chat {
    /// One question. Ctrl-C ends the process, as it does everywhere.
    async fn once(&self, message: String) -> anyhow::Result<()> {
        let mut conversation = Conversation::new(self.args.system.clone());
        conversation.ask(message);
        let mut never = std::future::pending();
        let answer = self.answer(&conversation, &mut never).await.map_err(with_exit_code)?;
        self.finish(&answer)
    }

    /// Questions until there are no more.
    async fn repeatedly(&self) -> anyhow::Result<()> {
        let mut interrupts = signal(SignalKind::interrupt())?;
        let mut lines = lines();
        let mut conversation = Conversation::new(self.args.system.clone());
        eprintln!("{} on {}. {HELP}", self.model, self.endpoint);
        while let Some(line) = next_line(&mut lines, &mut interrupts).await? {
            match line.trim() {
                "" => continue,
                "/exit" | "/quit" => break,
                "/clear" => conversation.clear(),
                "/help" => eprintln!("{HELP}"),
                message => self.turn(&mut conversation, message.to_owned(), &mut interrupts).await?,
            }
        }
        Ok(())
    }

    async fn turn(
        &self,
        conversation: &mut Conversation,
        message: String,
        interrupts: &mut Signal,
    ) -> anyhow::Result<()> {
        conversation.ask(message);
        let mut stop = Box::pin(async { _ = interrupts.recv().await });
        match self.answer(conversation, &mut stop).await {
            Ok(answer) => {
                conversation.answered(&answer.text);
                self.finish(&answer)
            }
            // A conversation outlives a question that cannot be answered.
            Err(error) if error.is::<ClientError>() => {
                conversation.take_back();
                eprintln!("tramontane: {}", crate::with_causes(&error));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Asks, and prints what comes until it ends or `stop` does; then the server hears that nobody listens any more.
    async fn answer(
        &self,
        conversation: &Conversation,
        stop: &mut (impl Future<Output = ()> + Unpin),
    ) -> anyhow::Result<Answer> {
        let body = conversation.request(&self.model, &self.args);
        let mut answer = Answer::default();
        let asked = self.endpoint.stream("/v1/chat/completions", &body);
        let mut stream = tokio::select! {
            stream = asked => stream?,
            () = &mut *stop => return Ok(answer),
        };
        loop {
            let event = tokio::select! {
                event = stream.next() => event?,
                () = &mut *stop => return Ok(answer),
            };
            let Some(event) = event else { return Ok(answer) };
            let piece = answer.take(&event);
            if !self.args.json {
                say(&piece)?;
            }
        }
    }

    /// Prints what stands behind an answer.
    fn finish(&self, answer: &Answer) -> anyhow::Result<()> {
        out(&if self.args.json { format!("{}\n", answer.report(&self.model)) } else { "\n".to_owned() })
    }
}

fn say(piece: &str) -> anyhow::Result<()> {
    // What a model says must not steer a terminal.
    let steers = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if std::io::stdout().is_terminal() && piece.contains(steers) {
        out(&piece.replace(steers, "\u{fffd}"))?;
    } else {
        out(piece)?;
    }
    std::io::stdout().flush().context("stdout")
}

/// What is typed, line by line, from a thread that may stay behind when the program ends.
fn lines() -> mpsc::Receiver<std::io::Result<String>> {
    let (sender, receiver) = mpsc::channel(1);
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The next line; `None` at the end. An interrupt here has nothing to end, and begins a new line.
async fn next_line(
    lines: &mut mpsc::Receiver<std::io::Result<String>>,
    interrupts: &mut Signal,
) -> anyhow::Result<Option<String>> {
    loop {
        eprint!("> ");
        tokio::select! {
            line = lines.recv() => return line.transpose().context("stdin"),
            _ = interrupts.recv() => eprintln!("\n{HELP}"),
        }
    }
}
