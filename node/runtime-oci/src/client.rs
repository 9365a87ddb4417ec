//! The way to containerd: one channel that reconnects, a time limit on every call, errors with their cause.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use containerd_client::services::v1 as native;
use hyper_util::rt::TokioIo;
use k8s_cri::v1::{image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient};
use ketch_runtime::Error;
use tokio::net::UnixStream;
use tonic::{
    Code, Request, Response, Status,
    metadata::MetadataValue,
    transport::{Channel, Endpoint, Uri},
};

/// For calls that only look or change a record.
pub(crate) const QUICK: Duration = Duration::from_secs(20);
/// For calls that start processes or wait for a disk.
pub(crate) const SLOW: Duration = Duration::from_secs(120);
/// Largest answer: a list of some ten thousand containers.
const MAX_ANSWER: usize = 32 << 20;
/// How CRI says that it has not found yet what runs; containerd 2 goes on after it.
const STARTING: &str = "server is not initialized yet";
/// containerd's namespace of what CRI made.
const NAMESPACE: &str = "k8s.io";

/// Clients of containerd's services. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    channel: Channel,
    socket: PathBuf,
}

impl Client {
    /// A client of the containerd at `socket`, which need not be there yet.
    pub(crate) fn new(socket: &Path) -> Self {
        let path = socket.to_path_buf();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://containerd").connect_timeout(Duration::from_secs(5));
        Self { channel: endpoint.connect_with_connector_lazy(connector), socket: socket.to_path_buf() }
    }

    /// CRI's sandboxes and containers.
    pub(crate) fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// CRI's view of images.
    pub(crate) fn cri_images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// containerd's own services.
    pub(crate) fn native(&self) -> containerd_client::Client {
        containerd_client::Client::from(self.channel.clone())
    }

    /// Tasks: processes of containers.
    pub(crate) fn tasks(&self) -> native::tasks_client::TasksClient<Channel> {
        self.native().tasks()
    }

    /// Waits for an answer, at most `limit`. `what` is what was tried, for the error.
    pub(crate) fn call<T>(
        &self,
        what: &str,
        limit: Duration,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> impl Future<Output = Result<T, Error>> {
        // Requests are large values; whoever waits should not be.
        let answer = Box::pin(answer);
        async move {
            match tokio::time::timeout(limit, answer).await {
                Ok(Ok(response)) => Ok(response.into_inner()),
                Ok(Err(status)) => Err(self.error(what, &status)),
                Err(_) => Err(Error::Internal(format!(
                    "{what}: containerd at {} gave no answer within {} s",
                    self.socket.display(),
                    limit.as_secs()
                ))),
            }
        }
    }

    fn error(&self, what: &str, status: &Status) -> Error {
        let text = status.message();
        match status.code() {
            _ if is_transport(status) || text.starts_with(STARTING) => Error::Internal(format!(
                "{what}: containerd at {} does not answer; it may be restarting",
                self.socket.display()
            )),
            Code::NotFound => Error::NotFound(format!("{what}: {text}")),
            _ => Error::Internal(format!("{what}: {text}")),
        }
    }
}

/// Whether the connection failed, rather than the call.
pub(crate) fn is_transport(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// A request in the namespace of CRI's containers.
pub(crate) fn scoped<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static(NAMESPACE));
    request
}

/// `Ok` also when there was nothing to be found.
pub(crate) fn or_gone(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::NotFound(_)) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_containerd_that_starts_does_not_answer() {
        let client = Client::new(Path::new("/nowhere.sock"));
        for status in [
            Status::unknown("server is not initialized yet"),
            Status::unavailable("server is not initialized yet: unavailable"),
        ] {
            let error = client.error("list", &status).to_string();
            assert!(error.contains("/nowhere.sock does not answer"), "{error}");
        }
        let error = client.error("list", &Status::unknown("no such thing")).to_string();
        assert!(error.contains("list: no such thing"), "{error}");
    }
}
