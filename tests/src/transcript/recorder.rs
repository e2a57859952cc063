//! A proxy that writes down what a worker and its scheduler say, and changes nothing.

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use tokio::task::JoinHandle;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::codec::{self, Answer, Incoming, Raw, binary};
use super::tape::Call;
use super::{Message, Step, Tape};

/// The proxy; it ends when this is dropped.
#[derive(Debug)]
pub struct Recorder {
    uri: String,
    tape: Tape,
    task: JoinHandle<()>,
}

impl Recorder {
    /// Starts one in front of a server (`http://HOST:PORT`).
    pub async fn start(target: &str) -> Result<Self> {
        let endpoint = Endpoint::from_shared(target.to_owned()).with_context(|| target.to_owned())?;
        let passer = Passer { channel: endpoint.tcp_nodelay(true).connect_lazy(), tape: Tape::new() };
        let tape = passer.tape.clone();
        let (uri, task) = codec::serve(passer).await?;
        Ok(Self { uri, tape, task })
    }

    /// Where it listens.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// What has passed.
    pub fn tape(&self) -> &Tape {
        &self.tape
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone, Debug)]
struct Passer {
    channel: Channel,
    tape: Tape,
}

impl Answer for Passer {
    fn answer(&self, incoming: Incoming) -> BoxFuture<'static, ()> {
        let step = Step::Called { method: incoming.method.clone(), headers: binary(&incoming.headers) };
        let mut call = Call::begin(&self.tape, step);
        let channel = self.channel.clone();
        Box::pin(async move {
            let replies = incoming.replies.clone();
            let end = pass(channel, incoming, &mut call).await;
            let (code, message) = (end.code().into(), end.message().to_owned());
            call.push(Step::Ended { code, message, trailers: binary(end.metadata()) });
            // Whoever has gone does not want to know.
            let _ = replies.send(Err(end));
        })
    }
}

/// Passes a call on, and says how it ended.
async fn pass(channel: Channel, incoming: Incoming, call: &mut Call) -> Status {
    let Incoming { method, headers, requests, replies } = incoming;
    let note = call.note();
    let requests = tokio_stream::StreamExt::map_while(requests, Result::ok);
    let requests = requests.inspect(move |request| note.push(Step::Request(Message(request.to_vec()))));
    let mut request = Request::new(requests);
    *request.metadata_mut() = headers;
    let exchange = async {
        let path = PathAndQuery::try_from(method).map_err(|error| Status::internal(error.to_string()))?;
        let mut client = Grpc::new(channel);
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut stream = client.streaming(request, path, Raw).await?.into_inner();
        while let Some(reply) = stream.message().await? {
            call.push(Step::Reply(Message(reply.to_vec())));
            let _ = replies.send(Ok(reply));
        }
        stream.trailers().await
    };
    match exchange.await {
        Ok(trailers) => Status::with_metadata(Code::Ok, "", trailers.unwrap_or_default()),
        Err(status) => status,
    }
}
