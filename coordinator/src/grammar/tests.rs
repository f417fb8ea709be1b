//! Grammars over a vocabulary of single bytes and a few longer tokens.

use super::compile::{MAX_CONSTRAINT_BYTES, MAX_NESTING, MAX_PART_BYTES, check_size, parser};
use super::weigh::{MAX_CHOICES, MAX_REGEX_BYTES, Weight};
use super::*;

/// Ids 0‥255 are the bytes, then these, then the end.
const WORDS: [&str; 4] = ["true", "\":", "{\"", "abc"];
const EOS: u32 = 256 + WORDS.len() as u32;

fn vocabulary() -> Vocabulary {
    let bytes = (0..=255_u8).map(|byte| vec![byte]);
    let words = WORDS.iter().map(|word| word.as_bytes().to_vec());
    let eos = b"\xFF</s>".to_vec();
    Vocabulary::new(bytes.chain(words).chain([eos]).collect(), &[EOS]).unwrap()
}

/// What becomes of `constraint`, however long it takes.
fn compiled(grammars: &mut Grammars, constraint: &Constraint) -> Result<Box<Follower>, String> {
    loop {
        match grammars.get(constraint, Instant::now()) {
            Lookup::Ready(follower) => return Ok(follower),
            Lookup::Failed(why) => return Err(why),
            Lookup::Pending => grammars.wait(Duration::from_millis(50)),
        }
    }
}

/// How far `text` goes before it is not allowed, and whether it may end there.
fn follow(follower: &mut Follower, text: &str) -> (usize, bool) {
    for (at, byte) in text.bytes().enumerate() {
        if !follower.allowed().unwrap().is_allowed(byte.into()) {
            return (at, follower.may_end());
        }
        follower.push(byte.into()).unwrap();
    }
    (text.len(), follower.may_end())
}

fn judge(constraint: &Constraint, text: &str) -> (usize, bool) {
    follow(&mut compiled(&mut Grammars::new(Some(vocabulary())), constraint).unwrap(), text)
}

#[test]
fn each_kind_of_constraint_allows_what_it_says() {
    let schema = r##"{"type":"object","properties":{"a":{"$ref":"#/$defs/n"}},"required":["a"],
        "additionalProperties":false,"$defs":{"n":{"type":"integer"}}}"##;
    let schema = Constraint::JsonSchema(schema.into());
    assert_eq!(judge(&schema, r#"{"a":12}"#), (8, true));
    assert_eq!(judge(&schema, r#"{"a":1.5}"#), (6, false));
    assert_eq!(judge(&Constraint::JsonObject, r#"{"x":[true]}"#), (12, true));
    assert_eq!(judge(&Constraint::JsonObject, "[1]"), (0, false));
    assert_eq!(judge(&Constraint::Regex("[ab]{2}c?".into()), "abc"), (3, true));
    assert_eq!(judge(&Constraint::Regex("[ab]{2}c?".into()), "ac"), (1, false));
    let lark = Constraint::Lark("start: \"x\" body*\nbody: \"(\" body* \")\"".into());
    assert_eq!(judge(&lark, "x(())()"), (7, true));
    assert_eq!(judge(&lark, "x())"), (3, true));
}

#[test]
fn the_end_is_allowed_where_the_grammar_accepts_and_nowhere_else() {
    let mut follower = compiled(&mut Grammars::new(Some(vocabulary())), &Constraint::Regex("ab*".into())).unwrap();
    assert!(!follower.allowed().unwrap().is_allowed(EOS));
    follower.push(b'a'.into()).unwrap();
    assert!(follower.allowed().unwrap().is_allowed(EOS) && !follower.is_finished());
    let mut fixed = compiled(&mut Grammars::new(Some(vocabulary())), &Constraint::Regex("abc".into())).unwrap();
    assert!(fixed.allowed().unwrap().is_allowed(259), "a token of several bytes");
    fixed.push(259).unwrap();
    assert!(fixed.is_finished() && fixed.may_end());
}

#[test]
fn a_fork_goes_its_own_way() {
    let mut grammars = Grammars::new(Some(vocabulary()));
    let mut one = compiled(&mut grammars, &Constraint::Regex("a(b|c)d".into())).unwrap();
    one.push(b'a'.into()).unwrap();
    let mut other = one.fork();
    assert_eq!(follow(&mut one, "bd"), (2, true));
    assert_eq!(follow(&mut other, "cd"), (2, true));
    let again = &mut compiled(&mut grammars, &Constraint::Regex("a(b|c)d".into())).unwrap();
    assert_eq!(follow(again, "abd"), (3, true), "from the beginning");
}

#[test]
fn bad_constraints_fail_and_the_next_one_works() {
    let mut grammars = Grammars::new(Some(vocabulary()));
    let (deep, long) = ("[".repeat(MAX_NESTING + 1), "a".repeat(MAX_PART_BYTES + 1));
    let bad = [
        Constraint::JsonSchema("{".into()),
        Constraint::JsonSchema(r#"{"type":"nonsense"}"#.into()),
        Constraint::JsonSchema(r##"{"$ref":"#/nowhere"}"##.into()),
        Constraint::JsonSchema("\"".repeat(MAX_CONSTRAINT_BYTES + 1).into()),
        Constraint::JsonSchema(format!("{{\"const\":\"{long}\"}}").into()),
        Constraint::JsonSchema(deep.clone().into()),
        Constraint::Regex(long.clone().into()),
        Constraint::Lark(format!("start: \"{long}\"").into()),
        Constraint::Regex("(".into()),
        Constraint::Regex("a(?=b)".into()),
        Constraint::Lark("start: nowhere".into()),
        Constraint::Lark("".into()),
        Constraint::Lark(format!("start: {deep}").into()),
    ];
    for constraint in bad {
        let why = compiled(&mut grammars, &constraint).err().unwrap_or_else(|| panic!("{constraint:?} is taken"));
        assert!(!why.is_empty() && why.chars().count() <= 400, "{why}");
        assert!(compiled(&mut grammars, &Constraint::Regex("ab".into())).is_ok());
    }
}

/// Small texts that ask for a great deal.
fn monsters() -> Vec<Constraint> {
    let nested = (0..16).fold("a".to_owned(), |regex, _| format!("({regex}|b){{1,40}}"));
    let wide: Vec<String> =
        (0..400).map(|i| format!("\"p{i}\":{{\"type\":\"string\",\"pattern\":\"(a|b)*a(a|b){{15}}\"}}")).collect();
    let doubling: Vec<String> = (0..40)
        .map(|i| format!("\"d{i}\":{{\"type\":\"array\",\"prefixItems\":[{{\"$ref\":\"#/$defs/d{0}\"}},{{\"$ref\":\"#/$defs/d{0}\"}}]}}", i + 1))
        .collect();
    let all_of: Vec<String> = (0..12).map(|i| format!("{{\"anyOf\":[{{\"properties\":{{\"a{i}\":{{\"type\":\"string\"}}}}}},{{\"properties\":{{\"b{i}\":{{\"type\":\"integer\"}}}}}}]}}")).collect();
    vec![
        Constraint::Regex(nested.into()),
        Constraint::Regex("(a|b)*a(a|b){2000}".into()),
        Constraint::Regex("((a{0,1000}){0,1000}){0,1000}".into()),
        Constraint::Regex(".{0,100000}x.{0,100000}".into()),
        Constraint::JsonSchema(format!("{{\"type\":\"object\",\"properties\":{{{}}}}}", wide.join(",")).into()),
        Constraint::JsonSchema(
            format!("{{\"$ref\":\"#/$defs/d0\",\"$defs\":{{{},\"d40\":{{\"type\":\"null\"}}}}}}", doubling.join(","))
                .into(),
        ),
        Constraint::JsonSchema(format!("{{\"type\":\"object\",\"allOf\":[{}]}}", all_of.join(",")).into()),
        Constraint::JsonSchema(
            r#"{"type":"array","items":{"type":"integer"},"minItems":1000000,"maxItems":2000000}"#.into(),
        ),
        Constraint::JsonSchema(r#"{"type":"string","minLength":100000,"maxLength":10000000}"#.into()),
        Constraint::Lark(
            "start: a a a a a a\na: b b b b b b b\nb: c c c c c c c c\nc: d~1..1000\nd: \"x\"~0..1000".into(),
        ),
        Constraint::Lark("start: start start | \"a\" | ".into()),
    ]
}

/// Texts up to the bound whose parts hang on each other: whoever recurses over them goes deep.
fn long_chains() -> Vec<Constraint> {
    let rules: Vec<String> = (0..3_000).map(|i| format!("r{i}: r{} \"x\"", i + 1)).collect();
    let terminals: Vec<String> = (0..2_500).map(|i| format!("T{i}: \"a\" T{}", i + 1)).collect();
    let refs: Vec<String> = (0..1_500).map(|i| format!("\"d{i}\":{{\"$ref\":\"#/$defs/d{}\"}}", i + 1)).collect();
    let arrays: Vec<String> = (0..1_200)
        .map(|i| format!("\"d{i}\":{{\"type\":\"array\",\"items\":{{\"$ref\":\"#/$defs/d{}\"}}}}", i + 1))
        .collect();
    let chain = |defs: &[String]| {
        let last = defs.len();
        format!("{{\"$ref\":\"#/$defs/d0\",\"$defs\":{{{},\"d{last}\":{{\"type\":\"null\"}}}}}}", defs.join(","))
    };
    let constants: Vec<String> = (0..4_000).map(|i| format!("\"value {i}\"")).collect();
    vec![
        Constraint::Lark(format!("start: r0\n{}\nr3000: \"y\"", rules.join("\n")).into()),
        Constraint::Lark(format!("start: T0\n{}\nT2500: \"y\"", terminals.join("\n")).into()),
        Constraint::JsonSchema(chain(&refs).into()),
        Constraint::JsonSchema(chain(&arrays).into()),
        Constraint::JsonSchema(format!("{{\"enum\":[{}]}}", constants.join(",")).into()),
        Constraint::JsonSchema(format!("{{\"const\":\"{}\"}}", "c".repeat(MAX_PART_BYTES)).into()),
        Constraint::JsonSchema(format!("{{\"type\":\"string\",\"pattern\":\"{}\"}}", "[ab]?".repeat(3_000)).into()),
        Constraint::Lark(format!("start: T\nT: {}", "\"a\"? ".repeat(3_000)).into()),
        Constraint::Regex("a?".repeat(8_000).into()),
        Constraint::Regex("a|".repeat(8_000).into()),
        Constraint::Regex("ab*".repeat(5_000).into()),
        Constraint::Regex("a{60000}".into()),
        Constraint::Regex(format!("{}a{}", "(b|".repeat(MAX_NESTING - 1), ")".repeat(MAX_NESTING - 1)).into()),
        Constraint::Regex(format!("a{}", "{2}".repeat(60)).into()),
        Constraint::Regex(format!("a{}", "?".repeat(16_000)).into()),
        Constraint::Regex(format!("a{}", "*".repeat(16_000)).into()),
    ]
}

/// What the library counts until the first token may be asked for.
fn work(constraint: &Constraint) -> u64 {
    parser(&vocabulary(), constraint).unwrap().parser.stats().lexer_cost
}

#[test]
fn what_the_first_byte_of_a_regular_expression_takes_grows_with_the_square_of_its_choices_and_is_bounded_by_it() {
    // Pieces that may be left out, of classes with many branches: the dearest there are.
    for piece in [r"\w?", r"\w*", r"\W?", r"(\w|)", r".?\w?", r"\pL?\pN?", r"(?i)\w?"] {
        let piece_choices = Weight::of(piece).choices;
        let row = |choices: usize| Constraint::Regex(piece.repeat(choices / piece_choices).into());
        let (some, twice) = (work(&row(60)), work(&row(120)));
        assert!(twice > 2 * some, "{piece}: {some}, {twice}: the bound bounds something else");
        assert!(twice < 150_000 + 60 * 120 * 120, "{piece}: {twice}");
        assert!(check_size(&row(MAX_CHOICES)).is_ok(), "{piece}");
        let why = check_size(&row(MAX_CHOICES + 2)).unwrap_err();
        assert!(why.contains("choose") && why.contains(&MAX_CHOICES.to_string()), "{why}");
    }
}

#[test]
fn expressions_are_weighed_together_and_written_out() {
    let row = r"\w?".repeat(MAX_CHOICES * 2 / 3);
    let schema = |patterns: &[&str]| {
        let members: Vec<String> = patterns
            .iter()
            .enumerate()
            .map(|(i, p)| format!("\"p{i}\":{{\"pattern\":\"{}\"}}", p.replace('\\', r"\\")))
            .collect();
        Constraint::JsonSchema(format!("{{\"properties\":{{{}}}}}", members.join(",")).into())
    };
    let (vocabulary, other) = (vocabulary(), format!("{row}b"));
    let refused = |constraint: &Constraint| compile::compile(&vocabulary, constraint).err();
    assert_eq!(refused(&schema(&[&row, &row])), None, "equal ones are one");
    let classes = r"\pL".repeat(MAX_REGEX_BYTES / 4);
    for patterns in [[row, other.clone(), format!("{other}c")], ["a", "b", "c"].map(|end| format!("{classes}{end}"))] {
        let why = refused(&schema(&patterns.each_ref().map(String::as_str))).unwrap_or_default();
        assert!(why.contains("regular expressions"), "{} bytes and more: {why}", patterns[0].len());
    }
    // Of 15 such terminals it took 8 s, and each further one makes that three times as long.
    let doubling: Vec<String> = (0..18).map(|i| format!("T{i}: T{0} T{0}", i + 1)).collect();
    let doubling = Constraint::Lark(format!("start: T0\n{}\nT18: /a?/", doubling.join("\n")).into());
    assert!(check_size(&doubling).is_err_and(|why| why.contains("written out")));
    // Long texts to choose from are none.
    let texts: Vec<String> = (0..256).map(|i| format!("\"{i:050}\"")).collect();
    assert_eq!(check_size(&Constraint::Lark(format!("start: {}", texts.join(" | ")).into())), Ok(()));
}

#[test]
fn a_small_text_that_asks_for_endless_work_is_refused_or_bounded_at_every_token() {
    let mut grammars = Grammars::new(Some(vocabulary()));
    for constraint in monsters().into_iter().chain(long_chains()) {
        let Ok(mut follower) = compiled(&mut grammars, &constraint) else { continue };
        // What is taken says at each token, within its bounds, what may follow, or that it cannot.
        for _ in 0..20 {
            let Ok(allowed) = follower.allowed() else { break };
            let Some(token) = allowed.iter().next() else { break };
            if token == EOS || follower.push(token).is_err() {
                break;
            }
        }
        assert!(compiled(&mut grammars, &Constraint::Regex("ab".into())).is_ok());
    }
}

#[test]
fn one_that_takes_too_long_is_given_up_and_its_late_result_is_not_taken() {
    let mut grammars = Grammars::new(Some(vocabulary()));
    let (constraint, now) = (Constraint::Regex("ab".into()), Instant::now());
    assert!(matches!(grammars.get(&constraint, now), Lookup::Pending));
    let late = now + COMPILE_TIME + Duration::from_secs(1);
    assert!(matches!(grammars.get(&constraint, late), Lookup::Failed(_)));
    grammars.wait(Duration::from_secs(60));
    assert_eq!(grammars.compiling, 0);
    assert!(matches!(grammars.get(&constraint, late), Lookup::Failed(_)));
}

#[test]
fn no_more_are_compiled_at_a_time_or_kept_than_the_bounds_say() {
    let mut grammars = Grammars::new(Some(vocabulary()));
    let constraint = |i: usize| Constraint::Regex(format!("a{{{i}}}").into());
    for i in 0..MAX_COMPILING + 3 {
        assert!(matches!(grammars.get(&constraint(i), Instant::now()), Lookup::Pending));
        assert!(grammars.compiling <= MAX_COMPILING);
    }
    for i in 0..MAX_GRAMMARS + 20 {
        assert!(compiled(&mut grammars, &constraint(i)).is_ok());
        assert!(grammars.known.len() <= MAX_GRAMMARS);
    }
    assert!(
        grammars.known.contains_key(&constraint(MAX_GRAMMARS + 19)) && !grammars.known.contains_key(&constraint(0))
    );
}

#[test]
fn without_a_vocabulary_every_constraint_fails() {
    let mut grammars = Grammars::new(None);
    assert!(matches!(grammars.get(&Constraint::JsonObject, Instant::now()), Lookup::Failed(_)));
}
