//! What stands around the modelled files: `sync` with loom's parts, and stubs of larger things.

pub(crate) mod sync {
    use std::sync::Arc;
    use std::task::Waker;

    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

    pub(crate) use super::oneshot;

    /// As that of `parking_lot`: a lock has no result.
    #[derive(Default)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Mutex(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }
    }

    pub(crate) struct AtomicWaker(loom::future::AtomicWaker);

    impl AtomicWaker {
        pub(crate) fn new() -> Self {
            AtomicWaker(loom::future::AtomicWaker::new())
        }

        pub(crate) fn register(&self, waker: &Waker) {
            self.0.register_by_ref(waker);
        }

        pub(crate) fn wake(&self) {
            self.0.wake();
        }
    }

    /// A pointer that is replaced as a whole; a load orders like an Acquire, a store like a
    /// Release, which is what `arc_swap` promises.
    pub(crate) struct ArcSwap<T>(Mutex<Arc<T>>);

    pub(crate) type Guard<T> = T;

    impl<T> ArcSwap<T> {
        pub(crate) fn from_pointee(value: T) -> Self {
            ArcSwap(Mutex::new(Arc::new(value)))
        }

        pub(crate) fn load(&self) -> Arc<T> {
            self.0.lock().clone()
        }

        pub(crate) fn load_full(&self) -> Arc<T> {
            self.load()
        }

        pub(crate) fn store(&self, value: Arc<T>) {
            *self.0.lock() = value;
        }
    }
}

/// The channel of one answer: what that of `futures` promises, with a lock in its place.
pub(crate) mod oneshot {
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};

    use super::sync::Mutex;

    struct State<T> {
        value: Option<T>,
        waker: Option<Waker>,
        /// The receiver takes no more, or the sender has gone.
        closed: bool,
    }

    pub(crate) struct Sender<T>(Arc<Mutex<State<T>>>);
    pub(crate) struct Receiver<T>(Arc<Mutex<State<T>>>);

    #[derive(Debug)]
    pub(crate) struct Canceled;

    pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
        let state = Arc::new(Mutex::new(State { value: None, waker: None, closed: false }));
        (Sender(Arc::clone(&state)), Receiver(state))
    }

    impl<T> Sender<T> {
        pub(crate) fn send(self, value: T) -> Result<(), T> {
            let mut state = self.0.lock();
            if state.closed {
                return Err(value);
            }
            state.value = Some(value);
            let waker = state.waker.take();
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
            Ok(())
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            let mut state = self.0.lock();
            state.closed = true;
            let waker = state.waker.take();
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    impl<T> Receiver<T> {
        pub(crate) fn close(&mut self) {
            self.0.lock().closed = true;
        }

        pub(crate) fn try_recv(&mut self) -> Result<Option<T>, Canceled> {
            let mut state = self.0.lock();
            match state.value.take() {
                Some(value) => Ok(Some(value)),
                None if state.closed => Err(Canceled),
                None => Ok(None),
            }
        }
    }

    impl<T> Future for Receiver<T> {
        type Output = Result<T, Canceled>;

        fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
            let mut state = self.0.lock();
            match state.value.take() {
                Some(value) => Poll::Ready(Ok(value)),
                None if state.closed => Poll::Ready(Err(Canceled)),
                None => {
                    state.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        }
    }

    impl<T> Drop for Receiver<T> {
        fn drop(&mut self) {
            self.0.lock().closed = true;
        }
    }
}

pub(crate) mod options {
    pub(crate) use seerdb::Durability;
}

pub(crate) mod memtable {
    use super::sync::Mutex;
    use crate::key::SeqNo;

    /// The versions of the one key of the model.
    #[derive(Default)]
    pub(crate) struct Memtable {
        pub(crate) versions: Mutex<Vec<SeqNo>>,
    }
}

pub(crate) mod version {
    use crate::key::SeqNo;

    /// The versions of the one key of the model that are in tables.
    #[derive(Default)]
    pub(crate) struct Version {
        pub(crate) versions: Vec<SeqNo>,
    }
}
