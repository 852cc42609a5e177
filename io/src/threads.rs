//! The threads of one environment: started here, counted until they end.

use std::io;
use std::sync::Arc;

use futures::channel::oneshot;
use parking_lot::Mutex;

/// Counts the living threads; never joins one.
#[derive(Default)]
pub(crate) struct Threads {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    living: usize,
    waiting: Vec<oneshot::Sender<()>>,
}

impl Threads {
    /// Starts a thread that counts as living until `run` has returned or panicked.
    pub(crate) fn start(
        self: &Arc<Self>,
        name: &str,
        run: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let living = Living::new(Arc::clone(self));
        std::thread::Builder::new().name(name.into()).spawn(move || {
            let _living = living;
            run();
        })?;
        Ok(())
    }

    /// Resolves when no thread is left.
    pub(crate) fn all_ended(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        if state.living > 0 {
            state.waiting.push(sender);
        }
        // Else the sender is dropped here, which resolves the receiver as well.
        receiver
    }
}

/// Stands for one living thread; also dropped when the thread could not be started.
struct Living(Arc<Threads>);

impl Living {
    fn new(threads: Arc<Threads>) -> Self {
        threads.state.lock().living += 1;
        Living(threads)
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.living -= 1;
        if state.living == 0 {
            let waiting = std::mem::take(&mut state.waiting);
            drop(state);
            // Wakers are foreign code: they run without the lock.
            crate::lane::guarded("the waker of a shutdown", || drop(waiting));
        }
    }
}
