//! The query string of a request.

use ketch_api::{Status, request::query_pairs};

/// Decoded `key=value` pairs, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(raw: &str) -> Self {
        Self(query_pairs(raw).collect())
    }

    /// The first value of `key`; an empty value counts as absent.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(own, _)| own == key)?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }

    /// Every value of `key`.
    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(own, _)| own == key).map(|(_, value)| value.as_str())
    }

    /// A boolean parameter: absent is false; present with an empty value, `1` or `true` is true.
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.all(key).next().is_some_and(|value| !matches!(value, "0" | "false" | "False" | "F" | "f"))
    }

    /// An integer parameter; 400 when it is none.
    pub(crate) fn integer(&self, key: &str) -> Result<Option<i64>, Status> {
        self.get(key)
            .map(|value| {
                value.parse().map_err(|_| {
                    Status::bad_request(format!(
                        "strconv.ParseInt: parsing \"{value}\": invalid syntax ({key})"
                    ))
                })
            })
            .transpose()
    }

    /// Whether the request is a dry run; 422 for any value but `All`.
    pub(crate) fn dry_run(&self) -> Result<bool, Status> {
        let mut values = self.all("dryRun").filter(|value| !value.is_empty()).peekable();
        if values.peek().is_none() {
            return Ok(false);
        }
        match values.find(|value| *value != "All") {
            None => Ok(true),
            Some(other) => Err(Status::invalid(
                "meta.k8s.io",
                "CreateOptions",
                "",
                &[ketch_api::FieldError::not_supported("dryRun", other, &["All"])],
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_pairs_flags_and_numbers() {
        let query = Query::parse("labelSelector=app%3Dweb%2Ctier+in+(a)&watch&limit=5&x=&dryRun=All");
        assert_eq!(query.get("labelSelector"), Some("app=web,tier in (a)"));
        assert!(query.flag("watch") && !query.flag("follow"));
        assert_eq!(query.integer("limit").unwrap(), Some(5));
        assert_eq!(query.get("x"), None);
        assert!(query.dry_run().unwrap());
        assert!(Query::parse("limit=five").integer("limit").is_err());
        assert_eq!(Query::parse("dryRun=Some").dry_run().unwrap_err().code, 422);
    }
}
