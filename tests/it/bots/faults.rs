//! What goes wrong on the way to the server and on its side: no result is lost, and none is told twice.

use std::time::Duration;

use anyhow::Result;
use longshore_proto::bots::LeaseState;
use longshore_proto::reapi::ExecuteResponse;
use longshore_tests::fake_bots::{FakeBots, Fault, Handshake};
use longshore_tests::proxy::DelayingProxy;
use tokio::net::TcpListener;
use tonic::{Code, Status};

use super::{action, code, exit_code, join, join_at, next, no_mistakes, response, serve_one};

/// Everything that can go wrong with a call and pass.
fn passing() -> [Fault; 5] {
    [
        Fault::Refuse(Status::unavailable("not there")),
        Fault::Refuse(Status::internal("broken")),
        Fault::Lose(Status::unavailable("the reply is lost")),
        Fault::Lose(Status::unknown("the reply is lost")),
        Fault::Stale,
    ]
}

// The first call, the one that accepts, a heartbeat, the one with the result and the one after: whichever is lost, the
// action runs once, goes on, and its result arrives once.
#[tokio::test]
async fn a_call_is_lost_at_any_point() -> Result<()> {
    for handshake in [Handshake::Given, Handshake::Offered] {
        for fault in passing() {
            let server = FakeBots::start(handshake).await?;
            if !matches!(fault, Fault::Stale) {
                server.once(fault.clone());
            }
            let source = join(&server, 1)?;
            server.submit("a", &action(0));
            let assignment = next(&*source).await?;
            server.once(fault.clone());
            server.faults_left(0).await;
            assert!(!assignment.cancelled.is_cancelled(), "{handshake:?} {fault:?}");
            server.once(fault.clone());
            server.once(fault.clone());
            source.complete(assignment.operation, response(Code::Ok, 3)).await;
            server.faults_left(0).await;
            assert_eq!(exit_code(&server.finished("a").await)?, 3, "{handshake:?} {fault:?}");
            assert_eq!(server.results("a").len(), 1, "{handshake:?} {fault:?}");
            server.submit("b", &action(1));
            serve_one(&*source, 4).await?;
            assert_eq!(exit_code(&server.finished("b").await)?, 4, "{handshake:?} {fault:?}");
            no_mistakes(&server)?;
        }
    }
    Ok(())
}

// A server that takes a call and says nothing is given up in time, and asked again.
#[tokio::test]
async fn a_server_falls_silent() -> Result<()> {
    let server = FakeBots::start(Handshake::Given).await?;
    server.submit("a", &action(0));
    let source = join(&server, 1)?;
    let assignment = next(&*source).await?;
    server.once(Fault::Silence);
    server.faults_left(0).await;
    source.complete(assignment.operation, response(Code::Ok, 3)).await;
    assert_eq!(exit_code(&server.finished("a").await)?, 3);
    no_mistakes(&server)
}

// A result that is there when nobody listens waits for somebody.
#[tokio::test]
async fn a_result_outlasts_an_outage() -> Result<()> {
    let server = FakeBots::start(Handshake::Given).await?;
    server.submit("a", &action(0));
    let source = join(&server, 1)?;
    let assignment = next(&*source).await?;
    for _ in 0..5 {
        server.once(Fault::Refuse(Status::unavailable("not there")));
    }
    source.complete(assignment.operation, response(Code::Ok, 3)).await;
    server.faults_left(0).await;
    assert_eq!(exit_code(&server.finished("a").await)?, 3);
    assert_eq!(server.results("a").len(), 1);
    no_mistakes(&server)
}

// A way on which nothing arrives any more is found out: what was to be said on it is said on another one.
#[tokio::test]
async fn a_server_vanishes() -> Result<()> {
    let server = FakeBots::start(Handshake::Given).await?;
    let proxy = DelayingProxy::start(server.uri().trim_start_matches("grpc://"), Duration::ZERO).await?;
    server.submit("a", &action(0));
    let source = join_at(&format!("grpc://{}", proxy.address()), 1)?;
    let assignment = next(&*source).await?;
    server.accepted("a").await;
    proxy.swallow();
    source.complete(assignment.operation, response(Code::Ok, 3)).await;
    assert_eq!(exit_code(&server.finished("a").await)?, 3);
    assert_eq!(server.results("a").len(), 1);
    no_mistakes(&server)
}

// A worker may be started before its scheduler.
#[tokio::test]
async fn a_server_comes_later() -> Result<()> {
    let place = TcpListener::bind("127.0.0.1:0").await?;
    let address = place.local_addr()?;
    drop(place);
    let source = join_at(&format!("grpc://{address}"), 1)?;
    let server = FakeBots::start_at(&address.to_string(), Handshake::Given).await?;
    server.submit("a", &action(0));
    serve_one(&*source, 3).await?;
    assert_eq!(exit_code(&server.finished("a").await)?, 3);
    no_mistakes(&server)
}

// What was leased in a session that is forgotten comes again in the next one; the first run of it has been ended.
#[tokio::test]
async fn a_server_forgets_the_session_in_the_middle() -> Result<()> {
    for handshake in [Handshake::Given, Handshake::Offered] {
        let server = FakeBots::start(handshake).await?;
        server.submit("a", &action(0));
        let source = join(&server, 1)?;
        let first = next(&*source).await?;
        server.accepted("a").await;
        server.forget();
        first.cancelled.cancelled().await;
        let second = next(&*source).await?;
        // The first run ends late: that is not the second one's result.
        source.complete(first.operation, response(Code::Cancelled, -1)).await;
        source.complete(second.operation, response(Code::Ok, 3)).await;
        assert_eq!(exit_code(&server.finished("a").await)?, 3);
        assert_eq!(server.results("a").len(), 1);
        no_mistakes(&server)?;
    }
    Ok(())
}

// A lease that vanishes in the very moment in which its result is there.
#[tokio::test]
async fn a_lease_vanishes_with_its_result_under_way() -> Result<()> {
    let server = FakeBots::start(Handshake::Given).await?;
    server.submit("a", &action(0));
    let source = join(&server, 1)?;
    let assignment = next(&*source).await?;
    server.accepted("a").await;
    server.take_back("a");
    source.complete(assignment.operation, response(Code::Ok, 3)).await;
    server.submit("b", &action(1));
    serve_one(&*source, 4).await?;
    assert_eq!(exit_code(&server.finished("b").await)?, 4);
    no_mistakes(&server)
}

// Results that are there at once go out together or one after the other, each once.
#[tokio::test]
async fn many_results_at_once() -> Result<()> {
    const LEASES: u8 = 32;
    let server = FakeBots::start(Handshake::Given).await?;
    for salt in 0..LEASES {
        server.submit(&format!("{salt:03}"), &action(salt));
    }
    let source = join(&server, 8)?;
    let serve = || async {
        while let Some(assignment) = source.next().await {
            let salt = assignment.action.expect("it came along").salt[0];
            source.complete(assignment.operation, response(Code::Ok, salt.into())).await;
        }
    };
    let finish = async {
        for salt in 0..LEASES {
            let id = format!("{salt:03}");
            assert_eq!(exit_code(&server.finished(&id).await)?, i32::from(salt));
            assert_eq!(server.results(&id).len(), 1);
        }
        source.drain();
        Ok::<_, anyhow::Error>(())
    };
    let (_, finished) = futures::join!(futures::future::join_all((0..8).map(|_| serve())), finish);
    finished?;
    source.close().await;
    no_mistakes(&server)
}

/// A result of that many bytes or a few more.
fn large_response(size_bytes: usize) -> ExecuteResponse {
    let mut response = response(Code::Ok, 3);
    response.result.get_or_insert_default().stdout_raw = vec![b'x'; size_bytes];
    response
}

// RWB-07: a server takes 4 MiB. Results that are larger together arrive one after the other, and one that is larger by
// itself does not keep the others from arriving.
#[tokio::test]
async fn results_that_are_too_large_for_a_call_do_not_silence_the_bot() -> Result<()> {
    let server = FakeBots::start(Handshake::Given).await?;
    let source = join(&server, 3)?;
    let sizes_bytes = [("a", 3 << 20), ("b", 5 << 20), ("c", 3 << 20)];
    let mut assignments = Vec::new();
    for (salt, (id, _)) in (0..).zip(sizes_bytes) {
        server.submit(id, &action(salt));
        assignments.push(next(&*source).await?);
    }
    let complete = assignments.into_iter().zip(sizes_bytes).map(|(assignment, (_, size_bytes))| {
        source.complete(assignment.operation, large_response(size_bytes))
    });
    // A result that never arrives completes nothing: it is the server that loses its patience.
    let finish = async {
        for (id, expected) in [("a", Code::Ok), ("b", Code::ResourceExhausted), ("c", Code::Ok)] {
            assert_eq!(code(&server.finished(id).await), expected, "{id}");
            assert_eq!(server.results(id).len(), 1, "{id}");
        }
    };
    futures::join!(futures::future::join_all(complete), finish);
    no_mistakes(&server)
}

// A full session is answered at once: it must not be asked without end.
#[tokio::test]
async fn a_full_bot_does_not_flood_its_server() -> Result<()> {
    let server = FakeBots::start(Handshake::Given).await?;
    server.submit("a", &action(0));
    let source = join(&server, 1)?;
    let assignment = next(&*source).await?;
    let is_heartbeat = |leases: &[longshore_proto::bots::Lease]| {
        leases.iter().any(|lease| lease.state() == LeaseState::Active)
    };
    let heartbeats = || server.calls().iter().filter(|call| is_heartbeat(&call.session.leases)).count();
    let started = std::time::Instant::now();
    while heartbeats() < 3 {
        server.called_since(server.calls().len()).await;
    }
    // The pause alone is counted: a slow machine makes it longer, and nothing makes it shorter.
    assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());
    source.complete(assignment.operation, response(Code::Ok, 3)).await;
    no_mistakes(&server)
}

// Who has no session has none to leave.
#[tokio::test]
async fn a_bot_leaves_a_server_that_was_never_there() -> Result<()> {
    let source = join_at("grpc://127.0.0.1:1", 1)?;
    source.drain();
    assert!(source.next().await.is_none());
    source.close().await;
    Ok(())
}
