//! The events that `feed` reads from the store and `authority` handles. Both import this module.

use registry::store::{ClusterId, Entry, Revision};

/// The store's events about authority, in the order of its revisions.
#[derive(Clone, Debug)]
pub enum StoreEvent {
    /// The whole content, at one revision: after a start, or when events may have been missed.
    Listed {
        cluster: ClusterId,
        revision: Revision,
        entries: Vec<Entry>,
    },
    Put(Entry),
    Deleted {
        key: String,
        revision: Revision,
    },
    /// The store is distrusted: nothing is granted or moved until it is listed again.
    Doubted,
}
