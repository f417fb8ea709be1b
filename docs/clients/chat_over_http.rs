//! Streams a chat's answer over HTTP.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};

use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let server = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:8080".to_owned());
    let body = json!({
        "model": "breeze",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "stream": true,
    });
    let response = ureq::post(format!("{server}/v1/chat/completions")).send_json(&body)?;
    // An event is a line `data: …`; everything else is for keeping connections alive.
    for line in BufReader::new(response.into_body().into_reader()).lines() {
        let line = line?;
        let Some(data) = line.strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            println!();
            return Ok(());
        }
        let event: Value = serde_json::from_str(data)?;
        if let Some(error) = event.get("error") {
            return Err(error.to_string().into());
        }
        print!("{}", event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
        std::io::stdout().flush()?;
    }
    Err("the answer broke off".into())
}
