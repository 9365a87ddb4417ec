//! YAML in and out, with budgets: aliases must not multiply a small document into a large one.

use ketch_api::Status;
use serde_json::Value;

use super::json::Parsed;

/// Parses one YAML document of at most a few MiB (the caller has checked the size).
pub(crate) fn parse(bytes: &[u8]) -> Result<Parsed, Status> {
    match from_slice(bytes, serde_saphyr::DuplicateKeyPolicy::Error) {
        Ok(value) => Ok(Parsed { value, duplicates: Vec::new() }),
        // Which of the two it was shows in whether the document parses once duplicates are allowed.
        Err(strict) => match from_slice(bytes, serde_saphyr::DuplicateKeyPolicy::LastWins) {
            Ok(value) => Ok(Parsed { value, duplicates: vec![duplicate_key(&strict)] }),
            Err(error) => Err(Status::bad_request(format!("error converting YAML to JSON: yaml: {error}"))),
        },
    }
}

fn duplicate_key(error: &serde_saphyr::Error) -> String {
    match error {
        serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => key.clone(),
        other => other.to_string(),
    }
}

fn from_slice(
    bytes: &[u8],
    duplicates: serde_saphyr::DuplicateKeyPolicy,
) -> Result<Value, serde_saphyr::Error> {
    let options = serde_saphyr::options! {
        budget: budget(),
        duplicate_keys: duplicates,
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_slice_with_options(bytes, options)
}

fn budget() -> Option<serde_saphyr::Budget> {
    serde_saphyr::budget! {
        max_aliases: 1_000,
        max_anchors: 1_000,
        max_depth: 64,
        max_documents: 1,
        max_events: 500_000,
        max_nodes: 250_000,
        max_total_scalar_bytes: 8 << 20,
        max_recorded_anchor_bytes: 8 << 20,
    }
}

/// Renders `value` as one document.
pub(crate) fn render(value: &Value) -> Result<String, Status> {
    serde_saphyr::to_string(value).map_err(|e| Status::internal(format!("rendering YAML: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn round_trips_and_reports_duplicates() {
        let parsed = parse(b"a: 1\nb:\n- x: \"no\"\n  y: true\nc: no\n").unwrap();
        assert_eq!(parsed.value, json!({"a": 1, "b": [{"x": "no", "y": true}], "c": "no"}));
        let again = parse(render(&parsed.value).unwrap().as_bytes()).unwrap();
        assert_eq!(again.value, parsed.value);
        let doubled = parse(b"a: 1\na: 2\n").unwrap();
        assert_eq!((doubled.value, doubled.duplicates.len()), (json!({"a": 2}), 1));
        assert_eq!(parse(b"a: [").unwrap_err().code, 400);
    }

    #[test]
    fn alias_bombs_are_refused() {
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for i in 1..10 {
            let refs = vec![format!("*a{}", i - 1); 10].join(",");
            bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        assert_eq!(parse(bomb.as_bytes()).unwrap_err().code, 400);
    }
}
