//! Edits of the logits, and tokens that are no candidates: steps 1 and 2 of the sampler.

use std::borrow::Cow;

use super::{Draw, Sampling};

/// `logits` after the edits, −∞ where a token is no candidate. Copied only where something changes.
pub(super) fn adjusted<'a>(logits: &'a [f32], draw: &Draw<'_>) -> Cow<'a, [f32]> {
    let mut logits = Cow::Borrowed(logits);
    if edits(draw.sampling) {
        let edited = logits.to_mut();
        edit(edited, draw);
        edited.iter_mut().for_each(|logit| *logit = logit.clamp(f32::MIN, f32::MAX));
    }
    let words = draw.sampling.bad_words.iter().filter_map(|word| {
        let (last, others) = word.split_last()?;
        draw.generated.ends_with(others).then_some(last)
    });
    for excluded in words.chain(draw.banned) {
        if let Some(logit) = logits.to_mut().get_mut(*excluded as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
    if let Some(allowed) = draw.allowed {
        let is_allowed = |id: usize| allowed.get(id / 32).is_some_and(|word| word >> (id % 32) & 1 == 1);
        let excluded = logits.to_mut().iter_mut().enumerate().filter(|(id, _)| !is_allowed(*id));
        excluded.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
    }
    logits
}

/// Whether `sampling` edits anything.
fn edits(sampling: &Sampling) -> bool {
    !sampling.logit_bias.is_empty()
        || sampling.repetition_penalty != 1.0
        || sampling.frequency_penalty != 0.0
        || sampling.presence_penalty != 0.0
}

fn edit(logits: &mut [f32], draw: &Draw<'_>) {
    let sampling = draw.sampling;
    for (id, bias) in &sampling.logit_bias {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit += bias;
        }
    }
    let in_completion = counts(draw.generated, logits.len());
    let in_prompt = counts(draw.prompt, logits.len());
    for ((logit, in_completion), in_prompt) in logits.iter_mut().zip(in_completion).zip(in_prompt) {
        if in_completion + in_prompt > 0 {
            *logit =
                if *logit > 0.0 { *logit / sampling.repetition_penalty } else { *logit * sampling.repetition_penalty };
        }
        if in_completion > 0 {
            *logit -= sampling.frequency_penalty * in_completion as f32;
            *logit -= sampling.presence_penalty;
        }
    }
}

/// How often each of `vocab` tokens is among `tokens`.
fn counts(tokens: &[u32], vocab: usize) -> Vec<u32> {
    let mut counts = vec![0; vocab];
    for token in tokens {
        if let Some(count) = counts.get_mut(*token as usize) {
            *count += 1;
        }
    }
    counts
}
