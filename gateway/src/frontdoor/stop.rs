//! Stop strings: text is let out only when no stop string can still begin in it. Pure.

/// Whether a stop string that was found is part of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopText {
    /// It is never let out.
    Left,
    /// It ends the text.
    Included,
}

/// Looks for stop strings in text that comes in pieces. What it lets out does not depend on how the text was cut.
#[derive(Clone, Debug)]
pub(super) struct StopStrings {
    stops: Vec<String>,
    text: StopText,
    /// The longest end of the text so far with which a stop string begins.
    held: String,
}

/// What came of a piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Passed {
    /// This much can go out.
    On(String),
    /// This much can go out, and then comes a stop string: the end.
    Stopped(String),
}

impl StopStrings {
    /// Looks for `stops`, none of which is empty.
    pub(super) fn new(stops: Vec<String>, text: StopText) -> Self {
        Self { stops, text, held: String::new() }
    }

    /// Takes the next piece.
    pub(super) fn push(&mut self, piece: &str) -> Passed {
        self.held.push_str(piece);
        let ends = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start))
        });
        // What ends first would have ended the text first, had it come letter by letter; of several, the longest.
        if let Some((end, start)) = ends.min() {
            let cut = if self.text == StopText::Included { end } else { start };
            self.held.truncate(cut);
            return Passed::Stopped(std::mem::take(&mut self.held));
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Passed::On(std::mem::replace(&mut self.held, rest))
    }

    /// The text has ended: what was held back.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest end of `text` with which `stop` begins, `stop` itself not counted.
fn overlap(text: &str, stop: &str) -> usize {
    let begins = stop.char_indices().map(|(at, _)| at).skip(1);
    begins.filter(|&length| text.ends_with(&stop[..length])).last().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run<'a>(stops: &[&str], text: StopText, pieces: impl IntoIterator<Item = &'a str>) -> (String, bool) {
        let mut looking = StopStrings::new(stops.iter().map(|&stop| stop.to_owned()).collect(), text);
        let mut out = String::new();
        for piece in pieces {
            match looking.push(piece) {
                Passed::On(text) => out.push_str(&text),
                Passed::Stopped(text) => return (out + &text, true),
            }
        }
        (out + &looking.finish(), false)
    }

    #[test]
    fn a_stop_string_across_pieces_is_never_let_out() {
        assert_eq!(run(&["\n\nQ:"], StopText::Left, ["A: yes\n", "\nQ", ": no"]), ("A: yes".to_owned(), true));
        assert_eq!(run(&["é→"], StopText::Left, ["caf", "é", "→x"]), ("caf".to_owned(), true));
        assert_eq!(run(&["STOP"], StopText::Included, ["a ST", "OP b"]), ("a STOP".to_owned(), true));
    }

    #[test]
    fn what_only_looked_like_a_stop_string_comes_out_in_the_end() {
        assert_eq!(run(&["STOP"], StopText::Left, ["a STO", "RM S"]), ("a STORM S".to_owned(), false));
        assert_eq!(run(&["aab"], StopText::Left, ["aaa", "b"]), ("a".to_owned(), true));
    }

    #[test]
    fn without_stop_strings_nothing_is_held() {
        let mut looking = StopStrings::new(Vec::new(), StopText::Left);
        assert_eq!(looking.push("abc"), Passed::On("abc".to_owned()));
        assert_eq!(looking.finish(), "");
    }

    #[test]
    fn the_stop_string_that_ends_first_wins() {
        assert_eq!(run(&["abcd", "bc"], StopText::Included, ["xabcd"]), ("xabc".to_owned(), true));
        assert_eq!(run(&["c", "abc"], StopText::Left, ["xabc"]), ("x".to_owned(), true));
    }

    proptest! {
        #[test]
        fn how_the_text_is_cut_does_not_matter(
            text in "[abé]{0,24}",
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            cuts in prop::collection::vec(0_usize..24, 0..6),
            included in any::<bool>(),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let how = if included { StopText::Included } else { StopText::Left };
            let mut bounds: Vec<usize> = cuts.into_iter().filter(|&cut| text.is_char_boundary(cut) && cut < text.len()).collect();
            bounds.extend([0, text.len()]);
            bounds.sort_unstable();
            let pieces = bounds.windows(2).map(|pair| &text[pair[0]..pair[1]]);
            let letters = text.char_indices().map(|(at, c)| &text[at..at + c.len_utf8()]);
            let by_letter = run(&stops, how, letters);
            prop_assert_eq!(run(&stops, how, pieces), by_letter.clone());
            prop_assert_eq!(by_letter.1, stops.iter().any(|stop| text.contains(stop)));
            if !included {
                prop_assert!(stops.iter().all(|stop| !by_letter.0.contains(stop)));
            }
            prop_assert!(text.starts_with(&by_letter.0));
        }
    }
}
