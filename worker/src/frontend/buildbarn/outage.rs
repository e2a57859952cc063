//! An outage of the scheduler, which all slots meet at once, and which one of them tells for all.

use std::time::SystemTime;

use parking_lot::Mutex;

use super::driver::RETRY_MAX;

/// Whether the scheduler answers, as the slots have found it lately.
#[derive(Default)]
pub(super) struct Outage {
    told: Mutex<Told>,
}

/// What has been told of it.
#[derive(Default)]
struct Told {
    is_out: bool,
    /// When that was last told.
    at: Option<SystemTime>,
}

impl Outage {
    /// A call has failed: whether that is to be told, which it is no more often than one slot would tell it.
    pub(super) fn goes_on(&self, now: SystemTime) -> bool {
        let mut told = self.told.lock();
        let is_recent = |at| now.duration_since(at).is_ok_and(|age| age < RETRY_MAX);
        if told.at.is_some_and(is_recent) {
            return false;
        }
        *told = Told { is_out: true, at: Some(now) };
        true
    }

    /// A call has succeeded: whether that is to be told.
    pub(super) fn is_over(&self) -> bool {
        std::mem::take(&mut self.told.lock().is_out)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    // Many slots do not fill the log with one outage, nor does one that comes and goes.
    #[test]
    fn an_outage_is_told_once_in_a_while_for_all_slots() {
        let outage = Outage::default();
        let told = |seconds| {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            (0..64).filter(|_| outage.goes_on(now)).count()
        };
        assert!(!outage.is_over());
        assert_eq!([told(0), told(1), told(4)], [1, 0, 0]);
        assert_eq!([told(5), told(9)], [1, 0]);
        assert!(outage.is_over() && !outage.is_over());
        assert_eq!([told(9), told(10)], [0, 1]);
        assert!(outage.is_over());
    }
}
