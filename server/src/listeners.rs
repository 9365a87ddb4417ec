//! Binding ports, with an error that says what to do about a taken one.

use std::{io, net::SocketAddr};

/// A port that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {why}; choose another address with --{flag} (port 0 picks a free one)")]
pub struct BindError {
    address: SocketAddr,
    flag: &'static str,
    why: String,
}

/// Binds `address`, non-blocking. `flag` is the option the address came from.
pub fn bind(address: SocketAddr, flag: &'static str) -> Result<std::net::TcpListener, BindError> {
    let failed = |error: io::Error| BindError { address, flag, why: explain(&error, address) };
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// The same for UDP.
pub fn bind_udp(address: SocketAddr, flag: &'static str) -> Result<std::net::UdpSocket, BindError> {
    let failed = |error: io::Error| BindError { address, flag, why: explain(&error, address) };
    let socket = std::net::UdpSocket::bind(address).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    Ok(socket)
}

fn explain(error: &io::Error, address: SocketAddr) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another program uses this port".into(),
        io::ErrorKind::PermissionDenied if address.port() < 1024 => {
            "only root may use ports below 1024".into()
        }
        io::ErrorKind::AddrNotAvailable => "this machine has no such address".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_taken_port_is_named_with_its_flag() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let text = super::bind(address, "api-addr").unwrap_err().to_string();
        assert!(text.contains(&address.to_string()) && text.contains("--api-addr"), "{text}");
    }
}
