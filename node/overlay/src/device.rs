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
    /// Made at the first read: a queue that nothing takes costs next to nothing.
    cuts: Vec<Vec<u8>>,
    sizes: Vec<usize>,
    slab: BytesMut,
    joined: GROTable,
    out: Vec<Vec<u8>>,
    mtu: u16,
}

impl Device {
    /// Creates the device `name` for packets up to `mtu` bytes, with a queue for each of `lanes`. It is gone when all
    /// queues are dropped.
    ///
    /// # Errors
    /// When there is a device of this name, or rights are missing.
    pub(crate) fn create(name: &str, mtu: u16, lanes: usize) -> io::Result<Vec<Self>> {
        // With several queues the kernel would add ours to a device of the same name.
        if nix::net::if_::if_nametoindex(name).is_ok() {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        let tun = DeviceBuilder::new()
            .name(name)
            .mtu(mtu)
            .with(|builder| {
                builder.offload(true).tx_queue_len(QUEUE).multi_queue(lanes > 1);
            })
            .build_sync()?;
        let more: Vec<SyncDevice> = (1..lanes).map(|_| tun.try_clone()).collect::<io::Result<_>>()?;
        more.into_iter().chain([tun]).map(|queue| Self::new(queue, mtu)).collect()
    }

    fn new(tun: SyncDevice, mtu: u16) -> io::Result<Self> {
        tun.set_nonblocking(true)?;
        Ok(Self {
            tun,
            train: vec![0; TRAIN],
            cuts: Vec::new(),
            sizes: vec![0; CUTS],
            slab: BytesMut::new(),
            joined: GROTable::default(),
            out: Vec::new(),
            mtu,
        })
    }

    /// Reads what the kernel has next and hands each packet to `each`; `false` when there is nothing.
    pub(crate) fn read(&mut self, mut each: impl FnMut(Bytes)) -> bool {
        self.cuts.resize_with(CUTS, || vec![0; usize::from(self.mtu) + 64]);
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
