use futures::poll;

use super::*;

// What one connection holds is in nobody else's way, and in its own only until it is given back.
#[tokio::test]
async fn a_full_share_waits_for_itself_alone() {
    let (full, other) = (Share::default(), Share::default());
    let all = full.state(STATE_BYTES_A_CONNECTION).await.unwrap();
    let mut next = Box::pin(full.state(1));
    assert!(poll!(&mut next).is_pending());
    assert!(poll!(Box::pin(other.state(STATE_BYTES_A_CONNECTION))).is_ready());
    drop(all);
    assert!(next.await.is_ok());
}

// A call counts from its beginning to the end of its answer.
#[test]
fn calls_are_counted() {
    let share = Share::default();
    assert!(!share.has_calls());
    let (one, two) = (share.call(), share.clone().call());
    drop(one);
    assert!(share.has_calls());
    drop(two);
    assert!(!share.has_calls());
}
