//! How a key stands to its limits, as headers in OpenAI's words.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::error::seconds;
use crate::metering::{Standing, Window};

/// Limit, remaining and reset.
type Names = [HeaderName; 3];

const REQUESTS: Names = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKENS: Names = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// Says in `headers` how the key stands. Of what is not limited nothing is said.
pub(super) fn say(headers: &mut HeaderMap, standing: Standing) {
    for (names, window) in [(REQUESTS, standing.requests), (TOKENS, standing.tokens)] {
        let Some(Window { limit, remaining, reset }) = window else { continue };
        let [limit_name, remaining_name, reset_name] = names;
        headers.insert(limit_name, HeaderValue::from(limit));
        headers.insert(remaining_name, HeaderValue::from(remaining));
        if let Ok(reset) = HeaderValue::try_from(duration(reset)) {
            headers.insert(reset_name, reset);
        }
    }
}

/// `6m0s`; of less than a second, milliseconds. What is not whole is rounded up.
fn duration(wait: Duration) -> String {
    if wait > Duration::ZERO && wait < Duration::from_secs(1) {
        return format!("{}ms", wait.as_micros().div_ceil(1000));
    }
    let all = seconds(wait);
    let (hours, minutes, seconds) = (all / 3600, all / 60 % 60, all % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_openai_does() {
        for (milliseconds, text) in
            [(0, "0s"), (20, "20ms"), (1000, "1s"), (59_001, "1m0s"), (360_000, "6m0s"), (3_661_000, "1h1m1s")]
        {
            assert_eq!(duration(Duration::from_millis(milliseconds)), text);
        }
    }

    #[test]
    fn only_what_is_limited_is_told() {
        let mut headers = HeaderMap::new();
        say(&mut headers, Standing::default());
        assert!(headers.is_empty());
        let window = Window { limit: 60, remaining: 59, reset: Duration::from_secs(1) };
        say(&mut headers, Standing { requests: Some(window), tokens: None });
        let told: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        let wanted = ["limit", "remaining", "reset"].map(|what| format!("x-ratelimit-{what}-requests"));
        assert_eq!(told, [(&*wanted[0], "60"), (&*wanted[1], "59"), (&*wanted[2], "1s")]);
    }
}
