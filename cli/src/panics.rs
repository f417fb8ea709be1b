//! What a panic says: where it happened, and its words only if they are this program's own. Words that were put together may quote
//! what a client wrote (a slice of a text in the middle of a character quotes the whole text).

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;

/// An operator who sets it to 1 sees all words.
const SHOW: &str = "TRAMONTANE_PANIC_MESSAGES";

/// From now on, panics of this process say no more than that.
pub(crate) fn install() {
    let show = std::env::var_os(SHOW).is_some_and(|value| value == "1");
    std::panic::set_hook(Box::new(move |info| {
        // One write, for a cluster's processes share their stderr.
        let text = text(info, if show { Words::All } else { Words::Own });
        eprint!("{text}");
    }));
}

/// Which words are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Words {
    /// Those that stand in the program.
    Own,
    /// Those that were put together too.
    All,
}

fn text(info: &PanicHookInfo<'_>, shown: Words) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("unnamed").to_owned();
    let place = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let words = words(info.payload(), shown);
    let trace = Backtrace::capture();
    let trace = if trace.status() == BacktraceStatus::Captured { format!("{trace}\n") } else { String::new() };
    format!("tramontane: thread '{name}' panicked at {place}: {words}\n{trace}")
}

fn words(payload: &dyn Any, shown: Words) -> String {
    match (payload.downcast_ref::<&'static str>(), payload.downcast_ref::<String>()) {
        (Some(words), _) => (*words).to_owned(),
        (None, Some(words)) if shown == Words::All => words.clone(),
        _ => format!("its message, which may quote a client, is left out ({SHOW}=1 shows it)"),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const CHILD: &str = "TRAMONTANE_TEST_PANICS";
    const CANARY: &str = "zanzibarcanary";

    /// What a process with the hook says of two panics. The hook is a process's, so it is one of its own: this test again.
    fn said(show: &str) -> String {
        let ended = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "panics::tests::a_panic_says_where_and_quotes_nobody", "--nocapture"])
            .env(CHILD, "1")
            .env(SHOW, show)
            .env("RUST_BACKTRACE", "0")
            .output()
            .expect("it starts");
        assert!(ended.status.success(), "{ended:?}");
        String::from_utf8_lossy(&ended.stderr).into_owned()
    }

    #[test]
    fn a_panic_says_where_and_quotes_nobody() {
        if std::env::var_os(CHILD).is_some() {
            install();
            for quoting in [true, false] {
                let panicking =
                    move || if quoting { panic!("no prompt like {CANARY}") } else { panic!("words of ours") };
                assert!(std::thread::spawn(panicking).join().is_err());
            }
            return;
        }
        let quiet = said("0");
        assert!(quiet.matches("panics.rs").count() == 2 && quiet.contains("words of ours"), "{quiet}");
        assert!(!quiet.contains(CANARY), "{quiet}");
        assert!(said("1").contains(CANARY));
    }
}
