//! The rules of the protocol, each by its name.

use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use longshore_cas_store::digest::DigestFunction;
use longshore_proto::bots::{BotStatus, LeaseState};
use longshore_proto::{Message as _, reapi, time};
use longshore_tests::fake_bots::{Call, DIGEST_URL, FakeBots, Fault, Handshake};
use longshore_worker::action::{Phase, Progress};
use tonic::{Code, Status};

use super::{
    BOT, StoppedClock, action, code, exit_code, join, join_with, link, next, no_mistakes, response, serve_one,
};

fn is_first(call: &Call) -> bool {
    call.parent.is_some()
}

/// The state in which a call lists a lease.
fn state_of(call: &Call, id: &str) -> Option<LeaseState> {
    call.session.leases.iter().find(|lease| lease.id == id).map(longshore_proto::bots::Lease::state)
}

/// A session names its bot, its instance and its properties.
#[tokio::test]
async fn rwb_01() -> Result<()> {
    let server = FakeBots::start(Handshake::Given).await?;
    let _source = join(&server, 1)?;
    let call = server.called(is_first).await;
    assert_eq!(call.parent.as_deref(), Some("main"));
    assert_eq!((call.session.bot_id.as_str(), call.session.status()), (BOT, BotStatus::Ok));
    let worker = call.session.worker.context("a worker")?;
    let device = worker.devices.first().context("a device")?;
    let pairs: Vec<_> =
        device.properties.iter().map(|pair| (pair.key.as_str(), pair.value.as_str())).collect();
    assert_eq!(pairs, [("ISA", "a"), ("ISA", "b")]);
    let update = server.called(|call| !is_first(call)).await;
    assert_eq!(update.session.name, "main/session-1");
    no_mistakes(&server)
}

/// The capacity is how many leases run at once.
#[tokio::test]
async fn rwb_02() -> Result<()> {
    let server = FakeBots::start(Handshake::Given).await?;
    for salt in 0..4 {
        server.submit(&salt.to_string(), &action(salt));
    }
    let source = join(&server, 3)?;
    let mut assignments = Vec::new();
    for _ in 0..3 {
        assignments.push(next(&*source).await?);
    }
    let call = server.called(|call| call.session.leases.len() == 3).await;
    let configs = call.session.worker.context("a worker")?.configs;
    assert_eq!((configs[0].key.as_str(), configs[0].value.as_str()), ("capacity", "3"));
    // The fourth one comes when there is room.
    source.complete(assignments.remove(0).operation, response(Code::Ok, 0)).await;
    next(&*source).await?;
    no_mistakes(&server)
}

/// Every call has a deadline, and so a server that waits for 80 % of it hears of the bot before its session expires.
#[tokio::test]
async fn rwb_04() -> Result<()> {
    let server = FakeBots::start(Handshake::Given).await?;
    let source = join(&server, 2)?;
    let idle = server.called(|call| !is_first(call)).await;
    server.submit("a", &action(0));
    let _assignment = next(&*source).await?;
    let busy = server.called(|call| state_of(call, "a").is_some()).await;
    // Where something runs, the deadline is shorter: a lease that is taken back wakes nobody.
    assert_eq!(idle.headers.get("grpc-timeout").context("a deadline")?, "30000000u");
    assert_eq!(busy.headers.get("grpc-timeout").context("a deadline")?, "4000000u");
    no_mistakes(&server)
}

/// The version is echoed, and a lease is answered as active, whether it was given or offered.
#[tokio::test]
async fn rwb_05() -> Result<()> {
    for handshake in [Handshake::Given, Handshake::Offered] {
        let server = FakeBots::start(handshake).await?;
        server.submit("a", &action(0));
        let source = join(&server, 1)?;
        let assignment = next(&*source).await?;
        server.accepted("a").await;
        source.complete(assignment.operation, response(Code::Ok, 3)).await;
        assert_eq!(exit_code(&server.finished("a").await)?, 3);
        server.submit("b", &action(1));
        serve_one(&*source, 4).await?;
        assert_eq!(exit_code(&server.finished("b").await)?, 4);
        let calls = server.calls();
        assert_eq!(calls[0].session.version, "");
        assert!(calls[1..].iter().all(|call| !call.session.version.is_empty()), "{calls:?}");
        no_mistakes(&server)?;
    }
    Ok(())
}

/// A payload is an Action, whose digest is that of its bytes as they came, or a Digest.
#[tokio::test]
async fn rwb_06() -> Result<()> {
    let server = FakeBots::start(Handshake::Given).await?;
    let source = join(&server, 1)?;
    server.submit("action", &action(0));
    let assignment = next(&*source).await?;
    assert_eq!(assignment.action_digest, DigestFunction::Sha256.digest(&action(0).encode_to_vec()));
    assert_eq!(assignment.action, Some(action(0)));
    source.complete(assignment.operation, response(Code::Ok, 0)).await;

    let digest = DigestFunction::Sha256.digest(b"an action");
    server.submit_payload("digest", DIGEST_URL, digest.to_wire().encode_to_vec());
    let assignment = next(&*source).await?;
    assert_eq!((assignment.action_digest, assignment.action), (digest, None));
    source.complete(assignment.operation, response(Code::Ok, 0)).await;

    // Which function a digest is made with is not said; that the server names the digest tells.
    server.set_function(DigestFunction::Blake3);
    server.submit("named", &action(1));
    let assignment = next(&*source).await?;
    assert_eq!(assignment.action_digest, DigestFunction::Blake3.digest(&action(1).encode_to_vec()));
    source.complete(assignment.operation, response(Code::Ok, 0)).await;

    server.submit_payload("neither", "type.googleapis.com/google.protobuf.Empty", Vec::new());
    assert_eq!(code(&server.finished("neither").await), Code::InvalidArgument);
    no_mistakes(&server)
}

/// A result has a status; one that is tried again comes back to the same bot as another attempt.
#[tokio::test]
async fn rwb_07() -> Result<()> {
    let server = FakeBots::start(Handshake::Given).await?;
    let source = join(&server, 1)?;
    for (salt, final_code) in [(0, Code::Ok), (1, Code::DeadlineExceeded), (2, Code::FailedPrecondition)] {
        let id = salt.to_string();
        server.submit(&id, &action(salt));
        let assignment = next(&*source).await?;
        source.complete(assignment.operation, response(final_code, 5)).await;
        let lease = server.finished(&id).await;
        assert_eq!((code(&lease), exit_code(&lease)?), (final_code, 5));
    }
    for (salt, passing) in [(3, Code::Internal), (4, Code::Unavailable)] {
        let id = salt.to_string();
        server.submit(&id, &action(salt));
        let first = next(&*source).await?;
        source.complete(first.operation.clone(), response(passing, 5)).await;
        let second = next(&*source).await?;
        assert_ne!(first.operation, second.operation);
        assert_eq!(first.action_digest, second.action_digest);
        source.complete(second.operation, response(Code::Ok, 6)).await;
        assert_eq!(exit_code(&server.finished(&id).await)?, 6);
        assert_eq!(server.results(&id).len(), 2, "the first result was not sent for the second attempt");
    }
    no_mistakes(&server)
}

// The server may try again at once, and by this very bot: what it is short of is not there any sooner. Others' results
// do not wait for that.
#[tokio::test]
async fn rwb_07_of_a_shortage() -> Result<()> {
    let server = FakeBots::start(Handshake::Given).await?;
    let clock = Arc::new(StoppedClock::default());
    let source = join_with(link(server.uri())?, 2, clock.clone());
    server.submit("a", &action(0));
    let short = next(&*source).await?;
    server.submit("b", &action(1));
    let other = next(&*source).await?;
    let is_held_back = async {
        source.complete(other.operation, response(Code::Ok, 3)).await;
        assert_eq!(exit_code(&server.finished("b").await)?, 3);
        assert_eq!(server.results("a").len(), 0);
        clock.go_on();
        anyhow::Ok(())
    };
    let complete = source.complete(short.operation, response(Code::Unavailable, 0));
    let ((), is_held_back) = futures::join!(complete, is_held_back);
    is_held_back?;
    assert_eq!(server.results("a").iter().map(code).collect::<Vec<_>>(), [Code::Unavailable]);
    no_mistakes(&server)
}

/// A lease that is gone from a reply is cancelled, and nothing is said of it any more.
#[tokio::test]
async fn rwb_09() -> Result<()> {
    let server = FakeBots::start(Handshake::Given).await?;
    server.submit("a", &action(0));
    let source = join(&server, 2)?;
    let assignment = next(&*source).await?;
    server.accepted("a").await;
    server.take_back("a");
    assignment.cancelled.cancelled().await;
    // Whatever it comes to now is nobody's affair, and the source goes on.
    source.complete(assignment.operation, response(Code::Cancelled, -1)).await;
    server.submit("b", &action(1));
    serve_one(&*source, 0).await?;
    assert_eq!(server.results("a").len(), 0);
    no_mistakes(&server)
}

/// Progress is reported in a header of its own for each lease.
#[tokio::test]
async fn rwb_10() -> Result<()> {
    let server = FakeBots::start(Handshake::Given).await?;
    server.submit("a", &action(0));
    let source = join(&server, 1)?;
    let assignment = next(&*source).await?;
    let metadata = reapi::ExecutedActionMetadata {
        worker: BOT.to_owned(),
        input_fetch_start_timestamp: Some(time::timestamp(SystemTime::now())),
        ..Default::default()
    };
    let progress = Progress { phase: Phase::FetchingInputs, metadata: metadata.clone() };
    assignment.progress.send_replace(progress);
    let header = "partial-execution-metadata-a-bin";
    let call = server.called(|call| call.headers.contains_key(header)).await;
    let value = call.headers.get_bin(header).context("the header")?.to_bytes()?;
    assert_eq!(reapi::ExecutedActionMetadata::decode(value)?, metadata);
    no_mistakes(&server)
}

/// A bot that leaves says so, finishes what it has, takes nothing on, and is gone once that is known.
#[tokio::test]
async fn rwb_11() -> Result<()> {
    let server = FakeBots::start(Handshake::Given).await?;
    server.submit("a", &action(0));
    let source = join(&server, 2)?;
    let assignment = next(&*source).await?;
    server.accepted("a").await;
    source.drain();
    assert!(source.next().await.is_none());
    let leaving = server.called(|call| call.session.status() == BotStatus::BotTerminating).await;
    assert_eq!(state_of(&leaving, "a"), Some(LeaseState::Active));
    server.submit("b", &action(1));
    source.complete(assignment.operation, response(Code::Ok, 7)).await;
    assert_eq!(exit_code(&server.finished("a").await)?, 7);
    source.close().await;
    let calls = server.calls();
    let last = &calls.last().context("a call")?.session;
    assert_eq!((last.status(), last.leases.len()), (BotStatus::BotTerminating, 0));
    assert_eq!(server.results("b").len(), 0, "it was left for others");
    no_mistakes(&server)
}

// A lease that was given before the server knew that the bot leaves goes back, with the last words of the bot.
#[tokio::test]
async fn rwb_11_of_a_lease_that_crosses_the_farewell() -> Result<()> {
    let server = FakeBots::start(Handshake::Given).await?;
    let source = join(&server, 1)?;
    server.called(|call| !is_first(call)).await;
    source.drain();
    server.called(|call| call.session.status() == BotStatus::BotTerminating).await;
    server.submit("a", &action(0));
    server.once(Fault::Crossed);
    source.close().await;
    assert_eq!(server.results("a").iter().map(code).collect::<Vec<_>>(), [Code::Unavailable]);
    no_mistakes(&server)
}

/// A server that does not know the session ends what ran in it, and gets another session.
#[tokio::test]
async fn rwb_12() -> Result<()> {
    for status in [
        Status::not_found("no such session"),
        Status::invalid_argument("Bot does not exist"),
        Status::data_loss("closed"),
    ] {
        let server = FakeBots::start(Handshake::Given).await?;
        server.submit("a", &action(0));
        let source = join(&server, 1)?;
        let first = next(&*source).await?;
        server.once(Fault::Refuse(status));
        first.cancelled.cancelled().await;
        source.complete(first.operation, response(Code::Cancelled, -1)).await;
        // The same bot gets its lease again.
        serve_one(&*source, 8).await?;
        assert_eq!(exit_code(&server.finished("a").await)?, 8);
        assert_eq!(server.calls().iter().filter(|call| is_first(call)).count(), 2);
        no_mistakes(&server)?;
    }
    Ok(())
}
