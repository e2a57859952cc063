//! Instances of one server, as that sees their calls.

use anyhow::Result;
use futures::StreamExt as _;
use longshore_cas_store::source::BlobSource as _;
use longshore_proto::reapi;
use longshore_tests::cold::ColdWorker;
use longshore_tests::fake_cas::{FakeCas, Method};
use longshore_worker::remote::Instances;

use super::{LARGE_BYTES, noise, options, sha};

// To its clients each instance is a CAS of its own: what is known of one says nothing of another.
#[tokio::test]
async fn each_instance_is_asked_by_its_name_for_all_that_it_has() -> Result<()> {
    let cas = FakeCas::start().await?;
    let mut options = options(&cas);
    options.instance_name = "team".to_owned();
    let worker = ColdWorker::hasty(&options).await?;
    let instances = Instances::new(worker.remote.clone());
    let pins = [worker.put("small").await?, worker.put(noise(LARGE_BYTES, 1)).await?];
    let (action, result) = (sha(b"action"), reapi::ActionResult::default());
    for (name, suffix) in [("team", ""), ("team/a", "a"), ("team/a/b", "a/b")] {
        cas.put_in(name, &[]);
        let before = cas.all_calls().len();
        // The second time there is nothing left to ask, whoever has been asked meanwhile.
        for _ in 0..2 {
            let remote = instances.get(suffix);
            remote.upload(&pins).await?;
            remote.update_action_result(&action, result.clone()).await?;
            assert_eq!(remote.get_action_result(&action).await?, Some(result.clone()));
        }
        let calls = cas.all_calls().split_off(before);
        assert!(calls.iter().all(|call| call.instance_name == name), "{calls:?}");
        let count = |method| calls.iter().filter(|call| call.method == method).count();
        for method in
            [Method::GetCapabilities, Method::FindMissingBlobs, Method::BatchUpdateBlobs, Method::Write]
        {
            assert_eq!(count(method), 1, "{name}: {method:?}");
        }
        assert!(pins.iter().all(|pin| cas.blob_in(name, pin.digest()).is_some()));
        assert!(cas.result_in(name, &action).is_some());
    }
    assert!(cas.blob(pins[0].digest()).is_none(), "it belongs to those instances alone");
    Ok(())
}

// What one instance is asked for says nothing of what another one has: a want of the one does not join one of the other.
#[tokio::test]
async fn wants_of_two_instances_are_asked_for_in_both() -> Result<()> {
    let cas = FakeCas::start().await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    let instances = Instances::new(worker.remote.clone());
    let blob = noise(1_000, 1);
    let digest = sha(&blob);
    cas.put_in("poor", &[]);
    cas.put_in("rich", &[(digest, blob)]);
    cas.hold(Method::BatchReadBlobs);
    let fetch =
        |name: &str| instances.get(name).fetch(vec![digest], worker.store.clone()).collect::<Vec<_>>();
    let release = async {
        cas.arrived(Method::BatchReadBlobs, 2).await;
        cas.release(Method::BatchReadBlobs);
    };
    let (_, rich, ()) = futures::join!(fetch("poor"), fetch("rich"), release);
    assert!(matches!(&rich[..], [fetched] if fetched.outcome.is_ok()), "{rich:?}");
    let mut asked: Vec<_> =
        cas.calls(Method::BatchReadBlobs).into_iter().map(|call| call.instance_name).collect();
    asked.sort_unstable();
    assert_eq!(asked, ["poor", "rich"]);
    Ok(())
}
