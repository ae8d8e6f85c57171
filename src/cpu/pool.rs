//! A pool of threads for short loops.
//!
//! Each thread has a share of the indices, the same part of every loop: what it wrote in one loop lies in its caches when it reads it, or
//! writes there again, in the next. Many threads have one together. A share is handed out index by index, and who is done with it goes on
//! with those of others, so a core which another process takes away delays only the index it holds. Workers look for the next loop for some microseconds before
//! they sleep: long enough to bridge the gap between two layers, short enough not to take a core from somebody else.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, TryLockError};
use std::thread::JoinHandle;

/// Times that a waiting thread looks before it sleeps: some tens of microseconds.
const SPINS: usize = 2000;

/// Of these, how many pass before it lets other threads run between two looks: that which it waits for may want its core.
const PATIENCE: usize = 200;

/// Most shares of a loop: a thread looks at all of them before it leaves, and each look fetches what other cores write.
const SHARES: usize = 16;

/// Part `i` of a range that is cut into so many of about equal length.
#[inline(always)]
pub fn part(range: &Range<usize>, i: usize, parts: usize) -> Range<usize> {
    let bound = |i| range.start + range.len() * i / parts;
    bound(i)..bound(i + 1)
}

/// Waits a moment, the `i`th time.
fn pause(i: usize) {
    if i > PATIENCE && i.is_multiple_of(PATIENCE / 10) {
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

/// Threads that share the indices of loops with the thread that asks.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the thread whose loop is running.
    caller: Mutex<()>,
}

struct Shared {
    state: Mutex<State>,
    /// Signalled when a loop is there, or the pool ends.
    work: Condvar,
    /// Signalled when the last worker has left a loop.
    left: Condvar,
    /// Number of loops so far: workers look at it without taking the lock.
    loops: AtomicU64,
    /// Workers inside of the current loop.
    inside: AtomicUsize,
    /// For each share, that of the asking thread first, how many of its indices are handed out.
    taken: Box<[Taken]>,
}

/// A counter with two cache lines for itself: the processor brings the neighbour of a line along.
#[derive(Default)]
#[repr(align(128))]
struct Taken(AtomicUsize);

#[derive(Default)]
struct State {
    job: Option<Job>,
    ended: bool,
    /// Workers that sleep. A signal is a call of the system, also when nobody waits for it.
    asleep: usize,
    /// Whether the thread that asked sleeps until the last worker has left.
    awaited: bool,
}

/// A loop under way, on the stack of the thread that asked for it.
#[derive(Clone, Copy)]
struct Job {
    task: *const (dyn Fn(usize) + Sync),
    panicked: *const AtomicBool,
    count: usize,
}

// SAFETY: the pointers are to things that may be shared between threads, and `Pool::run` keeps them alive until every worker has
// left the loop.
unsafe impl Send for Job {}

impl Job {
    /// Takes indices until none is left, those of share `own` first.
    ///
    /// # Safety
    /// What the job points to must be alive.
    unsafe fn work(&self, own: usize, taken: &[Taken]) {
        // SAFETY: the caller's.
        let (task, panicked) = unsafe { (&*self.task, &*self.panicked) };
        let result = catch_unwind(AssertUnwindSafe(|| {
            for share in (own..taken.len()).chain(0..own) {
                let indices = part(&(0..self.count), share, taken.len());
                let Taken(taken) = &taken[share];
                // Looking does not take the counter away from others.
                while taken.load(Ordering::Relaxed) < indices.len() {
                    let i = taken.fetch_add(1, Ordering::Relaxed);
                    if i < indices.len() {
                        task(indices.start + i);
                    }
                }
            }
        }));
        if let Err(payload) = result {
            panicked.store(true, Ordering::Relaxed);
            // To drop it may panic as well: then this thread would leave the loop while others are inside, or never be counted out.
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                std::mem::forget(payload);
            }
        }
    }
}

impl Pool {
    /// A pool in which `threads` threads work on a loop, the asking one included.
    pub fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            left: Condvar::new(),
            loops: AtomicU64::new(0),
            inside: AtomicUsize::new(0),
            taken: (0..threads.clamp(1, SHARES)).map(|_| Taken::default()).collect(),
        });
        let worker = |i: usize| {
            let (shared, share) = (shared.clone(), i * shared.taken.len() / threads);
            // A machine that gives no more threads computes with those it gave; shares without one are taken by others.
            std::thread::Builder::new().name(format!("smelt-{i}")).spawn(move || shared.serve(share)).ok()
        };
        let workers = (1..threads.max(1)).filter_map(worker).collect();
        Pool { shared, workers, caller: Mutex::new(()) }
    }

    /// Number of threads that work on a loop.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` with each of `0 .. count`, on any of the threads. If the pool is busy with the loop of another thread, all
    /// calls are made here.
    ///
    /// # Panics
    /// If a call panics.
    pub fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        let is_alone = count <= 1 || self.workers.is_empty();
        let guard = match (!is_alone).then(|| self.caller.try_lock()) {
            Some(Ok(guard)) => guard,
            // A panic in an earlier loop left nothing behind.
            Some(Err(TryLockError::Poisoned(poisoned))) => poisoned.into_inner(),
            Some(Err(TryLockError::WouldBlock)) | None => {
                (0..count).for_each(task);
                return;
            }
        };
        let panicked = AtomicBool::new(false);
        // SAFETY: only the lifetime changes. The job is taken back and all workers have left before this function ends, also when
        // the task panics: `work` catches that.
        let task: *const (dyn Fn(usize) + Sync) =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task) };
        let job = Job { task, panicked: &panicked, count };
        // Nobody is inside of a loop, and the announcement makes it seen.
        self.shared.taken.iter().for_each(|Taken(taken)| taken.store(0, Ordering::Relaxed));
        self.shared.announce(|state| state.job = Some(job));
        // SAFETY: everything is on this stack.
        unsafe { job.work(0, &self.shared.taken) };
        self.shared.withdraw();
        drop(guard);
        assert!(!panicked.load(Ordering::Relaxed), "a task of a parallel loop panicked");
    }

    /// Calls `task` with each item, on any of the threads.
    ///
    /// # Panics
    /// If a call panics.
    pub fn run_each<T: Send>(&self, items: impl Iterator<Item = T>, task: impl Fn(T) + Sync) {
        if self.workers.is_empty() {
            items.for_each(task);
            return;
        }
        let items: Vec<Mutex<Option<T>>> = items.map(|item| Mutex::new(Some(item))).collect();
        self.run(items.len(), &|i| {
            // Taken in a statement of its own, so that the lock is free again while the task runs.
            let item = lock(&items[i]).take();
            item.into_iter().for_each(&task);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.announce(|state| state.ended = true);
        for worker in self.workers.drain(..) {
            // A worker catches what its tasks do; if it ended otherwise there is nothing to be done here.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the locks guard is whole at every moment, so a panic elsewhere changes nothing.
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Shared {
    /// Changes the state and wakes the workers that sleep. The count goes up under the lock: a worker that has looked at it sleeps
    /// before it can change.
    fn announce(&self, change: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        change(&mut state);
        self.loops.fetch_add(1, Ordering::Release);
        let asleep = state.asleep > 0;
        drop(state);
        if asleep {
            self.work.notify_all();
        }
    }

    /// The life of a worker with share `own`.
    fn serve(&self, own: usize) {
        let mut seen = 0;
        loop {
            for i in 0..SPINS {
                if self.loops.load(Ordering::Acquire) != seen {
                    break;
                }
                pause(i);
            }
            let mut state = lock(&self.state);
            while self.loops.load(Ordering::Acquire) == seen && !state.ended {
                state.asleep += 1;
                state = self.work.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
                state.asleep -= 1;
            }
            seen = self.loops.load(Ordering::Acquire);
            if state.ended {
                return;
            }
            // The loop may be over already.
            let Some(job) = state.job else { continue };
            self.inside.fetch_add(1, Ordering::Relaxed);
            drop(state);
            // SAFETY: `withdraw` waits for this worker, which is counted under the lock, before the job's owner goes on.
            unsafe { job.work(own, &self.taken) };
            if self.inside.fetch_sub(1, Ordering::Release) == 1 {
                // Under the lock, so that it cannot fall between the look and the sleep of `withdraw`.
                if lock(&self.state).awaited {
                    self.left.notify_all();
                }
            }
        }
    }

    /// Takes the job back and waits until no worker is inside of it.
    fn withdraw(&self) {
        lock(&self.state).job = None;
        for i in 0..SPINS {
            if self.inside.load(Ordering::Acquire) == 0 {
                return;
            }
            pause(i);
        }
        let mut state = lock(&self.state);
        state.awaited = true;
        while self.inside.load(Ordering::Acquire) != 0 {
            state = self.left.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        state.awaited = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_is_called_once() {
        for threads in [1, 2, 3, 7, 40] {
            let pool = Pool::new(threads);
            for count in [0, 1, 2, 100, 1000] {
                let calls: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                pool.run(count, &|i| {
                    calls[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(calls.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{threads} threads, {count}");
            }
        }
    }

    #[test]
    fn every_item_is_given_once() {
        for threads in [1, 2, 3] {
            let mut x = vec![0; 100];
            Pool::new(threads).run_each(x.iter_mut().enumerate(), |(i, x)| *x += i);
            assert!(x.into_iter().eq(0..100), "{threads} threads");
        }
    }

    #[test]
    fn a_share_is_taken_over_from_a_thread_that_is_held_up() {
        let pool = Pool::new(2);
        let done = AtomicUsize::new(0);
        pool.run(10, &|i| {
            // Whoever takes the first waits for all others: the other thread computes them.
            while i == 0 && done.load(Ordering::Acquire) < 9 {
                std::thread::yield_now();
            }
            done.fetch_add(1, Ordering::Release);
        });
        assert_eq!(done.into_inner(), 10);
    }

    #[test]
    fn many_callers_share_a_pool() {
        let pool = Pool::new(3);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let sum = AtomicUsize::new(0);
                        pool.run(50, &|i| {
                            sum.fetch_add(i, Ordering::Relaxed);
                        });
                        assert_eq!(sum.load(Ordering::Relaxed), 1225);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(2);
        let result = catch_unwind(AssertUnwindSafe(|| pool.run(10, &|i| assert_ne!(i, 5, "on purpose"))));
        assert!(result.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(10, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 45);
    }

    #[test]
    fn what_a_panic_carries_may_panic_as_well() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("when dropped");
            }
        }
        let pool = Pool::new(2);
        let run = || pool.run(10, &|_| std::panic::panic_any(Bomb));
        let carried = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
        assert_eq!(carried.downcast_ref(), Some(&"a task of a parallel loop panicked"));
    }
}
