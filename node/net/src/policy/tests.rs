//! Addresses that must never be reached, in every spelling.

use super::*;

fn policy() -> Policy {
    Policy {
        cluster: vec!["10.42.0.0/16".parse().unwrap(), "10.43.0.0/16".parse().unwrap()],
        node: vec!["192.0.2.10".parse().unwrap(), "2001:db8::10".parse().unwrap()],
        control_plane: vec!["198.51.100.1:6443".parse().unwrap(), "10.43.0.1:443".parse().unwrap()],
    }
}

fn check(patterns: &str, target: &str, names: &[&str]) -> Result<(), Denied> {
    let patterns: Vec<Pattern> =
        patterns.split(',').filter(|p| !p.is_empty()).map(|p| p.parse().unwrap()).collect();
    policy().check(&patterns, target.parse().unwrap(), names)
}

/// Targets that `*` must not reach, in every spelling an address has.
#[test]
fn a_wildcard_reaches_nothing_protected() {
    for target in [
        "169.254.169.254:80",
        "169.254.170.2:80",
        "169.254.0.1:80",
        "169.254.255.255:443",
        "100.100.100.200:80",
        "192.0.0.192:80",
        "168.63.129.16:80",
        "[fd00:ec2::254]:80",
        "[fd20:ce::254]:80",
        "[fe80::1]:80",
        "[febf::1]:80",
        "[fec0::1]:80",
        "127.0.0.1:22",
        "127.0.0.1:6443",
        "127.1.2.3:80",
        "127.255.255.254:80",
        "0.0.0.0:80",
        "0.1.2.3:80",
        "[::]:80",
        "[::1]:80",
        "[::ffff:127.0.0.1]:80",
        "[::ffff:169.254.169.254]:80",
        "[::ffff:0:169.254.169.254]:80",
        "[::ffff:0.0.0.0]:80",
        "[::169.254.169.254]:80",
        "[::127.0.0.1]:80",
        "[64:ff9b::169.254.169.254]:80",
        "[64:ff9b::127.0.0.1]:80",
        "[64:ff9b:1::169.254.169.254]:80",
        "[64:ff9b:1:2:3:4:a9fe:a9fe]:80",
        "[2002:a9fe:a9fe::]:80",
        "[2002:7f00:1::]:80",
        "192.0.2.10:80",
        "192.0.2.10:10250",
        "[::ffff:192.0.2.10]:80",
        "[2001:db8::10]:22",
        "198.51.100.1:6443",
        "[::ffff:198.51.100.1]:6443",
        "10.43.0.1:443",
        "255.255.255.255:80",
        "224.0.0.1:80",
        "[ff02::1]:80",
    ] {
        assert!(check("*", target, &[]).is_err(), "{target} by address");
        assert!(check("*:*", target, &["innocent.example.com"]).is_err(), "{target} by name");
        assert!(check("0.0.0.0/0,::/0", target, &[]).is_err(), "{target} by the widest range");
        let named = check("rebind.example.com,*.example.com", target, &["rebind.example.com"]);
        assert!(named.is_err(), "{target} behind an allowed name");
    }
}

#[test]
fn naming_a_protected_address_reaches_it() {
    for (pattern, target, names) in [
        ("127.0.0.1:5432", "127.0.0.1:5432", &[][..]),
        ("localhost:5432", "127.0.0.1:5432", &["localhost"]),
        ("localhost:5432", "[::1]:5432", &["localhost"]),
        ("169.254.169.254:80", "169.254.169.254:80", &[]),
        ("169.254.169.254:80", "[::ffff:169.254.169.254]:80", &[]),
        ("169.254.0.0/16:80", "169.254.169.254:80", &[]),
        ("192.0.2.10", "192.0.2.10:9100", &[]),
        ("10.43.0.1:443", "10.43.0.1:443", &[]),
        ("[fd00:ec2::254]:80", "[fd00:ec2::254]:80", &[]),
    ] {
        assert_eq!(check(pattern, target, names), Ok(()), "{pattern} {target}");
    }
    assert!(check("127.0.0.1:5432", "127.0.0.1:22", &[]).is_err());
    assert!(check("localhost:5432", "127.0.0.1:5432", &["evil.example.com"]).is_err());
}

#[test]
fn the_cluster_is_open_and_the_rest_closed() {
    for target in ["10.42.3.4:80", "10.43.0.10:80"] {
        assert_eq!(check("", target, &[]), Ok(()), "{target}");
    }
    let denied = check("", "203.0.113.7:443", &["api.example.com"]).unwrap_err();
    assert_eq!(
        denied.to_string(),
        "api.example.com:443 is outside the cluster and not allowed; add \"api.example.com:443\" to the annotation ketch.dev/outbound"
    );
    assert!(check("", "10.44.0.1:80", &[]).is_err(), "a private address is not the cluster's");
}

#[test]
fn patterns_allow_what_they_say() {
    let host: &[&str] = &["api.example.com"];
    for (pattern, target, names, allowed) in [
        ("*", "203.0.113.7:443", &[][..], true),
        ("api.example.com:443", "203.0.113.7:443", host, true),
        ("API.Example.com.:443", "203.0.113.7:443", host, true),
        ("api.example.com", "203.0.113.7:8443", host, true),
        ("api.example.com:443", "203.0.113.7:80", host, false),
        ("api.example.com:443", "203.0.113.7:443", &[], false),
        ("*.example.com:443", "203.0.113.7:443", host, true),
        ("*.example.com", "203.0.113.7:443", &["example.com"], false),
        ("*.example.com", "203.0.113.7:443", &["evilexample.com"], false),
        ("203.0.113.0/24:443", "203.0.113.7:443", &[], true),
        ("203.0.113.0/24:443", "203.0.114.7:443", &[], false),
        ("[2001:db8::7]:443", "[2001:db8::7]:443", &[], true),
        ("2001:db8::7", "[2001:db8::7]:443", &[], true),
        ("*:443", "203.0.113.7:443", &[], true),
        ("*:443", "203.0.113.7:80", &[], false),
    ] {
        assert_eq!(check(pattern, target, names).is_ok(), allowed, "{pattern} {target} {names:?}");
    }
    for bad in ["", "a b", "host:port", "host:70000", "[::1", "10.0.0.0/99", "*x", "http://x", "*.", ":80"] {
        assert!(bad.parse::<Pattern>().is_err(), "{bad:?}");
    }
}

#[test]
fn services_lead_to_pods_and_nowhere_else_unless_named() {
    let check = |patterns: &[&str], service: (&str, &str), frontend: &str, endpoint: &str| {
        let patterns: Vec<Pattern> = patterns.iter().map(|p| p.parse().unwrap()).collect();
        policy()
            .check_service(&patterns, service, frontend.parse().unwrap(), endpoint.parse().unwrap())
            .is_ok()
    };
    let (web, api) = (("shop", "web"), ("default", "kubernetes"));
    assert!(check(&[], web, "10.43.0.10:80", "10.42.0.2:8080"));
    // A Service's author does not decide what this pod may reach.
    assert!(!check(&["*"], web, "10.43.0.10:80", "169.254.169.254:80"));
    assert!(!check(&["*"], web, "10.43.0.10:80", "127.0.0.1:6443"));
    assert!(!check(&[], web, "10.43.0.10:80", "203.0.113.7:80"));
    assert!(check(&["203.0.113.7:80"], web, "10.43.0.10:80", "203.0.113.7:80"));
    assert!(check(&["web.shop.svc:80"], web, "10.43.0.10:80", "203.0.113.7:80"));
    assert!(!check(&["*"], api, "10.43.0.1:443", "198.51.100.1:6443"));
    assert!(check(&["kubernetes.default.svc:443"], api, "10.43.0.1:443", "198.51.100.1:6443"));
    assert!(check(&["10.43.0.1:443"], api, "10.43.0.1:443", "198.51.100.1:6443"));
}
