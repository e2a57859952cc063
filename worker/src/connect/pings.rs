//! How often a peer is asked whether it is still there, where it says nothing.
//!
//! A peer that vanishes (a machine that stops, a way that is cut) says nothing. The kernel finds that out within a minute;
//! HTTP/2's pings do so sooner, and find out as well that a server has stopped whose machine still answers, or that there
//! is something in between that answers for it.

use std::time::Duration;

/// How often a server that does not count pings is asked.
const FREE_INTERVAL: Duration = Duration::from_secs(10);
/// How often any server may be asked: gRPC's own take it amiss if it is more often than every 5 minutes.
const HARMLESS_INTERVAL: Duration = Duration::from_secs(5 * 60 + 10);
/// Pings that gRPC's own servers bear while they say nothing: the first one is free, two more are. After the next one
/// they end the connection with `ENHANCE_YOUR_CALM`. Whatever they say in a call makes them forget.
const PINGS_MAX: u64 = 3;
/// How long the answer to a ping may take: on a slow way, it comes after what is under way already.
pub(super) const PONG_TIME_MAX: Duration = Duration::from_secs(10);

/// What a server makes of pings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pings {
    /// Nothing: it does not count them.
    Free,
    /// It counts those that come while it says nothing, which lasts no longer than that as long as all is well.
    Counted {
        /// The longest silence.
        silence_max: Duration,
    },
}

impl Pings {
    /// For calls that take as long as they take.
    pub const RARE: Self = Self::Counted { silence_max: Duration::MAX };

    /// How long it may take until it is known that a peer has vanished.
    pub const fn found_out_max(self) -> Duration {
        self.interval().saturating_add(PONG_TIME_MAX)
    }

    /// How long a connection with calls is silent before the peer is asked.
    pub(super) const fn interval(self) -> Duration {
        match self {
            Self::Free => FREE_INTERVAL,
            Self::Counted { silence_max } => {
                // One more would come when the silence is over.
                let bearable_s = silence_max.as_secs() / (PINGS_MAX + 1) + 1;
                if bearable_s < FREE_INTERVAL.as_secs() {
                    FREE_INTERVAL
                } else if bearable_s > HARMLESS_INTERVAL.as_secs() {
                    HARMLESS_INTERVAL
                } else {
                    Duration::from_secs(bearable_s)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A ping too many ends the connection, and every call on it.
    #[test]
    fn no_server_is_asked_more_often_than_it_bears() {
        for silence_s in 0..10_000 {
            let silence_max = Duration::from_secs(silence_s);
            let interval = Pings::Counted { silence_max }.interval();
            let pings = silence_max.as_nanos() / interval.as_nanos();
            assert!(
                pings <= u128::from(PINGS_MAX) || interval == HARMLESS_INTERVAL,
                "{silence_max:?}: {pings}"
            );
        }
        assert_eq!(Pings::RARE.interval(), HARMLESS_INTERVAL);
    }
}
