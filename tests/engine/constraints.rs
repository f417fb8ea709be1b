//! Completions that have to match something.

use tramontane_cluster::engine::{Constraint, EngineError, FinishReason, Generation, Sampling};
use tramontane_model::tokenizer::Tokenizer;

use super::support::engine::{Output, ROOMY, Running, generate, read};
use super::support::model::Model;
use super::{setup, text};

/// A regular expression that the completions of a small model soon fulfil.
const DATE: &str = "(19|20)[0-9]{2}-[01][0-9](-[0-3][0-9])?";
const SCHEMA: &str = r#"{"type":"object","properties":{"name":{"type":"string","maxLength":8},
    "size":{"enum":["small","large"]},"tags":{"type":"array","items":{"type":"boolean"},"maxItems":2}},
    "required":["name","size","tags"],"additionalProperties":false}"#;

fn generation(constraint: Constraint, seed: u64) -> Generation {
    let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
    Generation { max_tokens: 200, sampling, constraint: Some(constraint), logprobs: Some(1), ..Generation::default() }
}

fn said(model: &Model, output: &Output) -> String {
    Tokenizer::of(&model.checkpoint).expect("a tokenizer").decode(&output.ids()).expect("text").trim_start().to_owned()
}

fn is_date(text: &str) -> bool {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    ["0000-00", "0000-00-00"].contains(&shape.as_str()) && ["19", "20"].contains(&&text[..2])
}

#[test]
fn completions_match_their_constraints() {
    let model = Model::breeze();
    let engine = Running::start(&model, &setup(), ROOMY);
    let prompt = text(&model, 40);
    for seed in 0..5 {
        let date = engine.output(generate(&prompt, generation(Constraint::Regex(DATE.into()), seed)));
        assert!(is_date(&said(&model, &date)), "{:?}", said(&model, &date));
        assert!(matches!(date.finished().0, FinishReason::Stop { .. }));

        let object = engine.output(generate(&prompt, generation(Constraint::JsonSchema(SCHEMA.into()), seed)));
        if let FinishReason::Stop { .. } = object.finished().0 {
            let text = said(&model, &object);
            let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text:?}"));
            let size = json["size"].as_str().expect("a size");
            assert!(["small", "large"].contains(&size) && json["name"].is_string(), "{text:?}");
            assert!(json["tags"].as_array().is_some_and(|tags| tags.iter().all(serde_json::Value::is_boolean)));
        }
        let lark = Constraint::Lark("start: \"yes\" | \"no\" \"!\"*".into());
        let answer = engine.output(generate(&prompt, Generation { max_tokens: 6, ..generation(lark, seed) }));
        let answer = said(&model, &answer);
        assert!(answer == "yes" || answer.trim_end_matches('!') == "no", "{answer:?}");
    }
}

#[test]
fn a_constrained_request_is_the_same_alone_beside_others_among_choices_and_resumed() {
    let model = Model::breeze();
    let engine = Running::start(&model, &setup(), ROOMY);
    let prompt = text(&model, 40);
    let of = |seed| generation(Constraint::JsonSchema(SCHEMA.into()), seed);
    let alone: Vec<Output> = (0..4).map(|seed| engine.output(generate(&prompt, of(seed))).uncached()).collect();
    let streams: Vec<_> = (0..4).flat_map(|seed| engine.submit(generate(&prompt, of(seed)))).collect();
    assert_eq!(streams.into_iter().map(|stream| read(stream).uncached()).collect::<Vec<_>>(), alone);
    let choices = engine.outputs(generate(&prompt, Generation { choices: 3, ..of(1) }));
    assert_eq!(choices[0].clone().uncached(), alone[1]);
    for (number, choice) in (0..).zip(choices) {
        let alone = engine.output(generate(&prompt, Generation { first_choice: number, ..of(1) }));
        assert_eq!(choice.uncached(), alone.uncached(), "choice {number}");
    }
    let cut = alone[2].tokens.len() / 2;
    let resumed = Generation { resume_after: alone[2].ids()[..cut].to_vec(), ..of(2) };
    let rest = engine.output(generate(&prompt, resumed));
    assert_eq!((rest.tokens.as_slice(), rest.finished().0), (&alone[2].tokens[cut..], alone[2].finished().0));
}

#[test]
fn a_bad_constraint_fails_its_own_request_and_harms_nobody() {
    let model = Model::breeze();
    let engine = Running::start(&model, &setup(), ROOMY);
    let prompt = text(&model, 40);
    let plain = Generation { max_tokens: 60, ..Generation::default() };
    let expected = engine.output(generate(&prompt, plain.clone()));
    let bad = [
        Constraint::JsonSchema("{\"type\": 7}".into()),
        Constraint::Regex("(a".into()),
        Constraint::Regex("((a{0,1000}){0,1000}){0,1000}b{3".into()),
        Constraint::Lark("start: missing".into()),
    ];
    let neighbour = engine.submit(generate(&prompt, plain));
    for constraint in bad {
        let output = engine.output(generate(&prompt, generation(constraint.clone(), 0)));
        let failed = matches!(output.end, Err(EngineError::InvalidConstraint { ref why }) if !why.is_empty());
        assert!(failed && output.tokens.is_empty(), "{constraint:?}: {:?}", output.end);
    }
    assert_eq!(neighbour.into_iter().map(|stream| read(stream).uncached()).collect::<Vec<_>>(), [expected.uncached()]);
    let good = engine.output(generate(&prompt, generation(Constraint::Regex("ab".into()), 0)));
    assert_eq!(said(&model, &good), "ab");
    engine.assert_empty();
}

#[test]
fn what_is_resumed_has_to_match_and_banning_all_that_is_allowed_is_an_error() {
    let model = Model::breeze();
    let engine = Running::start(&model, &setup(), ROOMY);
    let prompt = text(&model, 40);
    let of = || generation(Constraint::Regex("[0-9]{4}".into()), 0);
    let wrong = engine.output(generate(&prompt, Generation { resume_after: prompt[1..3].to_vec(), ..of() }));
    assert!(matches!(wrong.end, Err(EngineError::InvalidRequest { .. })), "{:?}", wrong.end);
    let all: Vec<Vec<u32>> = (0..model.config.vocab as u32).map(|id| vec![id]).collect();
    let banned = Generation { sampling: Sampling { bad_words: all, ..Sampling::default() }, ..of() };
    let failed = engine.output(generate(&prompt, banned));
    assert!(matches!(failed.end, Err(EngineError::InvalidConstraint { .. })), "{:?}", failed.end);
    engine.assert_empty();
}
