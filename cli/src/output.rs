//! What goes to stdout: written so that a reader who leaves is no failure; sizes for people.

use std::io::{ErrorKind, Write};

/// Writes `text` to stdout. A reader that has gone away (`| head`) is no failure.
pub(crate) fn out(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// A number of bytes to three digits or so, in powers of 1024.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = n as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    let digits = if unit == "B" || value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn bytes_have_three_digits() {
        for (n, text) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (15 << 10, "15.0 KiB"), (700 << 20, "700 MiB")]
        {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
    }
}
