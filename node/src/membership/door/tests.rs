//! Who gets in, what passes, and how it ends.

use tokio::io::AsyncReadExt;

use super::*;

/// A door at an address of its own, and its server. `pods` is for the ranges.
async fn door(pods: &str) -> (Door, TcpListener) {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", server.local_addr().unwrap()).parse().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    (Door::new(listener, pods.parse().unwrap(), address).unwrap(), server)
}

/// Runs `test` with the address of a running door and its server.
async fn with<T>(door: (Door, TcpListener), test: impl AsyncFnOnce(SocketAddr, &TcpListener) -> T) -> T {
    let ((door, server), stop) = (door, CancellationToken::new());
    let at = door.listener.local_addr().unwrap();
    let places = Arc::clone(&door.places);
    let both = async {
        let result = test(at, &server).await;
        stop.cancel();
        result
    };
    let ((), result) = tokio::join!(door.run(stop.clone()), both);
    assert!(places.taken.lock().unwrap().is_empty(), "all places are free again");
    result
}

fn broken(read: io::Result<usize>) -> bool {
    read.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn bytes_pass_both_ways_and_so_do_ends() {
    with(door("10.42.3.0/24").await, async |at, server: &TcpListener| {
        let mut client = TcpStream::connect(at).await.unwrap();
        let (mut accepted, _) = server.accept().await.unwrap();
        let (question, answer) = (vec![b'q'; 3 * CHUNK + 1], vec![b'a'; 5 * CHUNK + 7]);
        let ask = async {
            client.write_all(&question).await.unwrap();
            client.shutdown().await.unwrap();
            let mut found = Vec::new();
            client.read_to_end(&mut found).await.unwrap();
            found
        };
        let serve = async {
            let mut found = Vec::new();
            accepted.read_to_end(&mut found).await.unwrap();
            accepted.write_all(&answer).await.unwrap();
            drop(accepted);
            found
        };
        let (answered, asked) = tokio::join!(ask, serve);
        assert!(asked == question && answered == answer);
    })
    .await;
}

#[tokio::test]
async fn only_this_nodes_own_get_in() {
    let (door, _server) = door("10.42.3.0/24").await;
    for (from, expected) in [
        ("10.42.3.7", true),
        ("10.42.3.1", true),
        ("127.0.0.1", true),
        // Pods of other nodes, and others on the network.
        ("10.42.4.7", false),
        ("192.0.2.7", false),
        ("2001:db8::1", false),
    ] {
        assert_eq!(door.admit(from.parse().unwrap()).is_some(), expected, "{from}");
    }
}

#[tokio::test]
async fn there_are_so_many_places_and_nobody_has_them_all() {
    let (door, server) = door("10.42.3.0/24").await;
    let places = Arc::new(Places { all: 3, of_one: 2, taken: Mutex::default() });
    let take = |from: &str| Places::take(&places, from.parse().unwrap());
    let held = [take("10.42.3.7"), take("10.42.3.7")];
    assert!(held.iter().all(Option::is_some) && take("10.42.3.7").is_none());
    let other = take("10.42.3.8").unwrap();
    assert!(take("10.42.3.9").is_none());
    drop((held, other));
    let few = Door { places, ..door };
    with((few, server), async |at, server: &TcpListener| {
        let mut held = Vec::new();
        for _ in 0..2 {
            held.push((TcpStream::connect(at).await.unwrap(), server.accept().await.unwrap()));
        }
        let mut more = TcpStream::connect(at).await.unwrap();
        assert!(broken(more.read(&mut [0]).await));
    })
    .await;
}

#[tokio::test]
async fn who_is_silent_is_let_go() {
    let short = Duration::from_millis(50);
    for (silence, ends) in [
        (Silence { open: short, half: short }, false),
        (Silence { open: Duration::from_secs(3_600), half: short }, true),
    ] {
        let (door, server) = door("10.42.3.0/24").await;
        with((Door { silence, ..door }, server), async |at, server: &TcpListener| {
            let mut client = TcpStream::connect(at).await.unwrap();
            let (mut accepted, _) = server.accept().await.unwrap();
            if ends {
                client.shutdown().await.unwrap();
                assert_eq!(accepted.read(&mut [0]).await.unwrap(), 0);
            }
            // Who has read an end reads nothing more.
            assert!(broken(client.read(&mut [0]).await));
            assert!(ends || broken(accepted.read(&mut [0]).await));
        })
        .await;
    }
}

#[tokio::test]
async fn who_meets_no_server_is_told() {
    let (door, server) = door("10.42.3.0/24").await;
    let stop = CancellationToken::new();
    let at = door.listener.local_addr().unwrap();
    drop(server);
    let client = async {
        let mut client = TcpStream::connect(at).await.unwrap();
        let read = client.read(&mut [0]).await;
        stop.cancel();
        broken(read)
    };
    let ((), broken) = tokio::join!(door.run(stop.clone()), client);
    assert!(broken);
}

#[tokio::test]
async fn what_is_left_ends_with_the_node() {
    let (door, server) = door("10.42.3.0/24").await;
    let at = door.listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let test = async {
        let mut client = TcpStream::connect(at).await.unwrap();
        let held = server.accept().await.unwrap();
        stop.cancel();
        let read = client.read(&mut [0]).await;
        drop(held);
        read
    };
    let ((), read) = tokio::join!(door.run(stop.clone()), test);
    assert!(matches!(read, Ok(0)) || broken(read));
}
