//! A TCP server that sends back what it gets. Listens on `$PORT`, 7000 by default.
//!
//! `tcp-echo connect HOST PORT TEXT` is the client: sends a line and prints the answer. `tcp-echo datagram HOST
//! PORT TEXT` does the same over UDP.

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    process::exit,
};

fn main() {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => serve(),
        ["connect", host, port, text] => connect(host, port, text),
        ["datagram", host, port, text] => datagram(host, port, text),
        _ => {
            eprintln!("usage: tcp-echo [connect|datagram HOST PORT TEXT]");
            exit(2)
        }
    };
    if let Err(error) = result {
        eprintln!("{error}");
        exit(1);
    }
}

/// One connection at a time: WASI 0.2 has no threads, and this is a sample.
fn serve() -> std::io::Result<()> {
    let port = env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(7000);
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (mut stream, peer) = listener.accept()?;
        println!("connection from {peer}");
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => stream.write_all(&buffer[..length])?,
                Err(error) => {
                    eprintln!("{peer}: {error}");
                    break;
                }
            }
        }
    }
}

fn connect(host: &str, port: &str, text: &str) -> std::io::Result<()> {
    let port = port.parse().map_err(|_| std::io::Error::other("not a port"))?;
    let mut stream = TcpStream::connect((host, port))?;
    println!("connected from {}", stream.local_addr()?);
    writeln!(stream, "{text}")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    print!("{line}");
    Ok(())
}

fn datagram(host: &str, port: &str, text: &str) -> std::io::Result<()> {
    let port: u16 = port.parse().map_err(|_| std::io::Error::other("not a port"))?;
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.send_to(text.as_bytes(), (host, port))?;
    let mut buffer = [0; 4096];
    let (length, peer) = socket.recv_from(&mut buffer)?;
    println!("{} from {peer}", String::from_utf8_lossy(&buffer[..length]));
    Ok(())
}
