//! A TCP proxy that makes the way longer: every byte arrives half a round trip later, in order, at any rate.
//!
//! It delays and does not throttle: what may be under way is up to the peers' windows, as on a real long way. Or it
//! [swallows](DelayingProxy::swallow) everything, and nobody is told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// What is read at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks on their way in one direction: room for what any window allows.
const CHUNKS_MAX: usize = 16 << 10;

/// A proxy in front of one server; it ends, with its connections, when this is dropped.
#[derive(Debug)]
pub struct DelayingProxy {
    address: SocketAddr,
    cut: broadcast::Sender<()>,
    /// How often everything was swallowed: what was connected before that is mute.
    swallowed: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

/// The way of one connection.
#[derive(Clone, Debug)]
struct Way {
    delay: Duration,
    swallowed: Arc<AtomicUsize>,
    /// How often everything had been swallowed when it began.
    before: usize,
}

impl Way {
    fn is_mute(&self) -> bool {
        self.swallowed.load(Ordering::SeqCst) != self.before
    }
}

impl DelayingProxy {
    /// Starts one in front of `target` (`HOST:PORT`), `round_trip` away.
    pub async fn start(target: &str, round_trip: Duration) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("a port")?;
        let address = listener.local_addr().context("the port")?;
        let target = target.to_owned();
        let (cut, _) = broadcast::channel(1);
        let cuts = cut.clone();
        let swallowed = Arc::new(AtomicUsize::new(0));
        let counted = swallowed.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (target, mut cut) = (target.clone(), cuts.subscribe());
                let before = counted.load(Ordering::SeqCst);
                let way = Way { delay: round_trip / 2, swallowed: counted.clone(), before };
                connections.spawn(async move {
                    // A connection that fails ends; both peers see it.
                    tokio::select! {
                        _ = connect(client, &target, way) => {}
                        _ = cut.recv() => {}
                    }
                });
            }
        });
        Ok(Self { address, cut, swallowed, task })
    }

    /// Ends the connections that there are.
    pub fn cut(&self) {
        // There may be none.
        let _ = self.cut.send(());
    }

    /// From here on, nothing that is said on the connections that there are arrives; new ones are as before.
    pub fn swallow(&self) {
        self.swallowed.fetch_add(1, Ordering::SeqCst);
    }

    /// Where it listens, as `HOST:PORT`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for DelayingProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connect(client: TcpStream, target: &str, way: Way) -> Result<()> {
    let server = TcpStream::connect(target).await.with_context(|| target.to_owned())?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::try_join!(pass(from_client, to_server, &way), pass(from_server, to_client, &way))?;
    Ok(())
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: &Way) -> Result<()> {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Bytes)>(CHUNKS_MAX);
    let read = async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK_BYTES);
            if from.read_buf(&mut buffer).await? == 0 || sender.is_closed() {
                return Ok::<_, std::io::Error>(());
            }
            let chunk = buffer.split().freeze();
            if way.is_mute() {
                continue;
            }
            let due = Instant::now() + way.delay;
            if sender.send((due, chunk)).await.is_err() {
                return Ok(());
            }
        }
    };
    let write = async move {
        while let Some((due, chunk)) = receiver.recv().await {
            tokio::time::sleep_until(due).await;
            if !way.is_mute() {
                to.write_all(&chunk).await?;
            }
        }
        to.shutdown().await
    };
    tokio::try_join!(read, write)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    // Everything arrives, in order, both ways, and not before its time.
    #[tokio::test]
    async fn bytes_arrive_later_and_in_order() -> Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let round_trip = Duration::from_millis(20);
        let proxy = DelayingProxy::start(&listener.local_addr()?.to_string(), round_trip).await?;
        let echo = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await?;
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await
        });
        let started = Instant::now();
        let mut stream = TcpStream::connect(proxy.address()).await?;
        let sent: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let (mut read, mut write) = stream.split();
        let mut received = Vec::new();
        let upload = async {
            write.write_all(&sent).await?;
            write.shutdown().await
        };
        tokio::try_join!(upload, read.read_to_end(&mut received))?;
        assert!(started.elapsed() >= round_trip);
        assert!(sent == received);
        echo.await??;
        Ok(())
    }
}
