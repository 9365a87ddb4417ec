//! What a client asks for, from the query string.

use ketch_api::{Status, request::query_pairs};
use ketch_runtime::Streams;

/// Most ports forwarded over one WebSocket: a channel number is a byte, and a port has two.
const MAX_PORTS: usize = 100;

/// `PodExecOptions` and `PodAttachOptions`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) streams: Streams,
    pub(super) command: Vec<String>,
}

impl Options {
    /// Reads a query. Output is wanted unless it is refused (upstream's defaults).
    pub(super) fn parse(query: &str) -> Result<Self, Status> {
        let flag = |name: &str, absent: bool| {
            let mut values = query_pairs(query).filter(|(key, _)| key == name).map(|(_, value)| value);
            values.next().map_or(absent, |value| !matches!(value.as_str(), "" | "0" | "false" | "False"))
        };
        let tty = flag("tty", false);
        let streams = Streams {
            stdin: flag("stdin", false),
            stdout: flag("stdout", true),
            // A terminal has one output.
            stderr: flag("stderr", true) && !tty,
            tty,
        };
        if !(streams.stdin || streams.stdout || streams.stderr) {
            return Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
        }
        let command = query_pairs(query).filter(|(key, _)| key == "command").map(|(_, value)| value);
        Ok(Self { streams, command: command.collect() })
    }
}

/// The ports of a port-forward over WebSocket channels.
pub(super) fn ports(query: &str) -> Result<Vec<u16>, Status> {
    let mut ports = Vec::new();
    for (_, value) in query_pairs(query).filter(|(key, _)| key == "ports" || key == "port") {
        for text in value.split(',') {
            let port = text.trim().parse().ok().filter(|port| *port > 0);
            ports.push(
                port.ok_or_else(|| Status::bad_request(format!("unable to parse \"{text}\" as a port")))?,
            );
        }
    }
    match ports.len() {
        0 => Err(Status::bad_request("query parameter \"ports\" is required")),
        many if many > MAX_PORTS => {
            Err(Status::bad_request(format!("at most {MAX_PORTS} ports can be forwarded at a time")))
        }
        _ => Ok(ports),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_as_upstream() {
        let options = Options::parse("command=sh&command=-c&command=a+b&stdin=true&stderr=true").unwrap();
        assert_eq!(options.command, ["sh", "-c", "a b"]);
        assert_eq!(options.streams, Streams { stdin: true, stdout: true, stderr: true, tty: false });
        let terminal = Options::parse("tty=true&stdout=1&stderr=true").unwrap().streams;
        assert_eq!(terminal, Streams { stdin: false, stdout: true, stderr: false, tty: true });
        assert!(Options::parse("stdout=false&stderr=false").is_err());
        assert_eq!(ports("ports=80,443&port=8080").unwrap(), [80, 443, 8080]);
        for bad in ["", "ports=", "ports=0", "ports=65536", "ports=x"] {
            assert_eq!(ports(bad).unwrap_err().code, 400, "{bad}");
        }
        assert!(ports(&format!("ports={}", ["1"; 101].join(","))).is_err());
    }
}
