//! One prompt through the engine: text to stdout as it comes, or one JSON object.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, anyhow, bail};
use futures::StreamExt;
use serde::Serialize;
use tramontane_cluster::engine::{Engine, Event, FinishReason, Generation, Sampling, Token, Usage, ValidRequest};
use tramontane_model::chat::{ChatTemplate, GenerationPrompt, Message, Role};
use tramontane_model::tokenizer::{Special, Tokenizer};
use tramontane_router::{ExpertId, NodeId};

use super::nodes::Nodes;
use crate::args::PromptArgs;
use crate::model::Model;

/// A prompt in the model's tokens.
pub(crate) struct Prompt {
    tokenizer: Tokenizer,
    request: ValidRequest,
}

/// What came of it.
pub(crate) struct Completion {
    prompt: Vec<u32>,
    tokens: Vec<Token>,
    text: String,
    reason: FinishReason,
    usage: Usage,
}

impl Prompt {
    /// Tokenises the prompt, and checks that the context has room for it.
    pub(crate) fn prepare(text: &str, args: &PromptArgs, model: &Model) -> anyhow::Result<Self> {
        let tokenizer = Tokenizer::of(&model.checkpoint)?;
        tokenizer.check_fits(model.config.vocab)?;
        let prompt = if args.chat {
            let source =
                model.checkpoint.chat_template()?.context("the model has no chat template; leave out --chat")?;
            let message = Message { role: Role::User, content: text.to_owned() };
            ChatTemplate::compile(&source)?.encode(&tokenizer, &[message], GenerationPrompt::Add)?
        } else {
            tokenizer.encode(text, Special::Add)?
        };
        let (length, context) = (prompt.len(), model.config.context);
        if length == 0 {
            bail!("the prompt has no tokens");
        }
        if length >= context {
            bail!("the prompt has {length} tokens, the model's context {context}");
        }
        let generation = Generation {
            max_tokens: args.max_tokens as usize,
            sampling: Sampling {
                temperature: args.temperature,
                top_k: (args.top_k > 0).then_some(args.top_k),
                top_p: args.top_p,
                seed: args.seed,
                ..Sampling::default()
            },
            stop_tokens: if args.ignore_eos { Vec::new() } else { model.config.eos.clone() },
            logprobs: args.logprobs,
            ..Generation::default()
        };
        let request = ValidRequest::generate(0, prompt, generation);
        Ok(Self { tokenizer, request })
    }
}

/// Runs the prompt; without `--json` the text goes to stdout piece by piece.
pub(crate) async fn run(args: &PromptArgs, prompt: Prompt, engine: &dyn Engine) -> anyhow::Result<Completion> {
    let Prompt { tokenizer, request } = prompt;
    let prompt = request.prompt.clone();
    let mut detokenizer = tokenizer.detokenizer(&prompt)?;
    let mut events = engine.submit(request)?.pop().context("a stream of events")?;
    let (mut tokens, mut text) = (Vec::new(), String::new());
    let mut say = |piece: Option<String>| -> anyhow::Result<()> {
        if let Some(piece) = piece {
            if !args.json {
                let mut stdout = std::io::stdout().lock();
                stdout.write_all(piece.as_bytes()).and_then(|()| stdout.flush()).context("stdout")?;
            }
            text.push_str(&piece);
        }
        Ok(())
    };
    while let Some(event) = events.next().await {
        match event {
            Event::Token(token) => {
                say(detokenizer.push(token.id)?)?;
                tokens.push(token);
            }
            Event::Finished { reason, usage } => {
                say(detokenizer.finish()?)?;
                return Ok(Completion { prompt, tokens, text, reason, usage });
            }
            Event::Failed(error) => return Err(error.into()),
            Event::Started { .. } | Event::Prompt(_) | Event::Embedding(_) => {}
        }
    }
    Err(anyhow!("the engine has stopped"))
}

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    prompt_token_ids: &'a [u32],
    token_ids: Vec<u32>,
    text: &'a str,
    finish_reason: &'static str,
    usage: UsageReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<LogprobReport<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expert_rows: Option<Vec<ExpertRowsReport>>,
}

#[derive(Serialize)]
struct UsageReport {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
}

#[derive(Serialize)]
struct LogprobReport<'a> {
    token_id: u32,
    logprob: f32,
    /// (token id, log-probability), descending.
    top: &'a [(u32, f32)],
}

#[derive(Serialize)]
struct ExpertRowsReport {
    node: NodeId,
    #[serde(flatten)]
    expert: ExpertId,
    rows: u64,
}

/// Ends the output: the line after the text, or the JSON object; and what was asked for about the experts.
pub(crate) async fn report(
    args: &PromptArgs,
    model: &Model,
    completion: Completion,
    nodes: &mut Nodes,
) -> anyhow::Result<()> {
    let Completion { prompt, tokens, text, reason, usage } = completion;
    let expert_rows = if args.expert_stats { Some(expert_rows(nodes.received().await?)) } else { None };
    let mut stdout = std::io::stdout().lock();
    if !args.json {
        writeln!(stdout).context("stdout")?;
        for row in expert_rows.iter().flatten() {
            eprintln!("{} {}: {} rows", row.node, row.expert, row.rows);
        }
        return Ok(());
    }
    let report = Report {
        model: model.id.as_str(),
        prompt_token_ids: &prompt,
        token_ids: tokens.iter().map(|t| t.id).collect(),
        text: &text,
        finish_reason: match reason {
            FinishReason::Stop { .. } => "stop",
            FinishReason::Length | FinishReason::Embedded => "length",
        },
        usage: UsageReport {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
        },
        logprobs: args.logprobs.map(|_| {
            tokens.iter().map(|t| LogprobReport { token_id: t.id, logprob: t.logprob, top: &t.top }).collect()
        }),
        expert_rows,
    };
    serde_json::to_writer(&mut stdout, &report).context("stdout")?;
    writeln!(stdout).context("stdout")
}

fn expert_rows(received: BTreeMap<NodeId, BTreeMap<ExpertId, u64>>) -> Vec<ExpertRowsReport> {
    let rows = received.into_iter().flat_map(|(node, experts)| {
        experts.into_iter().map(move |(expert, rows)| ExpertRowsReport { node: node.clone(), expert, rows })
    });
    rows.collect()
}
