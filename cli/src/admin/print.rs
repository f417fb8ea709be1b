//! In which form an answer is printed, once or again and again.

use std::time::Duration;

use anyhow::bail;
use serde_json::Value;
use tokio::time::sleep;
use tramontane_cluster::admin::AdminClient;

use super::args::{AskArgs, Output};
use super::{connect, table::terminal_width};
use crate::Unreachable;
use crate::output::out;

/// Clears a terminal, and goes to its first line.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// `value` in a form for programs, `text` in one for people.
pub(super) fn printed(
    form: Output,
    value: impl FnOnce() -> Value,
    text: impl FnOnce() -> String,
) -> anyhow::Result<String> {
    Ok(match form {
        Output::Table | Output::Wide => text(),
        Output::Json => format!("{:#}\n", value()),
        Output::Yaml => yaml(&value())?,
        Output::Csv => bail!("-o csv is for `keys list` and `usage`"),
    })
}

/// Rows with commas between their cells. A cell that could be taken for several stands in quotes.
pub(super) fn csv(head: &[&str], rows: &[Vec<String>]) -> String {
    let cell = |text: &str| {
        if text.contains([',', '"', '\n', '\r']) {
            format!("\"{}\"", text.replace('"', "\"\""))
        } else {
            text.to_owned()
        }
    };
    let head = head.iter().map(|name| cell(&name.to_lowercase())).collect::<Vec<_>>().join(",");
    let rows = rows.iter().map(|row| row.iter().map(|text| cell(text)).collect::<Vec<_>>().join(","));
    std::iter::once(head).chain(rows).map(|line| line + "\n").collect()
}

fn yaml(value: &Value) -> anyhow::Result<String> {
    let text = serde_saphyr::to_string(value)?;
    Ok(format!("{}\n", text.trim_end()))
}

/// What one look at the cluster has brought.
pub(super) struct Look {
    pub(super) text: String,
    pub(super) code: u8,
}

/// Prints what `look` brings, and returns its exit code; with `--watch`, again and again when it is another, until the process is told
/// to end. A coordinator that is away meanwhile is waited for.
pub(super) async fn print(
    args: &AskArgs,
    look: impl AsyncFn(&mut AdminClient) -> anyhow::Result<Look>,
) -> anyhow::Result<u8> {
    let first = look(&mut connect(&args.form).await?).await?;
    let Some(seconds) = args.watch else {
        out(&first.text)?;
        return Ok(first.code);
    };
    let mut shown = String::new();
    let mut next: anyhow::Result<Look> = Ok(first);
    loop {
        let text = match next {
            Ok(Look { text, .. }) => text,
            Err(error) if error.is::<Unreachable>() => format!("{error:#}\n"),
            Err(error) => return Err(error),
        };
        if text != shown {
            let clear = if terminal_width().is_some() { CLEAR } else { "" };
            out(&format!("{clear}{text}"))?;
            shown = text;
        }
        sleep(Duration::from_secs(seconds)).await;
        next = match connect(&args.form).await {
            Ok(mut client) => look(&mut client).await,
            Err(error) => Err(error),
        };
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn yaml_says_what_json_does() {
        let value = json!({"health": "HEALTH_OK", "nodes": [{"id": "n: 1", "zone": "", "note": null}], "epoch": 3});
        let text = printed(Output::Yaml, || value.clone(), String::new).expect("YAML");
        assert!(text.contains("health: HEALTH_OK\n") && text.contains("epoch: 3\n"), "{text}");
        assert!(text.contains("- id: \"n: 1\"\n") || text.contains("- id: 'n: 1'\n"), "{text}");
        let json = printed(Output::Json, || value.clone(), String::new).expect("JSON");
        assert_eq!(serde_json::from_str::<Value>(&json).expect("JSON"), value);
        assert_eq!(printed(Output::Wide, || Value::Null, || "x\n".into()).expect("text"), "x\n");
        assert!(printed(Output::Csv, || Value::Null, String::new).is_err());
    }

    #[test]
    fn cells_that_hold_commas_or_quotes_stand_in_quotes() {
        let rows = [vec!["a,b".to_owned(), "say \"x\"".to_owned(), String::new()]];
        assert_eq!(csv(&["ONE", "two", "three"], &rows), "one,two,three\n\"a,b\",\"say \"\"x\"\"\",\n");
    }
}
