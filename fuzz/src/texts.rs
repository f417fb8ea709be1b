//! Texts that are programs: tokenizers, chat templates, grammars.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;

use tramontane_cluster::engine::Constraint;
use tramontane_coordinator::Vocabulary;
use tramontane_model::chat::{ChatTemplate, GenerationPrompt, Message, Role};
use tramontane_model::checkpoint::ChatSource;
use tramontane_model::tokenizer::{Special, Tokenizer};

/// Stack of a thread that compiles a grammar: as many bytes as the engine's have.
const COMPILE_STACK: usize = 64 << 20;
/// Of bytes, and one that ends a completion.
const END: u32 = 256;

thread_local! {
    static BREEZE: Tokenizer = Tokenizer::from_json(super::TOKENIZER).expect("the demo model's tokenizer");
    static BYTES: Vocabulary = {
        let bytes = (0..=u8::MAX).map(|byte| vec![byte]);
        let tokens = bytes.chain([b"\xff</s>".to_vec()]).collect();
        Vocabulary::new(tokens, &[END]).expect("a vocabulary")
    };
}

/// `data` is a `tokenizer.json` behind a byte that is even, a `tokenizer.model` behind one that is odd.
pub(super) fn tokenizer(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    let read = if kind % 2 == 0 { Tokenizer::from_json(data) } else { Tokenizer::from_sentencepiece(data) };
    if let Ok(tokenizer) = read {
        use_tokenizer(&tokenizer);
    }
}

/// Encodes and decodes with a tokenizer that nobody vouches for.
pub(super) fn use_tokenizer(tokenizer: &Tokenizer) {
    for text in ["", "The wind blows.", " a\n\t é 風 🙂 e\u{301} <s></s>[INST] 12345"] {
        for special in [Special::Add, Special::None] {
            let Ok(ids) = tokenizer.encode(text, special) else { continue };
            _ = tokenizer.decode(&ids);
            let Ok(mut detokenizer) = tokenizer.detokenizer(&ids) else { continue };
            for &id in &ids {
                _ = detokenizer.push(id);
                _ = tokenizer.token_bytes(id);
            }
            _ = detokenizer.finish();
        }
    }
    for id in [0, 1, u32::MAX] {
        _ = (tokenizer.id_to_token(id), tokenizer.is_control(id), tokenizer.token_bytes(id));
    }
}

/// `data` is a template, and behind a zero byte what a user writes.
pub(super) fn chat_template(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (template, content) = text.split_once('\0').unwrap_or((&text, "The wind blows."));
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(name, text)| (name.to_owned(), text.to_owned()));
    let source = ChatSource { template: template.to_owned(), special_tokens: BTreeMap::from(tokens) };
    let Ok(template) = ChatTemplate::compile(&source) else { return };
    let message = |role, content: &str| Message { role, content: content.to_owned() };
    let messages =
        [message(Role::System, "Be brief."), message(Role::User, content), message(Role::Assistant, "It does.")];
    BREEZE.with(|tokenizer| {
        for prompt in [GenerationPrompt::Add, GenerationPrompt::Omit] {
            for messages in [&messages[..], &messages[1..2]] {
                let once = template.encode(tokenizer, messages, prompt).ok();
                assert_eq!(
                    once,
                    template.encode(tokenizer, messages, prompt).ok(),
                    "the same messages, another prompt"
                );
            }
        }
    });
}

/// `data` is a constraint behind a byte that says of which kind, and behind a zero byte a completion.
pub(super) fn grammar(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let text: Arc<str> = String::from_utf8_lossy(parts.next().unwrap_or_default()).into();
    let tokens: Vec<u32> = parts.next().unwrap_or_default().iter().map(|&byte| byte.into()).collect();
    let constraint = match kind % 3 {
        0 => Constraint::JsonSchema(text),
        1 => Constraint::Regex(text),
        _ => Constraint::Lark(text),
    };
    let vocabulary = BYTES.with(Vocabulary::clone);
    let compiling = move || {
        // Where a completion is accepted, it is accepted again.
        let once = vocabulary.accepts(&constraint, &tokens);
        assert_eq!(once, vocabulary.accepts(&constraint, &tokens));
    };
    let ended = thread::Builder::new().stack_size(COMPILE_STACK).spawn(compiling).expect("a thread").join();
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
