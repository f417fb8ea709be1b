//! What requests share: cached blocks of prompts, a prompt among its choices, and time between tenants.

use tramontane_cluster::engine::{CacheScope, EngineError, FinishReason, Generation, Tenant, ValidRequest};
use tramontane_coordinator::{KV_BLOCK, Limits};
use tramontane_kernels::KvType;
use tramontane_model::weights::Quantize;

use super::support::cluster::Setup;
use super::support::engine::{ROOMY, Running, generate, read};
use super::support::model::Model;
use super::{setup, spiced, text};

fn generation(seed: u64) -> Generation {
    Generation { max_tokens: 20, sampling: spiced(seed), logprobs: Some(3), ..Generation::default() }
}

#[test]
fn a_prefix_found_in_the_cache_changes_no_bit() {
    let model = Model::breeze();
    for (quantize, kv) in [(Quantize::AsStored, KvType::F16), (Quantize::Q4_0, KvType::F32)] {
        let setup = Setup { quantize, kv, ..setup() };
        let engine = Running::start(&model, &setup, Limits { chunk: 23, ..ROOMY });
        let prompt = text(&model, 4 * KV_BLOCK + 5);
        let first = engine.output(generate(&prompt, generation(1)));
        assert_eq!(first.finished().1.cached_tokens, 0);
        // All of it, a part of it, up to the end of a block, and what was generated too.
        let conversation = [&prompt[..], &first.ids(), &prompt[..9]].concat();
        let of_part = [&prompt[..70], &prompt[..20]].concat();
        let cases = [
            (prompt.clone(), 4 * KV_BLOCK),
            (of_part, 2 * KV_BLOCK),
            (prompt[..3 * KV_BLOCK].to_vec(), 2 * KV_BLOCK),
            (conversation, 4 * KV_BLOCK),
        ];
        for (prompt, cached) in cases {
            let found = engine.output(generate(&prompt, generation(2)));
            assert_eq!(found.finished().1.cached_tokens, cached, "of {} tokens", prompt.len());
            let alone = Running::start(&model, &setup, ROOMY).output(generate(&prompt, generation(2)));
            assert_eq!(alone.finished().1.cached_tokens, 0);
            assert_eq!(found.uncached(), alone);
        }
        let status = engine.status_when("idle", |s| s.running == 0);
        assert_eq!((status.kv_used, status.prefix_hits), (0, 12 * KV_BLOCK as u64));
    }
}

#[test]
fn scopes_share_no_blocks() {
    let model = Model::breeze();
    let engine = Running::start(&model, &setup(), ROOMY);
    let prompt = text(&model, 100);
    let scoped = |scope| {
        let request = ValidRequest { cache_scope: CacheScope(scope), ..generate(&prompt, generation(1)) };
        engine.output(request).finished().1.cached_tokens
    };
    assert_eq!([0, 1, 0, 1, u128::MAX].map(scoped), [0, 0, 96, 96, 0]);
}

#[test]
fn each_choice_is_what_it_would_be_alone() {
    let model = Model::breeze();
    // Room for all, for some, and for hardly more than one.
    for kv_blocks in [101, 9, 5] {
        let engine = Running::start(&model, &Setup { kv_blocks, ..setup() }, Limits { max_running: 4, ..ROOMY });
        let prompt = text(&model, 2 * KV_BLOCK + 9);
        let choices = Generation { choices: 5, first_choice: 2, ..generation(3) };
        let together = engine.outputs(generate(&prompt, choices));
        let texts: std::collections::BTreeSet<_> = together.iter().map(|output| output.ids()).collect();
        assert_eq!(texts.len(), 5, "choices that say the same");
        for (number, output) in (2..).zip(together) {
            let alone = engine.output(generate(&prompt, Generation { first_choice: number, ..generation(3) }));
            assert_eq!(output.uncached(), alone.uncached(), "choice {number} in {kv_blocks} blocks");
        }
        engine.assert_empty();
    }
}

#[test]
fn the_first_choice_is_what_the_seed_alone_would_choose_and_the_prompt_is_computed_once() {
    let model = Model::breeze();
    let engine = Running::start(&model, &setup(), ROOMY);
    let prompt = text(&model, 2 * KV_BLOCK);
    let before = engine.status();
    let outputs = engine.outputs(generate(&prompt, Generation { choices: 4, ..generation(3) }));
    let after = engine.status_when("idle", |s| s.running == 0 && s.prefix_queries > 0);
    assert_eq!(after.prefix_queries - before.prefix_queries, prompt.len() as u64, "one sequence was let in");
    assert_eq!(outputs[0].clone().uncached(), engine.output(generate(&prompt, generation(3))).uncached());
}

#[test]
fn a_choice_that_nobody_reads_leaves_the_others_alone() {
    let model = Model::breeze();
    let engine = Running::start(&model, &setup(), Limits { chunk: 16, ..ROOMY });
    let prompt = text(&model, 300);
    let expected = engine.outputs(generate(&prompt, Generation { choices: 3, ..generation(3) }));
    // Before the prompt is computed, and after the first token; the one that the prompt's sequence would have become, and another.
    for dropped in [0, 2] {
        for wait in [false, true] {
            let request = generate(&prompt, Generation { choices: 3, ..generation(3) });
            let mut streams = engine.submit(ValidRequest { cache_scope: CacheScope(7), ..request });
            let mut gone = streams.remove(dropped);
            if wait {
                gone.blocking_next().expect("a first token");
            }
            drop(gone);
            let others: Vec<_> = streams.into_iter().map(|stream| read(stream).uncached()).collect();
            let mut expected: Vec<_> = expected.iter().cloned().map(|output| output.uncached()).collect();
            expected.remove(dropped);
            assert_eq!(others, expected, "without choice {dropped}");
            engine.assert_empty();
        }
    }
}

#[test]
fn a_tenant_that_floods_does_not_hold_up_another() {
    let model = Model::breeze();
    let limits = Limits { max_running: 2, max_waiting: 32, ..ROOMY };
    let of = |name: &str, max_tokens| ValidRequest {
        tenant: Tenant(Some(name.into())),
        ..generate(&text(&model, 40), Generation { max_tokens, ..generation(1) })
    };
    // As many as do not end while this test looks, and then another tenant's.
    let requests = (0..40).map(|_| of("flood", 900)).chain([of("other", 5)]).collect();
    let (engine, mut streams) = Running::start_after(&model, &setup(), limits, requests);
    let other = read(streams.remove(40).remove(0));
    assert_eq!(other.finished().0, FinishReason::Length, "there is a place for it");
    let status = engine.status();
    assert!(status.waiting > 0, "it did not wait for the flood's end: {status:?}");
    let refused = streams.split_off(16);
    for stream in refused.into_iter().flatten() {
        let error = read(stream).end.expect_err("half of the places are taken");
        let EngineError::Overloaded { retry_after } = error else { panic!("{error:?}") };
        assert!((1..=60).contains(&retry_after.as_secs()));
    }
    drop(streams);
    engine.assert_empty();
}
