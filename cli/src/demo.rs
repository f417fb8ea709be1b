//! The demo model, in the binary, so that it works wherever the binary is installed.

/// Its name.
pub(crate) const NAME: &str = "breeze";

/// The word that names it where a path is wanted (`./demo` is a folder of that name).
pub(crate) const WORD: &str = "demo";

/// Its checkpoint's files.
pub(crate) const FILES: [(&str, &[u8]); 6] = [
    ("README.md", include_bytes!("../../models/breeze/README.md")),
    ("config.json", include_bytes!("../../models/breeze/config.json")),
    ("generation_config.json", include_bytes!("../../models/breeze/generation_config.json")),
    ("model.safetensors", include_bytes!("../../models/breeze/model.safetensors")),
    ("tokenizer.json", include_bytes!("../../models/breeze/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../models/breeze/tokenizer_config.json")),
];
