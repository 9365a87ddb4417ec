//! The commands that make a table hold some rules: from nothing, or from what it held. Pure.

use std::borrow::Cow;

use nftables::{
    batch::Batch,
    expr::Expression,
    schema::{
        Chain, Element, FlushObject, Map, NfCmd, NfListObject, Rule, Set, SetFlag, SetType, SetTypeValue,
        Table,
    },
    stmt::Statement,
    types::{NfChainPolicy, NfChainType, NfFamily, NfHook},
};

use super::{
    model::{Collection, Key, Rules, Shape},
    syntax::{Expr, concat, goto_verdict, number, protocol, text},
};

/// Most clients remembered per endpoint.
const CLIENTS: u32 = 65_535;
/// Where the kernel calls the chains: name, kind, hook, priority (`raw`, `dstnat`, `srcnat`, `filter`).
const HOOKS: &[(&str, NfChainType, NfHook, i32)] = &[
    ("prerouting", NfChainType::NAT, NfHook::Prerouting, -100),
    ("output", NfChainType::NAT, NfHook::Output, -100),
    ("postrouting", NfChainType::NAT, NfHook::Postrouting, 100),
    ("filter-input", NfChainType::Filter, NfHook::Input, 0),
    ("filter-forward", NfChainType::Filter, NfHook::Forward, 0),
    ("filter-output", NfChainType::Filter, NfHook::Output, 0),
    (super::judge::SPOOFED, NfChainType::Filter, NfHook::Prerouting, -300),
    (super::judge::INPUT, NfChainType::Filter, NfHook::Input, 0),
    (super::judge::FORWARD, NfChainType::Filter, NfHook::Forward, 0),
];

/// Commands for one transaction, as `nft -j` reads them.
pub type Commands = serde_json::Value;

/// Makes the table anew; one that is there, perhaps of a run that crashed, is replaced.
pub fn replace(table: &str, rules: &Rules) -> Commands {
    let mut make = Make::new(table);
    make.batch.add(make.table());
    make.batch.delete(make.table());
    make.batch.add(make.table());
    for (name, collection) in &rules.collections {
        make.collection(name, *collection, true);
    }
    make.chains(rules.chains.keys());
    for (chain, all) in &rules.chains {
        make.rules(chain, all);
    }
    for ((set, key), verdict) in &rules.elements {
        make.element(set, key, verdict.as_deref(), true);
    }
    make.commands()
}

/// Makes the table; one that is there is left as it is.
pub fn make(table: &str) -> Commands {
    let mut make = Make::new(table);
    make.batch.add(make.table());
    make.commands()
}

/// Removes the table; it is no error if there is none.
pub fn remove(table: &str) -> Commands {
    let mut make = Make::new(table);
    make.batch.add(make.table());
    make.batch.delete(make.table());
    make.commands()
}

/// Brings a table that holds `old` to hold `new`; `None` when that is the same.
pub fn change(table: &str, old: &Rules, new: &Rules) -> Option<Commands> {
    let mut make = Make::new(table);
    let changed: Vec<_> =
        new.chains.iter().filter(|(name, rules)| old.chains.get(*name) != Some(rules)).collect();
    make.chains(changed.iter().map(|(name, _)| *name).filter(|name| !old.chains.contains_key(*name)));
    for (name, collection) in new.collections.iter().filter(|(name, _)| !old.collections.contains_key(*name))
    {
        make.collection(name, *collection, true);
    }
    for (name, rules) in &changed {
        if old.chains.contains_key(*name) {
            make.flush(name);
        }
        make.rules(name, rules);
    }
    for (at, verdict) in old.elements.iter().filter(|(at, verdict)| new.elements.get(*at) != Some(verdict)) {
        make.element(&at.0, &at.1, verdict.as_deref(), false);
    }
    for (at, verdict) in new.elements.iter().filter(|(at, verdict)| old.elements.get(*at) != Some(verdict)) {
        make.element(&at.0, &at.1, verdict.as_deref(), true);
    }
    let gone: Vec<&String> = old.chains.keys().filter(|name| !new.chains.contains_key(*name)).collect();
    // Chains that refer to each other can only go when they are empty.
    gone.iter().for_each(|chain| make.flush(chain));
    gone.iter().for_each(|chain| make.drop_chain(chain));
    for (name, collection) in old.collections.iter().filter(|(name, _)| !new.collections.contains_key(*name))
    {
        make.collection(name, *collection, false);
    }
    (old != new).then(|| make.commands())
}

struct Make {
    name: Cow<'static, str>,
    batch: Batch<'static>,
}

impl Make {
    fn new(table: &str) -> Self {
        Self { name: table.to_owned().into(), batch: Batch::new() }
    }

    /// All of our maps lead to verdicts, a type that the crate has no name for.
    fn commands(self) -> Commands {
        let mut commands = serde_json::to_value(self.batch.to_nftables()).unwrap_or_default();
        let all = commands.get_mut("nftables").and_then(Commands::as_array_mut);
        for map in all.into_iter().flatten().filter_map(|command| command.pointer_mut("/add/map")) {
            if let Some(map) = map.as_object_mut() {
                map.insert("map".to_owned(), "verdict".into());
            }
        }
        commands
    }

    fn table(&self) -> NfListObject<'static> {
        NfListObject::Table(Table { family: NfFamily::IP, name: self.name.clone(), handle: None })
    }

    fn chain(&self, name: &str) -> Chain<'static> {
        Chain {
            family: NfFamily::IP,
            table: self.name.clone(),
            name: name.to_owned().into(),
            ..Chain::default()
        }
    }

    fn chains<'a>(&mut self, names: impl IntoIterator<Item = &'a String>) {
        for name in names {
            let mut chain = self.chain(name);
            if let Some((_, kind, hook, priority)) = HOOKS.iter().find(|(hooked, ..)| hooked == name) {
                chain._type = Some(*kind);
                chain.hook = Some(*hook);
                chain.prio = Some(*priority);
                chain.policy = Some(NfChainPolicy::Accept);
            }
            self.batch.add(NfListObject::Chain(chain));
        }
    }

    fn rules(&mut self, chain: &str, rules: &[Vec<Statement<'static>>]) {
        for rule in rules {
            self.batch.add(NfListObject::Rule(Rule {
                family: NfFamily::IP,
                table: self.name.clone(),
                chain: chain.to_owned().into(),
                expr: rule.clone().into(),
                ..Rule::default()
            }));
        }
    }

    fn flush(&mut self, chain: &str) {
        self.batch.add_cmd(NfCmd::Flush(FlushObject::Chain(self.chain(chain))));
    }

    fn drop_chain(&mut self, chain: &str) {
        self.batch.delete(NfListObject::Chain(self.chain(chain)));
    }

    fn collection(&mut self, name: &str, collection: Collection, add: bool) {
        let set = Set {
            family: NfFamily::IP,
            table: self.name.clone(),
            name: name.to_owned().into(),
            set_type: SetTypeValue::Single(SetType::Ipv4Addr),
            ..Set::default()
        };
        let object = match collection {
            Collection::Set(shape) => NfListObject::Set(Box::new(Set { set_type: key_type(shape), ..set })),
            Collection::Clients(timeout) => NfListObject::Set(Box::new(Set {
                flags: Some([SetFlag::Timeout].into()),
                timeout: Some(timeout),
                size: Some(CLIENTS),
                ..set
            })),
            Collection::Map(shape) => NfListObject::Map(Box::new(Map {
                family: NfFamily::IP,
                table: self.name.clone(),
                name: name.to_owned().into(),
                set_type: key_type(shape),
                map: SetTypeValue::Single(SetType::Mark),
                ..Map::default()
            })),
        };
        match add {
            true => self.batch.add(object),
            false => self.batch.delete(object),
        }
    }

    fn element(&mut self, set: &str, key: &Key, chain: Option<&str>, add: bool) {
        let key = match key {
            Key::Service(ip, transport, port) => {
                concat(vec![text(ip.to_string()), text(protocol(*transport)), number(*port)])
            }
            Key::Port(transport, port) => concat(vec![text(protocol(*transport)), number(*port)]),
            Key::Address(ip) => text(ip.to_string()),
            Key::Pair(from, to) => concat(vec![text(from.to_string()), text(to.to_string())]),
        };
        let elem: Expr = match chain {
            Some(chain) => Expression::List(vec![key, goto_verdict(chain)]),
            None => key,
        };
        let element = NfListObject::Element(Element {
            family: NfFamily::IP,
            table: self.name.clone(),
            name: set.to_owned().into(),
            elem: vec![elem].into(),
        });
        match add {
            true => self.batch.add(element),
            false => self.batch.delete(element),
        }
    }
}

fn key_type(shape: Shape) -> SetTypeValue<'static> {
    use SetType::{InetProto, InetService, Ipv4Addr};
    match shape {
        Shape::Address => SetTypeValue::Single(Ipv4Addr),
        Shape::Port => SetTypeValue::Concatenated(vec![InetProto, InetService].into()),
        Shape::Service => SetTypeValue::Concatenated(vec![Ipv4Addr, InetProto, InetService].into()),
        Shape::Pair => SetTypeValue::Concatenated(vec![Ipv4Addr, Ipv4Addr].into()),
    }
}
