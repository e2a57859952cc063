//! The action cache of someone else.

use longshore_cas_store::digest::Digest;
use longshore_proto::reapi;
use tonic::Code;

use super::{Remote, RemoteError};

impl Remote {
    /// The cached result of an action; nothing if there is none.
    pub async fn get_action_result(
        &self,
        action: &Digest,
    ) -> Result<Option<reapi::ActionResult>, RemoteError> {
        // Whatever else is asked of the server, its capabilities are asked first.
        self.caller.limits().await?;
        let request = reapi::GetActionResultRequest {
            instance_name: self.caller.instance_name(),
            action_digest: Some(action.to_wire()),
            digest_function: action.function().to_wire().into(),
            ..Default::default()
        };
        let call = || {
            let mut client = self.caller.action_cache();
            let send = |request| async move { client.get_action_result(request).await };
            self.caller.unary(request.clone(), send)
        };
        match self.caller.retried("GetActionResult", call).await {
            Ok(result) => Ok(Some(result)),
            Err(RemoteError::Refused { code: Code::NotFound, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the result of an action, whose outputs are uploaded.
    ///
    /// Where the server misses an output, what was remembered is forgotten: uploading them again helps. It is not told
    /// which it misses, and those of directories are named in messages only.
    pub async fn update_action_result(
        &self,
        action: &Digest,
        result: reapi::ActionResult,
    ) -> Result<(), RemoteError> {
        self.caller.limits().await?;
        let request = reapi::UpdateActionResultRequest {
            instance_name: self.caller.instance_name(),
            action_digest: Some(action.to_wire()),
            action_result: Some(result),
            digest_function: action.function().to_wire().into(),
            ..Default::default()
        };
        let call = || {
            let mut client = self.caller.action_cache();
            let send = |request| async move { client.update_action_result(request).await };
            self.caller.unary(request.clone(), send)
        };
        let updated = self.caller.retried("UpdateActionResult", call).await;
        if let Err(RemoteError::Refused { code: Code::FailedPrecondition | Code::NotFound, .. }) = &updated {
            self.shared.known.forget_all();
        }
        updated.map(drop)
    }
}
