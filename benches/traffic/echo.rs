//! A TCP connection to something that sends back what it gets.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{
    overlay::{load::Figures, namespace::Place, tunnels::Path},
    statistics::percentile,
};

const TIME: Duration = Duration::from_secs(2);
const PINGS: usize = 2_000;

/// From `a` of a path to an echo in `b` that is a thread of this program.
pub(super) fn measure_native(path: &Path) -> Result<Figures> {
    let to = SocketAddr::new(path.b_address, 0);
    let listener = path.b.within(move || Ok(TcpListener::bind(to)?))?;
    let target = listener.local_addr()?;
    let server = std::thread::spawn(move || (0..2).try_for_each(|_| serve(listener.accept()?.0)));
    let figures = measure(&path.a, target)?;
    ensure!(matches!(server.join(), Ok(Ok(()))), "the echo has failed");
    Ok(figures)
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    // As much at a time as the component takes.
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count])?,
        }
    }
}

/// From `place` to the echo at `target`: what comes back in a stream at full speed, and round trips.
pub(super) fn measure(place: &Place, target: SocketAddr) -> Result<Figures> {
    let connect = move || {
        let stream = TcpStream::connect_timeout(&target, Duration::from_secs(10))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        anyhow::Ok(stream)
    };
    let mut times = pings(place.within(connect)?)?;
    let gigabits = stream(place.within(connect)?)?;
    Ok(Figures { gigabits, p50: percentile(&mut times, 500), p99: percentile(&mut times, 990) })
}

/// Gigabits per second that come back.
fn stream(mut stream: TcpStream) -> Result<f64> {
    let mut writing = stream.try_clone()?;
    let start = Instant::now();
    let sender = std::thread::spawn(move || -> std::io::Result<()> {
        let data = vec![0x5a; 1 << 16];
        while start.elapsed() < TIME {
            writing.write_all(&data)?;
        }
        writing.shutdown(Shutdown::Write)
    });
    let (mut buffer, mut bytes) = (vec![0; 1 << 16], 0_usize);
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            count => bytes += count,
        }
    }
    let time = start.elapsed();
    ensure!(matches!(sender.join(), Ok(Ok(()))), "the sender has failed");
    Ok(bytes as f64 * 8.0 / time.as_secs_f64() / 1e9)
}

/// Round trip times in microseconds.
fn pings(mut stream: TcpStream) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let start = Instant::now();
        stream.write_all(&[7; 56])?;
        stream.read_exact(&mut [0; 56])?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}
