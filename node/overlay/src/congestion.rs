//! The window of an overlay connection.
//!
//! What travels inside already has a congestion control (TCP) or wants none (UDP), and a second one below
//! it only adds delay: the overlay sends at once, like WireGuard does. The bound is on memory: packets in
//! flight are remembered until they are acknowledged or lost, so a peer that has just vanished must not
//! make a sender remember without end.

use std::{any::Any, sync::Arc, time::Instant};

use quinn_proto::congestion::{Controller, ControllerFactory};

/// Most unacknowledged bytes: 10 Gbit/s at 50 ms.
const IN_FLIGHT: u64 = 64 << 20;

/// A window that is open until [`IN_FLIGHT`] bytes are unacknowledged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Open {
    in_flight: u64,
}

/// Makes [`Open`] windows.
pub(crate) struct OpenFactory;

impl ControllerFactory for OpenFactory {
    fn build(self: Arc<Self>, _now: Instant, _mtu: u16) -> Box<dyn Controller> {
        Box::new(Open::default())
    }
}

impl Controller for Open {
    fn on_sent(&mut self, _now: Instant, bytes: u64, _last: u64) {
        self.in_flight = self.in_flight.saturating_add(bytes);
    }

    fn on_end_acks(&mut self, _now: Instant, in_flight: u64, _app_limited: bool, _largest: Option<u64>) {
        self.in_flight = in_flight;
    }

    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, _persistent: bool, lost: u64) {
        self.in_flight = self.in_flight.saturating_sub(lost);
    }

    fn on_mtu_update(&mut self, _mtu: u16) {}

    fn window(&self) -> u64 {
        // A window beyond 32 bits switches pacing off (quinn-proto, connection/pacing.rs).
        if self.in_flight < IN_FLIGHT { u64::MAX >> 1 } else { IN_FLIGHT }
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        u64::MAX >> 1
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_closes_and_opens_again() {
        let (now, mut window) = (Instant::now(), Open::default());
        window.on_sent(now, IN_FLIGHT, 1);
        assert_eq!(window.window(), IN_FLIGHT);
        window.on_congestion_event(now, now, false, 1500);
        assert!(window.window() > u64::from(u32::MAX));
        window.on_sent(now, 3000, 2);
        assert_eq!(window.window(), IN_FLIGHT);
        window.on_end_acks(now, 0, false, Some(2));
        assert!(window.window() > u64::from(u32::MAX));
    }
}
