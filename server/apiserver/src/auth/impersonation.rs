//! `Impersonate-…` headers: acting as someone else, when one may.

use std::collections::BTreeMap;

use http::HeaderMap;
use ketch_api::{Status, names::SERVICE_ACCOUNT_USER_PREFIX, status::GroupResource};
use percent_encoding::percent_decode_str;

use super::{AUTHENTICATED_GROUP, Attributes, Authorizer, Decision, UNAUTHENTICATED_GROUP, User, token};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";

/// The user to act as: `user` when the headers name nobody.
///
/// # Errors
/// 403 when one of the names may not be taken, 400 when groups come without a user.
pub(crate) fn effective(
    user: User,
    headers: &HeaderMap,
    authorizer: &dyn Authorizer,
) -> Result<User, Status> {
    let Some(wanted) = wanted(headers)? else { return Ok(user) };
    for attributes in needed(&wanted) {
        if let Decision::Deny(reason) = authorizer.authorize(&user, &attributes) {
            return Err(refusal(&user, &attributes, &reason));
        }
    }
    Ok(completed(wanted))
}

/// The user as the headers have it.
fn wanted(headers: &HeaderMap) -> Result<Option<User>, Status> {
    let text = |value: &http::HeaderValue| {
        value
            .to_str()
            .map(str::to_owned)
            .map_err(|_| Status::bad_request("impersonation headers must be ASCII"))
    };
    let all = |name: &str| headers.get_all(name).iter().map(text).collect::<Result<Vec<_>, _>>();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix(EXTRA) {
            let key = percent_decode_str(key).decode_utf8_lossy().to_lowercase();
            extra.entry(key).or_default().push(text(value)?);
        }
    }
    let name = all(USER)?.into_iter().next().unwrap_or_default();
    let uid = all(UID)?.into_iter().next().unwrap_or_default();
    let groups = all(GROUP)?;
    if name.is_empty() {
        if uid.is_empty() && groups.is_empty() && extra.is_empty() {
            return Ok(None);
        }
        return Err(Status::bad_request(
            "requested groups, uid or extra values without impersonating a user",
        ));
    }
    Ok(Some(User { name, uid, groups, extra }))
}

/// What must be allowed, each with the verb `impersonate`.
fn needed(wanted: &User) -> Vec<Attributes> {
    let one = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| Attributes {
        verb: "impersonate".to_owned(),
        group: group.to_owned(),
        version: "v1".to_owned(),
        resource: resource.to_owned(),
        subresource: subresource.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        is_resource: true,
        ..Attributes::default()
    };
    const GROUP: &str = "authentication.k8s.io";
    let mut all = vec![match service_account(&wanted.name) {
        Some((namespace, name)) => one("", "serviceaccounts", "", namespace, name),
        None => one("", "users", "", "", &wanted.name),
    }];
    all.extend(wanted.groups.iter().map(|group| one("", "groups", "", "", group)));
    if !wanted.uid.is_empty() {
        all.push(one(GROUP, "uids", "", "", &wanted.uid));
    }
    for (key, values) in &wanted.extra {
        all.extend(values.iter().map(|value| one(GROUP, "userextras", key, "", value)));
    }
    all
}

fn service_account(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix(SERVICE_ACCOUNT_USER_PREFIX)?.split_once(':')
}

/// With the groups the user would have had.
fn completed(mut wanted: User) -> User {
    let mut implied = Vec::new();
    if let Some((namespace, _)) = service_account(&wanted.name)
        && wanted.groups.is_empty()
    {
        implied = token::service_account_groups(namespace);
    }
    implied.push(if wanted.is_anonymous() { UNAUTHENTICATED_GROUP } else { AUTHENTICATED_GROUP }.to_owned());
    for group in implied {
        if !wanted.in_group(&group) {
            wanted.groups.push(group);
        }
    }
    wanted
}

fn refusal(user: &User, a: &Attributes, reason: &str) -> Status {
    let resource = match a.subresource.as_str() {
        "" => a.resource.clone(),
        sub => format!("{}/{sub}", a.resource),
    };
    let scope = match a.namespace.as_str() {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace \"{namespace}\""),
    };
    let tail = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    Status::forbidden(
        GroupResource { group: &a.group, resource: &a.resource },
        &a.name,
        format!(
            "User \"{}\" cannot impersonate resource \"{resource}\" in API group \"{}\" {scope}{tail}",
            user.name, a.group
        ),
    )
}
