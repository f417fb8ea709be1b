//! What a file of settings gives a command. Pure: the file's text and the command line's definition in, arguments out.

use clap::{Arg, ArgAction, Command, Id};
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::FLAG;

/// How alike a name must be to be taken for the one that was meant, in Jaro's measure, of which 1 is the most.
const ALIKE: f64 = 0.7;

/// What is wrong in the file, and where: for its author to mend.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {what}")]
pub(super) struct Wrong {
    line: usize,
    column: usize,
    what: String,
}

/// The same, where "where" is a byte of the text.
struct Fault {
    at: usize,
    what: String,
}

impl Fault {
    fn in_text(self, text: &str) -> Wrong {
        let before = text.get(..self.at).unwrap_or(text);
        let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
        Wrong { line: before.matches('\n').count() + 1, column, what: self.what }
    }
}

/// A key, and what it is set to.
struct Entry<'a> {
    /// The command in whose table it stands, if it stands in one.
    table: Option<&'a str>,
    key: &'a str,
    at: usize,
    value: &'a DeValue<'a>,
}

impl<'a> Entry<'a> {
    /// The entries of a table, or of the file's top level, as they stand there.
    fn all(table: Option<&'a str>, entries: &'a DeTable<'a>) -> Vec<Self> {
        let entry = |(key, value): (&'a Spanned<DeString<'a>>, &'a Spanned<DeValue<'a>>)| Self {
            table,
            key: key.get_ref(),
            at: key.span().start,
            value: value.get_ref(),
        };
        let mut entries: Vec<_> = entries.iter().map(entry).collect();
        entries.sort_by_key(|entry| entry.at);
        entries
    }

    /// That it is wrong, and why.
    fn fault(&self, why: &str) -> Fault {
        let name = self.table.map_or_else(String::new, |table| format!("{table}."));
        Fault { at: self.at, what: format!("{name}{}: {why}", self.key) }
    }

    /// Whether it sets `flag` of `command`.
    fn sets(&self, flag: &Arg, command: &Command) -> bool {
        flag.get_long() == Some(self.key) && self.table.is_none_or(|table| table == command.get_name())
    }

    /// # Errors
    /// None of `commands` has a flag of its name.
    fn known_to(&self, commands: &[&Command]) -> Result<(), Fault> {
        if self.key == FLAG {
            return Err(self.fault("a file names no other file"));
        }
        let names: Vec<&str> = commands.iter().flat_map(|command| flags(command)).filter_map(Arg::get_long).collect();
        if names.contains(&self.key) {
            return Ok(());
        }
        let what = if self.table.is_some() { "the command has no such flag" } else { "no command has such a flag" };
        Err(self.fault(&format!("{what}{}", meant(self.key, &names))))
    }
}

/// The arguments that `text` has for `command`, one of `definition`, but for flags that are `given` otherwise.
///
/// Of what it says to other commands only the names are looked at: a value may be right on their machines alone.
pub(super) fn arguments(
    text: &str,
    definition: &Command,
    command: &Command,
    given: impl Fn(&Id) -> bool,
) -> Result<Vec<String>, Wrong> {
    let document = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(text.len(), |span| span.start);
        Fault { at, what: error.message().to_owned() }.in_text(text)
    })?;
    let entries = entries(document.get_ref(), definition).map_err(|fault| fault.in_text(text))?;
    let mut arguments = Vec::new();
    for flag in flags(command).filter(|flag| !given(flag.get_id())) {
        let set = entries.iter().filter(|entry| entry.sets(flag, command));
        let Some(entry) = set.max_by_key(|entry| entry.table.is_some()) else { continue };
        let said = as_arguments(flag, entry.value).and_then(|said| accepted(command, said));
        arguments.extend(said.map_err(|why| entry.fault(&why).in_text(text))?);
    }
    Ok(arguments)
}

/// All that the file sets, each by a name that is known.
fn entries<'a>(document: &'a DeTable<'a>, definition: &Command) -> Result<Vec<Entry<'a>>, Fault> {
    let commands: Vec<&Command> = definition.get_subcommands().filter(|command| takes_file(command)).collect();
    let mut known = Vec::new();
    for entry in Entry::all(None, document) {
        match (commands.iter().find(|command| command.get_name() == entry.key), entry.value) {
            (Some(command), DeValue::Table(table)) => {
                for inner in Entry::all(Some(entry.key), table) {
                    inner.known_to(&[command])?;
                    known.push(inner);
                }
            }
            (Some(_), _) => return Err(entry.fault("this is a command: a table is wanted")),
            (None, DeValue::Table(_)) => {
                let names: Vec<&str> = commands.iter().map(|command| command.get_name()).collect();
                let what = format!("no command of this name takes a file{}", meant(entry.key, &names));
                return Err(entry.fault(&what));
            }
            (None, _) => {
                entry.known_to(&commands)?;
                known.push(entry);
            }
        }
    }
    Ok(known)
}

/// Whether a command takes a file at all.
fn takes_file(command: &Command) -> bool {
    command.get_arguments().any(|flag| flag.get_id() == FLAG)
}

/// The flags of `command` that a file may set.
fn flags(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|flag| {
        let sets = matches!(flag.get_action(), ArgAction::Set | ArgAction::Append | ArgAction::SetTrue);
        sets && flag.get_long().is_some() && flag.get_id() != FLAG
    })
}

/// Which of `names` may have been meant, as a question behind an error.
fn meant(name: &str, names: &[&str]) -> String {
    let alike = names.iter().map(|&other| (strsim::jaro(name, other), other)).filter(|&(alike, _)| alike > ALIKE);
    let nearest = alike.max_by(|(a, _), (b, _)| a.total_cmp(b));
    nearest.map_or_else(String::new, |(_, other)| format!("; is {other} meant?"))
}

/// `flag` with `value`, as on a command line.
fn as_arguments(flag: &Arg, value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let name = flag.get_long().unwrap_or_default();
    let with = |value| plain(value).map(|value| format!("--{name}={value}"));
    match (flag.get_action(), value) {
        (ArgAction::SetTrue, DeValue::Boolean(true)) => Ok(vec![format!("--{name}")]),
        (ArgAction::SetTrue, DeValue::Boolean(false)) => Ok(Vec::new()),
        (ArgAction::SetTrue, _) => Err("true or false is wanted".to_owned()),
        (ArgAction::Append, DeValue::Array(items)) => items.iter().map(|item| with(item.get_ref())).collect(),
        (_, value) => with(value).map(|argument| vec![argument]),
    }
}

/// A string or a number, as on a command line.
fn plain(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.clone().into_owned()),
        DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Ok(number.to_string()),
            Err(error) => Err(error.to_string()),
        },
        DeValue::Float(number) => Ok(number.as_str().to_owned()),
        DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
            Err("a string or a number is wanted".to_owned())
        }
    }
}

/// `arguments`, if `command` takes them; else its own words for why not.
fn accepted(command: &Command, arguments: Vec<String>) -> Result<Vec<String>, String> {
    let line = [command.get_name()].into_iter().chain(arguments.iter().map(String::as_str));
    match command.clone().try_get_matches_from(line) {
        Ok(_) => Ok(arguments),
        Err(error) => {
            let said = error.render().to_string();
            let said = said.strip_prefix("error: ").unwrap_or(&said);
            // What follows are tips for who typed them.
            Err(said.split("\n\n").next().unwrap_or(said).to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::iter::once;

    use super::*;

    /// The real definition.
    fn definition() -> Command {
        super::super::lenient(super::super::definition())
    }

    /// What `text` gives to the command of this name, to which nothing is given otherwise.
    fn given_to(name: &str, text: &str) -> Result<Vec<String>, String> {
        let definition = definition();
        let command = definition.find_subcommand(name).expect("a command");
        arguments(text, &definition, command, |_| false).map_err(|wrong| wrong.to_string())
    }

    /// A value that `flag` of `command` takes.
    fn sample(flag: &Arg, command: &Command) -> String {
        let possible = flag.get_possible_values().first().map(|value| value.get_name().to_owned());
        let built_in = flag.get_default_values().first().map(|value| value.to_string_lossy().into_owned());
        let others = ["demo", "1", "127.0.0.1:1", "http://127.0.0.1:1"].map(str::to_owned);
        let name = flag.get_long().expect("a name");
        let takes = |value: &String| accepted(command, vec![format!("--{name}={value}")]).is_ok();
        possible.into_iter().chain(built_in).chain(others).find(takes).unwrap_or_else(|| panic!("--{name}: no value"))
    }

    #[test]
    fn every_flag_of_every_command_that_stays_can_be_set() {
        let definition = definition();
        let unset = ["help", "version", FLAG];
        for name in super::super::COMMANDS {
            let command = definition.find_subcommand(name).expect("a command");
            let all = command.get_arguments().filter(|flag| !unset.contains(&flag.get_id().as_str()));
            let mut seen = 0;
            for flag in all {
                let long = flag.get_long().unwrap_or_else(|| panic!("{name} {flag}: a file cannot name it"));
                let (value, argument) = if matches!(flag.get_action(), ArgAction::SetTrue) {
                    ("true".to_owned(), format!("--{long}"))
                } else {
                    let value = sample(flag, command);
                    (format!("{value:?}"), format!("--{long}={value}"))
                };
                for text in [format!("{long} = {value}"), format!("[{name}]\n{long} = {value}")] {
                    assert_eq!(given_to(name, &text), Ok(vec![argument.clone()]), "{text}");
                }
                let said = command.clone().try_get_matches_from([name, &argument]).expect("it is accepted");
                let source = said.value_source(flag.get_id().as_str());
                assert_eq!(source, Some(clap::parser::ValueSource::CommandLine), "{name} {argument}");
                seen += 1;
            }
            assert!(seen > 10, "{name}: {seen} flags");
        }
    }

    #[test]
    fn a_commands_table_comes_before_the_top_level_and_what_is_given_before_both() {
        let text = "lease = 20\ncluster = \"all\"\ninsecure = true\n\
                    [gateway]\nlease = 30\ninsecure = false\n[expert-node]\nzone = \"rack-b\"\nlease = 40";
        let sorted = |name| {
            given_to(name, text)
                .map(|mut said| {
                    said.sort();
                    said
                })
                .expect("it is sound")
        };
        assert_eq!(sorted("gateway"), ["--cluster=all", "--lease=30"]);
        assert_eq!(sorted("coordinator"), ["--cluster=all", "--insecure", "--lease=20"]);
        assert_eq!(sorted("expert-node"), ["--cluster=all", "--lease=40", "--zone=rack-b"]);
        let definition = definition();
        let gateway = definition.find_subcommand("gateway").expect("a command");
        // What is not used need not even be right.
        let text = "lease = \"for ever\"\n[gateway]\nlease = \"till noon\"\nid = 3";
        let wrong = arguments(text, &definition, gateway, |flag| flag == "lease").expect_err("no flag");
        assert_eq!(wrong.to_string(), "4:1: gateway.id: the command has no such flag");
        let text = "lease = \"for ever\"\n[gateway]\nlease = \"till noon\"";
        assert_eq!(arguments(text, &definition, gateway, |flag| flag == "lease"), Ok(Vec::new()));
    }

    #[test]
    fn values_are_what_a_command_line_would_say() {
        for (toml, said) in [
            ("kv-memory = 1_000", "--kv-memory=1000"),
            ("kv-memory = 0x4000_0000", "--kv-memory=1073741824"),
            ("kv-memory = \"1000\"", "--kv-memory=1000"),
            // Over TOML's own bound, which is that of i64, and not over the flag's.
            ("kv-memory = 18446744073709551615", "--kv-memory=18446744073709551615"),
            ("temperature = 1", "--temperature=1"),
            ("temperature = 5e-1", "--temperature=5e-1"),
            ("prompt = \"\"\"--json\n= \\\"x\\\"\"\"\"", "--prompt=--json\n= \"x\""),
            ("prompt = ''", "--prompt="),
            ("log-level = 'info'", "--log-level=info"),
            ("up.seed = 7", "--seed=7"),
            ("\"seed\" = 7 # a key in quotes", "--seed=7"),
        ] {
            assert_eq!(given_to("up", toml), Ok(vec![said.to_owned()]), "{toml}");
        }
        assert_eq!(given_to("up", "\u{feff}# nothing\n\n[gateway]\n"), Ok(Vec::new()));
    }

    #[test]
    fn flags_that_repeat_take_lists() {
        let peer = Arg::new("peer").long("peer").action(ArgAction::Append).value_parser(clap::value_parser!(u16));
        let serve = Command::new("serve").args([peer, Arg::new(FLAG).long(FLAG)]);
        let mut definition = Command::new("program").subcommand(serve);
        definition.build();
        let serve = definition.find_subcommand("serve").expect("a command");
        let given = |text| arguments(text, &definition, serve, |_| false).map_err(|wrong| wrong.to_string());
        assert_eq!(given("peer = [1, \"2\"]"), Ok(vec!["--peer=1".to_owned(), "--peer=2".to_owned()]));
        assert_eq!(given("peer = 3"), Ok(vec!["--peer=3".to_owned()]));
        assert_eq!(given("peer = []"), Ok(Vec::new()));
        assert_eq!(given("peer = [1, [2]]"), Err("1:1: peer: a string or a number is wanted".to_owned()));
        let refused = given("peer = [1, 70000]").expect_err("no u16");
        assert!(refused.starts_with("1:1: peer: invalid value '70000' for '--peer <peer>'"), "{refused}");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, wrong) in [
            (
                "http = \"127.0.0.1:0\"\n\nkv_type = \"f32\"",
                "3:1: kv_type: no command has such a flag; is kv-type meant?",
            ),
            ("replcas = 2", "1:1: replcas: no command has such a flag; is replicas meant?"),
            ("qqq = 2", "1:1: qqq: no command has such a flag"),
            ("dry-run = true", "1:1: dry-run: no command has such a flag"),
            ("help = true", "1:1: help: no command has such a flag"),
            ("config = \"other.toml\"", "1:1: config: a file names no other file"),
            ("[up]\nconfig = \"other.toml\"", "2:1: up.config: a file names no other file"),
            ("[gateway]\n  kv-type = \"f32\"", "2:3: gateway.kv-type: the command has no such flag"),
            ("[gateway]\ngprc = 1", "2:1: gateway.gprc: the command has no such flag; is grpc meant?"),
            ("[expert_node]\nid = 1", "1:2: expert_node: no command of this name takes a file; is expert-node meant?"),
            ("[bench]\nruns = 1", "1:2: bench: no command of this name takes a file"),
            ("up = true", "1:1: up: this is a command: a table is wanted"),
            ("[[up]]\nseed = 1", "1:3: up: this is a command: a table is wanted"),
            ("json = \"true\"", "1:1: json: true or false is wanted"),
            ("json = 1", "1:1: json: true or false is wanted"),
            ("model = true", "1:1: model: a string or a number is wanted"),
            ("model = [\"demo\"]", "1:1: model: a string or a number is wanted"),
            ("model = 2026-01-01", "1:1: model: a string or a number is wanted"),
            ("up.model.path = \"demo\"", "1:4: up.model: a string or a number is wanted"),
            ("threads = 0", "1:1: threads: invalid value '0' for '--threads <N>': a number from 1 to 512 is wanted"),
            ("\"é\" = 1", "1:1: é: no command has such a flag"),
        ] {
            assert_eq!(given_to("up", text), Err(wrong.to_owned()), "{text}");
        }
        let refused = given_to("up", "quantize = \"q3\"").expect_err("no such type");
        assert!(refused.starts_with("1:1: quantize: invalid value 'q3'") && refused.contains("q8_0"), "{refused}");
        assert!(!refused.contains("--help"), "{refused}");
    }

    #[test]
    fn what_is_no_toml_is_refused_where_it_begins_to_be_none() {
        for (text, place) in [
            ("threads = 2\nhttp = 127.0.0.1:80\n", "2:"),
            ("threads = 2\nthreads = 3\n", "2:1: "),
            ("[up]\n[up]\n", "2:"),
            ("json\n", "1:"),
            ("prompt = \"é\" x", "1:14: "),
            ("prompt = \"", "1:"),
        ] {
            let wrong = given_to("up", text).expect_err(text);
            assert!(wrong.starts_with(place), "{text}: {wrong}");
            assert!(wrong.lines().count() == 1 && wrong.len() > place.len(), "{text}: {wrong}");
        }
    }

    #[test]
    fn what_is_said_to_other_commands_passes_by() {
        let text = "registry = \"etcd://127.0.0.1:1\"\nreplicas = 3\n[coordinator]\nthreads = 0\nprofile = \"none\"";
        assert_eq!(given_to("gateway", text), Ok(vec!["--registry=etcd://127.0.0.1:1".to_owned()]));
        // Their names are looked at all the same.
        let names = once("[coordinator]\nthread = 1").chain(once("[coordinator]\nzone = 'a'"));
        for text in names {
            assert!(given_to("gateway", text).is_err_and(|wrong| wrong.starts_with("2:1: coordinator.")), "{text}");
        }
    }
}
