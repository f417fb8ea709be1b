//! `--config FILE`: the settings of a command that stays, from a file in TOML. What is on the command line or in the environment
//! comes before them, what is built in after them.
//!
//! They are put on the command line, as if their author had typed them there. So the flags' own definition says what each may
//! be, what it goes with, and what is missing.

mod settings;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::builder::{Resettable, StyledStr};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory, Error, FromArgMatches, Id, value_parser};

use crate::args::Cli;
use crate::files::read_text;

/// The commands that may have their settings in a file.
const COMMANDS: [&str; 4] = ["up", "coordinator", "expert-node", "gateway"];
/// The flag that names the file.
const FLAG: &str = "config";
/// The most bytes that a file may have.
const MAX_FILE: u64 = 1 << 20;

/// What the command line may say.
pub(crate) fn definition() -> Command {
    Cli::command().mut_subcommands(|command| {
        if !COMMANDS.contains(&command.get_name()) {
            return command;
        }
        command.arg(
            Arg::new(FLAG)
                .long(FLAG)
                .env("TRAMONTANE_CONFIG")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("File of settings (TOML): flags without dashes, as `kv-type = \"f32\"`, for all commands, or in a command's table"),
        )
    })
}

/// What a command `line` says, with the settings of the file that it names, if it does.
///
/// # Errors
/// Of the line or of the file; help, where that is asked for.
pub(crate) fn parse(line: Vec<OsString>) -> Result<Cli, Error> {
    let lenient = lenient(definition());
    // What even this refuses the definition refuses too, in better words; and who asks for help needs no file.
    let Ok(said) = lenient.clone().try_get_matches_from(&line) else { return read(line) };
    let Some((command, said, path)) = file(&lenient, &said) else { return read(line) };
    let text = read_text(path, MAX_FILE).map_err(|error| wrong(format!("cannot read {}: {error}", path.display())))?;
    let given = |flag: &Id| {
        matches!(said.value_source(flag.as_str()), Some(ValueSource::CommandLine | ValueSource::EnvVariable))
    };
    let arguments = settings::arguments(&text, &lenient, command, given)
        .map_err(|error| wrong(format!("{}:{error}", path.display())))?;
    read(joined(line, arguments)).map_err(|error| naming(path, error))
}

/// The variables of the environment that `command` takes for flags.
pub(crate) fn variables(command: &str) -> Vec<OsString> {
    let definition = definition();
    let flags = definition.find_subcommand(command).into_iter().flat_map(Command::get_arguments);
    flags.filter_map(Arg::get_env).map(OsStr::to_owned).collect()
}

fn read(line: Vec<OsString>) -> Result<Cli, Error> {
    let mut definition = definition();
    let said = definition.try_get_matches_from_mut(line)?;
    Cli::from_arg_matches(&said).map_err(|error| error.format(&mut definition))
}

/// The same grammar, without rules of what has to be there and what goes with what: they hold once the file is read.
fn lenient(definition: Command) -> Command {
    let none = Resettable::<Id>::Reset;
    let mut lenient = definition.mut_subcommands(|command| {
        command.mut_args(|flag| flag.required(false).requires(none.clone()).conflicts_with(none.clone()))
    });
    lenient.build();
    lenient
}

/// The file that is named, the command that it is for, and what that is told besides.
fn file<'a>(definition: &'a Command, said: &'a ArgMatches) -> Option<(&'a Command, &'a ArgMatches, &'a Path)> {
    let (name, said) = said.subcommand()?;
    let path: &PathBuf = said.try_get_one(FLAG).ok()??;
    Some((definition.find_subcommand(name)?, said, path))
}

/// `line` with `arguments`, which are flags.
fn joined(mut line: Vec<OsString>, arguments: Vec<String>) -> Vec<OsString> {
    // No flag stands behind a `--`.
    let at = line.iter().position(|word| word == "--").unwrap_or(line.len());
    line.splice(at..at, arguments.into_iter().map(OsString::from));
    line
}

fn wrong(what: String) -> Error {
    Error::raw(ErrorKind::ValueValidation, format!("{what}\n"))
}

/// The error of a line that has the settings of the file at `path`, which says so.
fn naming(path: &Path, mut error: Error) -> Error {
    let tip = StyledStr::from(format!("the settings in {} count as given", path.display()));
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    error
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tempfile::NamedTempFile;

    use super::*;

    fn file(text: &str) -> NamedTempFile {
        let mut file = NamedTempFile::new().expect("a temporary file");
        file.write_all(text.as_bytes()).expect("it can be written");
        file
    }

    /// The line whose words these are, `FILE` being the file's name.
    fn parsed(file: &NamedTempFile, words: &str) -> Result<Cli, Error> {
        let word = |word: &str| if word == "FILE" { file.path().into() } else { OsString::from(word) };
        parse(words.split(' ').map(word).collect())
    }

    fn refused(file: &NamedTempFile, words: &str) -> String {
        let error = parsed(file, words).expect_err(words);
        assert_eq!(error.exit_code(), 2, "{words}: {error}");
        error.render().to_string()
    }

    #[test]
    fn the_definition_is_sound() {
        definition().debug_assert();
        let takes = |command: &&Command| command.get_arguments().any(|flag| flag.get_id() == FLAG);
        assert_eq!(definition().get_subcommands().filter(takes).count(), COMMANDS.len());
    }

    #[test]
    fn a_file_gives_what_the_line_does_not() {
        let settings = file("registry = 'etcd://a:1'\nlease = 20\n[expert-node]\nzone = 'b'\nlog-level = 'info'");
        let words = "tramontane --log-level debug expert-node --lease 30 --config FILE";
        let cli = parsed(&settings, words).expect("it is sound");
        let log = cli.log.arguments().join(" ");
        assert_eq!(log, "--log-format auto --log-level debug");
        let crate::args::Command::ExpertNode(node) = cli.command else { panic!("another command") };
        let registry = node.registry;
        assert_eq!(
            (registry.registry.as_str(), registry.lease, registry.cluster.as_str()),
            ("etcd://a:1", 30, "local")
        );
        assert_eq!(node.zone, "b");
        let cli = parsed(&settings, "tramontane expert-node --config FILE --").expect("it is sound");
        assert!(cli.log.arguments().join(" ").ends_with("--log-level info"));
    }

    #[test]
    fn flags_that_go_together_may_stand_apart() {
        let words = "tramontane coordinator --config FILE";
        let settings = file("registry = 'etcd://a:1'\netcd-user = 'root'\ntls-key = 'k'\ntls-ca = 'a'");
        parsed(&settings, &format!("{words} --etcd-password-file p --tls-cert c")).expect("all is there");
        for (more, lacks) in [("--etcd-password-file p", "--tls-cert <FILE>"), ("--tls-cert c", "--etcd-password-file")]
        {
            let said = refused(&settings, &format!("{words} {more}"));
            assert!(said.contains(lacks) && said.contains(&settings.path().display().to_string()), "{said}");
        }
        let settings = file("registry = 'etcd://a:1'\nplaintext = true\ntls-key = 'k'\ntls-ca = 'a'");
        let said = refused(&settings, &format!("{words} --tls-cert c"));
        assert!(said.contains("'--tls-cert <FILE>' cannot be used with '--plaintext'"), "{said}");
    }

    #[test]
    fn the_file_in_the_documentation_is_sound_for_all_that_it_is_for() {
        let page = include_str!("../../../docs/OPERATIONS.md");
        let text = page.split_once("```toml\n").and_then(|(_, rest)| rest.split_once("```")).expect("an example").0;
        for command in ["coordinator", "expert-node", "gateway"] {
            parsed(&file(text), &format!("tramontane {command} --config FILE")).expect(command);
        }
    }

    #[test]
    fn the_lines_own_errors_come_first_and_help_needs_no_file() {
        let bad = file("= is no TOML");
        for (words, has) in [
            ("tramontane up --config FILE --thraeds 1", "--threads"),
            ("tramontane up --config FILE --threads 0", "from 1 to 512"),
            ("tramontane up --config FILE --config FILE", "--config <FILE>"),
            ("tramontane status --config FILE", "--config"),
            ("tramontane up --config", "--config <FILE>"),
            ("tramontane up --config FILE", "1:1: "),
            ("tramontane up --config /nowhere/file", "cannot read /nowhere/file"),
            ("tramontane up --config /", "cannot read /"),
        ] {
            let said = refused(&bad, words);
            assert!(said.starts_with("error: ") && said.contains(has), "{words}: {said}");
        }
        for words in ["tramontane up --config FILE --help", "tramontane --help"] {
            let error = parsed(&bad, words).expect_err("help");
            assert_eq!((error.kind(), error.exit_code()), (ErrorKind::DisplayHelp, 0), "{words}");
        }
        let long = file(&"#".repeat(MAX_FILE as usize + 1));
        assert!(refused(&long, "tramontane up --config FILE").contains("more than 1048576 bytes"));
    }
}
