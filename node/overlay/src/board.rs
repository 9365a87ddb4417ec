//! The newest state of all peers, as each lane sees it and put together.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    config::{LaneStatus, PeerStatus, Reach},
    lane::Lane,
};

/// Where lanes put what they know of the peers.
#[derive(Clone)]
pub(crate) struct Board(Arc<Mutex<Vec<Vec<PeerStatus>>>>);

// === impl Board ===

impl Board {
    /// A board for so many lanes.
    pub(crate) fn new(lanes: usize) -> Self {
        Self(Arc::new(Mutex::new(vec![Vec::new(); lanes])))
    }

    pub(crate) fn publish(&self, lane: Lane, status: Vec<PeerStatus>) {
        if let Some(slot) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(lane.number()) {
            *slot = status;
        }
    }

    /// Each peer as the first lane reaches it, with what all lanes have carried.
    pub(crate) fn read(&self) -> Vec<PeerStatus> {
        let board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut peers = board.first().cloned().unwrap_or_default();
        for peer in &mut peers {
            let on_lanes = board.iter().map(|lane| lane.iter().find(|status| status.name == peer.name));
            peer.lanes = on_lanes.map(|status| status.map(lane_status).unwrap_or_default()).collect();
            peer.counters = Default::default();
            for lane in &peer.lanes {
                peer.counters += lane.counters;
            }
        }
        peers
    }
}

fn lane_status(status: &PeerStatus) -> LaneStatus {
    LaneStatus { up: status.reach != Reach::Nothing, counters: status.counters }
}
