//! The service `Capabilities`: what this server does, and nothing that it does not.

use std::sync::Arc;

use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::digest::DigestFunction;
use longshore_proto::reapi::capabilities_server::Capabilities;
use longshore_proto::{reapi, semver};
use tonic::{Request, Response, Status};

use super::limits::BATCH_BYTES_MAX;
use crate::frontend::instance;

/// Answers `GetCapabilities`.
#[derive(Clone, Debug)]
pub(super) struct CapabilitiesService {
    pub(super) store: Arc<BlobStore>,
}

#[tonic::async_trait]
impl Capabilities for CapabilitiesService {
    async fn get_capabilities(
        &self,
        call: Request<reapi::GetCapabilitiesRequest>,
    ) -> Result<Response<reapi::ServerCapabilities>, Status> {
        instance::check(&call.get_ref().instance_name)?;
        Ok(Response::new(capabilities(self.store.blob_size_bytes_max())))
    }
}

fn capabilities(blob_size_bytes_max: u64) -> reapi::ServerCapabilities {
    let functions: Vec<i32> = DigestFunction::ALL.iter().map(|function| function.to_wire().into()).collect();
    let priorities = reapi::PriorityCapabilities {
        priorities: vec![reapi::priority_capabilities::PriorityRange {
            min_priority: i32::MIN,
            max_priority: i32::MAX,
        }],
    };
    reapi::ServerCapabilities {
        cache_capabilities: Some(reapi::CacheCapabilities {
            digest_functions: functions.clone(),
            action_cache_update_capabilities: Some(reapi::ActionCacheUpdateCapabilities {
                update_enabled: true,
            }),
            max_batch_total_size_bytes: BATCH_BYTES_MAX.cast_signed(),
            max_cas_blob_size_bytes: i64::try_from(blob_size_bytes_max).unwrap_or(i64::MAX),
            symlink_absolute_path_strategy: reapi::symlink_absolute_path_strategy::Value::Allowed.into(),
            supported_compressors: vec![reapi::compressor::Value::Zstd.into()],
            supported_batch_update_compressors: vec![reapi::compressor::Value::Zstd.into()],
            ..Default::default()
        }),
        execution_capabilities: Some(reapi::ExecutionCapabilities {
            // Clients of 2.0 compare it with their own.
            digest_function: DigestFunction::Sha256.to_wire().into(),
            digest_functions: functions,
            exec_enabled: true,
            execution_priority_capabilities: Some(priorities),
            supported_node_properties: vec!["mtime".to_owned(), "unix_mode".to_owned()],
        }),
        deprecated_api_version: None,
        // Bazel 4 speaks 2.0 and refuses a server that does not.
        low_api_version: Some(version(2, 0)),
        high_api_version: Some(version(2, 12)),
    }
}

fn version(major: i32, minor: i32) -> semver::SemVer {
    semver::SemVer { major, minor, ..Default::default() }
}
