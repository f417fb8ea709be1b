//! Settings from a file: which of file, environment and command line holds, and what becomes of a file that is wrong.

use std::io::Write;
use std::net::TcpListener;

use tempfile::NamedTempFile;

use crate::run::{Outcome, Running, json_text, run};

fn file(text: &str) -> (NamedTempFile, String) {
    let mut file = NamedTempFile::new().expect("a temporary file");
    file.write_all(text.as_bytes()).expect("it can be written");
    let path = file.path().to_str().expect("a path in UTF-8").to_owned();
    (file, path)
}

#[test]
fn a_cluster_of_processes_runs_by_a_file_and_its_nodes_read_no_settings_of_its_own() {
    let by_flags = ["--expert-nodes", "2", "--processes", "--prompt", "The capital of France is", "--max-tokens", "4"];
    let (_file, path) = file(
        "prompt = \"The capital of France is\"\nmax-tokens = 4\nexpert-nodes = 8\n\n\
         [up]\njson = true\nprocesses = true\nexpert-nodes = 2\n\n[expert-node]\nthreads = 0\n",
    );
    // Whoever wants to serve metrics there fails.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let metrics = format!("TRAMONTANE_METRICS={}", taken.local_addr().expect("its address"));
    let config = format!("TRAMONTANE_CONFIG={path}");
    let Outcome { code, stdout, stderr } = Running::start_in(&[&config, &metrics], &["up"]).outcome();
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert_eq!(stdout, json_text(&by_flags));
}

#[test]
fn the_line_comes_before_the_environment_and_that_before_the_file() {
    let (_file, path) = file("model = \"/nowhere/file\"\nprompt = \"x\"\n[expert-node]\nregistry = \"etcd://x\"\n");
    let of_file = ["up", "--config", &path];
    let environment = "TRAMONTANE_MODEL=/nowhere/environment";
    for (settings, args, named) in [
        (vec![], of_file.to_vec(), "/nowhere/file"),
        (vec![environment], of_file.to_vec(), "/nowhere/environment"),
        (vec![environment], [&of_file, ["--model", "/nowhere/line"].as_slice()].concat(), "/nowhere/line"),
        (vec!["TRAMONTANE_MODEL=demo"], vec!["expert-node", "--config", &path], "registry etcd://x"),
    ] {
        let Outcome { code, stdout, stderr } = Running::start_in(&settings, &args).outcome();
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{settings:?} {args:?}: {stderr}");
        assert!(stderr.contains(named), "{settings:?} {args:?}: {stderr}");
    }
    // Only the environment can take a switch back.
    let (_file, path) = file("http = \"0.0.0.0:0\"\ninsecure = true\nmodel = \"/nowhere/file\"\n");
    for (environment, named) in
        [("TRAMONTANE_INSECURE=true", "/nowhere/file"), ("TRAMONTANE_INSECURE=false", "--insecure if")]
    {
        let Outcome { code, stderr, .. } = Running::start_in(&[environment], &["up", "--config", &path]).outcome();
        assert!(code == Some(1) && stderr.contains(named), "{environment}: {stderr}");
    }
}

#[test]
fn a_file_that_is_wrong_is_an_error_of_usage_that_names_the_place() {
    for (text, words) in [
        ("prompt = \"x\"\nmodle = \"demo\"\n", ":2:1: modle: no command has such a flag; is model meant?"),
        ("prompt = \"x\"\n[up]\nthreads = \"all\"\n", ":3:1: up.threads: invalid value 'all'"),
        ("prompt = x\n", ":1:10: "),
        ("chat = true\n", "--prompt <TEXT>"),
    ] {
        let (_file, path) = file(text);
        let Outcome { code, stdout, stderr } = run(&["up", "--config", &path]);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{text}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(&path) && stderr.contains(words), "{text}: {stderr}");
    }
    let gone = run(&["up", "--config", "/nowhere/file"]);
    assert_eq!(gone.code, Some(2));
    assert!(gone.stderr.contains("cannot read /nowhere/file: No such file"), "{}", gone.stderr);
    let help = run(&["up", "--config", "/nowhere/file", "--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""));
}
