//! What makes one kind differ from another, and nothing more.
//!
//! A kind is a [`Descriptor`] (its names and what it supports) and a [`Strategy`] (defaulting,
//! validation, what the server owns, table columns). The server's pipeline is the same for all and
//! sees a kind only as [`DynStrategy`], which [`Typed`] derives from the typed trait. Adding a simple
//! kind is one strategy value and one line in [`crate::kinds::all`].
//!
//! The division is kube-apiserver's (`pkg/registry/rest/{create,update,delete}.go`).

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::status::{Cause, Status};

/// A kind's names and capabilities.
#[derive(Clone, Debug)]
pub struct Descriptor {
    /// API group; empty for core.
    pub group: &'static str,
    /// API version, for instance `v1`.
    pub version: &'static str,
    /// CamelCase kind.
    pub kind: &'static str,
    /// Plural, lower case, as in paths.
    pub plural: &'static str,
    /// Singular, lower case.
    pub singular: &'static str,
    /// What `kubectl get` also accepts.
    pub short_names: &'static [&'static str],
    /// For instance `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Whether `/status` exists.
    pub status: bool,
    /// Where `/scale` reads and writes, when it exists.
    pub scale: Option<Scale>,
    /// Whether the server keeps `metadata.generation`, bumped when anything but metadata and status changes.
    pub generation: bool,
    /// Whether `PUT` on a missing name creates it.
    pub create_on_update: bool,
}

/// Where a kind keeps its replica count. JSON pointers.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Desired replicas.
    pub spec: &'static str,
    /// Observed replicas.
    pub status: &'static str,
    /// Label selector object.
    pub selector: &'static str,
}

impl Descriptor {
    /// A namespaced kind without subresources; adjust with struct update syntax.
    pub const fn namespaced(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
        singular: &'static str,
    ) -> Self {
        Self {
            group,
            version,
            kind,
            plural,
            singular,
            short_names: &[],
            categories: &[],
            namespaced: true,
            status: false,
            scale: None,
            generation: false,
            create_on_update: false,
        }
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// For messages.
    pub fn group_resource(&self) -> crate::status::GroupResource<'static> {
        crate::status::GroupResource { group: self.group, resource: self.plural }
    }
}

/// What a strategy may know about the request it serves.
#[derive(Clone, Debug)]
pub struct Context {
    /// Time of the request.
    pub now: Timestamp,
    /// Name of the authenticated user.
    pub user: String,
}

/// The rules of one kind. Pure: no IO, no clock but [`Context::now`].
///
/// The pipeline itself owns `metadata` (name, uid, timestamps, generation, resourceVersion, deletion)
/// and validates it; a strategy looks at `spec`, `data` and the like.
pub trait Strategy: Send + Sync + 'static {
    /// The typed object.
    type Kind: Serialize + DeserializeOwned + 'static;

    /// Names and capabilities.
    fn descriptor(&self) -> Descriptor;

    /// Fills in what the user left out, as upstream's Go code does (clients diff on defaults). Also runs
    /// on objects read back, so it must be idempotent.
    fn default(&self, _object: &mut Self::Kind) {}

    /// Clears what only the server may set (status), and sets what it owns.
    fn prepare_create(&self, _cx: &Context, _object: &mut Self::Kind) {}

    /// Every fault, not just the first. Runs after defaulting.
    fn validate(&self, _object: &Self::Kind) -> Vec<FieldError> {
        Vec::new()
    }

    /// Restores what this update may not change. For a kind with [`Descriptor::status`] the pipeline has
    /// already put the old status back.
    fn prepare_update(&self, _cx: &Context, _new: &mut Self::Kind, _old: &Self::Kind) {}

    /// Faults of a change, immutable fields among them; [`Strategy::validate`] has run on `new`.
    fn validate_update(&self, _new: &Self::Kind, _old: &Self::Kind) -> Vec<FieldError> {
        Vec::new()
    }

    /// Texts sent as `Warning: 299` headers.
    fn warnings(&self, _object: &Self::Kind) -> Vec<String> {
        Vec::new()
    }

    /// Seconds between the delete request and the removal, for kinds that end gracefully (pods).
    /// `None`: removed at once.
    fn grace_seconds(&self, _object: &Self::Kind) -> Option<i64> {
        None
    }

    /// Header of the `Table` form, without the age column which every kind ends its default columns with.
    fn columns(&self) -> &'static [Column] {
        Column::NAME_AND_AGE
    }

    /// Cells, one per column of [`Strategy::columns`].
    fn row(&self, object: &Self::Kind, metadata: &Meta<'_>) -> Vec<Value> {
        let _ = object;
        vec![Value::from(metadata.name), Value::from(metadata.age())]
    }

    /// Fields a field selector may name, beyond `metadata.name` and `metadata.namespace`; the values of
    /// this object.
    fn fields(&self, _object: &Self::Kind) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// The names [`Strategy::fields`] can return.
    fn field_names(&self) -> &'static [&'static str] {
        &[]
    }
}

/// What a table row may use of an object's metadata.
#[derive(Clone, Copy, Debug)]
pub struct Meta<'a> {
    /// Name.
    pub name: &'a str,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Whether deletion has begun.
    pub deleting: bool,
    /// Time of the request.
    pub now: Timestamp,
}

impl Meta<'_> {
    /// Age as `kubectl` prints it, `<unknown>` without a creation time.
    pub fn age(&self) -> String {
        self.created.map_or_else(|| "<unknown>".to_owned(), |at| human_duration(self.now.duration_since(at)))
    }
}

/// Reads [`Meta`] off an object.
pub fn meta_of(object: &Value, now: Timestamp) -> Meta<'_> {
    let metadata = object.get("metadata");
    let text = |field: &str| metadata.and_then(|m| m.get(field)).and_then(Value::as_str);
    Meta {
        name: text("name").unwrap_or_default(),
        created: text("creationTimestamp").and_then(|t| t.parse().ok()),
        deleting: text("deletionTimestamp").is_some(),
        now,
    }
}

/// `HumanDuration` of `k8s.io/apimachinery/pkg/util/duration`.
pub fn human_duration(d: jiff::SignedDuration) -> String {
    let seconds = d.as_secs();
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let seconds = seconds.max(0);
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let with_rest = |whole: i64, unit: &str, rest: i64, rest_unit: &str| match rest {
        0 => format!("{whole}{unit}"),
        _ => format!("{whole}{unit}{rest}{rest_unit}"),
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => with_rest(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => with_rest(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 24 * 8 => with_rest(hours / 24, "d", hours % 24, "h"),
        () if hours < 24 * 365 * 2 => format!("{}d", hours / 24),
        () if hours < 24 * 365 * 8 => with_rest(hours / 24 / 365, "y", (hours / 24) % 365, "d"),
        () => format!("{}y", hours / 24 / 365),
    }
}

/// One column of the `Table` form.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Header; kubectl prints it in capitals.
    pub name: &'static str,
    /// OpenAPI type: `string`, `integer`, `boolean`.
    pub r#type: &'static str,
    /// OpenAPI format; `name` marks the name column.
    pub format: &'static str,
    /// 0: always shown; 1: with `-o wide`.
    pub priority: u8,
}

impl Column {
    /// The columns of a kind that has nothing to add.
    pub const NAME_AND_AGE: &'static [Column] = &[Column::NAME, Column::AGE];
    /// The object's name.
    pub const NAME: Column = Column { name: "Name", r#type: "string", format: "name", priority: 0 };
    /// Time since creation.
    pub const AGE: Column = Column::text("Age");

    /// A string column that is always shown.
    pub const fn text(name: &'static str) -> Self {
        Column { name, r#type: "string", format: "", priority: 0 }
    }

    /// An integer column that is always shown.
    pub const fn integer(name: &'static str) -> Self {
        Column { name, r#type: "integer", format: "", priority: 0 }
    }

    /// A string column shown with `-o wide`.
    pub const fn wide(name: &'static str) -> Self {
        Column { name, r#type: "string", format: "", priority: 1 }
    }
}

/// A fault at one field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// Dotted path with indices, for instance `spec.containers[0].name`.
    pub path: String,
    /// `FieldValue…` reason.
    pub reason: &'static str,
    /// Text after the path.
    pub message: String,
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

impl FieldError {
    fn new(path: impl Into<String>, reason: &'static str, message: String) -> Self {
        Self { path: path.into(), reason, message }
    }

    /// The field must be set.
    pub fn required(path: impl Into<String>, detail: &str) -> Self {
        let message =
            if detail.is_empty() { "Required value".into() } else { format!("Required value: {detail}") };
        Self::new(path, "FieldValueRequired", message)
    }

    /// The value is not one the field can have; `detail` says what it can.
    pub fn invalid(path: impl Into<String>, value: impl Serialize, detail: &str) -> Self {
        let value = serde_json::to_string(&value).unwrap_or_default();
        Self::new(path, "FieldValueInvalid", format!("Invalid value: {value}: {detail}"))
    }

    /// The value is none of `supported`.
    pub fn not_supported(path: impl Into<String>, value: &str, supported: &[&str]) -> Self {
        let list = supported.iter().map(|s| format!("\"{s}\"")).collect::<Vec<_>>().join(", ");
        Self::new(
            path,
            "FieldValueNotSupported",
            format!("Unsupported value: \"{value}\": supported values: {list}"),
        )
    }

    /// The value occurs twice where it must be unique.
    pub fn duplicate(path: impl Into<String>, value: impl Serialize) -> Self {
        let value = serde_json::to_string(&value).unwrap_or_default();
        Self::new(path, "FieldValueDuplicate", format!("Duplicate value: {value}"))
    }

    /// The field may not be set, or not be changed.
    pub fn forbidden(path: impl Into<String>, detail: &str) -> Self {
        Self::new(path, "FieldValueForbidden", format!("Forbidden: {detail}"))
    }

    /// What the field refers to does not exist.
    pub fn not_found(path: impl Into<String>, value: &str) -> Self {
        Self::new(path, "FieldValueNotFound", format!("Not found: \"{value}\""))
    }

    /// Longer than `max` bytes.
    pub fn too_long(path: impl Into<String>, max: usize) -> Self {
        Self::new(path, "FieldValueTooLong", format!("Too long: may not be more than {max} bytes"))
    }

    /// More than `max` items.
    pub fn too_many(path: impl Into<String>, actual: usize, max: usize) -> Self {
        Self::new(path, "FieldValueTooMany", format!("Too many: {actual}: must have at most {max} items"))
    }

    /// As a cause of a [`Status`].
    pub fn to_cause(&self) -> Cause {
        Cause { reason: self.reason.to_owned(), message: self.message.clone(), field: self.path.clone() }
    }
}

/// An object with the user's fields read and the defaults filled in.
#[derive(Debug)]
pub struct Decoded {
    /// With `apiVersion` and `kind`.
    pub object: Value,
    /// Paths of fields the kind does not have.
    pub unknown: Vec<String>,
}

/// An object ready to be stored.
#[derive(Debug)]
pub struct Prepared {
    /// With `apiVersion` and `kind`.
    pub object: Value,
    /// For `Warning: 299` headers.
    pub warnings: Vec<String>,
}

/// A [`Strategy`] without its type, as the pipeline uses it.
pub trait DynStrategy: Send + Sync {
    /// Names and capabilities.
    fn descriptor(&self) -> &Descriptor;
    /// Types, prunes and defaults what the client sent. `Err` is the decoder's text, for a 400.
    fn decode(&self, raw: Value) -> Result<Decoded, String>;
    /// Prepares and validates a create.
    fn create(&self, cx: &Context, object: Value) -> Result<Prepared, Status>;
    /// Prepares and validates an update of everything but the status.
    fn update(&self, cx: &Context, new: Value, old: &Value) -> Result<Prepared, Status>;
    /// The seconds of [`Strategy::grace_seconds`].
    fn grace_seconds(&self, object: &Value) -> Option<i64>;
    /// See [`Strategy::columns`].
    fn columns(&self) -> &'static [Column];
    /// See [`Strategy::row`].
    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value>;
    /// See [`Strategy::fields`].
    fn fields(&self, object: &Value) -> Vec<(&'static str, String)>;
    /// See [`Strategy::field_names`].
    fn field_names(&self) -> &'static [&'static str];
}

/// Makes a typed strategy usable by the pipeline.
pub struct Typed<S> {
    strategy: S,
    descriptor: Descriptor,
}

impl<S: Strategy> Typed<S> {
    /// Wraps `strategy`.
    pub fn new(strategy: S) -> Self {
        let descriptor = strategy.descriptor();
        Self { strategy, descriptor }
    }

    fn typed(&self, object: &Value) -> Result<S::Kind, Status> {
        S::Kind::deserialize(object).map_err(|e| Status::bad_request(self.malformed(&e.to_string())))
    }

    fn untyped(&self, object: &S::Kind) -> Result<Value, Status> {
        let mut value = serde_json::to_value(object).map_err(Status::internal)?;
        if let Some(map) = value.as_object_mut() {
            map.insert("apiVersion".into(), self.descriptor.api_version().into());
            map.insert("kind".into(), self.descriptor.kind.into());
        }
        Ok(value)
    }

    fn malformed(&self, why: &str) -> String {
        format!(
            "{} in version \"{}\" cannot be handled as a {}: {why}",
            self.descriptor.kind, self.descriptor.version, self.descriptor.kind
        )
    }

    fn check(&self, name: &Value, errors: &[FieldError]) -> Result<(), Status> {
        if errors.is_empty() {
            return Ok(());
        }
        let name = name.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        Err(Status::invalid(self.descriptor.group, self.descriptor.kind, name, errors))
    }
}

impl<S: Strategy> DynStrategy for Typed<S> {
    fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    fn decode(&self, raw: Value) -> Result<Decoded, String> {
        let mut unknown = Vec::new();
        // `apiVersion` and `kind` are checked by the caller and are no fields of k8s-openapi's structs' maps.
        let mut typed: S::Kind = serde_ignored::deserialize(raw, |path| {
            unknown
                .push(path.to_string().split('.').filter(|part| *part != "?").collect::<Vec<_>>().join("."));
        })
        .map_err(|e: serde_json::Error| self.malformed(&e.to_string()))?;
        self.strategy.default(&mut typed);
        let object = self.untyped(&typed).map_err(|status| status.message)?;
        Ok(Decoded { object, unknown })
    }

    fn create(&self, cx: &Context, object: Value) -> Result<Prepared, Status> {
        let mut typed = self.typed(&object)?;
        self.strategy.prepare_create(cx, &mut typed);
        self.check(&object, &self.strategy.validate(&typed))?;
        Ok(Prepared { object: self.untyped(&typed)?, warnings: self.strategy.warnings(&typed) })
    }

    fn update(&self, cx: &Context, new: Value, old: &Value) -> Result<Prepared, Status> {
        let (mut typed, old) = (self.typed(&new)?, self.typed(old)?);
        self.strategy.prepare_update(cx, &mut typed, &old);
        let mut errors = self.strategy.validate(&typed);
        errors.extend(self.strategy.validate_update(&typed, &old));
        self.check(&new, &errors)?;
        Ok(Prepared { object: self.untyped(&typed)?, warnings: self.strategy.warnings(&typed) })
    }

    fn grace_seconds(&self, object: &Value) -> Option<i64> {
        self.typed(object).ok().and_then(|typed| self.strategy.grace_seconds(&typed))
    }

    fn columns(&self) -> &'static [Column] {
        self.strategy.columns()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        match self.typed(object) {
            Ok(typed) => self.strategy.row(&typed, &meta_of(object, now)),
            Err(_) => vec![Value::Null; self.strategy.columns().len()],
        }
    }

    fn fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        self.typed(object).map(|typed| self.strategy.fields(&typed)).unwrap_or_default()
    }

    fn field_names(&self) -> &'static [&'static str] {
        self.strategy.field_names()
    }
}
