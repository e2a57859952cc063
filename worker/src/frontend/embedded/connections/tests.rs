use std::task::Poll;

use futures::{StreamExt as _, poll};
use tokio::io::AsyncReadExt as _;

use super::super::limits::{IDLE_CONNECTION_MAX, SILENCE_MAX};
use super::super::testing::ManualClock;
use super::*;

/// A listener with room for two connections, and clients that have connected to it.
async fn listener(
    clients: usize,
) -> (Arc<ManualClock>, impl Stream<Item = io::Result<Connection<TcpStream>>>, Vec<TcpStream>) {
    let clock = Arc::new(ManualClock::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let clients = (0..clients).map(|_| TcpStream::connect(address));
    let clients = futures::future::try_join_all(clients).await.unwrap();
    (clock.clone(), incoming(listener, 2, clock), clients)
}

// The next connection waits until there is room, and is then served.
#[tokio::test]
async fn no_more_than_the_bound_are_open() {
    let (_clock, incoming, _clients) = listener(3).await;
    let mut incoming = std::pin::pin!(incoming);
    let first = incoming.next().await.unwrap().unwrap();
    let second = incoming.next().await.unwrap().unwrap();
    assert!(poll!(incoming.next()).is_pending());
    drop(first);
    let third = incoming.next().await.unwrap().unwrap();
    drop((second, third));
}

/// Whether a connection has been closed, as its reader sees it.
async fn is_closed(connection: &mut Connection<TcpStream>) -> bool {
    match poll!(Box::pin(connection.read_u8())) {
        Poll::Pending => false,
        Poll::Ready(read) => {
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
            true
        }
    }
}

// Whoever connects and says nothing keeps nobody out; whose call is under way has longer, but not for ever.
#[tokio::test]
async fn who_is_silent_has_to_go() {
    let (clock, incoming, _clients) = listener(4).await;
    let mut incoming = std::pin::pin!(incoming);
    let mut busy = incoming.next().await.unwrap().unwrap();
    let _call = busy.connect_info().call();
    let mut idle = incoming.next().await.unwrap().unwrap();
    clock.advance(IDLE_CONNECTION_MAX);
    assert!(!is_closed(&mut idle).await, "nobody else waits");
    assert!(poll!(incoming.next()).is_pending());
    assert!(is_closed(&mut idle).await);
    assert!(!is_closed(&mut busy).await);
    drop(idle);
    let third = incoming.next().await.unwrap().unwrap();

    third.guest.is_active();
    clock.advance(SILENCE_MAX);
    third.guest.is_active();
    assert!(poll!(incoming.next()).is_pending());
    assert!(is_closed(&mut busy).await);
    drop(busy);
    incoming.next().await.unwrap().unwrap();
}
