//! Habits of clients that have to keep working.
