//! Event, in both of its groups: `v1` and `events.k8s.io/v1` differ in field names only.

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::{Event as CoreEvent, EventSource, ObjectReference},
        events::v1::Event,
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
};
use serde_json::Value;

use crate::strategy::{Column, Descriptor, FieldError, Meta, Strategy, human_duration};

const COLUMNS: &[Column] = &[
    Column::text("Last Seen"),
    Column::text("Type"),
    Column::text("Reason"),
    Column::text("Object"),
    Column::wide("Subobject"),
    Column::wide("Source"),
    Column::text("Message"),
    Column::wide("First Seen"),
    Column { r#type: "integer", ..Column::wide("Count") },
    Column { format: "name", ..Column::wide("Name") },
];

/// What both groups' events say.
struct Seen<'a> {
    about: ObjectReference,
    kind: Option<&'a str>,
    reason: Option<&'a str>,
    message: Option<&'a str>,
    source: EventSource,
    controller: Option<&'a str>,
    instance: Option<&'a str>,
    first: Option<Timestamp>,
    last: Option<Timestamp>,
    time: Option<Timestamp>,
    count: i32,
    series: Option<(i32, Option<Timestamp>)>,
}

fn at(time: Option<&Time>) -> Option<Timestamp> {
    time.map(|t| t.0)
}

fn micro(time: Option<&MicroTime>) -> Option<Timestamp> {
    time.map(|t| t.0)
}

impl<'a> From<&'a CoreEvent> for Seen<'a> {
    fn from(event: &'a CoreEvent) -> Self {
        Self {
            about: event.involved_object.clone(),
            kind: event.type_.as_deref(),
            reason: event.reason.as_deref(),
            message: event.message.as_deref(),
            source: event.source.clone().unwrap_or_default(),
            controller: event.reporting_component.as_deref(),
            instance: event.reporting_instance.as_deref(),
            first: at(event.first_timestamp.as_ref()),
            last: at(event.last_timestamp.as_ref()),
            time: micro(event.event_time.as_ref()),
            count: event.count.unwrap_or(0),
            series: event
                .series
                .as_ref()
                .map(|s| (s.count.unwrap_or(0), micro(s.last_observed_time.as_ref()))),
        }
    }
}

impl<'a> From<&'a Event> for Seen<'a> {
    fn from(event: &'a Event) -> Self {
        Self {
            about: event.regarding.clone().unwrap_or_default(),
            kind: event.type_.as_deref(),
            reason: event.reason.as_deref(),
            message: event.note.as_deref(),
            source: event.deprecated_source.clone().unwrap_or_default(),
            controller: event.reporting_controller.as_deref(),
            instance: event.reporting_instance.as_deref(),
            first: at(event.deprecated_first_timestamp.as_ref()),
            last: at(event.deprecated_last_timestamp.as_ref()),
            time: micro(event.event_time.as_ref()),
            count: event.deprecated_count.unwrap_or(0),
            series: event.series.as_ref().map(|s| (s.count, Some(s.last_observed_time.0))),
        }
    }
}

impl Seen<'_> {
    fn row(&self, metadata: &Meta<'_>) -> Vec<Value> {
        let ago = |time: Option<Timestamp>| {
            time.map_or_else(|| "<unknown>".to_owned(), |t| human_duration(metadata.now.duration_since(t)))
        };
        let first = self.first.or(self.time);
        let (count, last) = match self.series {
            Some((count, last)) => (count, last.or(self.last)),
            // A single event has happened once, whenever it says it was last seen.
            None => (self.count.max(1), self.last.or(first)),
        };
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let object = format!("{}/{}", text(&self.about.kind).to_ascii_lowercase(), text(&self.about.name));
        vec![
            ago(last).into(),
            self.kind.unwrap_or_default().into(),
            self.reason.unwrap_or_default().into(),
            object.into(),
            text(&self.about.field_path).into(),
            self.source_text().into(),
            self.message.unwrap_or_default().trim().into(),
            ago(first).into(),
            count.into(),
            metadata.name.into(),
        ]
    }

    /// `component, host`.
    fn source_text(&self) -> String {
        let set = |text: Option<&str>| text.filter(|t| !t.is_empty()).map(str::to_owned);
        let component =
            set(self.source.component.as_deref()).or_else(|| set(self.controller)).unwrap_or_default();
        match set(self.source.host.as_deref()).or_else(|| set(self.instance)) {
            Some(host) => format!("{component}, {host}"),
            None => component,
        }
    }

    fn component(&self) -> String {
        let own = self.source.component.clone().filter(|c| !c.is_empty());
        own.or_else(|| self.controller.map(str::to_owned)).unwrap_or_default()
    }

    /// Values in the order of the two lists of field names below.
    fn values(&self) -> [String; 11] {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        [
            text(&self.about.kind),
            text(&self.about.namespace),
            text(&self.about.name),
            text(&self.about.uid),
            text(&self.about.api_version),
            text(&self.about.resource_version),
            text(&self.about.field_path),
            self.reason.unwrap_or_default().to_owned(),
            self.controller.unwrap_or_default().to_owned(),
            self.component(),
            self.kind.unwrap_or_default().to_owned(),
        ]
    }

    fn validate(&self, namespace: Option<&str>, field: &str) -> Vec<FieldError> {
        let about = self.about.namespace.as_deref().unwrap_or_default();
        let own = namespace.unwrap_or_default();
        // Objects without a namespace report to `default`.
        if about == own || own.is_empty() || (about.is_empty() && own == "default") {
            return Vec::new();
        }
        vec![FieldError::invalid(format!("{field}.namespace"), about, "does not match event.namespace")]
    }
}

const CORE_FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];

const FIELDS: &[&str] = &[
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
    "reason",
    "reportingController",
    "source",
    "type",
];

pub(super) struct CoreEvents;

impl Strategy for CoreEvents {
    type Kind = CoreEvent;

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            short_names: &["ev"],
            create_on_update: true,
            ..Descriptor::namespaced("", "v1", "Event", "events", "event")
        }
    }

    fn validate(&self, event: &CoreEvent) -> Vec<FieldError> {
        Seen::from(event).validate(event.metadata.namespace.as_deref(), "involvedObject")
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn row(&self, event: &CoreEvent, metadata: &Meta<'_>) -> Vec<Value> {
        Seen::from(event).row(metadata)
    }

    fn fields(&self, event: &CoreEvent) -> Vec<(&'static str, String)> {
        CORE_FIELDS.iter().copied().zip(Seen::from(event).values()).collect()
    }

    fn field_names(&self) -> &'static [&'static str] {
        CORE_FIELDS
    }
}

pub(super) struct Events;

impl Strategy for Events {
    type Kind = Event;

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            short_names: &["ev"],
            create_on_update: true,
            ..Descriptor::namespaced("events.k8s.io", "v1", "Event", "events", "event")
        }
    }

    fn validate(&self, event: &Event) -> Vec<FieldError> {
        let mut errors = Seen::from(event).validate(event.metadata.namespace.as_deref(), "regarding");
        if event.event_time.is_some() {
            for (field, value) in [
                ("reportingController", &event.reporting_controller),
                ("reportingInstance", &event.reporting_instance),
                ("action", &event.action),
                ("reason", &event.reason),
            ] {
                if value.as_deref().unwrap_or_default().is_empty() {
                    errors.push(FieldError::required(field, ""));
                }
            }
        }
        errors
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn row(&self, event: &Event, metadata: &Meta<'_>) -> Vec<Value> {
        Seen::from(event).row(metadata)
    }

    fn fields(&self, event: &Event) -> Vec<(&'static str, String)> {
        FIELDS.iter().copied().zip(Seen::from(event).values()).collect()
    }

    fn field_names(&self) -> &'static [&'static str] {
        FIELDS
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::kinds::tests::{create, row, strategy};

    #[test]
    fn rows() {
        let event = json!({
            "metadata": {"name": "web.1", "namespace": "default"},
            "involvedObject": {"kind": "Pod", "name": "web", "namespace": "default", "fieldPath": "spec.containers{c}"},
            "type": "Warning", "reason": "BackOff", "message": " again \n", "count": 4,
            "source": {"component": "kubelet", "host": "n1"},
            "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:59:30Z",
        });
        assert_eq!(
            row("/Event", &event),
            "30s|Warning|BackOff|pod/web|spec.containers{c}|kubelet, n1|again|60m|4|web.1"
        );
        let event = json!({
            "metadata": {"name": "web.2", "namespace": "default"}, "regarding": {"kind": "Pod", "name": "web"},
            "eventTime": "2026-01-01T00:50:00.000000Z", "note": "hi", "reason": "Started", "type": "Normal",
            "reportingController": "ketch", "reportingInstance": "n1",
        });
        assert_eq!(
            row("events.k8s.io/Event", &event),
            "10m|Normal|Started|pod/web||ketch, n1|hi|10m|1|web.2"
        );
    }

    #[test]
    fn an_event_lives_where_its_object_does() {
        let event = |about: &str| json!({"metadata": {"name": "e", "namespace": "a"}, "involvedObject": {"namespace": about}});
        assert!(create("/Event", event("a")).is_ok());
        assert!(create("/Event", event("b")).unwrap_err().message.contains("does not match event.namespace"));
    }

    #[test]
    fn fields_select() {
        let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "web"}, "type": "Normal"});
        let fields = strategy("/Event").fields(&event);
        assert!(
            fields.contains(&("involvedObject.kind", "Pod".into()))
                && fields.contains(&("type", "Normal".into()))
        );
    }
}
