//! A door to what reads the kernel's messages, for the fuzz targets only.

/// Reads an answer of ctnetlink.
pub fn netlink(bytes: &[u8]) {
    crate::conntrack::fuzz(bytes);
}
