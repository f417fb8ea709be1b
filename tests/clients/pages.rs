//! The pages of `docs/clients`: every program on them is run against a real server, and prints what the page says it prints.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::python;
use super::serving::Serving;

/// Where the pages say that a server is.
const HTTP: &str = "127.0.0.1:8080";
const GRPC: &str = "127.0.0.1:50051";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The fenced blocks of a page: kind and text.
fn blocks(page: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in page.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(kind)) => open = Some((kind.to_owned(), String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some((_, text)), None) => *text += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    blocks
}

/// Each program in `language` with what it prints, which stands right behind it.
fn programs(page: &str, language: &str) -> Vec<(String, String)> {
    let blocks = blocks(page);
    let pairs = blocks.windows(2).filter(|pair| pair[0].0 == language);
    let programs: Vec<_> = pairs
        .map(|pair| {
            assert_eq!(pair[1].0, "text", "what it prints stands behind a program: {}", pair[0].1);
            (pair[0].1.clone(), pair[1].1.clone())
        })
        .collect();
    assert_eq!(programs.len(), blocks.iter().filter(|(kind, _)| kind == language).count());
    programs
}

/// The program of an example, which `cargo test` builds, unless it is told to build single targets; then `cargo build --examples` does.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this program");
    let target = test.parent().and_then(Path::parent).expect("a target folder");
    let program = target.join("examples").join(name);
    assert!(program.exists(), "{} is missing: cargo build --package tramontane --examples", program.display());
    program
}

fn printed(what: &str, ended: Output) -> String {
    assert!(ended.status.success(), "{what}: {}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8(ended.stdout).expect("text")
}

#[test]
fn python_programs_print_what_their_page_says() {
    let page = read("docs/clients/python.md");
    let server = Serving::start(&["--grpc", "127.0.0.1:0"]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::os::unix::fs::symlink(root().join("proto"), folder.path().join("proto")).expect("a link");
    let run = |args: &[&str]| {
        let command = Command::new(python()).args(args).current_dir(folder.path()).stdin(Stdio::null()).output();
        printed(&args.join(" "), command.expect("Python starts"))
    };
    let commands = blocks(&page).into_iter().filter(|(kind, _)| kind == "console");
    let commands: Vec<String> = commands.map(|(_, text)| text).collect();
    assert_eq!(commands.len(), 1, "{commands:?}");
    let args = commands[0].trim().strip_prefix("$ python ").expect("a call of Python");
    run(&args.split(' ').collect::<Vec<_>>());

    let programs = programs(&page, "python");
    assert!(programs.len() >= 5, "{programs:?}");
    for (program, prints) in programs {
        let program = program.replace(HTTP, server.addr()).replace(GRPC, server.grpc().expect("it serves gRPC"));
        assert_eq!(run(&["-c", &program]), prints, "{program}");
    }
}

#[test]
fn rust_programs_are_files_of_this_folder_and_print_what_their_page_says() {
    let server = Serving::start(&["--grpc", "127.0.0.1:0"]);
    let programs = programs(&read("docs/clients/rust.md"), "rust");
    let files = [("chat_over_http", server.addr()), ("stream_over_grpc", server.grpc().expect("it serves gRPC"))];
    assert_eq!(programs.len(), files.len());
    for ((program, prints), (name, addr)) in programs.into_iter().zip(files) {
        assert_eq!(program, read(&format!("docs/clients/{name}.rs")), "the page and {name}.rs differ");
        let ran = Command::new(example(name)).arg(format!("http://{addr}")).output().expect("it starts");
        assert_eq!(printed(name, ran), prints, "{name}");
    }
}
