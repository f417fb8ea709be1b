//! The licence that a checkpoint says it has: `general.license` in GGUF; in a folder `license` in the front matter of `README.md`, as
//! Hugging Face's model cards have it, or in `config.json`. What is said is passed on, and believed by nobody.

use super::Checkpoint;

/// Bytes at the beginning of a model card in which its front matter is looked for.
const MAX_FRONT_MATTER: usize = 64 << 10;
/// Longest name of a licence, in characters.
const MAX_NAME: usize = 128;

impl Checkpoint {
    /// The licence, where the checkpoint says; `None` also where what should say it cannot be read, for nothing depends on it.
    pub fn license(&self) -> Option<String> {
        let said = match &self.metadata {
            Some(metadata) => metadata.string("general.license").ok()?.map(str::to_owned),
            None => self.of_card().or_else(|| self.of_config()),
        };
        said.filter(|name| (1..=MAX_NAME).contains(&name.chars().count()) && !name.contains(char::is_control))
    }

    fn of_card(&self) -> Option<String> {
        let card = self.files.open("README.md").ok()??;
        let beginning = &card[..card.len().min(MAX_FRONT_MATTER)];
        front_matter_license(&String::from_utf8_lossy(beginning))
    }

    fn of_config(&self) -> Option<String> {
        let config: serde_json::Value = serde_json::from_slice(&self.config_json().ok()?).ok()?;
        config["license"].as_str().map(str::to_owned)
    }
}

/// `license` between the lines `---` that begin `card`; where that is `other`, `license_name`.
fn front_matter_license(card: &str) -> Option<String> {
    let mut lines = card.lines();
    if lines.next()?.trim_end() != "---" {
        return None;
    }
    let fields: Vec<(&str, &str)> =
        lines.take_while(|line| line.trim_end() != "---").filter_map(|line| line.split_once(':')).collect();
    let field = |wanted: &str| {
        let (_, value) = fields.iter().find(|(name, _)| *name == wanted)?;
        let value = value.split(" #").next()?.trim().trim_matches(['"', '\'']);
        Some(value.to_owned()).filter(|value| !value.is_empty())
    };
    match field("license") {
        Some(other) if other == "other" => field("license_name").or(Some(other)),
        license => license,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_says_it_in_its_front_matter_alone() {
        for (card, license) in [
            ("---\nlanguage: en\nlicense: apache-2.0\n---\n# M", Some("apache-2.0")),
            ("---\r\nlicense: \"mit\"  # by its makers\r\n---\r\n", Some("mit")),
            ("---\nlicense: other\nlicense_name: mnpl\n---\n", Some("mnpl")),
            ("---\nlicense: other\n---\n", Some("other")),
            ("---\nlicense:\n- mit\n---\n", None),
            ("---\ntags: x\n---\nlicense: mit\n", None),
            ("# M\nlicense: mit\n", None),
            ("---\nmodel:\n  license: mit\n---\n", None),
            ("", None),
        ] {
            assert_eq!(front_matter_license(card).as_deref(), license, "{card:?}");
        }
    }
}
