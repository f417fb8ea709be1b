//! Tools that a model may call: what they are, how a request asks for them, and how calls are found in an answer.

mod call;
mod offer;
mod parser;

pub use offer::{MAX_TOOLS, Tool, ToolChoice, ToolOffer};
pub use parser::{Expect, ToolParser, ToolPiece};

/// A call of a tool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolCall {
    /// Its id.
    pub id: String,
    /// The tool.
    pub name: String,
    /// JSON text.
    pub arguments: String,
}
