//! Actions, and the room that the store has for them.

use longshore_proto::reapi;
use tonic::Code;

use crate::bench::{Bench, Job, code};

const STORE_BYTES_MAX: u64 = 4 << 20;

async fn run(job: Job) -> reapi::ExecuteResponse {
    Bench::with_store(STORE_BYTES_MAX).await.run(job).await
}

// ERR-08: whoever tries again only runs the command again.
#[tokio::test]
async fn what_an_action_can_never_hold_together_is_refused_for_good() {
    let inputs = |sizes: &[usize], script: &str| {
        let add = |job: Job, (number, size): (usize, &usize)| {
            job.file(&format!("in{number}"), &number.to_string().repeat(*size), false)
        };
        sizes.iter().enumerate().fold(Job::shell(script), add)
    };
    let outputs = ["f1", "f2", "f3"];
    for job in [
        Job::shell("for i in 1 2 3; do head -c 1500000 /dev/urandom > f$i; done").outputs(&outputs),
        Job::shell("head -c 2500000 /dev/urandom; head -c 2500000 /dev/urandom >&2"),
        Job::shell("head -c 2500000 /dev/urandom; head -c 2500000 /dev/urandom > f1").outputs(&["f1"]),
        inputs(&[1_500_000; 3], "true"),
        inputs(&[2_500_000], "head -c 2500000 /dev/urandom > f1").outputs(&["f1"]),
    ] {
        let description = format!("{:?}", job.command.arguments);
        let response = run(job).await;
        assert_eq!(code(&response), Code::ResourceExhausted, "{description}");
        let status = response.status.unwrap();
        assert!(status.message.contains("in all"), "{description}: {}", status.message);
        assert_eq!(status.details, [], "{description}");
    }
}

// What is there twice is held once.
#[tokio::test]
async fn equal_outputs_need_the_room_of_one() {
    let script = "head -c 2500000 /dev/urandom > f1; cp f1 f2; cp f1 f3; cat f1";
    let response = run(Job::shell(script).outputs(&["f1", "f2", "f3"])).await;
    assert_eq!(code(&response), Code::Ok, "{:?}", response.status);
}
