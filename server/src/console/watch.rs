//! `GET /console/watch`: any number of watches over one WebSocket.
//!
//! A browser opens at most six HTTP/1.1 connections to a host; a console page wants more watches than
//! that. The client sends `{"id":1,"path":"/api/v1/pods?watch=1&resourceVersion=5"}` and
//! `{"id":1,"cancel":true}`; the server answers with `{"id":1,"event":{…}}` per watch event and
//! `{"id":1,"end":null}` or `{"id":1,"end":{Status}}` when a watch is over. Each watch is an ordinary
//! request to the API as the session's user, so nothing is allowed here that is not allowed there.

use std::collections::HashMap;

use axum::{
    Router,
    body::Body,
    extract::ws::{Message, WebSocket},
    http::{Extensions, Request},
};
use futures::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinSet};
use tower::ServiceExt;

/// Watches one socket may have open.
const MAX_WATCHES: usize = 64;
/// Longest line of a watch, in bytes: an object is at most 3 MiB.
const MAX_LINE: usize = 4 << 20;
/// Longest command, in bytes.
pub(crate) const MAX_COMMAND: usize = 64 << 10;
/// Frames waiting for a slow browser before its watches wait too.
const QUEUE: usize = 256;

#[derive(Deserialize)]
struct Command {
    id: u64,
    #[serde(default)]
    path: String,
    /// The request's `Accept`: a table is watched as a table.
    #[serde(default)]
    accept: String,
    #[serde(default)]
    cancel: bool,
}

/// Serves one socket until it closes. `identity` goes into every request.
pub(crate) async fn serve(mut socket: WebSocket, api: Router, identity: Extensions) {
    let (frames, mut outgoing) = mpsc::channel::<Value>(QUEUE);
    let mut tasks = JoinSet::new();
    let mut watches: HashMap<u64, tokio::task::AbortHandle> = HashMap::new();
    loop {
        tokio::select! {
            message = socket.recv() => {
                let Some(Ok(message)) = message else { break };
                let Message::Text(text) = message else { continue };
                let Ok(command) = serde_json::from_str::<Command>(&text) else { continue };
                if let Some(running) = watches.remove(&command.id) {
                    running.abort();
                }
                watches.retain(|_, task| !task.is_finished());
                if command.cancel {
                    continue;
                }
                let id = command.id;
                if watches.len() >= MAX_WATCHES {
                    let full = ketch_api::Status::too_many_requests("too many watches on this socket", 1);
                    let _ = frames.try_send(json!({ "id": id, "end": full.to_json() }));
                    continue;
                }
                let watch = watch(api.clone(), identity.clone(), command, frames.clone());
                watches.insert(id, tasks.spawn(watch));
            }
            Some(frame) = outgoing.recv() => {
                if socket.send(Message::Text(frame.to_string().into())).await.is_err() {
                    break;
                }
            }
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
        }
    }
}

async fn watch(api: Router, identity: Extensions, command: Command, frames: mpsc::Sender<Value>) {
    let end = match follow(api, identity, &command, &frames).await {
        Ok(()) => Value::Null,
        Err(status) => status,
    };
    let _ = frames.send(json!({ "id": command.id, "end": end })).await;
}

/// Passes events on until the watch ends. `Err` is the `Status` that ended it.
async fn follow(
    api: Router,
    identity: Extensions,
    command: &Command,
    frames: &mpsc::Sender<Value>,
) -> Result<(), Value> {
    let mut request = Request::get(&command.path)
        .body(Body::empty())
        .map_err(|_| ketch_api::Status::bad_request("the path is not a URL path").to_json())?;
    if let Ok(accept) = command.accept.parse()
        && !command.accept.is_empty()
    {
        request.headers_mut().insert(http::header::ACCEPT, accept);
    }
    *request.extensions_mut() = identity;
    let Ok(response) = api.oneshot(request).await;
    let failed = !response.status().is_success();
    let mut body = response.into_body().into_data_stream();
    let mut buffer = Vec::new();
    while let Some(Ok(chunk)) = body.next().await {
        buffer.extend_from_slice(&chunk);
        if buffer.len() > MAX_LINE {
            return Err(ketch_api::Status::too_large(MAX_LINE).to_json());
        }
        if failed {
            continue;
        }
        for event in take_lines(&mut buffer) {
            if frames.send(json!({ "id": command.id, "event": event })).await.is_err() {
                return Ok(());
            }
        }
    }
    match failed {
        true => {
            Err(serde_json::from_slice(&buffer)
                .unwrap_or_else(|_| ketch_api::Status::no_resource().to_json()))
        }
        false => Ok(()),
    }
}

/// Takes the complete lines out of `buffer` and parses them.
fn take_lines(buffer: &mut Vec<u8>) -> Vec<Value> {
    let Some(end) = buffer.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
    let rest = buffer.split_off(end + 1);
    let complete = std::mem::replace(buffer, rest);
    complete.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_when_complete() {
        let mut buffer = b"{\"a\":1}\n{\"b\":2}\n{\"c\"".to_vec();
        assert_eq!(take_lines(&mut buffer), [json!({"a":1}), json!({"b":2})]);
        assert_eq!(buffer, b"{\"c\"");
        assert!(take_lines(&mut buffer).is_empty());
        buffer.extend_from_slice(b":3}\n");
        assert_eq!(take_lines(&mut buffer), [json!({"c":3})]);
        assert!(buffer.is_empty());
    }
}
