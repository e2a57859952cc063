//! Lists as long as a message: what they cost grows with their length, not with its square.

use anyhow::Result;
use bytes::Bytes;
use longshore_proto::reapi;
use longshore_tests::action::TestAction;
use longshore_tests::longshore::Longshore;

const OUTPUTS: usize = 20_000;
const WANTED: usize = 400_000;

// Compared one by one, these would keep a thread that serves everybody for longer than a request may take.
#[tokio::test]
async fn many_outputs_that_are_wanted_inline() -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    let action = TestAction::shell("true").build(client.function());
    let content = Bytes::from_static(b"content");
    let digest = client.function().digest(&content);
    let mut blobs = action.blobs.clone();
    blobs.push((digest, content.clone()));
    client.upload(&blobs).await?;
    let file = |number| reapi::OutputFile {
        path: format!("out{number:05}"),
        digest: Some(digest.to_wire()),
        ..Default::default()
    };
    let result = reapi::ActionResult { output_files: (0..OUTPUTS).map(file).collect(), ..Default::default() };
    let request = reapi::UpdateActionResultRequest {
        action_digest: Some(action.digest.to_wire()),
        action_result: Some(result),
        ..Default::default()
    };
    client.action_cache().update_action_result(request).await?;

    let mut wanted: Vec<_> = (0..WANTED).map(|number| format!("not{number:05}")).collect();
    wanted.push("out00007".to_owned());
    let request = reapi::GetActionResultRequest {
        action_digest: Some(action.digest.to_wire()),
        inline_output_files: wanted,
        ..Default::default()
    };
    let result = client.action_cache().get_action_result(request).await?.into_inner();
    let inline: Vec<_> = result.output_files.iter().filter(|file| !file.contents.is_empty()).collect();
    assert_eq!(inline.len(), 1);
    assert_eq!((inline[0].path.as_str(), &inline[0].contents[..]), ("out00007", &content[..]));
    Ok(())
}
