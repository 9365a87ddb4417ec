//! Kinds that are questions: created, answered, never stored. What answers them is [`crate::auth::Reviews`].

use axum::{body::Body, response::Response};
use ketch_api::{Status, request::RequestInfo};

use crate::{
    rest::{Call, answer},
    wire::body,
};

/// A virtual kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Review {
    pub(crate) group: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) namespaced: bool,
}

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

/// All of them; their version is `v1`.
pub(crate) const ALL: &[Review] = &[
    review(AUTHENTICATION, "SelfSubjectReview", "selfsubjectreviews", false),
    review(AUTHENTICATION, "TokenReview", "tokenreviews", false),
    review(AUTHORIZATION, "LocalSubjectAccessReview", "localsubjectaccessreviews", true),
    review(AUTHORIZATION, "SelfSubjectAccessReview", "selfsubjectaccessreviews", false),
    review(AUTHORIZATION, "SelfSubjectRulesReview", "selfsubjectrulesreviews", false),
    review(AUTHORIZATION, "SubjectAccessReview", "subjectaccessreviews", false),
];

/// `serviceaccounts/token`.
const TOKEN_REQUEST: Review = review(AUTHENTICATION, "TokenRequest", "", true);

const fn review(group: &'static str, kind: &'static str, plural: &'static str, namespaced: bool) -> Review {
    Review { group, kind, plural, namespaced }
}

/// The question a request asks, if it asks one.
pub(crate) fn kind_of(info: &RequestInfo) -> Option<Review> {
    let token = info.group.is_empty() && info.resource == "serviceaccounts" && info.subresource == "token";
    if token && info.version == "v1" {
        return Some(TOKEN_REQUEST);
    }
    let own = |review: &&Review| review.group == info.group && review.plural == info.resource;
    ALL.iter().find(own).filter(|_| info.version == "v1").copied()
}

/// Answers the question in the body.
pub(crate) async fn create(call: &Call, review: Review, payload: Body) -> Result<Response, Status> {
    let gr = ketch_api::status::GroupResource { group: review.group, resource: review.plural };
    let Some(reviews) = &call.server.reviews else { return Err(Status::no_resource()) };
    if call.info.verb != "create" {
        return Err(Status::method_not_allowed(gr, &call.info.verb));
    }
    if review.namespaced == call.info.namespace.is_empty() {
        return Err(Status::no_resource());
    }
    call.accepted()?;
    let media = body::media(&call.parts.headers)?;
    let mut parsed = body::parse(media, &body::read(payload).await?)?;
    body::check_type(&mut parsed.value, &format!("{}/v1", review.group), review.kind)?;
    let (namespace, name) = (&call.info.namespace, &call.info.name);
    let answer = reviews.create(&call.user, review.group, review.kind, namespace, name, parsed.value).await?;
    answer::value(call, 201, &answer)
}
