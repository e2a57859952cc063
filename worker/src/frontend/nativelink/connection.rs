//! The stream to the scheduler: made, kept alive, and made again.

use std::sync::Arc;
use std::time::Duration;

use longshore_proto::nativelink::connect_worker_request::Property;
use longshore_proto::nativelink::update_for_scheduler::Update as ToScheduler;
use longshore_proto::nativelink::update_for_worker::Update as ToWorker;
use longshore_proto::nativelink::worker_api_client::WorkerApiClient;
use longshore_proto::nativelink::{
    ConnectWorkerRequest, GoingAwayRequest, KeepAliveRequest, UpdateForScheduler, UpdateForWorker,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::Shared;
use super::request::{Refused, parse};
use crate::connect::reason;
use crate::frontend::Backoff;

/// How often the scheduler hears that the worker lives: after 5 s without it throws the worker out.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// How long it may take until the scheduler has taken the worker on.
const REGISTER_TIME_MAX: Duration = Duration::from_secs(20);
/// How long the scheduler may take to end a stream that the worker leaves.
const FAREWELL_TIME_MAX: Duration = Duration::from_secs(3);
/// The first pause before the stream is made again.
const RETRY_PAUSE_FIRST: Duration = Duration::from_millis(100);
/// The longest such pause.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(10);
/// A stream that has lasted so long was a success.
const STEADY_TIME_MIN: Duration = Duration::from_secs(10);
/// Messages that the scheduler has not read yet; more than that, and it does not read.
const MESSAGES_MAX: usize = 1024;

/// How a stream ended.
enum End {
    /// As the worker wanted.
    Left,
    /// By itself, and why.
    Lost(String),
}

/// Keeps the worker registered until it leaves.
pub(super) async fn drive(shared: Arc<Shared>) {
    let clock = shared.options.clock.clone();
    let mut backoff = Backoff::new(RETRY_PAUSE_FIRST, RETRY_PAUSE_MAX);
    loop {
        let began = clock.now();
        let end = serve(&shared).await;
        let now = clock.now();
        shared.session.lock().lost(now);
        match end {
            Ok(()) | Err(End::Left) => break,
            Err(End::Lost(reason)) => {
                let running = shared.session.lock().running();
                tracing::warn!(scheduler = shared.options.link.origin(), running, reason, "no stream");
            }
        }
        if now.duration_since(began).is_ok_and(|lasted| lasted >= STEADY_TIME_MIN) {
            backoff.succeeded();
        }
        tokio::select! {
            () = clock.sleep(backoff.failed()) => {}
            () = nothing_to_deliver(&shared) => break,
        }
    }
    shared.gone.cancel();
}

/// Completes when the worker wants to leave, and has nothing to come back for.
async fn nothing_to_deliver(shared: &Shared) {
    shared.leaving.cancelled().await;
    if shared.session.lock().undelivered() > 0 {
        std::future::pending::<()>().await;
    }
}

/// One stream, from its beginning to its end.
async fn serve(shared: &Shared) -> Result<(), End> {
    let clock = &shared.options.clock;
    let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
    let mut stream = tokio::select! {
        stream = register(shared, &sender, receiver) => stream?,
        () = clock.sleep(REGISTER_TIME_MAX) => return Err(End::Lost("no answer".to_owned())),
        () = nothing_to_deliver(shared) => return Err(End::Left),
    };
    shared.session.lock().registered(clock.now());

    let mut beat = clock.sleep(KEEP_ALIVE_INTERVAL);
    loop {
        tokio::select! {
            message = stream.message() => receive(shared, message)?,
            () = shared.changed.notified() => {}
            () = &mut beat => {
                beat = clock.sleep(KEEP_ALIVE_INTERVAL);
                shared.session.lock().tick(clock.now());
                send(&sender, ToScheduler::KeepAliveRequest(KeepAliveRequest {}))?;
            }
            () = nothing_to_deliver(shared) => break,
        }
        flush(shared, &sender)?;
    }
    leave(shared, sender, stream).await
}

/// Opens a stream, and waits until the scheduler has taken the worker on.
async fn register(
    shared: &Shared,
    sender: &mpsc::Sender<UpdateForScheduler>,
    receiver: mpsc::Receiver<UpdateForScheduler>,
) -> Result<Streaming<UpdateForWorker>, End> {
    let options = &shared.options;
    let property = |(name, value): &(String, String)| Property { name: name.clone(), value: value.clone() };
    let hello = ConnectWorkerRequest {
        properties: options.platform.iter().map(property).collect(),
        worker_id_prefix: format!("{}-", options.worker_name),
        // Zero would be no bound.
        max_inflight_tasks: options.capacity.max(1) as u64,
    };
    send(sender, ToScheduler::ConnectWorkerRequest(hello))?;
    let call = async {
        let request = options.link.request(ReceiverStream::new(receiver)).await?;
        let mut client = WorkerApiClient::new(options.link.channel());
        let mut stream = client.connect_worker(request).await?.into_inner();
        match stream.message().await?.and_then(|message| message.update) {
            Some(ToWorker::ConnectionResult(result)) => Ok((stream, result.worker_id)),
            _ => Err(Status::internal("the scheduler did not begin with the worker's id")),
        }
    };
    let (stream, worker_id) = call.await.map_err(|status| lost(&status))?;
    tracing::info!(scheduler = options.link.origin(), worker_id, "registered");
    Ok(stream)
}

/// Takes in what the scheduler says, or its silence.
fn receive(shared: &Shared, message: Result<Option<UpdateForWorker>, Status>) -> Result<(), End> {
    let Some(message) = message.map_err(|status| lost(&status))? else {
        return Err(End::Lost("the scheduler ended it".to_owned()));
    };
    let now = shared.options.clock.now();
    match message.update {
        Some(ToWorker::StartAction(start)) => {
            match parse(start, now) {
                Ok(request) => shared.session.lock().start(request, now),
                Err(Refused { operation, instance_name, failure }) => {
                    tracing::warn!(operation, "not run: {}", failure.message());
                    shared.session.lock().refuse(operation, instance_name, &failure);
                }
            }
            shared.arrived.notify_one();
        }
        Some(ToWorker::KillOperationRequest(kill)) => shared.session.lock().kill(&kill.operation_id),
        Some(ToWorker::Disconnect(_)) => {
            return Err(End::Lost("the scheduler dropped this worker".to_owned()));
        }
        Some(ToWorker::KeepAliveResponse(_) | ToWorker::ConnectionResult(_)) | None => {}
    }
    Ok(())
}

/// Sends what the session has to say.
fn flush(shared: &Shared, sender: &mpsc::Sender<UpdateForScheduler>) -> Result<(), End> {
    let next = || shared.session.lock().next_message();
    while let Some(update) = next() {
        send(sender, update)?;
    }
    Ok(())
}

fn send(sender: &mpsc::Sender<UpdateForScheduler>, update: ToScheduler) -> Result<(), End> {
    let message = UpdateForScheduler { update: Some(update) };
    sender.try_send(message).map_err(|error| {
        End::Lost(match error {
            mpsc::error::TrySendError::Full(_) => "the scheduler reads nothing".to_owned(),
            mpsc::error::TrySendError::Closed(_) => "the connection is gone".to_owned(),
        })
    })
}

/// Says goodbye. That the scheduler ends the stream shows that it has read everything before; a stream that breaks shows
/// that it may not have.
async fn leave(
    shared: &Shared,
    sender: mpsc::Sender<UpdateForScheduler>,
    mut stream: Streaming<UpdateForWorker>,
) -> Result<(), End> {
    flush(shared, &sender)?;
    send(&sender, ToScheduler::GoingAwayRequest(GoingAwayRequest {}))?;
    drop(sender);
    tokio::select! {
        end = until_end(&mut stream) => end.map_err(|status| lost(&status))?,
        () = shared.options.clock.sleep(FAREWELL_TIME_MAX) => {
            tracing::warn!(scheduler = shared.options.link.origin(), "the scheduler does not say goodbye");
        }
    }
    Ok(())
}

async fn until_end(stream: &mut Streaming<UpdateForWorker>) -> Result<(), Status> {
    while stream.message().await?.is_some() {}
    Ok(())
}

fn lost(status: &Status) -> End {
    End::Lost(reason(status))
}
