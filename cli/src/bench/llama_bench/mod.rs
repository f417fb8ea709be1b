//! Other engines on the same machine and file: `llama-bench` programs of the user's, run once for each case and round.

mod parse;

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use parse::{AnswerError, Variant, labels, options, tokens_per_second, variants};

use super::plan::Work;

/// Bytes that a program may answer with; what is asked here takes a few thousand.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// Why another engine could not be measured.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProgramError {
    /// Name another program.
    #[error("{program} cannot be run: {source}", program = program.display())]
    NotRun {
        /// The program.
        program: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Look at what it said on stderr.
    #[error("{command}: {status}")]
    Failed {
        /// What was run.
        command: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// It is another version than is known here.
    #[error("{command}: {source}")]
    Answer {
        /// What was run.
        command: String,
        /// What is wrong.
        source: AnswerError,
    },
}

/// One way to run one program.
#[derive(Debug)]
pub(super) struct Program {
    path: PathBuf,
    variant: Variant,
}

/// What all programs are given.
#[derive(Debug)]
pub(super) struct Given {
    /// The GGUF file.
    pub(super) model: PathBuf,
    /// Threads that compute.
    pub(super) threads: usize,
    /// The type of keys and values, by name.
    pub(super) kv_type: &'static str,
}

impl Program {
    /// All ways to run the programs at `paths`, as their `--help` tells.
    ///
    /// # Errors
    /// [`ProgramError::NotRun`] names the program that cannot be started.
    pub(super) fn find(paths: &[PathBuf]) -> Result<Vec<Self>, ProgramError> {
        let mut programs = Vec::new();
        for (path, label) in paths.iter().zip(labels(paths)) {
            // Whatever status it ends `--help` with: what counts is what it lists.
            let (help, _) = run(Command::new(path).arg("--help").stderr(Stdio::null()))
                .map_err(|source| ProgramError::NotRun { program: path.clone(), source })?;
            let variants = variants(&label, &String::from_utf8_lossy(&help));
            programs.extend(variants.into_iter().map(|variant| Self { path: path.clone(), variant }));
        }
        Ok(programs)
    }

    /// What it is called in reports.
    pub(super) fn label(&self) -> &str {
        &self.variant.label
    }

    /// Runs `work` once, after its own warm-up: tokens a second. `None` when it cannot do such work.
    ///
    /// # Errors
    /// [`ProgramError`] has the command line.
    pub(super) fn measure(&self, given: &Given, work: Work) -> Result<Option<f64>, ProgramError> {
        let Some(options) = options(work, self.variant.at_depth) else { return Ok(None) };
        let mut command = Command::new(&self.path);
        command.arg("-m").arg(&given.model).args(["-t", &given.threads.to_string(), "-fa", "1", "-r", "1"]);
        command.args(["-ctk", given.kv_type, "-ctv", given.kv_type, "-o", "json"]);
        command.args(options).args(&self.variant.options);
        let text = format!("{command:?}");
        tracing::info!(command = text, "running");
        let (answer, status) =
            run(&mut command).map_err(|source| ProgramError::NotRun { program: self.path.clone(), source })?;
        if !status.success() {
            return Err(ProgramError::Failed { command: text, status });
        }
        let rate = tokens_per_second(&answer, work);
        rate.map(Some).map_err(|source| ProgramError::Answer { command: text, source })
    }
}

/// Whether other engines can open `path`: they read GGUF files, and no folders.
pub(super) fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Runs `command` to its end: what it wrote to stdout, up to [`MAX_ANSWER_BYTES`], and how it ended. Its stderr is ours,
/// unless `command` says otherwise.
fn run(command: &mut Command) -> io::Result<(Vec<u8>, ExitStatus)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut answer = Vec::new();
    // The pipe is closed when this is done, so that a child that says more ends too.
    let read = child.stdout.take().map_or(Ok(0), |stdout| stdout.take(MAX_ANSWER_BYTES).read_to_end(&mut answer));
    let status = child.wait()?;
    read.map(|_| (answer, status))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: Work = Work::Prefill { tokens: 8, chunk: 8 };

    /// A program that says `help` when asked for help, `answer` otherwise, and ends with `status`.
    fn program(folder: &Path, help: &str, answer: &str, status: i32) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.join("llama-bench");
        let text =
            format!("#!/bin/sh\n[ \"$1\" = --help ] && echo '{help}' && exit 1\necho '{answer}'\nexit {status}\n");
        std::fs::write(&path, text).expect("it is written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("it is made executable");
        path
    }

    fn given() -> Given {
        Given { model: PathBuf::from("x.gguf"), threads: 2, kv_type: "f16" }
    }

    // One test: a script cannot be run while another thread's child still has it open for writing.
    #[test]
    fn a_program_is_asked_for_help_and_then_for_work_and_named_when_it_fails() {
        let folder = tempfile::tempdir().expect("a folder");
        let answer = r#"[{"n_prompt":8,"n_gen":0,"samples_ns":[4e9]}]"#;
        let programs = Program::find(&[program(folder.path(), "-rtr", answer, 0)]).expect("it runs");
        assert_eq!(programs.len(), 2, "{programs:?}");
        for program in &programs {
            assert_eq!(program.measure(&given(), WORK).expect("it answers"), Some(2.0));
        }
        let batch = Work::Decode { sequences: 2, depth: 0, tokens: 1 };
        assert_eq!(programs[0].measure(&given(), batch).expect("it is not asked"), None);

        let absent = Program::find(&[folder.path().join("absent")]).expect_err("there is none").to_string();
        assert!(absent.contains("absent cannot be run"), "{absent}");
        let fails = |answer, status| {
            let programs = Program::find(&[program(folder.path(), "", answer, status)]).expect("it runs");
            programs[0].measure(&given(), WORK).expect_err("it fails").to_string()
        };
        let (failed, nonsense) = (fails("[]", 3), fails("nonsense", 0));
        assert!(failed.contains("x.gguf") && failed.contains('3'), "{failed}");
        assert!(nonsense.contains("x.gguf") && nonsense.contains("cannot be read"), "{nonsense}");
    }
}
