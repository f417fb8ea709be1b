//! Embeddings: the mean of a text's last hidden states, as a vector of length one.

use std::sync::Arc;

use tramontane_cluster::engine::{Event, EventStream, Task, ValidRequest};

use futures::StreamExt;

use super::answer::UsageSoFar;
use super::prompt::{Prompt, Truncate};
use super::{Caller, FrontDoor};
use crate::error::ApiError;
use crate::metering::Charge;
use crate::shown::{Operation, Shown};

/// A checked request for embeddings.
pub struct EmbeddingJob {
    front: Arc<FrontDoor>,
    requests: Vec<ValidRequest>,
    charge: Charge,
    shown: Shown,
}

impl FrontDoor {
    /// Checks a request for the embeddings of `inputs`.
    ///
    /// # Errors
    /// [`ApiError::Invalid`], [`ApiError::ContextLength`]; what the key's limits say.
    pub fn embedding(
        self: &Arc<Self>,
        inputs: &[Prompt],
        truncate: Option<i64>,
        caller: &Caller,
    ) -> Result<EmbeddingJob, ApiError> {
        const PARAM: &str = "input";
        caller.shown.asks(Operation::Embeddings, self.model.id());
        caller.account.begin(self.model.id())?;
        let limit = self.limits.sequences;
        if inputs.is_empty() || inputs.len() > limit {
            return Err(ApiError::param(PARAM, format!("`input` must hold 1 to {limit} texts")));
        }
        let truncate = Truncate::read(truncate, self.model.context)?;
        let requests = inputs.iter().map(|input| {
            let prompt = truncate.apply(self.ids(PARAM, input)?);
            self.room(PARAM, prompt.len(), None, None)?;
            Ok(ValidRequest {
                id: self.next_id(),
                prompt,
                tenant: caller.account.tenant(),
                priority: 0,
                cache_scope: self.cache_scope(caller, None),
                deadline: caller.deadline,
                task: Task::Embed,
                mark: caller.shown.mark(),
            })
        });
        let requests = requests.collect::<Result<Vec<_>, ApiError>>()?;
        let tokens = requests.iter().map(|request| request.prompt.len() as u64).sum();
        let charge = caller.account.reserve(self.model.id(), tokens)?;
        Ok(EmbeddingJob { front: self.clone(), requests, charge, shown: caller.shown.clone() })
    }
}

impl EmbeddingJob {
    /// The embeddings, each of length one, and what they took.
    ///
    /// # Errors
    /// The first that a text brings; the others are cancelled.
    pub async fn run(mut self) -> Result<(Vec<Vec<f32>>, UsageSoFar), ApiError> {
        let mut usage = UsageSoFar { prompt: 0, completion: 0, cached: Some(0) };
        let mut streams = Vec::with_capacity(self.requests.len());
        for request in self.requests {
            let tokens = request.prompt.len();
            usage.prompt += tokens;
            streams.extend(self.front.engine.submit(request)?.into_iter().map(|stream| (tokens, stream)));
        }
        let (mut embeddings, mut embedded) = (Vec::with_capacity(streams.len()), 0);
        for (tokens, mut stream) in streams {
            embeddings.push(normalised(vector(&mut stream).await?));
            embedded += tokens;
            self.charge.used(embedded, 0);
        }
        self.shown.used(self.front.model.id(), usage);
        Ok((embeddings, usage))
    }
}

async fn vector(stream: &mut EventStream) -> Result<Vec<f32>, ApiError> {
    let mut vector = None;
    while let Some(event) = stream.next().await {
        match event {
            Event::Embedding(values) => vector = Some(values),
            Event::Failed(error) => return Err(error.into()),
            Event::Finished { .. } => break,
            Event::Started { .. } | Event::Prompt(_) | Event::Token(_) => {}
        }
    }
    vector.ok_or(ApiError::Internal { why: "the engine gave no embedding" })
}

/// `vector` with length one; a zero vector stays.
fn normalised(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::normalised;

    #[test]
    fn vectors_have_length_one_unless_they_are_zero() {
        assert_eq!(normalised(vec![3.0, -4.0]), [0.6, -0.8]);
        assert_eq!(normalised(vec![0.0; 3]), [0.0; 3]);
        assert_eq!(normalised(vec![1e30, 0.0]), [1.0, 0.0]);
    }
}
