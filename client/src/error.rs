//! What a failed request means, and the sentence a user reads about it.

use kube::Error;

/// What a user should read when a request fails: the server's own message where it answered, the reason
/// it could not be reached otherwise.
pub fn status_text(error: &Error) -> String {
    match error {
        Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        Error::Api(status) if !status.reason.is_empty() => status.reason.clone(),
        Error::Api(status) => format!("the server answered {} without a message", status.code),
        Error::Service(source) => match source.downcast_ref::<Error>() {
            Some(inner) => status_text(inner),
            None => format!("cannot reach the server: {}", chain(source.as_ref())),
        },
        Error::HyperError(source) => format!("cannot reach the server: {}", chain(source)),
        Error::ReadEvents(source) => format!("the connection to the server broke: {source}"),
        Error::SerdeError(source) => format!("the server's answer cannot be understood: {source}"),
        other => chain(other),
    }
}

/// The messages of an error and its sources, each once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let message = source.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        next = source.source();
    }
    text
}

fn has(error: &Error, code: u16, reason: &str) -> bool {
    matches!(error, Error::Api(status) if status.code == code && (status.reason == reason || status.reason.is_empty()))
}

/// Whether the object does not exist.
pub fn is_not_found(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 404)
}

/// Whether a precondition (resource version, uid) no longer holds.
pub fn is_conflict(error: &Error) -> bool {
    has(error, 409, "Conflict")
}

/// Whether a create found the name taken.
pub fn is_already_exists(error: &Error) -> bool {
    has(error, 409, "AlreadyExists")
}

/// Whether a create was refused because the namespace is going away.
pub fn is_forbidden_by_termination(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 403 && status.message.contains("being terminated"))
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn api(code: u16, reason: &str, message: &str) -> Error {
        Error::Api(Box::new(Status {
            code,
            reason: reason.into(),
            message: message.into(),
            ..Status::default()
        }))
    }

    #[test]
    fn the_servers_words_come_first() {
        assert_eq!(status_text(&api(404, "NotFound", "pods \"x\" not found")), "pods \"x\" not found");
        assert_eq!(status_text(&api(500, "", "")), "the server answered 500 without a message");
        let refused = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "connection refused");
        assert_eq!(
            status_text(&Error::Service(Box::new(refused))),
            "cannot reach the server: connection refused"
        );
    }

    #[test]
    fn conflicts_and_taken_names_differ() {
        assert!(is_conflict(&api(409, "Conflict", "")));
        assert!(!is_conflict(&api(409, "AlreadyExists", "")));
        assert!(is_already_exists(&api(409, "AlreadyExists", "")));
        assert!(is_not_found(&api(404, "NotFound", "")));
        assert!(is_forbidden_by_termination(&api(
            403,
            "Forbidden",
            "unable to create new content in namespace a because it is being terminated"
        )));
    }
}
