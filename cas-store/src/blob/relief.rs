//! Those who hold space without using it, as the store sees them.

use super::Moment;

/// Who keeps things ready that nobody uses at the moment, and with them references: idle trees.
///
/// What they hold has its place in the one order of use. When it is the oldest, it goes, before any blob that was
/// used later. Neither call blocks, nor is made under a lock.
pub trait IdleHolder: Send + Sync + 'static {
    /// The last use of what has been idle longest, if anything is.
    fn idle_since(&self) -> Option<Moment>;

    /// Begins to give up what has been idle longest, if it is since `moment` or before. Its references and charges
    /// are leaving when this returns ([`super::BlobPins::leave`], [`super::Charge::leave`]), and are dropped later.
    fn give_up(&self, moment: Moment);
}

/// Who can free space when the store is full and nothing is left that nobody uses.
pub trait PressureRelief: Send + Sync + 'static {
    /// Begins to free about `bytes`. Does not block, and calls the store only later.
    ///
    /// Whether anything was begun by this call, or is still under way. Where that is said, references or charges
    /// are dropped later, even if they free nothing: the store then looks again.
    fn relieve(&self, bytes: u64) -> bool;
}
