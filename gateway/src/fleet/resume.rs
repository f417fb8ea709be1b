//! What a choice's reader has been told, and what is left to ask for. Pure.

use tramontane_cluster::engine::{Event, Task, ValidRequest};

/// What one choice's reader has been told.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Told {
    tokens: Vec<u32>,
    started: bool,
    prompt: bool,
    embedding: bool,
}

impl Told {
    /// Notes `event`. Whether the reader is to be told: what comes before the tokens may come again from the next engine.
    pub(super) fn note(&mut self, event: &Event) -> bool {
        match event {
            Event::Token(token) => {
                self.tokens.push(token.id);
                true
            }
            Event::Started { .. } => !std::mem::replace(&mut self.started, true),
            Event::Prompt(_) => !std::mem::replace(&mut self.prompt, true),
            Event::Embedding(_) => !std::mem::replace(&mut self.embedding, true),
            Event::Finished { .. } | Event::Failed(_) => true,
        }
    }

    /// What is left of the choice at `place` of `request`'s choices, as a request of its own.
    pub(super) fn rest_of(&self, request: &ValidRequest, place: u32) -> ValidRequest {
        let mut rest = request.clone();
        if let Task::Generate(generation) = &mut rest.task {
            generation.choices = 1;
            generation.first_choice += place;
            generation.resume_after.extend(&self.tokens);
            // It is told with the first choice, and before the first token.
            if place > 0 || self.prompt || !self.tokens.is_empty() {
                generation.prompt_logprobs = None;
            }
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use tramontane_cluster::engine::{Generation, Sampling, Token};

    use super::*;

    fn token(id: u32) -> Event {
        Event::Token(Token { id, logprob: 0.0, top: Vec::new() })
    }

    fn request(resume_after: Vec<u32>, choices: u32) -> ValidRequest {
        let sampling = Sampling { seed: 9, temperature: 1.0, ..Sampling::default() };
        let generation = Generation {
            resume_after,
            choices,
            first_choice: 2,
            max_tokens: 30,
            sampling,
            prompt_logprobs: Some(1),
            ..Generation::default()
        };
        ValidRequest::generate(1, vec![4, 5], generation)
    }

    fn generation(request: &ValidRequest) -> &Generation {
        let Task::Generate(generation) = &request.task else { panic!("a generation") };
        generation
    }

    #[test]
    fn the_rest_is_one_choice_after_its_tokens_and_else_the_same() {
        let mut told = Told::default();
        assert!(told.note(&Event::Prompt(vec![None])) && told.note(&token(7)) && told.note(&token(8)));
        let whole = request(Vec::new(), 4);
        let rest = told.rest_of(&whole, 3);
        let wanted = Generation {
            resume_after: vec![7, 8],
            choices: 1,
            first_choice: 5,
            prompt_logprobs: None,
            ..generation(&whole).clone()
        };
        assert_eq!(*generation(&rest), wanted);
        assert_eq!(ValidRequest { task: whole.task.clone(), ..rest }, whole);
    }

    #[test]
    fn a_request_that_resumed_itself_is_resumed_after_both() {
        let mut told = Told::default();
        told.note(&token(7));
        let rest = told.rest_of(&request(vec![1, 2], 1), 0);
        assert_eq!(generation(&rest).resume_after, [1, 2, 7]);
        let again = Told::default().rest_of(&rest, 0);
        assert_eq!(generation(&again), generation(&rest));
    }

    #[test]
    fn the_prompts_log_probabilities_are_asked_for_until_they_are_told_and_only_by_the_first_choice() {
        let (whole, mut told) = (request(Vec::new(), 2), Told::default());
        assert_eq!(generation(&told.rest_of(&whole, 0)).prompt_logprobs, Some(1));
        assert_eq!(generation(&told.rest_of(&whole, 1)).prompt_logprobs, None);
        assert!(told.note(&Event::Prompt(vec![None])));
        assert_eq!(generation(&told.rest_of(&whole, 0)).prompt_logprobs, None);
        assert!(!told.note(&Event::Prompt(vec![None])), "once is enough");
    }

    #[test]
    fn an_embedding_is_told_once() {
        let mut told = Told::default();
        let embed = ValidRequest { task: Task::Embed, ..request(Vec::new(), 1) };
        assert!(told.note(&Event::Embedding(vec![1.0])));
        assert_eq!(told.rest_of(&embed, 0), embed);
        assert!(!told.note(&Event::Embedding(vec![1.0])));
    }
}
