//! Models from a hub that speaks Hugging Face's API: what is asked for (`reference`), what a repository has (`listing`), which of it is
//! needed (`choose`), getting it (`session`, `download`), and the folder in which it is kept (`store`).

mod choose;
mod download;
mod error;
mod listing;
mod reference;
mod session;
mod store;

pub(crate) use choose::{Choice, Chosen, choose};
pub(crate) use download::download;
pub(crate) use error::HubError;
pub(crate) use listing::{HubFile, Listing};
pub(crate) use reference::{Reference, Repo};
pub(crate) use session::{Address, Session};
pub(crate) use store::{Entry, Place, Record, State, default_folder, list, record_of, resolve};
