//! What goes wrong without a server.

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("position {0} was about to be compared with {1}")]
    OtherNode(String, String),
    #[error("position {0} was about to be used as one of node \"{1}\"")]
    NotOfNode(String, String),
    #[error("zodan.registry(): {0}")]
    Registry(#[from] serde_json::Error),
}
