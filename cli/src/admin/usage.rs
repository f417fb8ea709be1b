//! `tramontane usage`: what API keys have used, added up by key, model or day.

use std::collections::BTreeMap;

use anyhow::bail;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tramontane_cluster::registry::accounts::{Day, Month, Usage, UsageId, utc_now};

use super::args::{FormArgs, Output};
use super::print::{csv, printed};
use super::table::{table, terminal_width};
use super::{connect, failed};
use crate::output::out;

#[derive(Debug, Args)]
#[command(before_help = "\
Examples:
  tramontane usage
  tramontane usage --by day --month 2027-01
  tramontane usage --by key -o csv > usage.csv
  tramontane usage --by model --since 2027-01-15 --json")]
pub(crate) struct UsageArgs {
    /// What is added up
    #[arg(long, value_enum, value_name = "WHAT", default_value = "key")]
    by: By,
    /// The month [default: this one]
    #[arg(long, value_name = "YYYY-MM")]
    month: Option<Month>,
    /// From this day until today, instead of a month
    #[arg(long, value_name = "YYYY-MM-DD", conflicts_with = "month")]
    since: Option<Day>,
    #[command(flatten)]
    form: FormArgs,
}

/// What is added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    Key,
    Model,
    Day,
}

impl By {
    const fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Model => "model",
            Self::Day => "day",
        }
    }

    fn of(self, id: &UsageId) -> String {
        match self {
            Self::Key => id.key.to_string(),
            Self::Model => id.model.to_string(),
            Self::Day => id.day.to_string(),
        }
    }
}

/// Says what was used. All days are UTC's.
pub(crate) async fn usage(args: &UsageArgs) -> anyhow::Result<u8> {
    let today = Day::at(utc_now());
    let (from, to) = match (args.since, args.month) {
        (Some(since), _) => (since, today),
        (None, month) => {
            let month = month.unwrap_or(today.month());
            (month.first(), month.last())
        }
    };
    if from > to {
        bail!("--since {from}: today is {to}");
    }
    let rows = connect(&args.form).await?.usage(from, to).await.map_err(failed)?;
    let sums = sums(args.by, &rows);
    let text = match args.form.output() {
        Output::Csv => csv(&head(args.by), &cells(&sums)),
        form => printed(form, || as_value(args.by, &sums), || as_table(args.by, &sums))?,
    };
    out(&text)?;
    Ok(0)
}

fn sums(by: By, rows: &[(UsageId, Usage)]) -> BTreeMap<String, Usage> {
    let mut sums = BTreeMap::<String, Usage>::new();
    for (id, usage) in rows {
        *sums.entry(by.of(id)).or_default() += *usage;
    }
    sums
}

const COUNTS: [&str; 4] = ["requests", "prompt_tokens", "completion_tokens", "total_tokens"];

fn head(by: By) -> [&'static str; 5] {
    let [requests, prompt, completion, total] = COUNTS;
    [by.name(), requests, prompt, completion, total]
}

fn counts(usage: &Usage) -> [u64; 4] {
    [usage.requests, usage.prompt_tokens, usage.completion_tokens, usage.tokens()]
}

fn cells(sums: &BTreeMap<String, Usage>) -> Vec<Vec<String>> {
    let row = |(name, usage): (&String, &Usage)| {
        [vec![name.clone()], counts(usage).map(|count| count.to_string()).to_vec()].concat()
    };
    sums.iter().map(row).collect()
}

fn as_table(by: By, sums: &BTreeMap<String, Usage>) -> String {
    let head = head(by).map(str::to_uppercase);
    table(&head.each_ref().map(String::as_str), &cells(sums), terminal_width())
}

fn as_value(by: By, sums: &BTreeMap<String, Usage>) -> Value {
    let row = |(name, usage): (&String, &Usage)| {
        let mut row = json!({ by.name(): name });
        COUNTS.iter().zip(counts(usage)).for_each(|(name, count)| row[name] = json!(count));
        row
    };
    sums.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_added_up_by_what_was_asked_for() {
        let row = |key: &str, on: &str, model: &str, prompt_tokens| {
            let id = UsageId { key: key.into(), day: on.parse().expect("a day"), model: model.into() };
            (id, Usage { requests: 1, prompt_tokens, completion_tokens: 2 })
        };
        let rows =
            [row("a", "2027-01-01", "m", 10), row("a", "2027-01-02", "m", 20), row("b", "2027-01-02", "org/n", 40)];
        let by_key = sums(By::Key, &rows);
        assert_eq!(
            as_table(By::Key, &by_key).lines().map(|line| line.split_whitespace().collect()).collect::<Vec<Vec<_>>>(),
            [
                vec!["KEY", "REQUESTS", "PROMPT_TOKENS", "COMPLETION_TOKENS", "TOTAL_TOKENS"],
                vec!["a", "2", "30", "4", "34"],
                vec!["b", "1", "40", "2", "42"]
            ]
        );
        let by_day = csv(&head(By::Day), &cells(&sums(By::Day, &rows)));
        assert_eq!(
            by_day,
            "day,requests,prompt_tokens,completion_tokens,total_tokens\n2027-01-01,1,10,2,12\n2027-01-02,2,60,4,64\n"
        );
        let one = json!({"model": "m", "requests": 2, "prompt_tokens": 30, "completion_tokens": 4, "total_tokens": 34});
        assert_eq!(as_value(By::Model, &sums(By::Model, &rows))[0], one);
    }
}
