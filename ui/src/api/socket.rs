//! One WebSocket for all watches of the page.
//!
//! The hub owns the connection and opens it again when it breaks. A break ends every subscription; each
//! list then subscribes again from the resourceVersion it has, and lists anew only when the server says
//! that this one is too old.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use futures::{
    SinkExt, StreamExt,
    channel::mpsc::{self, UnboundedReceiver, UnboundedSender},
    future::select,
    pin_mut,
};
use gloo_net::websocket::{Message, futures::WebSocket};
use ketch_ui_core::watch::{self, Frame};
use leptos::prelude::*;

use crate::dom;

/// Whether the page hears of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// The first connection is being made.
    Connecting,
    /// Changes arrive.
    Online,
    /// The connection is lost and being made again.
    Offline,
}

/// Between looks at whether there is a session, in milliseconds.
const ADMISSION: u32 = 50;

struct Subscription {
    start: String,
    frames: UnboundedSender<Frame>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    subscriptions: HashMap<u64, Subscription>,
    outbox: Option<UnboundedSender<String>>,
}

/// A handle to the page's connection.
#[derive(Clone)]
pub(crate) struct Hub {
    inner: Rc<RefCell<Inner>>,
    /// State of the connection.
    pub link: RwSignal<Link>,
}

/// The events of one watch; dropping it ends the watch.
pub(crate) struct Watch {
    id: u64,
    hub: Hub,
    frames: UnboundedReceiver<Frame>,
}

impl Hub {
    /// Starts the connection's task, which runs as long as the owner that calls this. It connects while
    /// `admitted`: without a session the server would refuse it.
    pub(crate) fn start(admitted: Signal<bool>) -> Self {
        let hub = Self { inner: Rc::default(), link: RwSignal::new(Link::Connecting) };
        let runner = hub.clone();
        dom::spawn_scoped(async move { runner.run(admitted).await });
        hub
    }

    /// Watches a collection after `version`.
    pub(crate) fn watch(&self, collection: &str, version: &str, table: bool) -> Watch {
        let (sender, frames) = mpsc::unbounded();
        let mut inner = self.inner.borrow_mut();
        inner.next += 1;
        let id = inner.next;
        let start = watch::start(id, collection, version, table);
        if let Some(outbox) = &inner.outbox {
            // Fails only when the connection ended just now; its task then ends this watch too.
            let _ = outbox.unbounded_send(start.clone());
        }
        inner.subscriptions.insert(id, Subscription { start, frames: sender });
        Watch { id, hub: self.clone(), frames }
    }

    /// Waits until the connection stands, at most `ms`; whether it does.
    pub(crate) async fn online_within(&self, ms: u32) -> bool {
        const STEP: u32 = 200;
        for _ in 0..ms / STEP {
            if self.link.get_untracked() == Link::Online {
                return true;
            }
            dom::sleep(STEP).await;
        }
        false
    }

    async fn run(&self, admitted: Signal<bool>) {
        let mut attempt = 0;
        loop {
            while !admitted.get_untracked() {
                dom::sleep(ADMISSION).await;
            }
            if self.connect().await {
                attempt = 0;
            }
            attempt += 1;
            self.inner.borrow_mut().outbox = None;
            self.inner.borrow_mut().subscriptions.clear();
            self.link.set(Link::Offline);
            dom::sleep(watch::backoff(attempt, js_sys::Math::random())).await;
        }
    }

    /// One connection, from opening to its end; whether it was ever open.
    async fn connect(&self) -> bool {
        let url = format!("{}/console/watch", dom::origins().1);
        let Ok(raw) = web_sys::WebSocket::new(&url) else { return false };
        let Ok(socket) = WebSocket::try_from(raw.clone()) else { return false };
        // Neither half of a split socket tells an open one from one that is being opened or has failed.
        while raw.ready_state() == web_sys::WebSocket::CONNECTING {
            dom::sleep(20).await;
        }
        if raw.ready_state() != web_sys::WebSocket::OPEN {
            return false;
        }
        let (mut sink, mut stream) = socket.split();
        let (outbox, mut queue) = mpsc::unbounded::<String>();
        self.opened(outbox);
        let writing = async {
            while let Some(frame) = queue.next().await {
                if sink.send(Message::Text(frame)).await.is_err() {
                    return;
                }
            }
        };
        let reading = async {
            while let Some(Ok(message)) = stream.next().await {
                if let Message::Text(text) = message {
                    self.dispatch(&text);
                }
            }
        };
        pin_mut!(writing, reading);
        select(reading, writing).await;
        true
    }

    fn opened(&self, outbox: UnboundedSender<String>) {
        let mut inner = self.inner.borrow_mut();
        for subscription in inner.subscriptions.values() {
            let _ = outbox.unbounded_send(subscription.start.clone());
        }
        inner.outbox = Some(outbox);
        self.link.set(Link::Online);
    }

    fn dispatch(&self, text: &str) {
        let Some(frame) = Frame::parse(text) else { return };
        let (Frame::Event { id, .. } | Frame::Expired { id } | Frame::End { id, .. }) = &frame;
        let inner = self.inner.borrow();
        if let Some(subscription) = inner.subscriptions.get(id) {
            // A closed receiver is one whose list was left; its drop cancels the watch.
            let _ = subscription.frames.unbounded_send(frame);
        }
    }
}

impl Watch {
    /// The next frame; `None` when the connection broke.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        self.frames.next().await
    }

    /// A frame that has already arrived.
    pub(crate) fn ready(&mut self) -> Option<Frame> {
        self.frames.try_recv().ok()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut inner = self.hub.inner.borrow_mut();
        if inner.subscriptions.remove(&self.id).is_some()
            && let Some(outbox) = &inner.outbox
        {
            let _ = outbox.unbounded_send(watch::cancel(self.id));
        }
    }
}
