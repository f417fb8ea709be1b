//! `tramontane keys`: API keys are made, listed and revoked. A key is made up here, printed once, and only its hash goes to the cluster.

use std::num::{NonZeroU32, NonZeroU64};

use anyhow::{anyhow, bail};
use clap::{Args, Subcommand};
use rustls::crypto::ring;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tramontane_cluster::registry::accounts::{Day, KeyHash, KeyLimits, KeyRecord, utc_now};

use super::args::{FormArgs, Output};
use super::print::{csv, printed};
use super::table::{table, terminal_width};
use super::{connect, failed};
use crate::output::out;

/// Random bytes of a key.
const KEY_BYTES: usize = 24;

#[derive(Debug, Args)]
#[command(before_help = "\
Examples:
  tramontane keys create alice --rpm 60 --tpm 20000 --monthly-tokens 5000000
  key=$(tramontane keys create ci --expires 90d --models breeze)
  tramontane keys list -o wide
  tramontane keys revoke alice")]
pub(crate) struct KeysArgs {
    #[command(subcommand)]
    what: KeysCommand,
    #[command(flatten)]
    form: FormArgs,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make a key and print it, this once; all front doors of the cluster know it at once
    Create(CreateArgs),
    /// List the keys, and what each may
    List,
    /// Have all front doors forget a key; what it has used is kept
    Revoke {
        /// The key's name
        name: String,
    },
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// The key's name: usage is counted under it
    name: String,
    /// Requests that it may make in a minute, at each front door
    #[arg(long, value_name = "N", help_heading = "Limits")]
    rpm: Option<NonZeroU32>,
    /// Tokens, of prompts and generated, that it may use in a minute, at each front door
    #[arg(long, value_name = "N", help_heading = "Limits")]
    tpm: Option<NonZeroU32>,
    /// Tokens that it may use in a month (UTC), at all front doors together
    #[arg(long, value_name = "N", help_heading = "Limits")]
    monthly_tokens: Option<NonZeroU64>,
    /// When it ends: a day (2027-01-31, at whose beginning, UTC), or after so long (90d; s, m, h, d and w are known)
    #[arg(long, value_name = "WHEN", help_heading = "Limits", value_parser = when)]
    expires: Option<When>,
    /// Models that it may ask, with commas between them [default: all]
    #[arg(long, value_name = "MODEL", help_heading = "Limits", value_delimiter = ',', num_args = 1)]
    models: Vec<String>,
}

/// When a key ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    On(Day),
    /// Seconds from now.
    After(u64),
}

impl When {
    fn from(self, now: u64) -> u64 {
        match self {
            Self::On(day) => day.start(),
            Self::After(seconds) => now.saturating_add(seconds),
        }
    }
}

fn when(text: &str) -> Result<When, String> {
    let wanted = || "a day such as 2027-01-31, or a time such as 90d or 12h, is wanted".to_owned();
    if let Ok(day) = text.parse() {
        return Ok(When::On(day));
    }
    let unit = text.chars().last().ok_or_else(wanted)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        'w' => 7 * 86_400,
        _ => return Err(wanted()),
    };
    let count: u64 = text.strip_suffix(unit).and_then(|digits| digits.parse().ok()).ok_or_else(wanted)?;
    count.checked_mul(seconds).filter(|&all| all > 0).map(When::After).ok_or_else(wanted)
}

/// Does what is asked.
pub(crate) async fn keys(args: &KeysArgs) -> anyhow::Result<u8> {
    let form = args.form.output();
    match &args.what {
        KeysCommand::Create(create) => self::create(create, &args.form).await?,
        KeysCommand::List => {
            let keys = connect(&args.form).await?.keys().await.map_err(failed)?;
            let text = match form {
                Output::Csv => csv(&HEAD, &rows(&keys)),
                form => printed(form, || keys.iter().map(as_value).collect(), || list(&keys))?,
            };
            out(&text)?;
        }
        KeysCommand::Revoke { name } => {
            connect(&args.form).await?.revoke_key(name).await.map_err(failed)?;
            let value = || json!({"name": name, "revoked": true});
            out(&printed(form, value, || format!("key {name} is revoked\n"))?)?;
        }
    }
    Ok(0)
}

async fn create(args: &CreateArgs, form: &FormArgs) -> anyhow::Result<()> {
    if form.output() == Output::Csv {
        bail!("-o csv is for lists; a key is printed as it is, or with -o json");
    }
    let now = utc_now();
    let limits = KeyLimits {
        rpm: args.rpm,
        tpm: args.tpm,
        monthly_tokens: args.monthly_tokens,
        expires: args.expires.map(|when| when.from(now)),
        models: args.models.iter().cloned().collect(),
    };
    if limits.expires.is_some_and(|end| end <= now) {
        bail!("--expires: that is over already");
    }
    let key = new_key()?;
    let sha256 = KeyHash(Sha256::digest(&key).into());
    let record = KeyRecord { name: args.name.as_str().into(), sha256, limits, created: now };
    connect(form).await?.create_key(&record).await.map_err(failed)?;
    let value = || {
        let mut value = as_value(&record);
        value["key"] = json!(key);
        value
    };
    out(&printed(form.output(), value, || format!("{key}\n"))?)?;
    if form.output().is_for_people() {
        eprintln!("key {} is made; it is not shown again", record.name);
    }
    Ok(())
}

/// A key that nobody can guess.
fn new_key() -> anyhow::Result<String> {
    let mut bytes = [0; KEY_BYTES];
    let random = ring::default_provider().secure_random;
    random.fill(&mut bytes).map_err(|_| anyhow!("the system gives no randomness"))?;
    Ok(bytes.iter().fold("sk-".to_owned(), |key, byte| format!("{key}{byte:02x}")))
}

const HEAD: [&str; 7] = ["NAME", "RPM", "TPM", "MONTHLY_TOKENS", "EXPIRES", "MODELS", "CREATED"];

/// Columns as in [`HEAD`]; empty where there is no limit.
fn rows(keys: &[KeyRecord]) -> Vec<Vec<String>> {
    let row = |key: &KeyRecord| {
        let KeyLimits { rpm, tpm, monthly_tokens, expires, models } = &key.limits;
        let number = |limit: Option<String>| limit.unwrap_or_default();
        vec![
            key.name.to_string(),
            number(rpm.map(|limit| limit.to_string())),
            number(tpm.map(|limit| limit.to_string())),
            number(monthly_tokens.map(|limit| limit.to_string())),
            number(expires.map(moment)),
            models.iter().map(String::as_str).collect::<Vec<_>>().join(" "),
            moment(key.created),
        ]
    };
    keys.iter().map(row).collect()
}

fn list(keys: &[KeyRecord]) -> String {
    let dashed = rows(keys).into_iter().map(|row| {
        let shown = |cell: String| if cell.is_empty() { "-".to_owned() } else { cell };
        row.into_iter().map(shown).collect()
    });
    table(&HEAD, &dashed.collect::<Vec<_>>(), terminal_width())
}

fn as_value(key: &KeyRecord) -> Value {
    let KeyLimits { rpm, tpm, monthly_tokens, expires, models } = &key.limits;
    json!({"name": key.name, "rpm": rpm, "tpm": tpm, "monthly_tokens": monthly_tokens, "models": models,
        "expires": expires.map(moment), "created": moment(key.created)})
}

/// `2027-01-31T12:30:00Z`.
fn moment(seconds: u64) -> String {
    let day = Day::at(seconds);
    let rest = seconds.saturating_sub(day.start());
    format!("{day}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_ends_on_a_day_or_after_a_time() {
        assert_eq!(when("2027-01-01").map(|when| when.from(5)), Ok(1_798_761_600));
        for (text, seconds) in [("30s", 30), ("2m", 120), ("12h", 43_200), ("90d", 7_776_000), ("1w", 604_800)] {
            assert_eq!(when(text).map(|when| when.from(5)), Ok(5 + seconds), "{text}");
        }
        for bad in
            ["", "d", "0d", "-1d", "90", "90y", "2027-02-30", "99999999999999999999d", "9223372036854775807w", "é"]
        {
            assert!(when(bad).is_err(), "{bad}");
        }
        assert_eq!(moment(1_798_761_600 + 45_296), "2027-01-01T12:34:56Z");
    }

    #[test]
    fn keys_differ_and_are_long() {
        let (one, other) = (new_key().expect("a key"), new_key().expect("a key"));
        assert!(one != other && one.len() == 3 + 2 * KEY_BYTES && one.starts_with("sk-"), "{one}");
    }

    #[test]
    fn a_list_shows_limits_and_no_hash() {
        let key = |name: &str, limits| KeyRecord { name: name.into(), sha256: KeyHash([171; 32]), limits, created: 0 };
        let models = ["m".to_owned(), "n".to_owned()].into();
        let limits = KeyLimits { rpm: NonZeroU32::new(60), models, ..KeyLimits::default() };
        let keys = [key("alice", limits), key("bob", KeyLimits::default())];
        let lines: Vec<Vec<String>> =
            list(&keys).lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect();
        assert_eq!(lines[1], ["alice", "60", "-", "-", "-", "m", "n", "1970-01-01T00:00:00Z"]);
        assert_eq!(lines[2], ["bob", "-", "-", "-", "-", "-", "1970-01-01T00:00:00Z"]);
        assert!(!format!("{}{}", list(&keys), as_value(&keys[0])).contains("abab"));
        assert_eq!(csv(&HEAD, &rows(&keys)).lines().nth(1), Some("alice,60,,,,m n,1970-01-01T00:00:00Z"));
    }
}
