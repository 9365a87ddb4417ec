//! Settings of the QUIC connections between nodes.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use quinn_proto::{
    AckFrequencyConfig, ClientConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig,
    TransportConfig, VarInt,
};

use crate::{
    congestion::OpenFactory,
    identity::Tls,
    lane::{Lane, LaneIds},
};

/// A silent peer is asked this often.
const KEEP_ALIVE: Duration = Duration::from_millis(700);

/// A peer that is silent for so long is dialed anew: four unanswered keep-alives.
const IDLE_MS: u32 = 3_000;

/// First guess of the round trip time: handshakes over a lossy start are repeated after thrice that.
const FIRST_RTT: Duration = Duration::from_millis(100);

/// Packets between acknowledgements; they carry nothing that waits for one.
const ACK_EVERY: u32 = 25;

/// Inner packets that wait to be sent, and received ones that wait for the device, in bytes.
const QUEUE: usize = 8 << 20;

/// Packets over streams that may be under way in each direction.
const STREAMS: u32 = 1024;

/// Largest message over a stream: an inner packet or a relayed one.
pub(crate) const STREAM_LIMIT: usize = 65_535;

/// What a datagram costs beyond the packet in it: flags 1, connection id 8, packet number 4, tag 16, frame
/// 9 (quinn-proto, connection/datagrams.rs).
pub(crate) const OVERHEAD: u16 = 38;

/// Settings for UDP payloads up to `payload` bytes.
pub(crate) fn transport(payload: u16) -> Arc<TransportConfig> {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery
        .upper_bound(payload)
        .minimum_change(10)
        .interval(Duration::from_secs(120))
        .black_hole_cooldown(Duration::from_secs(10));
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY));
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS))
        .stream_receive_window(VarInt::from_u32(STREAM_LIMIT as u32))
        .receive_window(VarInt::from_u32(QUEUE as u32))
        .send_window(QUEUE as u64)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(FIRST_RTT)
        .mtu_discovery_config(Some(discovery))
        .ack_frequency_config(Some(acks))
        .datagram_receive_buffer_size(Some(QUEUE))
        .datagram_send_buffer_size(QUEUE)
        .congestion_controller_factory(Arc::new(OpenFactory));
    Arc::new(config)
}

/// The endpoint's own settings. The key of stateless resets is drawn at each start.
pub(crate) fn endpoint(lane: Lane, payload: u16) -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config.cid_generator(move || Box::new(LaneIds::new(lane)));
    // Only values below 1,200 are refused.
    if let Err(error) = config.max_udp_payload_size(payload.max(1200)) {
        tracing::debug!(%error, "default UDP payload size");
    }
    config
}

/// Settings for connections that peers open and for those that this node opens.
#[derive(Clone)]
pub(crate) struct Sides {
    pub(crate) server: ServerConfig,
    pub(crate) client: ClientConfig,
    /// When the certificate of both ends.
    pub(crate) expires: SystemTime,
}

/// The settings of an identity.
pub(crate) fn sides(tls: &Tls, payload: u16) -> Sides {
    let mut server = ServerConfig::with_crypto(Arc::clone(&tls.server) as Arc<_>);
    server.transport_config(transport(payload)).migration(true);
    let mut client = ClientConfig::new(Arc::clone(&tls.client) as Arc<_>);
    client.transport_config(transport(payload));
    Sides { server, client, expires: tls.expires }
}
