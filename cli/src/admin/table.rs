//! Tables that fit the terminal. Pure but for asking how wide it is.

use std::fmt::Write;

/// Between two columns.
const GAP: &str = "  ";

/// How many columns the terminal has; `None` where stdout is none.
pub(super) fn terminal_width() -> Option<usize> {
    terminal_size::terminal_size_of(std::io::stdout()).map(|(width, _)| usize::from(width.0))
}

/// `rows` under `head`, in columns as wide as they need, cut at `width`.
pub(super) fn table(head: &[&str], rows: &[Vec<String>], width: Option<usize>) -> String {
    let cells = |i: usize| rows.iter().filter_map(move |row| row.get(i)).map(|cell| cell.chars().count());
    let widths: Vec<usize> =
        head.iter().enumerate().map(|(i, name)| cells(i).max().unwrap_or(0).max(name.chars().count())).collect();
    let mut text = String::new();
    let head: Vec<String> = head.iter().map(|&name| name.to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a string cannot fail.
            _ = write!(line, "{cell:<width$}{GAP}");
        }
        text.push_str(&cut(line.trim_end(), width));
        text.push('\n');
    }
    text
}

fn cut(line: &str, width: Option<usize>) -> String {
    match width {
        Some(width) if line.chars().count() > width => {
            line.chars().take(width.saturating_sub(1)).chain(['…']).collect()
        }
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_need_and_lines_as_the_terminal() {
        let rows = [vec!["a".to_owned(), "x".to_owned()], vec!["longer".to_owned(), "y y y y".to_owned()]];
        assert_eq!(table(&["N", "WHAT"], &rows, None), "N       WHAT\na       x\nlonger  y y y y\n");
        assert_eq!(table(&["N", "WHAT"], &rows, Some(10)), "N       W…\na       x\nlonger  y…\n");
    }
}
