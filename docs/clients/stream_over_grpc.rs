//! Streams a completion over gRPC.

use std::error::Error;
use std::io::Write;

use tonic::transport::Channel;
use tramontane_proto::v1::answer_piece::Piece;
use tramontane_proto::v1::inference_client::InferenceClient;
use tramontane_proto::v1::{GenerateRequest, GenerationParameters, Input, input};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let server = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:50051".to_owned());
    let mut client = InferenceClient::new(Channel::from_shared(server)?.connect().await?);
    let request = GenerateRequest {
        model: None,
        prompt: Some(Input { input: Some(input::Input::Text("The capital of France is".to_owned())) }),
        parameters: Some(GenerationParameters {
            max_tokens: Some(8),
            temperature: Some(0.0),
            ..GenerationParameters::default()
        }),
    };
    // Dropping the stream cancels the call, and the server stops within a step.
    let mut stream = client.generate(request).await?.into_inner();
    while let Some(piece) = stream.message().await? {
        match piece.piece {
            Some(Piece::Text(text)) => print!("{}", text.text),
            Some(Piece::Usage(usage)) => println!("\n{} tokens", usage.completion_tokens),
            _ => {}
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}
