//! Logging in to the console: one-time tokens in, a session cookie out.
//!
//! Both are random secrets of 256 bits of which the store keeps only the SHA-256, so a copy of the store
//! logs nobody in. They live in the store and not in memory: a restart or another server behind the same
//! name does not log people out.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderMap, Method, header, request::Parts};
use jiff::{SignedDuration, Timestamp};
use ketch_api::Status;
use ketch_store::{ListOptions, Storage, Update, Versioned};
use serde::{Deserialize, Serialize};

use super::{User, objects};
use crate::pki::Clock;

/// Name of the session cookie.
pub const COOKIE: &str = "ketch_session";
/// Header every request of the console carries. A page of another origin cannot set it without asking
/// first, and is never allowed.
pub const HEADER: &str = "x-ketch-console";
/// How long a session lasts.
pub const SESSION_LIFE: Duration = Duration::from_secs(12 * 3600);

/// Store prefixes; no API group has such a name.
const TOKENS: &str = "/_console/tokens/";
const SESSIONS: &str = "/_console/sessions/";

/// Failed logins per address and minute.
const MAX_FAILURES: u32 = 10;
/// Addresses remembered; beyond it, all share one count.
const MAX_ADDRESSES: usize = 1024;

/// A token or a session at rest.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    user: String,
    groups: Vec<String>,
    expires: Timestamp,
}

/// Login tokens and sessions.
pub struct Console {
    storage: Arc<dyn Storage>,
    clock: Clock,
    failures: Mutex<HashMap<Option<IpAddr>, (Timestamp, u32)>>,
}

/// A session that has begun.
#[derive(Debug)]
pub struct Session {
    /// Who it is of.
    pub user: User,
    secret: String,
}

// === impl Console ===

impl Console {
    pub(crate) fn new(storage: Arc<dyn Storage>, clock: Clock) -> Self {
        Self { storage, clock, failures: Mutex::default() }
    }

    /// A new login token for a user: good once, for `life`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn create_token(&self, user: &str, groups: &[&str], life: Duration) -> Result<String, Status> {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        self.create(TOKENS, Entry { user: user.to_owned(), groups, expires: self.after(life)? }).await
    }

    /// Exchanges a token for a session. The token is used up.
    ///
    /// # Errors
    /// 401 for a token that is not valid (any more), 429 after too many of these from one address.
    pub async fn login(&self, token: &str, from: Option<IpAddr>) -> Result<Session, Status> {
        self.check_rate(from)?;
        let Some(entry) = self.take(TOKENS, token).await? else {
            self.count_failure(from);
            return Err(Status::new(
                401,
                "Unauthorized",
                "this login link has been used or has expired; run `ketch token console` for a new one",
            ));
        };
        self.sweep().await?;
        let user = user(&entry);
        let secret = self.create(SESSIONS, Entry { expires: self.after(SESSION_LIFE)?, ..entry }).await?;
        Ok(Session { user, secret })
    }

    /// Ends the session of these headers, if there is one.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn logout(&self, headers: &HeaderMap) -> Result<(), Status> {
        if let Some(secret) = cookie(headers) {
            self.take(SESSIONS, secret).await?;
        }
        Ok(())
    }

    /// The user of the request's session cookie; `None` when it has no cookie or the session is over.
    ///
    /// # Errors
    /// 403 for a request that another site's page could have made.
    pub async fn authenticate(&self, parts: &Parts) -> Result<Option<User>, Status> {
        let Some(secret) = cookie(&parts.headers) else { return Ok(None) };
        let key = format!("{SESSIONS}{}", objects::digest(secret));
        let Some(entry) = objects::read::<Entry>(self.storage.as_ref(), &key).await? else { return Ok(None) };
        if entry.expires <= (self.clock)() {
            return Ok(None);
        }
        guard(parts)?;
        Ok(Some(user(&entry)))
    }

    fn after(&self, life: Duration) -> Result<Timestamp, Status> {
        let life = SignedDuration::try_from(life).map_err(Status::internal)?;
        (self.clock)().checked_add(life).map_err(Status::internal)
    }

    async fn create(&self, prefix: &str, entry: Entry) -> Result<String, Status> {
        let secret = objects::random_secret()?;
        let value = bytes::Bytes::from(serde_json::to_vec(&entry).map_err(Status::internal)?);
        let key = format!("{prefix}{}", objects::digest(&secret));
        self.storage
            .update(&key, Box::new(move |_| Ok(Update::Put(value.clone()))))
            .await
            .map_err(Status::internal)?;
        Ok(secret)
    }

    /// Removes an entry in one step, so that of two who come with one token only one gets it.
    async fn take(&self, prefix: &str, secret: &str) -> Result<Option<Entry>, Status> {
        let key = format!("{prefix}{}", objects::digest(secret));
        // Guesses must not cost a write.
        if self.storage.get(&key).await.map_err(Status::internal)?.is_none() {
            return Ok(None);
        }
        let written =
            self.storage.update(&key, Box::new(|_| Ok(Update::Delete))).await.map_err(Status::internal)?;
        let entry = written.previous.and_then(|previous| parse(&previous));
        Ok(entry.filter(|entry| entry.expires > (self.clock)()))
    }

    /// Removes what has expired. Done at logins, which are rare, instead of by a task.
    async fn sweep(&self) -> Result<(), Status> {
        let now = (self.clock)();
        for prefix in [TOKENS, SESSIONS] {
            let page = self.storage.list(prefix, ListOptions::default()).await.map_err(Status::internal)?;
            for item in page.items.iter().filter(|item| parse(item).is_none_or(|entry| entry.expires <= now))
            {
                self.storage
                    .update(&item.key, Box::new(|_| Ok(Update::Delete)))
                    .await
                    .map_err(Status::internal)?;
            }
        }
        Ok(())
    }

    fn check_rate(&self, from: Option<IpAddr>) -> Result<(), Status> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = bucket(&failures, from);
        match failures.get(&bucket) {
            Some((since, count)) if *count >= MAX_FAILURES && self.recent(*since) => {
                Err(Status::too_many_requests("too many failed logins; try again in a minute", 60))
            }
            _ => Ok(()),
        }
    }

    fn count_failure(&self, from: Option<IpAddr>) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.retain(|_, (since, _)| self.recent(*since));
        let bucket = bucket(&failures, from);
        failures.entry(bucket).or_insert_with(|| ((self.clock)(), 0)).1 += 1;
    }

    fn recent(&self, since: Timestamp) -> bool {
        (self.clock)().duration_since(since) < SignedDuration::from_secs(60)
    }
}

fn bucket(failures: &HashMap<Option<IpAddr>, (Timestamp, u32)>, from: Option<IpAddr>) -> Option<IpAddr> {
    from.filter(|_| failures.contains_key(&from) || failures.len() < MAX_ADDRESSES)
}

fn parse(stored: &Versioned) -> Option<Entry> {
    serde_json::from_slice(&stored.value).ok()
}

fn user(entry: &Entry) -> User {
    let groups: Vec<&str> = entry.groups.iter().map(String::as_str).collect();
    User::new(entry.user.clone(), &groups)
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

// === impl Session ===

impl Session {
    /// Value of the `Set-Cookie` header that begins the session; `secure` for HTTPS.
    pub fn set_cookie(&self, secure: bool) -> String {
        attributes(&self.secret, SESSION_LIFE.as_secs(), secure)
    }
}

/// Value of the `Set-Cookie` header that ends a session.
pub fn clear_cookie(secure: bool) -> String {
    attributes("", 0, secure)
}

fn attributes(value: &str, age: u64, secure: bool) -> String {
    let secure = if secure { "; Secure" } else { "" };
    format!("{COOKIE}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={age}{secure}")
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
        .filter(|value| !value.is_empty())
}

/// A browser sends the cookie whoever made it send the request. Requests that change something must show
/// that the console made them; a WebSocket, for which no header can be set, by its origin.
fn guard(parts: &Parts) -> Result<(), Status> {
    let text = |name: header::HeaderName| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let refuse = |why: &str| {
        Err(Status::new(
            403,
            "Forbidden",
            format!("the session cookie is not accepted for this request: {why}"),
        ))
    };
    if parts.headers.contains_key(header::UPGRADE) {
        let host = text(header::HOST).or(parts.uri.authority().map(http::uri::Authority::as_str));
        let origin = text(header::ORIGIN).and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
        return match (origin, host) {
            (Some(origin), Some(host)) if origin.eq_ignore_ascii_case(host) => Ok(()),
            _ => refuse("its origin is another one than the console's"),
        };
    }
    if matches!(parts.method, Method::GET | Method::HEAD)
        || text(header::HeaderName::from_static(HEADER)) == Some("1")
    {
        return Ok(());
    }
    refuse("the header x-ketch-console is missing")
}
