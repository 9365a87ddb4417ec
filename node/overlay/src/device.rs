//! The TUN device: inner packets in batches. The kernel hands over up to 64 KiB of a flow at once and
//! takes as much; cutting and joining is tun-rs's (a port of wireguard-go's).

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use bytes::{Bytes, BytesMut};
use tun_rs::{DeviceBuilder, GROTable, SyncDevice, VIRTIO_NET_HDR_LEN};

/// Largest thing that is read or written at once.
const TRAIN: usize = VIRTIO_NET_HDR_LEN + 65_535;

/// Packets that one read may be cut into: 64 KiB of the smallest TCP segments in practice.
const CUTS: usize = 256;

/// Packets that are joined and written together.
pub(crate) const BATCH: usize = 128;

/// Packets that may wait in the kernel: the default of 500 drops bursts (firezone#8760).
const QUEUE: u32 = 10_000;

/// A TUN device that is not waited on.
pub(crate) struct Device {
    tun: SyncDevice,
    train: Vec<u8>,
    cuts: Vec<Vec<u8>>,
    sizes: Vec<usize>,
    slab: BytesMut,
    joined: GROTable,
    out: Vec<Vec<u8>>,
}

impl Device {
    /// Creates the device `name` for packets up to `mtu` bytes. It is gone when this is dropped.
    pub(crate) fn create(name: &str, mtu: u16) -> io::Result<Self> {
        let tun = DeviceBuilder::new()
            .name(name)
            .mtu(mtu)
            .with(|builder| {
                builder.offload(true).tx_queue_len(QUEUE);
            })
            .build_sync()?;
        tun.set_nonblocking(true)?;
        Ok(Self {
            tun,
            train: vec![0; TRAIN],
            cuts: vec![vec![0; usize::from(mtu) + 64]; CUTS],
            sizes: vec![0; CUTS],
            slab: BytesMut::new(),
            joined: GROTable::default(),
            out: Vec::new(),
        })
    }

    /// Reads what the kernel has next and hands each packet to `each`; `false` when there is nothing.
    pub(crate) fn read(&mut self, mut each: impl FnMut(Bytes)) -> bool {
        let count = match self.tun.recv_multiple(&mut self.train, &mut self.cuts, &mut self.sizes, 0) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) => {
                tracing::debug!(%error, "cannot take a packet from the device");
                return error.raw_os_error().is_none();
            }
        };
        self.slab.reserve(self.sizes.iter().take(count).sum());
        for (cut, size) in self.cuts.iter().zip(&self.sizes).take(count) {
            self.slab.extend_from_slice(cut.get(..*size).unwrap_or_default());
            each(self.slab.split().freeze());
        }
        true
    }

    /// Writes `packets`, joined where they follow each other in a flow, and empties it.
    pub(crate) fn write(&mut self, packets: &mut Vec<Bytes>) {
        for batch in packets.chunks(BATCH) {
            while self.out.len() < batch.len() {
                self.out.push(Vec::with_capacity(TRAIN));
            }
            for (packet, buffer) in batch.iter().zip(&mut self.out) {
                buffer.clear();
                buffer.resize(VIRTIO_NET_HDR_LEN, 0);
                buffer.extend_from_slice(packet);
            }
            let Some(filled) = self.out.get_mut(..batch.len()) else { continue };
            if let Err(error) = self.tun.send_multiple(&mut self.joined, filled, VIRTIO_NET_HDR_LEN) {
                tracing::debug!(%error, "the device refused packets");
            }
        }
        packets.clear();
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
    }
}
