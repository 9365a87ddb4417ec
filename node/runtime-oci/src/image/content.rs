//! Writing into containerd's content and image stores, under a lease that keeps its garbage collector away
//! until everything refers to everything.

use std::{collections::HashMap, path::Path, time::Duration};

use containerd_client::{
    services::v1::{
        AddResourceRequest, CreateImageRequest, CreateRequest, DeleteRequest, Image as Record, Info,
        InfoRequest, ListRequest, Resource, UpdateImageRequest, UpdateRequest, WriteAction,
        WriteContentRequest,
    },
    types,
};
use futures::stream;
use ketch_runtime::Error;
use tokio::{fs::File, io::AsyncReadExt};
use tonic::{Code, Request, metadata::MetadataValue};

use super::manifest::Descriptor;
use crate::client::{Client, QUICK, SLOW, scoped};

/// Bytes per message.
const CHUNK: usize = 1 << 20;
/// When an abandoned lease ends by itself.
const LEASE: Duration = Duration::from_secs(24 * 3600);

/// Labels of a blob, an image, a snapshot.
pub(crate) type Labels = HashMap<String, String>;

/// A lease on what one pull writes.
pub(crate) struct Lease<'a> {
    pub(crate) client: &'a Client,
    id: String,
}

impl<'a> Lease<'a> {
    /// Takes a lease called `id`.
    pub(crate) async fn take(client: &'a Client, id: String) -> Result<Self, Error> {
        let end =
            jiff::Timestamp::now().checked_add(jiff::SignedDuration::try_from(LEASE).unwrap_or_default());
        let end = end.unwrap_or(jiff::Timestamp::MAX).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let labels = Labels::from([("containerd.io/gc.expire".to_owned(), end)]);
        let mut leases = client.native().leases();
        let request = scoped(CreateRequest { id: id.clone(), labels });
        client.call("take a lease", QUICK, leases.create(request)).await?;
        Ok(Self { client, id })
    }

    /// Gives it back; what nothing refers to is collected, `now` or at some time.
    pub(crate) async fn end(self, now: bool) {
        if let Err(error) = end(self.client, self.id, now).await {
            tracing::debug!(%error, "a lease stays until it expires");
        }
    }

    /// A request that counts towards the lease.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = scoped(message);
        if let Ok(value) = MetadataValue::try_from(self.id.as_str()) {
            request.metadata_mut().insert("containerd-lease", value);
        }
        request
    }

    /// Takes something that is there, or may be, into the lease.
    pub(crate) async fn add(&self, id: &str, kind: String) -> Result<(), Error> {
        let resource = Some(Resource { id: id.to_owned(), r#type: kind });
        let request = scoped(AddResourceRequest { id: self.id.clone(), resource });
        let mut leases = self.client.native().leases();
        self.client.call("lease a part of an image", QUICK, leases.add_resource(request)).await.map(drop)
    }

    /// Whether the content store has a blob; it is leased then.
    pub(crate) async fn has(&self, digest: &str) -> Result<bool, Error> {
        self.add(digest, "content".to_owned()).await?;
        let request = scoped(InfoRequest { digest: digest.to_owned() });
        let mut content = self.client.native().content();
        match self.client.call("look for a blob", QUICK, content.info(request)).await {
            Ok(_) => Ok(true),
            Err(Error::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes the file at `path` as `blob`.
    ///
    /// # Errors
    /// [`Error::Pull`] when it is not what the descriptor says.
    pub(crate) async fn write(&self, blob: &Descriptor, path: &Path) -> Result<(), Error> {
        let lost = |error: std::io::Error| {
            Error::Internal(format!("read {} of {}: {error}", blob.digest, path.display()))
        };
        let file = File::open(path).await.map_err(lost)?;
        if file.metadata().await.map_err(lost)?.len() != blob.size {
            return Err(Error::Pull(format!("{} is not {} bytes long", blob.digest, blob.size)));
        }
        let mut content = self.client.native().content();
        let request = self.request(messages(file, blob.clone(), format!("{}-{}", self.id, blob.digest)));
        let started = tokio::time::timeout(SLOW, content.write(request)).await;
        let mut replies = match started.map_err(|_| slow(blob))? {
            Ok(response) => response.into_inner(),
            Err(status) => return written(blob, &status),
        };
        loop {
            match tokio::time::timeout(SLOW, replies.message()).await.map_err(|_| slow(blob))? {
                Ok(Some(reply)) if reply.action == WriteAction::Commit as i32 => return Ok(()),
                Ok(Some(_)) => {}
                Ok(None) => return Err(Error::Internal(format!("{} was not read whole", blob.digest))),
                Err(status) => return written(blob, &status),
            }
        }
    }

    /// Adds labels to a blob.
    pub(crate) async fn label(&self, digest: &str, labels: Labels) -> Result<(), Error> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = Info { digest: digest.to_owned(), labels, ..Info::default() };
        let mask = Some(prost_types::FieldMask { paths });
        let request = self.request(UpdateRequest { info: Some(info), update_mask: mask });
        let mut content = self.client.native().content();
        self.client.call("label a blob", QUICK, content.update(request)).await.map(drop)
    }
}

/// The messages that write a file: its bytes, then the commit. A file that cannot be read ends them early.
fn messages(file: File, blob: Descriptor, name: String) -> impl futures::Stream<Item = WriteContentRequest> {
    let size = i64::try_from(blob.size).unwrap_or(i64::MAX);
    stream::unfold(Some((file, 0_i64)), move |state| {
        let base = WriteContentRequest {
            action: WriteAction::Write as i32,
            r#ref: name.clone(),
            total: size,
            expected: blob.digest.clone(),
            ..WriteContentRequest::default()
        };
        async move {
            let (mut file, offset) = state?;
            if offset >= size {
                return Some((
                    WriteContentRequest { action: WriteAction::Commit as i32, offset, ..base },
                    None,
                ));
            }
            let mut data = vec![0; CHUNK];
            let count = file.read(&mut data).await.ok().filter(|count| *count > 0)?;
            data.truncate(count);
            let next = offset.saturating_add(i64::try_from(count).unwrap_or(i64::MAX));
            Some((WriteContentRequest { offset, data, ..base }, Some((file, next))))
        }
    })
}

async fn end(client: &Client, id: String, now: bool) -> Result<(), Error> {
    let request = scoped(DeleteRequest { id, sync: now });
    let mut leases = client.native().leases();
    let limit = if now { SLOW } else { QUICK };
    client.call("end a lease", limit, leases.delete(request)).await.map(drop)
}

/// Ends leases whose names start with `prefix`: those of a process that is gone.
pub(crate) async fn end_abandoned(client: &Client, prefix: &str) -> Result<(), Error> {
    let mut leases = client.native().leases();
    let listed = client.call("list leases", QUICK, leases.list(scoped(ListRequest::default()))).await?;
    for lease in listed.leases.into_iter().filter(|lease| lease.id.starts_with(prefix)) {
        tracing::info!(lease = lease.id, "what an interrupted pull has left is removed");
        end(client, lease.id, true).await?;
    }
    Ok(())
}

fn slow(blob: &Descriptor) -> Error {
    Error::Internal(format!("containerd did not take {} within {} s", blob.digest, SLOW.as_secs()))
}

fn written(blob: &Descriptor, status: &tonic::Status) -> Result<(), Error> {
    match status.code() {
        Code::AlreadyExists => Ok(()),
        Code::FailedPrecondition | Code::InvalidArgument => {
            Err(Error::Pull(format!("{} is corrupt: {}", blob.digest, status.message())))
        }
        _ => Err(Error::Internal(format!("write {}: {}", blob.digest, status.message()))),
    }
}

/// The record of image `name`, if there is one: what it points to.
pub(crate) async fn record(client: &Client, name: &str) -> Result<Option<types::Descriptor>, Error> {
    let request = scoped(containerd_client::services::v1::GetImageRequest { name: name.to_owned() });
    match client.call("look for an image", QUICK, client.native().images().get(request)).await {
        Ok(found) => Ok(found.image.and_then(|image| image.target)),
        Err(Error::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes image `name` point to `target`.
pub(crate) async fn point(
    client: &Client,
    name: &str,
    target: &types::Descriptor,
    labels: Labels,
) -> Result<(), Error> {
    let image = Record { name: name.to_owned(), target: Some(target.clone()), labels, ..Record::default() };
    let mut images = client.native().images();
    let request = scoped(CreateImageRequest { image: Some(image.clone()), ..CreateImageRequest::default() });
    match tokio::time::timeout(QUICK, images.create(request)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) if status.code() == Code::AlreadyExists => {
            let request = scoped(UpdateImageRequest { image: Some(image), ..UpdateImageRequest::default() });
            client.call("update an image", QUICK, images.update(request)).await.map(drop)
        }
        other => client
            .call("record an image", QUICK, async { other.unwrap_or_else(|_| Err(late())) })
            .await
            .map(drop),
    }
}

fn late() -> tonic::Status {
    tonic::Status::deadline_exceeded("containerd gave no answer in time")
}
