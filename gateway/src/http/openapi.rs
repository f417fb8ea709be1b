//! The routes' description in OpenAPI 3.1, made from the types that read and write the bodies.

use std::sync::LazyLock;

use axum::response::IntoResponse;
use http::header;
use utoipa::OpenApi;

use super::{answer, handlers};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tramontane",
        description = "OpenAI's API, with vLLM's and Mistral's extensions",
        license(name = "Apache-2.0")
    ),
    paths(
        handlers::chat,
        handlers::completions,
        handlers::fill_in_the_middle,
        handlers::embeddings,
        handlers::tokenize,
        handlers::detokenize,
        handlers::models,
        handlers::model,
        handlers::healthz,
        handlers::readyz,
        handlers::version,
    ),
    components(schemas(answer::chat::ChatChunk))
)]
struct Description;

/// The description, written once.
pub(super) static JSON: LazyLock<String> =
    LazyLock::new(|| serde_json::to_string(&Description::openapi()).unwrap_or_default());

pub(super) async fn serve() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], JSON.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_description_has_every_route_and_our_parameters() {
        let description: Value = serde_json::from_str(&JSON).unwrap();
        for path in
            ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models/{id}", "/readyz", "/tokenize"]
        {
            assert!(description["paths"][path].is_object(), "{path}");
        }
        let properties = &description["components"]["schemas"]["ChatBody"]["properties"];
        for parameter in ["messages", "temperature", "top_k", "structured_outputs", "random_seed"] {
            assert!(properties[parameter].is_object(), "{parameter}: {properties}");
        }
    }
}
