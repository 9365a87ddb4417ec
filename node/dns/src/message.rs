//! Packets to questions, answers to packets. Pure; no packet, whatever is in it, is a panic.

use hickory_resolver::proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{DNSClass, Record, RecordType, rdata::opt::EdnsOption},
};

/// Longest query that is looked at. One name has at most 255 bytes.
pub(crate) const MAX_QUERY: usize = 2_048;
/// What fits into a packet on any path (the DNS flag day 2020 value), and clients may not raise.
const MAX_PAYLOAD: u16 = 1_232;
/// Without EDNS (RFC 1035).
const PLAIN_PAYLOAD: u16 = 512;
const HEADER: usize = 12;
/// `EDE`, an explanation of an error (RFC 8914).
const EXPLANATION: u16 = 15;

/// A question that can be answered.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    metadata: Metadata,
    pub(crate) query: Query,
    edns: bool,
    /// Whether it has EDNS options, and thus may be unlike any other question.
    pub(crate) special: bool,
    limit: usize,
}

/// What a packet is.
pub(crate) enum Packet {
    Question(Box<Question>),
    /// It is answered without a look at names.
    Refused(Vec<u8>),
    /// Nothing that should be answered.
    Noise,
}

/// What to answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Body {
    pub(crate) code: ResponseCode,
    pub(crate) authoritative: bool,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
    /// Why it failed, for whoever reads the packet: an RFC 8914 code and a text.
    pub(crate) why: Option<(u16, String)>,
}

impl Body {
    /// A failure with its reason.
    pub(crate) fn failure(code: u16, why: impl Into<String>) -> Self {
        Self { code: ResponseCode::ServFail, why: Some((code, why.into())), ..Self::default() }
    }
}

/// Reads a packet. `udp`: the answer has to fit into one.
pub(crate) fn read(packet: &[u8], udp: bool) -> Packet {
    let Some(counts) = counts(packet) else { return Packet::Noise };
    if packet.get(2).is_none_or(|flags| flags & 0x80 != 0) {
        // Answering an answer would make two servers talk for ever.
        return Packet::Noise;
    }
    let code = match packet.get(2).map(|flags| flags >> 3 & 0xF) {
        Some(0) => None,
        _ => Some(ResponseCode::NotImp),
    };
    // Nothing but one question and its EDNS; the counts are looked at before anything is reserved by them.
    let [questions, answers, authorities, additionals] = counts;
    let plain = questions == 1 && answers == 0 && authorities == 0 && additionals <= 2;
    let code = code.or((!plain || packet.len() > MAX_QUERY).then_some(ResponseCode::FormErr));
    if let Some(code) = code {
        return Packet::Refused(bare(packet, code));
    }
    let Ok(message) = Message::from_vec(packet) else {
        return Packet::Refused(bare(packet, ResponseCode::FormErr));
    };
    question(message, udp)
}

fn question(message: Message, udp: bool) -> Packet {
    let Some(query) = message.queries.into_iter().next() else { return Packet::Noise };
    let edns = message.edns.as_ref();
    let payload = edns.map_or(PLAIN_PAYLOAD, |edns| edns.max_payload().clamp(PLAIN_PAYLOAD, MAX_PAYLOAD));
    let question = Question {
        metadata: message.metadata,
        edns: edns.is_some(),
        special: edns.is_some_and(|edns| !edns.options().as_ref().is_empty()),
        limit: if udp { usize::from(payload) } else { usize::from(u16::MAX) },
        query,
    };
    let refused = if edns.is_some_and(|edns| edns.version() > 0) {
        Some(ResponseCode::BADVERS)
    } else if question.query.query_class() != DNSClass::IN
        || matches!(question.query.query_type(), RecordType::AXFR | RecordType::IXFR)
    {
        Some(ResponseCode::Refused)
    } else if question.query.query_type() == RecordType::ANY {
        // RFC 8482 would have one of the sets; nobody asks a cluster for it.
        Some(ResponseCode::NotImp)
    } else {
        None
    };
    match refused {
        Some(code) => Packet::Refused(write(&question, Body { code, ..Body::default() })),
        None => Packet::Question(Box::new(question)),
    }
}

/// Encodes an answer; one that does not fit is cut to nothing and marked, so that the client asks over TCP.
pub(crate) fn write(question: &Question, body: Body) -> Vec<u8> {
    let mut metadata = Metadata::response_from_request(&question.metadata);
    metadata.response_code = body.code;
    metadata.authoritative = body.authoritative;
    metadata.recursion_available = true;
    let mut message = Message::new(metadata.id, MessageType::Response, OpCode::Query);
    message.metadata = metadata;
    message.queries = vec![question.query.clone()];
    message.answers = body.answers;
    message.authorities = body.authorities;
    message.additionals = body.additionals;
    if question.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_PAYLOAD).set_rcode_high(body.code.high());
        if let Some((code, text)) = body.why {
            let bytes = code.to_be_bytes().into_iter().chain(text.into_bytes()).collect();
            edns.options_mut().insert(EdnsOption::Unknown(EXPLANATION, bytes));
        }
        message.edns = Some(edns);
    }
    encode(&message, question.limit).unwrap_or_default()
}

fn encode(message: &Message, limit: usize) -> Option<Vec<u8>> {
    let bytes = message.to_vec().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    message.truncate().to_vec().ok().filter(|bytes| bytes.len() <= limit)
}

/// The four counts of the header.
fn counts(packet: &[u8]) -> Option<[u16; 4]> {
    let header = packet.get(4..HEADER)?;
    let mut counts = [0; 4];
    for (count, bytes) in counts.iter_mut().zip(header.chunks_exact(2)) {
        *count = u16::from_be_bytes(bytes.try_into().ok()?);
    }
    Some(counts)
}

/// A header that says no.
fn bare(packet: &[u8], code: ResponseCode) -> Vec<u8> {
    let (id, flags) = (packet.get(..2).unwrap_or_default(), packet.get(2).copied().unwrap_or_default());
    let mut reply = id.to_vec();
    reply.extend([0x80 | (flags & 0x79), code.low()]);
    reply.resize(HEADER, 0);
    reply
}

/// Where the addresses that answer a question lie in a packet, for those who let them take turns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turns {
    start: usize,
    end: usize,
    each: usize,
}

impl Turns {
    /// Finds them, if all answers are addresses of one kind under the name that was asked for.
    pub(crate) fn find(packet: &[u8]) -> Option<Self> {
        let count = usize::from(*counts(packet)?.get(1)?);
        let mut start = HEADER;
        while let Some(length @ 1..=63) = packet.get(start).copied() {
            start += usize::from(length) + 1;
        }
        start += 1 + 4;
        // A pointer to the question's name, and the type.
        let each = match packet.get(start..start + 4)? {
            [0xC0, 0x0C, 0, 1] => 16,
            [0xC0, 0x0C, 0, 28] => 28,
            _ => return None,
        };
        let end = start + each * count;
        let head = packet.get(start..start + 4)?;
        let alike = packet.get(start..end)?.chunks_exact(each).all(|record| record.starts_with(head));
        (count > 1 && alike).then_some(Self { start, end, each })
    }

    /// Moves the first address to the end.
    pub(crate) fn advance(self, packet: &mut [u8]) {
        if let Some(span) = packet.get_mut(self.start..self.end)
            && self.each <= span.len()
        {
            span.rotate_left(self.each);
        }
    }
}
