//! Requests made by hand: header lines, and the same request for a terminal.

/// A request as typed into the form.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// `GET`, `POST`, …
    pub method: String,
    /// With a leading slash.
    pub path: String,
    /// One `name: value` a line.
    pub headers: String,
    /// Sent as it is; empty for none.
    pub body: String,
}

/// Reads header lines; `Err` names the line at fault.
pub fn headers(text: &str) -> Result<Vec<(String, String)>, String> {
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    lines
        .map(|line| match line.split_once(':') {
            Some((name, value)) if is_token(name.trim()) => {
                Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
            }
            _ => Err(format!("“{line}” is not a header. Write one “name: value” on each line.")),
        })
        .collect()
}

fn is_token(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// Whether a request of this method may have a body.
pub fn takes_body(method: &str) -> bool {
    !matches!(method, "GET" | "HEAD")
}

/// The request as a `curl` command for `url`, the app's address without a trailing slash.
pub fn curl(url: &str, request: &Request) -> String {
    let mut words = vec!["curl".to_owned(), "-i".to_owned()];
    if request.method == "HEAD" {
        words.push("-I".to_owned());
    } else if request.method != "GET" {
        words.push(format!("-X {}", request.method));
    }
    for (name, value) in headers(&request.headers).unwrap_or_default() {
        words.push(format!("-H {}", quote(&format!("{name}: {value}"))));
    }
    if takes_body(&request.method) && !request.body.is_empty() {
        words.push(format!("--data-binary {}", quote(&request.body)));
    }
    words.push(quote(&format!("{}{}", url.trim_end_matches('/'), request.path)));
    words.join(" ")
}

/// Single quotes for a POSIX shell, where needed.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curl_quotes_for_the_shell() {
        let request = Request {
            method: "POST".into(),
            path: "/a?b=1&c=2".into(),
            headers: "Content-Type: application/json\n\n x-it: don't".into(),
            body: r#"{"a": "it's"}"#.into(),
        };
        assert_eq!(
            curl("http://hello.default.localhost:8080/", &request),
            "curl -i -X POST -H 'content-type: application/json' -H 'x-it: don'\\''t' --data-binary \
             '{\"a\": \"it'\\''s\"}' 'http://hello.default.localhost:8080/a?b=1&c=2'"
        );
        let get =
            Request { method: "GET".into(), path: "/".into(), body: "ignored".into(), ..Request::default() };
        assert_eq!(curl("http://h", &get), "curl -i http://h/");
    }

    #[test]
    fn bad_headers_are_named() {
        assert!(headers("no colon").unwrap_err().contains("no colon"));
        assert!(headers("bad name: x").is_err());
        assert_eq!(headers("A: b:c").unwrap(), [("a".to_owned(), "b:c".to_owned())]);
    }
}
