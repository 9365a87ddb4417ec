//! The few forms of nftables' JSON that the rules are made of.

use std::{borrow::Cow, collections::HashSet, net::Ipv4Addr};

use nftables::{
    expr::{
        BinaryOperation, CT, Expression, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression, NgMode,
        Numgen, Payload, PayloadField, Prefix, SetItem, Verdict,
    },
    stmt::{
        JumpTarget, Mangle, Match, NAT, NATFlag, Operator, Reject, RejectType, Set, SetOp, Statement,
        VerdictMap,
    },
    types::RejectCode,
};

use crate::{cidr::Cidr, services::Transport};

pub(super) type Expr = Expression<'static>;
pub(super) type Stmt = Statement<'static>;

pub(super) fn text(value: impl Into<Cow<'static, str>>) -> Expr {
    Expression::String(value.into())
}

pub(super) fn number(value: impl Into<u32>) -> Expr {
    Expression::Number(value.into())
}

pub(super) fn field(protocol: &'static str, field: &'static str) -> Expr {
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

pub(super) fn source() -> Expr {
    field("ip", "saddr")
}

pub(super) fn target() -> Expr {
    field("ip", "daddr")
}

pub(super) fn meta(key: MetaKey) -> Expr {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

pub(super) fn concat(parts: Vec<Expr>) -> Expr {
    Expression::Named(NamedExpression::Concat(parts))
}

/// Transport and port a packet goes to.
pub(super) fn port() -> [Expr; 2] {
    [meta(MetaKey::L4proto), field("th", "dport")]
}

pub(super) fn protocol(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

pub(super) fn ranges(ranges: &[Cidr]) -> Expr {
    let item = |range: &Cidr| {
        let addr = Box::new(text(range.base().to_string()));
        Expression::Named(NamedExpression::Prefix(Prefix { addr, len: u32::from(range.prefix()) }))
    };
    if let [range] = ranges {
        // A set in a rule costs the kernel far more than a comparison.
        return item(range);
    }
    let items = ranges.iter().map(|range| SetItem::Element(item(range)));
    Expression::Named(NamedExpression::Set(items.collect()))
}

pub(super) fn is(left: Expr, right: Expr) -> Stmt {
    Statement::Match(Match { left, right, op: Operator::EQ })
}

pub(super) fn is_not(left: Expr, right: Expr) -> Stmt {
    Statement::Match(Match { left, right, op: Operator::NEQ })
}

/// The first packet of a connection.
pub(super) fn is_new() -> Stmt {
    in_state(&["new"])
}

/// Whether the packet's connection is in one of these states.
pub(super) fn in_state(states: &[&'static str]) -> Stmt {
    let left = Expression::Named(NamedExpression::CT(CT { key: "state".into(), family: None, dir: None }));
    let right = match states {
        [state] => text(*state),
        states => Expression::List(states.iter().map(|state| text(*state)).collect()),
    };
    Statement::Match(Match { left, right, op: Operator::IN })
}

/// Whether the packet comes from an address of the node.
pub(super) fn source_kind() -> Expr {
    by_route(FibResult::Type, [FibFlag::Saddr])
}

/// Whether the packet goes to an address of the node.
pub(super) fn target_kind() -> Expr {
    by_route(FibResult::Type, [FibFlag::Daddr])
}

/// What a look into the routes for something of the packet finds.
pub(super) fn by_route<const N: usize>(result: FibResult, flags: [FibFlag; N]) -> Expr {
    Expression::Named(NamedExpression::Fib(Fib { result, flags: HashSet::from(flags) }))
}

pub(super) fn accept() -> Stmt {
    Statement::Accept(None)
}

/// Refuses the packet, and says that it is not allowed.
pub(super) fn forbid() -> Stmt {
    Statement::Reject(Some(Reject::new(Some(RejectType::ICMP), Some(RejectCode::AdminProhibited))))
}

pub(super) fn jump(chain: impl Into<Cow<'static, str>>) -> Stmt {
    Statement::Jump(JumpTarget { target: chain.into() })
}

pub(super) fn goto(chain: impl Into<Cow<'static, str>>) -> Stmt {
    Statement::Goto(JumpTarget { target: chain.into() })
}

pub(super) fn look_up(key: Vec<Expr>, map: &str) -> Stmt {
    look_up_one(concat(key), map)
}

pub(super) fn look_up_one(key: Expr, map: &str) -> Stmt {
    Statement::VerdictMap(VerdictMap { key, data: text(format!("@{map}")) })
}

pub(super) fn goto_verdict(chain: &str) -> Expr {
    Expression::Verdict(Verdict::Goto(JumpTarget { target: chain.to_owned().into() }))
}

/// One of the chains, at random.
pub(super) fn any_of(chains: &[String]) -> Stmt {
    let count = u32::try_from(chains.len()).unwrap_or(u32::MAX);
    let key = Numgen { mode: NgMode::Random, ng_mod: count, offset: None };
    let items = (0..count).zip(chains);
    let items = items.map(|(n, chain)| SetItem::Mapping(number(n), goto_verdict(chain))).collect();
    Statement::VerdictMap(VerdictMap {
        key: Expression::Named(NamedExpression::Numgen(key)),
        data: Expression::Named(NamedExpression::Set(items)),
    })
}

/// Notes the packet's source in a set.
pub(super) fn remember(set: &str) -> Stmt {
    Statement::Set(Set { op: SetOp::Update, elem: source(), set: format!("@{set}").into() })
}

/// Sets a bit of the packet's mark.
pub(super) fn mark(bit: u32) -> Stmt {
    let value = BinaryOperation::OR(vec![meta(MetaKey::Mark), number(bit)]);
    let value = Expression::BinaryOperation(Box::new(value));
    Statement::Mangle(Mangle { key: meta(MetaKey::Mark), value })
}

/// Takes the bit, which is set, away again.
pub(super) fn unmark(bit: u32) -> Stmt {
    let value = BinaryOperation::XOR(meta(MetaKey::Mark), number(bit));
    let value = Expression::BinaryOperation(Box::new(value));
    Statement::Mangle(Mangle { key: meta(MetaKey::Mark), value })
}

pub(super) fn is_marked(bit: u32) -> Stmt {
    let masked = BinaryOperation::AND(meta(MetaKey::Mark), number(bit));
    is_not(Expression::BinaryOperation(Box::new(masked)), number(0_u32))
}

pub(super) fn rewrite(transport: Transport, address: Ipv4Addr, port: u16) -> [Stmt; 2] {
    let nat =
        NAT { addr: Some(text(address.to_string())), family: None, port: Some(number(port)), flags: None };
    [is(meta(MetaKey::L4proto), text(protocol(transport))), Statement::DNAT(Some(nat))]
}

/// Gives the packet another source.
pub(super) fn rename(address: Ipv4Addr) -> Stmt {
    let nat = NAT { addr: Some(text(address.to_string())), family: None, port: None, flags: None };
    Statement::SNAT(Some(nat))
}

pub(super) fn masquerade() -> Stmt {
    let flags = Some(HashSet::from([NATFlag::FullyRandom]));
    Statement::Masquerade(Some(NAT { addr: None, family: None, port: None, flags }))
}
