//! What `llama-bench` programs say, and what is asked of them. Pure.
//!
//! Sources: `--help` and `-o json` of llama.cpp's `tools/llama-bench` and of ik_llama.cpp's `examples/llama-bench`.

use std::path::Path;

use serde::Deserialize;

use super::super::plan::Work;
use super::super::stats::Summary;

/// Names in a path that say nothing of whose program it is.
const COMMON_NAMES: [&str; 6] = ["llama-bench", "bin", "build", "Release", "tools", "examples"];
/// What an engine can be asked beyond llama.cpp's options: to repack weights when they are loaded.
const REPACK: [&str; 2] = ["-rtr", "1"];

/// How a program measures a decode after some positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AtDepth {
    /// `-d N` (llama.cpp).
    Depth,
    /// `-gp N,D` (ik_llama.cpp): generation after a prompt; only the generation is timed.
    AfterPrompt,
    /// Not at all.
    Absent,
}

/// A way to run a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Variant {
    /// What it is called in reports.
    pub(super) label: String,
    /// Options that make it this variant.
    pub(super) options: Vec<&'static str>,
    /// How it decodes at depth.
    pub(super) at_depth: AtDepth,
}

/// The ways to run the program called `label` whose `--help` says `help`.
pub(super) fn variants(label: &str, help: &str) -> Vec<Variant> {
    let lists = |option: &str| help.split(|c: char| c.is_whitespace() || c == ',').any(|word| word == option);
    let at_depth = if lists("--n-depth") {
        AtDepth::Depth
    } else if lists("-gp") {
        AtDepth::AfterPrompt
    } else {
        AtDepth::Absent
    };
    let plain = Variant { label: label.to_owned(), options: Vec::new(), at_depth };
    let repacked = Variant { label: format!("{label} {}", REPACK.join(" ")), options: REPACK.to_vec(), at_depth };
    std::iter::once(plain).chain(lists(REPACK[0]).then_some(repacked)).collect()
}

/// What the programs at `paths` are called: the last part of each path that is telling; the whole path where that is not
/// the only one of its name.
pub(super) fn labels(paths: &[impl AsRef<Path>]) -> Vec<String> {
    let telling = |path: &Path| {
        let mut names = path.iter().rev().map(|name| name.to_string_lossy().into_owned());
        names.find(|name| !COMMON_NAMES.contains(&name.as_str()) && !name.starts_with(['.', '/']))
    };
    let short: Vec<Option<String>> = paths.iter().map(|path| telling(path.as_ref())).collect();
    let unique = |label: &Option<String>| short.iter().filter(|other| *other == label).count() == 1;
    let label = |(path, label): (&_, &Option<String>)| match label {
        Some(name) if unique(label) => name.clone(),
        _ => AsRef::<Path>::as_ref(path).display().to_string(),
    };
    paths.iter().zip(&short).map(label).collect()
}

/// The options that make a program measure `work`; `None` when it cannot.
pub(super) fn options(work: Work, at_depth: AtDepth) -> Option<Vec<String>> {
    let options: &[(&str, String)] = match (work, at_depth) {
        (Work::Prefill { tokens, .. }, _) => &[("-p", tokens.to_string()), ("-n", "0".into())],
        (Work::Decode { sequences: 1, depth: 0, tokens }, _) => &[("-p", "0".into()), ("-n", tokens.to_string())],
        (Work::Decode { sequences: 1, depth, tokens }, AtDepth::Depth) => {
            &[("-p", "0".into()), ("-n", tokens.to_string()), ("-d", depth.to_string())]
        }
        (Work::Decode { sequences: 1, depth, tokens }, AtDepth::AfterPrompt) => {
            &[("-p", "0".into()), ("-n", "0".into()), ("-gp", format!("{depth},{tokens}"))]
        }
        (Work::Decode { .. }, _) => return None,
    };
    Some(options.iter().flat_map(|(name, value)| [(*name).to_owned(), value.clone()]).collect())
}

/// A result in `llama-bench -o json`, as far as it is read.
#[derive(Debug, Deserialize)]
struct Test {
    n_prompt: usize,
    n_gen: usize,
    #[serde(default)]
    n_depth: usize,
    samples_ns: Vec<f64>,
}

/// Why a program's answer is of no use. The program is another version than is known here, or was stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnswerError {
    /// Not JSON, or another shape.
    #[error("its answer cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// The test that was asked for is not there.
    #[error("its answer has no time for {case}")]
    Missing {
        /// The case's name.
        case: String,
    },
}

/// Tokens a second that the answer `json` gives for `work`, the median where it has several samples.
///
/// # Errors
/// [`AnswerError`] when it cannot be read, or has no such test.
pub(super) fn tokens_per_second(json: &[u8], work: Work) -> Result<f64, AnswerError> {
    let tests: Vec<Test> = serde_json::from_slice(json)?;
    let is_it = |test: &&Test| match (work, test.n_prompt, test.n_gen, test.n_depth) {
        (Work::Prefill { tokens, .. }, prompt, 0, 0) => prompt == tokens,
        // After `depth` positions, which either are called so or are a prompt.
        (Work::Decode { sequences: 1, depth, tokens }, 0, generated, d)
        | (Work::Decode { sequences: 1, depth, tokens }, d, generated, 0) => (depth, tokens) == (d, generated),
        _ => false,
    };
    let time = tests.iter().find(is_it).and_then(|test| Summary::of(&test.samples_ns)).map(|samples| samples.median);
    match time {
        Some(nanoseconds) if nanoseconds > 0.0 => Ok(work.tokens() as f64 * 1e9 / nanoseconds),
        _ => Err(AnswerError::Missing { case: work.name() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFILL: Work = Work::Prefill { tokens: 512, chunk: 512 };
    const DECODE: Work = Work::Decode { sequences: 1, depth: 0, tokens: 64 };
    const DEEP: Work = Work::Decode { sequences: 1, depth: 2048, tokens: 64 };
    const BATCH: Work = Work::Decode { sequences: 4, depth: 0, tokens: 64 };

    #[test]
    fn help_tells_the_variants() {
        let llama = "  -p, --n-prompt <n>   (default: 512)\n  -d, --n-depth <n>  (default: 0)\n";
        let plain = |at_depth| Variant { label: "x".into(), options: vec![], at_depth };
        assert_eq!(variants("x", llama), [plain(AtDepth::Depth)]);
        let ik = "  -gp <pp,tg>   (default: )\n  -rtr, --run-time-repack <0|1>   (default: 0)\n";
        let repacked = Variant { label: "x -rtr 1".into(), options: vec!["-rtr", "1"], at_depth: AtDepth::AfterPrompt };
        assert_eq!(variants("x", ik), [plain(AtDepth::AfterPrompt), repacked]);
        assert_eq!(variants("x", "-rtrx, --n-depths"), [plain(AtDepth::Absent)]);
    }

    #[test]
    fn a_label_is_the_telling_part_of_a_path() {
        let of = |paths: &[&str]| labels(paths);
        assert_eq!(of(&["/o/llama.cpp/build/bin/llama-bench", "/o/ik/build/bin/llama-bench"]), ["llama.cpp", "ik"]);
        assert_eq!(of(&["./llama-bench", "bin/my-bench"]), ["./llama-bench", "my-bench"]);
        assert_eq!(of(&["/a/x/llama-bench", "/b/x/llama-bench"]), ["/a/x/llama-bench", "/b/x/llama-bench"]);
    }

    #[test]
    fn a_case_is_asked_for_in_the_programs_own_words() {
        let asked = |work, at_depth| options(work, at_depth).map(|options| options.join(" "));
        assert_eq!(asked(PREFILL, AtDepth::Absent).as_deref(), Some("-p 512 -n 0"));
        assert_eq!(asked(DECODE, AtDepth::Absent).as_deref(), Some("-p 0 -n 64"));
        assert_eq!(asked(DEEP, AtDepth::Depth).as_deref(), Some("-p 0 -n 64 -d 2048"));
        assert_eq!(asked(DEEP, AtDepth::AfterPrompt).as_deref(), Some("-p 0 -n 0 -gp 2048,64"));
        assert_eq!((asked(DEEP, AtDepth::Absent), asked(BATCH, AtDepth::Depth)), (None, None));
    }

    #[test]
    fn answers_of_both_programs_are_read() {
        let test = |prompt: usize, generated: usize, more: &str, samples: &str| {
            format!(r#"[{{"n_prompt":{prompt},"n_gen":{generated},{more}"avg_ts":1.0,"samples_ns":[{samples}]}}]"#)
        };
        let read = |text: String, work| tokens_per_second(text.as_bytes(), work).ok();
        assert_eq!(read(test(512, 0, r#""n_depth":0,"#, "1000000000"), PREFILL), Some(512.0));
        assert_eq!(read(test(0, 64, "", "2000000000, 4000000000, 8000000000"), DECODE), Some(16.0));
        assert_eq!(read(test(0, 64, r#""n_depth":2048,"#, "1e9"), DEEP), Some(64.0));
        assert_eq!(read(test(2048, 64, r#""test":"tg64@pp2048","#, "1e9"), DEEP), Some(64.0));
    }

    #[test]
    fn an_answer_to_another_question_is_none() {
        let refused = |text: &str, work| tokens_per_second(text.as_bytes(), work).map_err(|error| error.to_string());
        let missing = |case: &str| Err(format!("its answer has no time for {case}"));
        assert_eq!(refused("[]", PREFILL), missing("pp512"));
        let decode = r#"[{"n_prompt":0,"n_gen":64,"n_depth":0,"samples_ns":[1e9]}]"#;
        assert_eq!(refused(decode, PREFILL), missing("pp512"));
        assert_eq!(refused(decode, DEEP), missing("tg64 @ d2048"));
        assert_eq!(refused(&decode.replace("1e9", ""), DECODE), missing("tg64"));
        assert_eq!(refused(&decode.replace("1e9", "0"), DECODE), missing("tg64"));
        assert!(refused("error: no model", DECODE).is_err_and(|error| error.contains("cannot be read")));
        assert!(refused(r#"[{"n_gen":64}]"#, DECODE).is_err_and(|error| error.contains("n_prompt")));
    }
}
