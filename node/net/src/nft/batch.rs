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
    rules::{CLUSTER_IPS, Key, NOBODY_PORTS, NODE_IPS, NODE_PORTS, Rules},
    syntax::{Expr, concat, goto_verdict, number, protocol, text},
};

/// Most clients remembered per endpoint.
const CLIENTS: u32 = 65_535;
/// Where the kernel calls the chains: name, kind, hook, priority (`dstnat`, `srcnat`, `filter`).
const HOOKS: &[(&str, NfChainType, NfHook, i32)] = &[
    ("prerouting", NfChainType::NAT, NfHook::Prerouting, -100),
    ("output", NfChainType::NAT, NfHook::Output, -100),
    ("postrouting", NfChainType::NAT, NfHook::Postrouting, 100),
    ("filter-input", NfChainType::Filter, NfHook::Input, 0),
    ("filter-forward", NfChainType::Filter, NfHook::Forward, 0),
    ("filter-output", NfChainType::Filter, NfHook::Output, 0),
];

/// Commands for one transaction, as `nft -j` reads them.
pub type Commands = serde_json::Value;

/// Makes the table anew; one that is there, perhaps of a run that crashed, is replaced.
pub fn replace(table: &str, rules: &Rules) -> Commands {
    let mut make = Make::new(table);
    make.batch.add(make.table());
    make.batch.delete(make.table());
    make.batch.add(make.table());
    make.tables();
    make.chains(rules.chains.keys());
    for (set, clients) in &rules.clients {
        make.clients(set, clients.timeout);
    }
    for (chain, all) in &rules.chains {
        make.rules(chain, all);
    }
    for ((set, key), verdict) in &rules.elements {
        make.element(set, key, verdict.as_deref(), true);
    }
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
    let kept = |set: &String, clients| old.clients.get(set) == Some(clients);
    for (set, clients) in new.clients.iter().filter(|(set, clients)| !kept(set, clients)) {
        if !old.clients.contains_key(set) {
            make.clients(set, clients.timeout);
        }
    }
    for (name, rules) in &changed {
        if old.chains.contains_key(*name) {
            make.flush(name);
        }
        make.rules(name, rules);
    }
    for (at, verdict) in old.elements.iter().filter(|(at, verdict)| new.elements.get(*at) != Some(verdict)) {
        make.element(at.0, &at.1, verdict.as_deref(), false);
    }
    for (at, verdict) in new.elements.iter().filter(|(at, verdict)| old.elements.get(*at) != Some(verdict)) {
        make.element(at.0, &at.1, verdict.as_deref(), true);
    }
    let gone: Vec<&String> = old.chains.keys().filter(|name| !new.chains.contains_key(*name)).collect();
    // Chains that refer to each other can only go when they are empty.
    gone.iter().for_each(|chain| make.flush(chain));
    gone.iter().for_each(|chain| make.drop_chain(chain));
    for set in old.clients.keys().filter(|set| !new.clients.contains_key(*set)) {
        make.drop_clients(set);
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

    /// The fixed sets and maps.
    fn tables(&mut self) {
        for name in Rules::tables() {
            if [CLUSTER_IPS, NODE_IPS].contains(&name) {
                let set = self.set(name, SetTypeValue::Single(SetType::Ipv4Addr));
                self.batch.add(NfListObject::Set(Box::new(set)));
                continue;
            }
            let mut key = vec![SetType::InetProto, SetType::InetService];
            if ![NODE_PORTS, NOBODY_PORTS].contains(&name) {
                key.insert(0, SetType::Ipv4Addr);
            }
            self.batch.add(NfListObject::Map(Box::new(Map {
                family: NfFamily::IP,
                table: self.name.clone(),
                name: name.into(),
                set_type: SetTypeValue::Concatenated(key.into()),
                map: SetTypeValue::Single(SetType::Mark),
                ..Map::default()
            })));
        }
    }

    fn set(&self, name: &str, set_type: SetTypeValue<'static>) -> Set<'static> {
        Set {
            family: NfFamily::IP,
            table: self.name.clone(),
            name: name.to_owned().into(),
            set_type,
            ..Set::default()
        }
    }

    fn clients(&mut self, name: &str, timeout: u32) {
        let mut set = self.set(name, SetTypeValue::Single(SetType::Ipv4Addr));
        set.flags = Some([SetFlag::Timeout].into());
        set.timeout = Some(timeout);
        set.size = Some(CLIENTS);
        self.batch.add(NfListObject::Set(Box::new(set)));
    }

    fn drop_clients(&mut self, name: &str) {
        let set = self.set(name, SetTypeValue::Single(SetType::Ipv4Addr));
        self.batch.delete(NfListObject::Set(Box::new(set)));
    }

    fn element(&mut self, set: &str, key: &Key, chain: Option<&str>, add: bool) {
        let key = match key {
            Key::Service(ip, transport, port) => {
                concat(vec![text(ip.to_string()), text(protocol(*transport)), number(*port)])
            }
            Key::Port(transport, port) => concat(vec![text(protocol(*transport)), number(*port)]),
            Key::Address(ip) => text(ip.to_string()),
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
