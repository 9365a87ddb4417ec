//! Names proposed for what was dropped, and the rule they must meet.

/// Longest name that still leaves room for `-00001` and a pod suffix in a 63-character label.
pub const MAX_NAME: usize = 40;

/// A DNS label made of a file name: `My App_v2.wasm` becomes `my-app-v2`. Falls back to `app`.
pub fn propose(file: &str) -> String {
    let base = file.rsplit(['/', '\\']).next().unwrap_or(file);
    let stem = match base.split_once('.') {
        Some((stem, _)) if !stem.is_empty() => stem,
        _ => base.trim_start_matches('.'),
    };
    let mut name = String::new();
    for c in stem.chars() {
        match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9') => name.push(c),
            _ if name.ends_with('-') || name.is_empty() => {}
            _ => name.push('-'),
        }
    }
    // Build tools decorate names with these; nobody means them.
    for suffix in ["-component", "-composed", "-release", "-debug", "-wasm32-wasip2", "-p2", "-p3"] {
        if let Some(rest) = name.strip_suffix(suffix)
            && !rest.is_empty()
        {
            name.truncate(rest.len());
        }
    }
    name.truncate(MAX_NAME);
    let name = name.trim_matches('-');
    match name.chars().next() {
        None => "app".to_owned(),
        // A Service takes its name, and a Service's may not begin with a digit.
        Some('0'..='9') => format!("app-{name}"),
        Some(_) => name.to_owned(),
    }
}

/// Why `name` cannot be used, as a sentence; `None` when it can.
pub fn fault(name: &str) -> Option<&'static str> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    match name {
        "" => Some("Give it a name."),
        n if n.len() > MAX_NAME => Some("Use at most 40 characters."),
        n if !n.starts_with(|c: char| c.is_ascii_lowercase()) => Some("Begin with a letter a to z."),
        n if !edge(n.chars().last()) => Some("End with a letter or a digit."),
        n if n.chars().any(|c| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')) => {
            Some("Use only a to z, 0 to 9 and -.")
        }
        _ => None,
    }
}

/// Why this is not an environment variable's name; `None` when it is.
pub fn env_fault(name: &str) -> Option<&'static str> {
    match name {
        n if n.starts_with(|c: char| c.is_ascii_digit()) => Some("A variable cannot begin with a digit."),
        n if n.chars().any(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))) => {
            Some("Use only letters, digits, _, - and . in a variable's name.")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proposals_are_valid_names() {
        for (file, name) in [
            ("hello.wasm", "hello"),
            ("My App_v2.wasm", "my-app-v2"),
            ("target/wasm32-wasip2/release/http_hello.component.wasm", "http-hello"),
            ("C:\\x\\Gäste.WASM", "g-ste"),
            ("2048.wasm", "app-2048"),
            (".wasm", "wasm"),
            ("---", "app"),
            ("", "app"),
            ("hello-component.wasm", "hello"),
        ] {
            assert_eq!(propose(file), name, "{file}");
            assert_eq!(fault(&propose(file)), None, "{file}");
        }
        let long = propose(&"abc-".repeat(30));
        assert!(long.len() <= MAX_NAME);
        assert_eq!(fault(&long), None);
    }

    #[test]
    fn faults_are_sentences() {
        assert!(fault("").is_some());
        assert!(fault("9lives").is_some());
        assert!(fault("a-").is_some());
        assert!(fault("Ab").is_some());
        assert!(fault("a_b").is_some());
        assert_eq!(fault("a-1"), None);
        assert!(env_fault("1A").is_some());
        assert!(env_fault("A B").is_some());
        assert_eq!(env_fault("LOG_LEVEL"), None);
    }
}
