//! The binary as HTTP clients meet it: what is refused and how, what streams look like, who may ask, and what a connection may do.
//! Raw sockets throughout, so that nothing between test and server is kinder than a stranger would be. Linux only: it reads `/proc`.

#[path = "http/answers.rs"]
mod answers;
#[path = "http/bad_input.rs"]
mod bad_input;
#[path = "http/canary.rs"]
mod canary;
#[path = "http/churn.rs"]
mod churn;
#[path = "http/connections.rs"]
mod connections;
#[path = "http/console.rs"]
mod console;
#[path = "support/dice.rs"]
mod dice;
#[path = "http/http2.rs"]
mod http2;
#[path = "http/keys.rs"]
mod keys;
#[path = "http/leaving.rs"]
mod leaving;
#[path = "processes/run.rs"]
mod run;
#[path = "support/serving.rs"]
mod serving;
