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

// Those that have state need room for answers to go on, and to give the state back.
#[tokio::test]
async fn who_waits_for_state_holds_no_room_for_an_answer() {
    let share = Share::default();
    let all = share.state(STATE_BYTES_A_CONNECTION).await.unwrap();
    let call = Share { answer_room: Held::default(), ..share.clone() };
    let room = Room::new(&share.answers).take(ANSWER_BYTES_A_CONNECTION).await.unwrap();
    *call.answer_room.lock() = Some(room);
    let mut waits = Box::pin(call.state(1));
    assert!(poll!(&mut waits).is_pending());
    assert!(poll!(Box::pin(Room::new(&share.answers).take(ANSWER_BYTES_A_CONNECTION))).is_ready());
    drop(all);
    assert!(waits.await.is_ok());
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
