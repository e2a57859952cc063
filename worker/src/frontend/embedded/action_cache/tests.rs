//! Promises of the action cache, through its service.

use longshore_proto::reapi;
use tonic::{Code, Request};

use super::super::testing::Fixture;
use super::*;

/// A service, and an action in its store.
struct Served {
    fixture: Fixture,
    service: ActionCacheService,
    action: Digest,
}

impl Served {
    async fn new() -> Self {
        let fixture = Fixture::new();
        let command = reapi::Command { working_directory: "work".to_owned(), ..Default::default() };
        let command = fixture.put_message(&command).await;
        let action = reapi::Action { command_digest: Some(command.to_wire()), ..Default::default() };
        let action = fixture.put_message(&action).await;
        let cache = Arc::new(ActionCache::new(fixture.store.clone(), fixture.records.clone()));
        Self { service: ActionCacheService::new(cache), fixture, action }
    }

    async fn update(&self, result: reapi::ActionResult) -> Result<reapi::ActionResult, Code> {
        let request = reapi::UpdateActionResultRequest {
            action_digest: Some(self.action.to_wire()),
            action_result: Some(result),
            ..Default::default()
        };
        let answer = self.service.update_action_result(Request::new(request)).await;
        answer.map(Response::into_inner).map_err(|status| status.code())
    }

    async fn get(&self, request: reapi::GetActionResultRequest) -> Result<reapi::ActionResult, Code> {
        let request = reapi::GetActionResultRequest { action_digest: Some(self.action.to_wire()), ..request };
        let answer = self.service.get_action_result(Request::new(request)).await;
        answer.map(Response::into_inner).map_err(|status| status.code())
    }
}

fn file(path: &str, digest: &Digest) -> reapi::OutputFile {
    reapi::OutputFile { path: path.to_owned(), digest: Some(digest.to_wire()), ..Default::default() }
}

fn absent() -> Digest {
    DigestFunction::Sha256.digest(b"absent")
}

#[tokio::test]
async fn what_is_put_is_found_again_in_its_instance_only() {
    let served = Served::new().await;
    let output = served.fixture.put(b"output").await;
    let result = reapi::ActionResult { output_files: vec![file("../out", &output)], ..Default::default() };
    assert_eq!(served.get(reapi::GetActionResultRequest::default()).await, Err(Code::NotFound));
    assert_eq!(served.update(result.clone()).await, Ok(result.clone()));
    assert_eq!(served.get(reapi::GetActionResultRequest::default()).await, Ok(result));
    let elsewhere = reapi::GetActionResultRequest { instance_name: "other".to_owned(), ..Default::default() };
    assert_eq!(served.get(elsewhere).await, Err(Code::NotFound));
}

// Contents inside a result must not be lost, nor come back to clients that did not ask for them.
#[tokio::test]
async fn contents_become_blobs_and_come_back_where_wanted() {
    let served = Served::new().await;
    let result = reapi::ActionResult { stdout_raw: b"hello".to_vec(), ..Default::default() };
    let stored = served.update(result).await.unwrap();
    let hello = DigestFunction::Sha256.digest(b"hello");
    assert_eq!((stored.stdout_raw.len(), stored.stdout_digest.clone()), (0, Some(hello.to_wire())));
    assert!(served.fixture.store.pin(&hello).is_some());
    assert_eq!(served.get(reapi::GetActionResultRequest::default()).await, Ok(stored));
    let wanting = reapi::GetActionResultRequest { inline_stdout: true, ..Default::default() };
    assert_eq!(served.get(wanting).await.unwrap().stdout_raw, b"hello");
}

#[tokio::test]
async fn results_that_name_missing_blobs_are_refused_wherever_they_name_them() {
    let served = Served::new().await;
    let directory = reapi::Directory {
        files: vec![reapi::FileNode {
            name: "f".to_owned(),
            digest: Some(absent().to_wire()),
            ..Default::default()
        }],
        ..Default::default()
    };
    let root = served.fixture.put_message(&directory).await;
    let tree = reapi::Tree { root: Some(directory), children: Vec::new() };
    let tree = served.fixture.put_message(&tree).await;
    let named = reapi::OutputDirectory { path: "d".to_owned(), ..Default::default() };
    let of_tree = reapi::OutputDirectory { tree_digest: Some(tree.to_wire()), ..named.clone() };
    let of_root = reapi::OutputDirectory { root_directory_digest: Some(root.to_wire()), ..named };
    let results = [
        reapi::ActionResult { output_files: vec![file("f", &absent())], ..Default::default() },
        reapi::ActionResult { stdout_digest: Some(absent().to_wire()), ..Default::default() },
        reapi::ActionResult { output_directories: vec![of_tree], ..Default::default() },
        reapi::ActionResult { output_directories: vec![of_root], ..Default::default() },
    ];
    for result in results {
        assert_eq!(served.update(result.clone()).await, Err(Code::FailedPrecondition), "{result:?}");
        // And what got in by another way is not given out.
        served.service.cache.put("", &served.action, &result).await.unwrap();
        assert_eq!(
            served.get(reapi::GetActionResultRequest::default()).await,
            Err(Code::NotFound),
            "{result:?}"
        );
    }
}

// A client that trusts the cache must not be made to write outside of its tree.
#[tokio::test]
async fn paths_that_escape_or_are_used_twice_are_refused() {
    let served = Served::new().await;
    let output = served.fixture.put(b"output").await;
    for paths in [vec!["/etc/passwd"], vec!["../../out"], vec!["a", "a"], vec!["a", "b/../a"]] {
        let output_files = paths.iter().map(|path| file(path, &output)).collect();
        let result = reapi::ActionResult { output_files, ..Default::default() };
        assert_eq!(served.update(result).await, Err(Code::InvalidArgument), "{paths:?}");
    }
}

#[tokio::test]
async fn an_update_needs_its_action_and_well_formed_digests() {
    let mut served = Served::new().await;
    let malformed = reapi::OutputFile { path: "f".to_owned(), ..Default::default() };
    let result = reapi::ActionResult { output_files: vec![malformed], ..Default::default() };
    assert_eq!(served.update(result).await, Err(Code::InvalidArgument));
    served.action = absent();
    assert_eq!(served.update(reapi::ActionResult::default()).await, Err(Code::FailedPrecondition));
}

// A damaged entry is a miss once, and gone.
#[tokio::test]
async fn an_entry_that_cannot_be_decoded_is_dropped() {
    let served = Served::new().await;
    let key = record_key("", &served.action);
    served.fixture.records.put(key, b"\xff\xff junk".to_vec().into()).await.unwrap();
    assert_eq!(served.get(reapi::GetActionResultRequest::default()).await, Err(Code::NotFound));
    assert_eq!(served.fixture.records.get(key).await.unwrap(), None);
}
