//! Which revisions of a Function answer now. After a rollback that is not the newest one.

use serde_json::Value;

use crate::object::{int, items, name, text};

/// A revision that gets requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    /// Its name.
    pub revision: String,
    /// Its share of the requests, in percent.
    pub percent: i64,
    /// What it runs; empty while the revision is not known.
    pub image: String,
}

/// The revisions that `function`'s status says get requests, as it orders them.
pub fn serving<'a>(function: &Value, revisions: impl Iterator<Item = &'a Value> + Clone) -> Vec<Serving> {
    let targets = items(function, "/status/traffic").iter();
    targets
        .map(|target| {
            let revision = text(target, "/revisionName");
            let found = revisions.clone().find(|one| name(one) == revision);
            Serving {
                revision: revision.to_owned(),
                percent: int(target, "/percent").unwrap_or(100),
                image: found.map(|one| text(one, "/spec/template/image")).unwrap_or_default().to_owned(),
            }
        })
        .filter(|one| one.percent > 0)
        .collect()
}

/// The revisions in words: one name, or names with shares.
pub fn in_words(serving: &[Serving]) -> String {
    match serving {
        [] => "None yet".to_owned(),
        [one] => one.revision.clone(),
        many => many
            .iter()
            .map(|one| format!("{} ({} %)", one.revision, one.percent))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn revision(name: &str, image: &str) -> Value {
        json!({"metadata": {"name": name}, "spec": {"template": {"image": image}}})
    }

    #[test]
    fn what_answers_is_shown_and_not_what_is_newest() {
        let function = json!({
            "spec": {"image": "new"},
            "status": {"readyRevision": "f-00002", "traffic": [{"revisionName": "f-00001", "percent": 100}]},
        });
        let revisions = [revision("f-00001", "old"), revision("f-00002", "new")];
        let found = serving(&function, revisions.iter());
        assert_eq!(found[0].image, "old");
        assert_eq!(in_words(&found), "f-00001");
    }

    #[test]
    fn shares_are_named_and_empty_ones_left_out() {
        let target = |name: &str, percent| json!({"revisionName": name, "percent": percent});
        let function = json!({"status": {"traffic": [target("a", 90), target("b", 10), target("c", 0)]}});
        let found = serving(&function, std::iter::empty());
        assert_eq!(in_words(&found), "a (90 %), b (10 %)");
        assert_eq!(in_words(&[]), "None yet");
    }
}
