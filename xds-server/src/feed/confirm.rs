//! The operator's word that what looks wrong is right.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Where questions wait for an operator. Copies are the same one.
#[derive(Clone, Debug, Default)]
pub struct Confirm {
    asked: Arc<Mutex<Vec<oneshot::Sender<()>>>>,
}

impl Confirm {
    /// Answers every question that waits. False if none does: a yes in advance is none.
    pub fn confirm(&self) -> bool {
        let asked = std::mem::take(&mut *self.asked());
        let answered = asked.into_iter().filter_map(|answer| answer.send(()).ok());
        answered.count() > 0
    }

    /// Asks. Dropping the receiver takes the question back.
    pub fn ask(&self) -> oneshot::Receiver<()> {
        let (answer, confirmed) = oneshot::channel();
        let mut asked = self.asked();
        asked.retain(|question| !question.is_closed());
        asked.push(answer);
        confirmed
    }

    fn asked(&self) -> MutexGuard<'_, Vec<oneshot::Sender<()>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_yes_answers_what_waits_and_nothing_else() {
        let confirm = Confirm::default();
        assert!(!confirm.confirm());
        let mut one = confirm.ask();
        assert!(one.try_recv().is_err());
        drop(confirm.ask());
        assert!(confirm.confirm());
        assert_eq!(one.try_recv(), Ok(()));
        drop(confirm.ask());
        assert!(!confirm.confirm());
    }
}
