//! Why a node is not in the cluster. The texts are for the person who started it.

use std::path::PathBuf;

use ketch_client::secure::Failure;

use super::ServerAddress;

/// Why a node is not in the cluster.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The server's address is none.
    #[error("\"{0}\" is not a server's address; write it as https://HOST:6443")]
    Address(String),
    /// The server said no.
    #[error("the server refused: {0}")]
    Refused(String),
    /// The token is wrong, used or expired.
    #[error(
        "the server does not accept this token: it has been used, has expired or was deleted. Make another with \
         `ketch token create` at the server"
    )]
    Token,
    /// The certificate of this node is not accepted.
    #[error(
        "the server does not accept this node's certificate ({0}). If the node was away for longer than its \
         certificate lives, join again: remove node/identity in the data directory, and start with a new --token"
    )]
    Certificate(String),
    /// The certificate of this node has ended.
    #[error(
        "this node's certificate ended at {0}: it was away for longer than its certificate lives, or the clock of \
         this machine ({1}) is wrong. To join again remove node/identity in the data directory, and start with a \
         new --token"
    )]
    Expired(jiff::Timestamp, jiff::Timestamp),
    /// Another cluster's server answered.
    #[error(
        "the server at {0} belongs to another cluster: its certificate comes from another authority than the one \
         that the token names or that this node has joined. Check --server, and that nobody is in between"
    )]
    WrongAuthority(ServerAddress),
    /// The certificate does not have the name.
    #[error(
        "the certificate of the server at {server} is for other names ({names}). Use one of these in --server, or \
         start the server with --tls-san {}", .server.host()
    )]
    WrongName {
        /// Where.
        server: ServerAddress,
        /// What it is for.
        names: String,
    },
    /// Clocks differ.
    #[error(
        "the certificate of the server at {0} is not valid at this machine's time ({1}). Check the clocks of both \
         machines"
    )]
    WrongTime(ServerAddress, jiff::Timestamp),
    /// Nobody answers.
    #[error("cannot reach the server at {0}: {1}. Check that it runs, the address, and firewalls on the way")]
    Unreachable(ServerAddress, String),
    /// Its answer makes no sense.
    #[error("the answer of the server at {0} cannot be read: {1}")]
    Answer(ServerAddress, String),
    /// The file with the identity.
    #[error("cannot use this node's identity in {path}: {why}")]
    Identity {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No key could be made.
    #[error("cannot make a key: {0}")]
    Key(String),
}

// === impl JoinError ===

impl JoinError {
    /// Whether the server was reached and said no: trying again does not help.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Token | Self::Certificate(_) | Self::WrongAuthority(_))
    }

    /// What a failed connection to `server` means.
    pub(super) fn of(failure: Failure, server: &ServerAddress) -> Self {
        let server = server.clone();
        match failure {
            Failure::WrongAuthority => Self::WrongAuthority(server),
            Failure::WrongName(names) => Self::WrongName { server, names },
            Failure::WrongTime => Self::WrongTime(server, jiff::Timestamp::now()),
            Failure::Refused(why) => Self::Certificate(why),
            Failure::Unreachable(why) => Self::Unreachable(server, why),
        }
    }
}
