//! NetworkPolicies of pods on different nodes: who dials is known at the other end, by label and by address.

use std::collections::BTreeMap;

use ketch_tests::until;

use super::{Fleet, SECRET};

/// Pods of one node that dial those of another one, each of both kinds.
struct Pair<'a> {
    fleet: &'a Fleet,
    /// Addresses.
    pods: &'a BTreeMap<String, String>,
    from: &'a str,
    to: &'a str,
}

/// Who reaches whom, in this order: container and component by a container, both by a component.
type Reach = [bool; 4];
const ALL: Reach = [true; 4];
const NONE: Reach = [false; 4];
/// Of clients, and of servers, only those of a kind; first containers.
const BY: [(&str, Reach); 2] = [("box", [true, true, false, false]), ("wasm", [false, false, true, true])];
const TO: [(&str, Reach); 2] = [("box", [true, false, true, false]), ("wasm", [false, true, false, true])];

/// Around all nodes: a direct way, one through the relay, and one out of an address translation. No pair dials what
/// another one's policies are for.
pub(super) fn hold_between_nodes(fleet: &Fleet) {
    let pods = fleet.field("pods", ".status.podIP");
    std::thread::scope(|scope| {
        for (from, to) in [("one", "two"), ("two", "three"), ("three", "one")] {
            let pair = Pair { fleet, pods: &pods, from, to };
            scope.spawn(move || {
                pair.judges_who_comes_in();
                pair.judges_who_gets_out();
            });
        }
    });
}

/// A selector of one pod.
fn only(kind: &str, node: &str) -> String {
    format!("podSelector: {{matchLabels: {{app: {kind}-{node}}}}}")
}

/// A selector of both pods of a node.
fn both(node: &str) -> String {
    format!(
        "podSelector: {{matchExpressions: [{{key: app, operator: In, values: [box-{node}, wasm-{node}]}}]}}"
    )
}

impl Pair<'_> {
    fn judges_who_comes_in(&self) {
        let Self { from, to, .. } = *self;
        let policy = |what: &str, rules: &str, expected: Reach| {
            self.policy("in", &format!("{{{}, policyTypes: [Ingress], ingress: [{rules}]}}", both(to)));
            self.reached(what, expected);
        };
        policy("nobody may come in", "", NONE);
        for (kind, expected) in BY {
            policy("in by label", &format!("{{from: [{{{}}}]}}", only(kind, from)), expected);
            policy("in by address", &format!("{{from: [{{{}}}]}}", self.block(kind, from)), expected);
        }
        let hole = format!("cidr: 10.166.0.0/16, except: [{}/32]", self.pods[&format!("box-{from}")]);
        policy("in by a range with a hole", &format!("{{from: [{{ipBlock: {{{hole}}}}}]}}"), BY[1].1);
        self.lift("in");
    }

    fn judges_who_gets_out(&self) {
        let Self { from, to, .. } = *self;
        let policy = |what: &str, rules: &str, expected: Reach| {
            self.policy("out", &format!("{{{}, policyTypes: [Egress], egress: [{rules}]}}", both(from)));
            self.reached(what, expected);
        };
        policy("nobody may get out", "", NONE);
        for (kind, expected) in TO {
            policy("out by label", &format!("{{to: [{{{}}}]}}", only(kind, to)), expected);
            policy("out by address", &format!("{{to: [{{{}}}]}}", self.block(kind, to)), expected);
        }
        self.lift("out");
    }

    fn block(&self, kind: &str, node: &str) -> String {
        format!("ipBlock: {{cidr: {}/32}}", self.pods[&format!("{kind}-{node}")])
    }

    fn name(&self, direction: &str) -> String {
        format!("{direction}-{}-{}", self.from, self.to)
    }

    fn policy(&self, direction: &str, spec: &str) {
        let name = self.name(direction);
        let file = self.fleet.dir.path().join(&name);
        let head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n";
        std::fs::write(&file, format!("{head}metadata: {{name: {name}}}\nspec: {spec}\n")).unwrap();
        self.fleet.kubectl(&["apply", "-f", file.to_str().unwrap()]);
    }

    fn lift(&self, direction: &str) {
        self.fleet.kubectl(&["delete", "networkpolicy", &self.name(direction)]);
        self.reached("everything again", ALL);
    }

    fn reached(&self, what: &str, expected: Reach) {
        until(&format!("{what}, {} to {}", self.from, self.to), || match self.reach() {
            found if found == expected => Ok(()),
            found => Err(format!("{found:?} instead of {expected:?}")),
        });
    }

    fn reach(&self) -> Reach {
        let names = ["box", "wasm"].map(|kind| format!("{kind}-{}", self.to));
        let urls = names.each_ref().map(|name| format!("http://{}:8080/", self.pods[name]));
        let ask = format!("for url in {}; do timeout 5 wget -q -O - $url || echo; done", urls.join(" "));
        let asked = ["exec", &format!("box-{}", self.from), "--", "sh", "-c", &ask];
        let said = self.fleet.client("kubectl", &asked).stdout;
        let by_container: Vec<String> = String::from_utf8_lossy(&said).lines().map(str::to_owned).collect();
        let guest = &self.pods[&format!("wasm-{}", self.from)];
        let by_component = urls.map(|url| {
            let answers = self.fleet.curl(self.from, &[format!("http://{guest}:8080/fetch?url={url}")]);
            answers.first().cloned().unwrap_or_default()
        });
        let is =
            |said: Option<&String>, name: &str| said.is_some_and(|text| *text == format!("{SECRET} {name}"));
        [
            is(by_container.first(), &names[0]),
            is(by_container.get(1), &names[1]),
            is(by_component.first(), &names[0]),
            is(by_component.get(1), &names[1]),
        ]
    }
}
