//! One TCP stream at full speed, and small packets back and forth.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::tunnels::Path;
use crate::statistics::percentile;

const TIME: Duration = Duration::from_secs(4);
const PINGS: usize = 3_000;

/// One round.
pub(crate) struct Figures {
    pub(crate) gigabits: f64,
    /// Microseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

pub(crate) fn measure(path: &Path) -> Result<Figures> {
    let gigabits = stream(path)?;
    let mut times = pings(path)?;
    Ok(Figures { gigabits, p50: percentile(&mut times, 500), p99: percentile(&mut times, 990) })
}

/// Gigabits per second that arrive.
fn stream(path: &Path) -> Result<f64> {
    let to = SocketAddr::new(path.b_address, 0);
    let listener = path.b.within(move || Ok(TcpListener::bind(to)?))?;
    let target = listener.local_addr()?;
    let sender = path.a.spawn(move || {
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(10))?;
        let (data, start) = (vec![0x5a; 1 << 17], Instant::now());
        while start.elapsed() < TIME {
            stream.write_all(&data)?;
        }
        Ok(())
    });
    let (mut stream, _) = listener.accept()?;
    let (mut buffer, mut bytes, start) = (vec![0; 1 << 17], 0_usize, Instant::now());
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            count => bytes += count,
        }
    }
    let time = start.elapsed();
    let sent = sender.join();
    ensure!(matches!(sent, Ok(Ok(()))), "the sender has failed");
    Ok(bytes as f64 * 8.0 / time.as_secs_f64() / 1e9)
}

/// Round trip times in microseconds.
fn pings(path: &Path) -> Result<Vec<f64>> {
    let (near, far) = (SocketAddr::new(path.a_address, 0), SocketAddr::new(path.b_address, 0));
    let near = path.a.within(move || Ok(UdpSocket::bind(near)?))?;
    let far = path.b.within(move || Ok(UdpSocket::bind(far)?))?;
    near.connect(far.local_addr()?)?;
    near.set_read_timeout(Some(Duration::from_secs(2)))?;
    let echo = std::thread::spawn(move || -> std::io::Result<()> {
        let mut buffer = [0; 64];
        loop {
            let (count, from) = far.recv_from(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            far.send_to(&buffer[..count], from)?;
        }
    });
    let mut times = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let start = Instant::now();
        near.send(&[7; 56])?;
        near.recv(&mut [0; 64])?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    // An empty packet ends the echo.
    near.send(&[])?;
    ensure!(matches!(echo.join(), Ok(Ok(()))), "the echo has failed");
    Ok(times)
}
