//! The demo model, in the binary, so that it works wherever the binary is installed.

/// Its name.
pub(crate) const NAME: &str = "breeze";

/// Its checkpoint's files.
pub(crate) const FILES: [(&str, &[u8]); 5] = [
    ("config.json", include_bytes!("../../models/breeze/config.json")),
    ("generation_config.json", include_bytes!("../../models/breeze/generation_config.json")),
    ("model.safetensors", include_bytes!("../../models/breeze/model.safetensors")),
    ("tokenizer.json", include_bytes!("../../models/breeze/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../models/breeze/tokenizer_config.json")),
];
