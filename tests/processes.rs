//! Starts the binary `tramontane` as its users do, and holds it to what they see: stdout, stderr, exit codes, and which
//! processes are left. Every wait ends with a condition or with the watchdog. Linux only: it reads `/proc`.

#[path = "processes/answers.rs"]
mod answers;
#[path = "processes/bench.rs"]
mod bench;
#[path = "processes/chat.rs"]
mod chat;
#[path = "processes/checkpoint.rs"]
mod checkpoint;
#[path = "processes/faults.rs"]
mod faults;
#[path = "processes/plan.rs"]
mod plan;
#[path = "processes/procfs.rs"]
mod procfs;
#[path = "processes/refusals.rs"]
mod refusals;
#[path = "processes/run.rs"]
mod run;
#[path = "processes/sameness.rs"]
mod sameness;
#[path = "support/serving.rs"]
mod serving;
#[path = "processes/settings.rs"]
mod settings;
#[path = "support/terminal.rs"]
mod terminal;
