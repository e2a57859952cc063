//! The execution service: streams that go as the test says.

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use longshore_proto::longrunning::{Operation, operation};
use longshore_proto::protobuf::Any;
use longshore_proto::reapi::execution_server::Execution;
use longshore_proto::{Message as _, reapi};
use tonic::{Request, Response, Status};

use super::services::{Service, call};
use super::{Call, Method, Told};

type Operations = BoxStream<'static, Result<Operation, Status>>;

impl Service {
    /// The next stream.
    fn told(&self) -> Operations {
        let told = {
            let mut inner = self.0.lock();
            let next =
                if inner.told.len() > 1 { inner.told.pop_front() } else { inner.told.front().cloned() };
            next.expect("the test says how streams go")
        };
        let goes_on = |name| Operation { name, ..Default::default() };
        match told {
            Told::Breaks(name, status) => stream::iter([Ok(goes_on(name)), Err(status)]).boxed(),
            Told::Ends(name) => stream::iter([Ok(goes_on(name))]).boxed(),
            Told::Done(result) => {
                let response = reapi::ExecuteResponse { result: Some(*result), ..Default::default() };
                let value = Any {
                    type_url: "type.googleapis.com/build.bazel.remote.execution.v2.ExecuteResponse"
                        .to_owned(),
                    value: response.encode_to_vec(),
                };
                let result = Some(operation::Result::Response(value));
                let done = Operation { name: "done".to_owned(), done: true, result, ..Default::default() };
                stream::iter([Ok(done)]).boxed()
            }
        }
    }
}

#[tonic::async_trait]
impl Execution for Service {
    type ExecuteStream = Operations;
    type WaitExecutionStream = Operations;

    async fn execute(
        &self,
        request: Request<reapi::ExecuteRequest>,
    ) -> Result<Response<Self::ExecuteStream>, Status> {
        let (headers, request) = (request.metadata().clone(), request.into_inner());
        let call = Call {
            digest_function: request.digest_function,
            instance_name: request.instance_name,
            ..call(Method::Execute, &headers, &request.action_digest)
        };
        self.0.enter(call).await?;
        Ok(Response::new(self.told()))
    }

    async fn wait_execution(
        &self,
        request: Request<reapi::WaitExecutionRequest>,
    ) -> Result<Response<Self::WaitExecutionStream>, Status> {
        let resource_name = request.get_ref().name.clone();
        let call = Call { resource_name, ..call(Method::WaitExecution, request.metadata(), []) };
        self.0.enter(call).await?;
        Ok(Response::new(self.told()))
    }
}
