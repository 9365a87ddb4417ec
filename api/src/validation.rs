//! Forms of strings: names, labels, keys, ports. Each function returns the faults in upstream's words
//! (`k8s.io/apimachinery/pkg/util/validation`), empty when the text is fine.

/// Longest DNS-1123 label.
pub const LABEL_MAX: usize = 63;
/// Longest DNS-1123 subdomain.
pub const SUBDOMAIN_MAX: usize = 253;

const LABEL_REGEX: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_REGEX: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const QUALIFIED_REGEX: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const QUALIFIED_MESSAGE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";

/// Text for a value longer than `max`.
pub fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

/// Text for a number outside `low..=high`.
pub fn out_of_range(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

/// Text for a negative number.
pub const NEGATIVE: &str = "must be greater than or equal to 0";
/// Text for an update of a field that never changes.
pub const IMMUTABLE: &str = "field is immutable";

fn regex_error(message: &str, regex: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{message} (regex used for validation is '{regex}')");
    }
    // The spacing is upstream's.
    let examples = examples.iter().map(|e| format!("'{e}', ")).collect::<Vec<_>>().join(" or ");
    format!("{message} (e.g. {examples}regex used for validation is '{regex}')")
}

fn is_lower_alphanumeric(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

/// Starts and ends with `edge`, holds only `edge` and `inner` between.
fn framed(text: &str, edge: impl Fn(u8) -> bool, inner: impl Fn(u8) -> bool) -> bool {
    match text.as_bytes() {
        [] => false,
        [one] => edge(*one),
        [first, middle @ .., last] => {
            edge(*first) && edge(*last) && middle.iter().all(|b| edge(*b) || inner(*b))
        }
    }
}

fn is_label(text: &str) -> bool {
    framed(text, is_lower_alphanumeric, |b| b == b'-')
}

/// A DNS-1123 label: a namespace, container or port name.
pub fn dns1123_label(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > LABEL_MAX {
        faults.push(too_long(LABEL_MAX));
    }
    if !is_label(text) {
        let message = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                       start and end with an alphanumeric character";
        faults.push(regex_error(message, LABEL_REGEX, &["my-name", "123-abc"]));
    }
    faults
}

/// A DNS-1123 subdomain: the name of most objects.
pub fn dns1123_subdomain(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        faults.push(too_long(SUBDOMAIN_MAX));
    }
    if !text.split('.').all(is_label) {
        let message = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
                       must start and end with an alphanumeric character";
        faults.push(regex_error(message, SUBDOMAIN_REGEX, &["example.com"]));
    }
    faults
}

/// A subdomain whose first label may be `*`.
pub fn wildcard_subdomain(text: &str) -> Vec<String> {
    let rest = text.strip_prefix("*.").unwrap_or_default();
    let mut faults = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        faults.push(too_long(SUBDOMAIN_MAX));
    }
    if !rest.split('.').all(is_label) {
        let message = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must \
                       consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character";
        faults.push(regex_error(message, &format!(r"\*\.{SUBDOMAIN_REGEX}"), &["*.example.com"]));
    }
    faults
}

/// A DNS-1035 label: a Service's name.
pub fn dns1035_label(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > LABEL_MAX {
        faults.push(too_long(LABEL_MAX));
    }
    if !is_label(text) || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        let message = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
                       alphabetic character, and end with an alphanumeric character";
        faults.push(regex_error(message, "[a-z]([-a-z0-9]*[a-z0-9])?", &["my-name", "abc-123"]));
    }
    faults
}

fn is_qualified_part(text: &str) -> bool {
    framed(text, |b| b.is_ascii_alphanumeric(), |b| matches!(b, b'-' | b'_' | b'.'))
}

/// A label key, annotation key, finalizer or taint key: `[prefix/]name`.
pub fn qualified_name(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let name = match text.split('/').collect::<Vec<_>>().as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                faults.push("prefix part must be non-empty".to_owned());
            } else {
                faults.extend(dns1123_subdomain(prefix).into_iter().map(|f| format!("prefix part {f}")));
            }
            *name
        }
        _ => {
            let text = regex_error(QUALIFIED_MESSAGE, QUALIFIED_REGEX, &["MyName", "my.name", "123-abc"]);
            let rest = "with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
            return vec![format!("a qualified name {text} {rest}")];
        }
    };
    if name.is_empty() {
        faults.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX {
        faults.push(format!("name part {}", too_long(LABEL_MAX)));
    }
    if !is_qualified_part(name) {
        let text = regex_error(QUALIFIED_MESSAGE, QUALIFIED_REGEX, &["MyName", "my.name", "123-abc"]);
        faults.push(format!("name part {text}"));
    }
    faults
}

/// The value of a label.
pub fn label_value(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > LABEL_MAX {
        faults.push(too_long(LABEL_MAX));
    }
    if !text.is_empty() && !is_qualified_part(text) {
        let message = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and \
                       must start and end with an alphanumeric character";
        let regex = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";
        faults.push(regex_error(message, regex, &["MyValue", "my_value", "12345"]));
    }
    faults
}

/// A name that is safe as one segment of a path: roles and bindings.
pub fn path_segment(text: &str) -> Vec<String> {
    if text == "." || text == ".." {
        return vec![format!("may not be '{text}'")];
    }
    ['/', '%'].iter().filter(|c| text.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// A port number.
pub fn port_number(port: i32) -> Vec<String> {
    if (1..=65535).contains(&port) { Vec::new() } else { vec![out_of_range(1, 65535)] }
}

/// The name of a port (IANA service name).
pub fn port_name(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > 15 {
        faults.push(too_long(15));
    }
    if text.is_empty() || !text.bytes().all(|b| is_lower_alphanumeric(b) || b == b'-') {
        faults.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        faults.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        faults.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        faults.push("must not begin or end with a hyphen".to_owned());
    }
    faults
}

/// The name of an environment variable: any printable ASCII but `=`.
pub fn env_name(text: &str) -> Vec<String> {
    if text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        return Vec::new();
    }
    let message =
        "a valid environment variable name must consist only of printable ASCII characters other than '='";
    vec![regex_error(message, "^[ -<>-~]+$", &[])]
}

/// A key of a ConfigMap or Secret.
pub fn config_key(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        faults.push(too_long(SUBDOMAIN_MAX));
    }
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    {
        let message = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        faults.push(regex_error(message, "[-._a-zA-Z0-9]+", &["key.name", "KEY_NAME", "key-name"]));
    }
    match text {
        "." | ".." => faults.push(format!("must not be '{text}'")),
        _ if text.starts_with("..") => faults.push("must not start with '..'".to_owned()),
        _ => {}
    }
    faults
}

/// An address that traffic may be sent to: not this machine, not this link, not everyone. Pod addresses
/// under 127.42.0.0/16 (nodes without privileges) are fine.
pub fn endpoint_address(ip: std::net::IpAddr) -> Vec<String> {
    use std::net::IpAddr;
    let ip = ip.to_canonical();
    let (loopback, link_local) = match ip {
        IpAddr::V4(v4) => (v4.is_loopback() && !matches!(v4.octets(), [127, 42, ..]), v4.is_link_local()),
        IpAddr::V6(v6) => (v6.is_loopback(), v6.is_unicast_link_local()),
    };
    let mut faults = Vec::new();
    if ip.is_unspecified() {
        faults.push(format!("may not be unspecified ({ip})"));
    }
    if loopback {
        faults.push("may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned());
    }
    if link_local {
        faults.push("may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned());
    }
    if ip.is_multicast() {
        faults.push("may not be in the multicast range (224.0.0.0/4, ff00::/8)".to_owned());
    }
    faults
}

/// A percentage such as `25%`.
pub fn percent(text: &str) -> Vec<String> {
    let digits = text.strip_suffix('%').unwrap_or_default();
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return Vec::new();
    }
    let message = "a valid percent string must be a numeric string followed by an ending '%'";
    vec![regex_error(message, "[0-9]+%", &["1%", "93%"])]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn label_faults_read_as_upstream() {
        assert_eq!(
            dns1123_label("My_App"),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
              end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
              '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
    }

    #[test]
    fn forms() {
        type Check = fn(&str) -> Vec<String>;
        let table: &[(Check, &[&str], &[&str])] = &[
            (dns1123_label, &["a", "a-b", "1", "9a"], &["", "-a", "a-", "A", "a.b", "a_b", "ä"]),
            (dns1123_subdomain, &["a", "a.b", "a-b.c1"], &["", ".", "a..b", "a.", ".a", "-a.b", "a.B"]),
            (dns1035_label, &["a", "a1", "a-1"], &["", "1a", "a-", "a.b"]),
            (wildcard_subdomain, &["*.a", "*.a.b"], &["*", "a.b", "*.*.a", "*.", "*a.b"]),
            (
                qualified_name,
                &["a", "A.b_c-1", "example.com/x", "a/b"],
                &["", "/a", "a/", "a/b/c", "-a", "a b", "Ex/a", "ä"],
            ),
            (label_value, &["", "a", "A_b.c-1"], &["-a", "a-", "a b", "a/b"]),
            (path_segment, &["system:node", "a b"], &[".", "..", "a/b", "a%b"]),
            (port_name, &["http", "a-1"], &["", "HTTP", "1", "a--b", "-a", "a-", "abcdefghijklmnop"]),
            (env_name, &["A", "a.b-c", "1 2"], &["A=B", "ä", "a\n"]),
            (config_key, &["a", ".a", "A_b.c-1"], &["", ".", "..", "..a", "a/b", "a b"]),
            (percent, &["0%", "100%"], &["", "%", "a%", "1", "-1%"]),
        ];
        for (n, (check, good, bad)) in table.iter().enumerate() {
            for text in *good {
                assert_eq!(check(text), [""; 0], "row {n}: {text}");
            }
            for text in *bad {
                assert!(!check(text).is_empty(), "row {n}: {text}");
            }
        }
        assert_eq!(dns1123_label(&"a".repeat(64)), ["must be no more than 63 bytes"]);
        assert_eq!(qualified_name(""), {
            let regex = "(e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
            ["name part must be non-empty".to_owned(), format!("name part {QUALIFIED_MESSAGE} {regex}")]
        });
    }

    #[test]
    fn traffic_goes_to_real_machines() {
        for good in ["10.42.0.7", "127.42.3.4", "192.168.1.1", "2001:db8::1", "::ffff:10.0.0.1"] {
            assert_eq!(endpoint_address(good.parse().unwrap()), [""; 0], "{good}");
        }
        for bad in [
            "127.0.0.1",
            "::ffff:127.0.0.1",
            "::1",
            "0.0.0.0",
            "::",
            "169.254.169.254",
            "fe80::1",
            "224.0.0.1",
        ] {
            assert_eq!(endpoint_address(bad.parse().unwrap()).len(), 1, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,80}") {
            for check in [dns1123_label, dns1123_subdomain, dns1035_label, wildcard_subdomain, qualified_name,
                          label_value, path_segment, port_name, env_name, config_key, percent] {
                let _ = check(&text);
            }
        }
    }
}
