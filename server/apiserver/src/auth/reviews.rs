//! Kinds that are questions: what may I do, who am I, whose token is this, give me a token.

use jiff::{SignedDuration, Timestamp};
use ketch_api::{FieldError, Status, status::GroupResource};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Attributes, Auth, Authorizer, Decision, User, node,
    objects::{self, core_key, set},
    rbac::Rule,
    token::{Bound, Reference},
};

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

/// Shortest, usual and longest life of a requested token, in seconds. The first two are upstream's; the
/// last is ours, upstream has none.
const MIN_LIFE: i64 = 600;
const DEFAULT_LIFE: i64 = 3600;
const MAX_LIFE: i64 = 365 * 86_400;

#[async_trait::async_trait]
impl super::Reviews for Auth {
    async fn create(
        &self,
        user: &User,
        group: &str,
        kind: &str,
        namespace: &str,
        name: &str,
        mut body: Value,
    ) -> Result<Value, Status> {
        let status = match (group, kind) {
            (AUTHORIZATION, "SelfSubjectAccessReview") => {
                self.access(user, spec(group, kind, &body)?, kind)?
            }
            (AUTHORIZATION, "SubjectAccessReview") => self.subject_access(spec(group, kind, &body)?, kind)?,
            (AUTHORIZATION, "LocalSubjectAccessReview") => {
                let review: Access = spec(group, kind, &body)?;
                let asked =
                    review.resource_attributes.as_ref().map(|r| r.namespace.clone().unwrap_or_default());
                if asked.is_none_or(|asked| asked != namespace) {
                    let path = "spec.resourceAttributes.namespace";
                    let fault = FieldError::invalid(path, "", "must match metadata.namespace");
                    return Err(Status::invalid(AUTHORIZATION, kind, "", &[fault]));
                }
                self.subject_access(review, kind)?
            }
            (AUTHORIZATION, "SelfSubjectRulesReview") => self.rules(user, spec(group, kind, &body)?),
            (AUTHENTICATION, "SelfSubjectReview") => json!({"userInfo": user_info(user)}),
            (AUTHENTICATION, "TokenReview") => self.token_review(spec(group, kind, &body)?).await?,
            (AUTHENTICATION, "TokenRequest") => {
                return self.token_request(user, namespace, name, body).await;
            }
            _ => return Err(Status::no_resource()),
        };
        let object = body.as_object_mut().ok_or_else(|| Status::bad_request("a JSON object is required"))?;
        object.insert("apiVersion".into(), format!("{group}/v1").into());
        object.insert("kind".into(), kind.into());
        object.entry("metadata").or_insert_with(|| json!({}));
        object.entry("spec").or_insert_with(|| json!({}));
        object.insert("status".into(), status);
        Ok(body)
    }
}

fn spec<T: Default + for<'a> Deserialize<'a>>(group: &str, kind: &str, body: &Value) -> Result<T, Status> {
    match body.get("spec") {
        None | Some(Value::Null) => Ok(T::default()),
        Some(spec) => T::deserialize(spec).map_err(|error| {
            Status::bad_request(format!(
                "{kind} in version \"{group}/v1\" cannot be handled as a {kind}: {error}"
            ))
        }),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Access {
    resource_attributes: Option<ResourceAttributes>,
    non_resource_attributes: Option<NonResourceAttributes>,
    user: Option<String>,
    groups: Option<Vec<String>>,
    uid: Option<String>,
    extra: Option<std::collections::BTreeMap<String, Vec<String>>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ResourceAttributes {
    namespace: Option<String>,
    verb: Option<String>,
    group: Option<String>,
    version: Option<String>,
    resource: Option<String>,
    subresource: Option<String>,
    name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NonResourceAttributes {
    path: Option<String>,
    verb: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RulesSpec {
    namespace: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenSpec {
    token: Option<String>,
    audiences: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RequestSpec {
    audiences: Option<Vec<String>>,
    expiration_seconds: Option<i64>,
    bound_object_ref: Option<BoundObject>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct BoundObject {
    kind: Option<String>,
    api_version: Option<String>,
    name: Option<String>,
    uid: Option<String>,
}

impl Access {
    fn attributes(self, kind: &str) -> Result<Attributes, Status> {
        let invalid = |detail: &str| {
            let fault = FieldError::invalid("spec.resourceAttributes", Value::Null, detail);
            Err(Status::invalid(AUTHORIZATION, kind, "", &[fault]))
        };
        match (self.resource_attributes, self.non_resource_attributes) {
            (Some(_), Some(_)) => invalid("cannot be specified in combination with nonResourceAttributes"),
            (None, None) => {
                invalid("exactly one of nonResourceAttributes or resourceAttributes must be specified")
            }
            (Some(resource), None) => Ok(Attributes {
                verb: resource.verb.unwrap_or_default(),
                group: resource.group.unwrap_or_default(),
                version: resource.version.unwrap_or_default(),
                resource: resource.resource.unwrap_or_default(),
                subresource: resource.subresource.unwrap_or_default(),
                namespace: resource.namespace.unwrap_or_default(),
                name: resource.name.unwrap_or_default(),
                is_resource: true,
                ..Attributes::default()
            }),
            (None, Some(path)) => Ok(Attributes {
                verb: path.verb.unwrap_or_default(),
                path: path.path.unwrap_or_default(),
                ..Attributes::default()
            }),
        }
    }
}

impl Auth {
    fn access(&self, user: &User, review: Access, kind: &str) -> Result<Value, Status> {
        let attributes = review.attributes(kind)?;
        Ok(match self.authorize(user, &attributes) {
            Decision::Allow => json!({"allowed": true}),
            Decision::Deny(reason) if reason.is_empty() => json!({"allowed": false}),
            Decision::Deny(reason) => json!({"allowed": false, "reason": reason}),
        })
    }

    fn subject_access(&self, mut review: Access, kind: &str) -> Result<Value, Status> {
        let name = review.user.take().unwrap_or_default();
        let groups = review.groups.take().unwrap_or_default();
        if name.is_empty() && groups.is_empty() {
            let fault =
                FieldError::invalid("spec.user", "", "at least one of user or group must be specified");
            return Err(Status::invalid(AUTHORIZATION, kind, "", &[fault]));
        }
        let (uid, extra) = (review.uid.take().unwrap_or_default(), review.extra.take().unwrap_or_default());
        self.access(&User { name, uid, groups, extra }, review, kind)
    }

    fn rules(&self, user: &User, review: RulesSpec) -> Value {
        let namespace = review.namespace.unwrap_or_default();
        let snapshot = self.rbac.snapshot();
        let rules: Vec<Rule> = match user.in_group(ketch_api::names::ADMIN_GROUP) {
            true => Rule::all().to_vec(),
            false => snapshot.rules(user, &namespace).cloned().collect(),
        };
        let (resources, paths): (Vec<_>, Vec<_>) =
            rules.into_iter().partition(|rule| rule.non_resource_urls.is_empty());
        let node = node::node_name(user).is_some();
        let mut status = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": node});
        if node {
            set(&mut status, "evaluationError", "the node authorizer does not support rule resolution");
        }
        status
    }

    async fn token_review(&self, review: TokenSpec) -> Result<Value, Status> {
        let audiences = review.audiences.filter(|all| !all.is_empty()).unwrap_or_else(|| self.audiences());
        let token = review.token.unwrap_or_default();
        if token.is_empty() {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        Ok(match self.identify(&token, &audiences).await {
            Ok(identity) => json!({
                "authenticated": true, "user": user_info(&identity.user), "audiences": identity.audiences,
            }),
            Err(status) if status.code >= 500 => return Err(status),
            Err(_) => json!({"authenticated": false, "error": "invalid bearer token"}),
        })
    }

    async fn token_request(
        &self,
        user: &User,
        namespace: &str,
        name: &str,
        mut body: Value,
    ) -> Result<Value, Status> {
        let request: RequestSpec = spec(AUTHENTICATION, "TokenRequest", &body)?;
        let life = request.expiration_seconds.unwrap_or(DEFAULT_LIFE);
        if life < MIN_LIFE {
            let detail = "may not specify a duration less than 10 minutes";
            let fault = FieldError::invalid("spec.expirationSeconds", life, detail);
            return Err(Status::invalid(AUTHENTICATION, "TokenRequest", "", &[fault]));
        }
        let life = life.min(MAX_LIFE);
        let account: Option<objects::Object> =
            objects::read(self.storage.as_ref(), &core_key("serviceaccounts", namespace, name)).await?;
        let resource = GroupResource { group: "", resource: "serviceaccounts" };
        let account = account.ok_or_else(|| Status::not_found(resource, name))?;
        let mut bound = Bound {
            namespace: namespace.to_owned(),
            serviceaccount: Reference { name: name.to_owned(), uid: account.metadata.uid },
            ..Bound::default()
        };
        match &request.bound_object_ref {
            Some(object) => self.bind(user, &mut bound, object).await?,
            None if node::node_name(user).is_some() => {
                let why = "node requested token not bound to a pod";
                return Err(Status::forbidden(resource, name, why));
            }
            None => {}
        }
        let audiences = request.audiences.filter(|all| !all.is_empty()).unwrap_or_else(|| self.audiences());
        let now = (self.clock)();
        let token = self.tokens.issue(bound, audiences.clone(), now, life)?;
        let expires = now.checked_add(SignedDuration::from_secs(life)).map_err(Status::internal)?;
        let mut spec =
            body.get_mut("spec").map(Value::take).filter(Value::is_object).unwrap_or_else(|| json!({}));
        set(&mut spec, "audiences", audiences);
        set(&mut spec, "expirationSeconds", life);
        Ok(json!({
            "apiVersion": format!("{AUTHENTICATION}/v1"), "kind": "TokenRequest",
            "metadata": {"name": name, "namespace": namespace, "creationTimestamp": seconds(now)},
            "spec": spec,
            "status": {"token": token, "expirationTimestamp": seconds(expires)},
        }))
    }

    /// Adds the pod, node or secret a token is to be bound to, which must exist.
    async fn bind(&self, user: &User, bound: &mut Bound, object: &BoundObject) -> Result<(), Status> {
        let name = object.name.clone().unwrap_or_default();
        let kind = object.kind.as_deref().unwrap_or_default();
        let plural = match (object.api_version.as_deref().unwrap_or_default(), kind) {
            ("v1", "Pod") => "pods",
            ("v1", "Node") => "nodes",
            ("v1", "Secret") => "secrets",
            (version, kind) => {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount to {version} {kind}"
                )));
            }
        };
        let resource = GroupResource { group: "", resource: plural };
        let key = match plural {
            "nodes" => format!("/core/nodes/{name}"),
            _ => core_key(plural, &bound.namespace, &name),
        };
        let found: objects::Pod = objects::read(self.storage.as_ref(), &key)
            .await?
            .ok_or_else(|| Status::not_found(resource, &name))?;
        let uid = found.metadata.uid;
        if let Some(wanted) = object.uid.as_ref().filter(|wanted| !wanted.is_empty() && **wanted != uid) {
            let why = format!(
                "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated"
            );
            return Err(Status::conflict(resource, &name, why));
        }
        if let Some(node) = node::node_name(user)
            && (plural != "pods" || found.spec.node_name != node)
        {
            let why = format!(
                "node requested token bound to a pod scheduled on a different node or to no pod (node \"{node}\")"
            );
            return Err(Status::forbidden(resource, &name, why));
        }
        let reference = Some(Reference { name: name.clone(), uid });
        match plural {
            "pods" => {
                if found.spec.service_account_name != bound.serviceaccount.name {
                    let why = format!(
                        "cannot bind token for serviceaccount \"{}\" to pod running with different serviceaccount name.",
                        bound.serviceaccount.name
                    );
                    return Err(Status::bad_request(why));
                }
                bound.pod = reference;
                bound.node = self.node_of(&found.spec.node_name).await?;
            }
            "nodes" => bound.node = reference,
            _ => bound.secret = reference,
        }
        Ok(())
    }

    async fn node_of(&self, name: &str) -> Result<Option<Reference>, Status> {
        if name.is_empty() {
            return Ok(None);
        }
        let node: Option<objects::Object> =
            objects::read(self.storage.as_ref(), &format!("/core/nodes/{name}")).await?;
        Ok(node.map(|node| Reference { name: name.to_owned(), uid: node.metadata.uid }))
    }
}

fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        set(&mut info, "uid", user.uid.as_str());
    }
    if !user.extra.is_empty() {
        set(&mut info, "extra", json!(user.extra));
    }
    info
}
