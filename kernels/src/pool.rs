//! A pool of threads that share one job at a time, in small pieces.
//!
//! Each thread has a range of pieces, which it takes in order, so that what it reads is one long stream; a thread that is done with its
//! own goes on with another's. It takes many at first and fewer towards the end, so that all are done at about the same time. One that
//! lost its time slice holds nobody up but for what is in its hands; there is no barrier at which all must arrive. A worker spins
//! briefly for the next job and then sleeps.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};

/// How often an idle thread looks for work before it sleeps: some 20 µs, more than the gap between two jobs of a step.
const SPINS: usize = 4_000;
/// The part of the pieces left in a range that a thread takes at once is 1 ÷ this.
const SHARE: usize = 8;
/// The most threads a pool may have.
const MAX_THREADS: usize = 512;

type Ranges<'a> = &'a (dyn Fn(Range<usize>) + Sync);

/// A pool of threads.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the thread whose job is being run.
    turn: Mutex<()>,
}

struct Shared {
    /// Counts jobs; a worker that sees a new value looks at `open`.
    generation: AtomicUsize,
    /// Whether the job in `job` may be entered.
    open: AtomicBool,
    /// Workers that have entered, or are about to find out that they may not.
    inside: AtomicUsize,
    /// The next piece to take of each thread's range.
    next: Vec<Next>,
    pieces: AtomicUsize,
    job: Mutex<Job>,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

/// On a cache line of its own: each is one thread's until the end of a job.
#[repr(align(64))]
struct Next(AtomicUsize);

impl Next {
    /// The next pieces before `end`, if there are any left.
    fn take(&self, end: usize) -> Option<Range<usize>> {
        let after = |next: usize| (next < end).then(|| next + ((end - next) / SHARE).max(1));
        let start = self.0.fetch_update(SeqCst, SeqCst, after).ok()?;
        after(start).map(|after| start..after)
    }
}

struct Job {
    /// The closure; its lifetime is erased, see `run_ranges`.
    work: Option<Ranges<'static>>,
    caller: Option<Thread>,
}

impl Pool {
    /// A pool of `threads` threads: its caller's, and `threads − 1` of its own.
    pub fn new(threads: usize) -> Self {
        let threads = threads.clamp(1, MAX_THREADS);
        let shared = Arc::new(Shared {
            generation: AtomicUsize::new(0),
            open: AtomicBool::new(false),
            inside: AtomicUsize::new(0),
            next: (0..threads).map(|_| Next(AtomicUsize::new(0))).collect(),
            pieces: AtomicUsize::new(0),
            job: Mutex::new(Job { work: None, caller: None }),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        });
        let workers = (1..threads)
            .map_while(|i| {
                let shared = Arc::clone(&shared);
                // Too few threads is slower, not wrong: what cannot be started is left out.
                thread::Builder::new().name(format!("compute-{i}")).spawn(move || shared.work_until_stopped(i)).ok()
            })
            .collect();
        Self { shared, workers, turn: Mutex::new(()) }
    }

    /// How many threads share a job, the caller's among them.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work(i)` once for each i below `pieces`, as [`Pool::run_ranges`] does.
    ///
    /// # Panics
    /// As [`Pool::run_ranges`].
    pub fn run(&self, pieces: usize, work: &(dyn Fn(usize) + Sync)) {
        self.run_ranges(pieces, &|range| range.for_each(work));
    }

    /// Calls `work` with ranges that hold each number below `pieces` once, on this and the pool's threads, and returns when all have
    /// returned. One job runs at a time; `work` must not call the same pool.
    ///
    /// # Panics
    /// When a call of `work` panicked, after the others have ended. What was left of its range is not done.
    pub fn run_ranges(&self, pieces: usize, work: Ranges<'_>) {
        if pieces <= 1 || self.workers.is_empty() {
            if pieces > 0 {
                work(0..pieces);
            }
            return;
        }
        let _turn = lock(&self.turn);
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. A worker uses the reference only between entering (`inside` raised, then `open`
        // seen true) and leaving; below, `open` is lowered and `inside` seen 0 before this function returns or unwinds, and
        // both are sequentially consistent, so no use outlives `work`. `take` catches panics, so nothing unwinds before that.
        let erased = unsafe { std::mem::transmute::<Ranges<'_>, Ranges<'static>>(work) };
        *lock(&shared.job) = Job { work: Some(erased), caller: Some(thread::current()) };
        for (thread, next) in shared.next.iter().enumerate() {
            next.0.store(shared.range(thread, pieces).start, SeqCst);
        }
        shared.pieces.store(pieces, SeqCst);
        shared.open.store(true, SeqCst);
        shared.generation.fetch_add(1, SeqCst);
        if shared.sleepers.load(SeqCst) > 0 {
            drop(lock(&shared.sleep));
            shared.wake.notify_all();
        }
        shared.take(0, work);
        shared.open.store(false, SeqCst);
        shared.wait_until_empty();
        lock(&shared.job).work = None;
        if shared.panicked.swap(false, SeqCst) {
            resume_unwind(Box::new("a piece of work panicked; its message went to stderr"));
        }
    }
}

impl Shared {
    /// The pieces that thread `thread` begins with.
    fn range(&self, thread: usize, pieces: usize) -> Range<usize> {
        let threads = self.next.len();
        // Multiplied in parts: pieces may be any number.
        let bound = |thread: usize| pieces / threads * thread + pieces % threads * thread / threads;
        bound(thread)..bound(thread + 1)
    }

    /// Takes pieces until there are none: of thread `own`'s first, then of the others'.
    fn take(&self, own: usize, work: Ranges<'_>) {
        let pieces = self.pieces.load(SeqCst);
        for thread in (own..self.next.len()).chain(0..own) {
            let end = self.range(thread, pieces).end;
            while let Some(range) = self.next[thread].take(end) {
                if catch_unwind(AssertUnwindSafe(|| work(range))).is_err() {
                    self.panicked.store(true, SeqCst);
                }
            }
        }
    }

    fn work_until_stopped(&self, own: usize) {
        let mut seen = 0;
        while self.wait_for_news(&mut seen) {
            self.inside.fetch_add(1, SeqCst);
            if self.open.load(SeqCst) {
                let work = lock(&self.job).work;
                if let Some(work) = work {
                    self.take(own, work);
                }
            }
            if self.inside.fetch_sub(1, SeqCst) == 1 && !self.open.load(SeqCst) {
                let caller = lock(&self.job).caller.clone();
                if let Some(caller) = caller {
                    caller.unpark();
                }
            }
        }
    }

    /// Waits for a generation other than `seen`; false when the pool stops.
    fn wait_for_news(&self, seen: &mut usize) -> bool {
        for _ in 0..SPINS {
            if self.news(seen) {
                return !self.stop.load(SeqCst);
            }
            std::hint::spin_loop();
        }
        let mut guard = lock(&self.sleep);
        self.sleepers.fetch_add(1, SeqCst);
        while !self.news(seen) {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, SeqCst);
        !self.stop.load(SeqCst)
    }

    fn news(&self, seen: &mut usize) -> bool {
        let now = self.generation.load(SeqCst);
        let news = now != *seen;
        *seen = now;
        news
    }

    fn wait_until_empty(&self) {
        for _ in 0..SPINS {
            if self.inside.load(SeqCst) == 0 {
                return;
            }
            std::hint::spin_loop();
        }
        while self.inside.load(SeqCst) != 0 {
            thread::park();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.generation.fetch_add(1, SeqCst);
        drop(lock(&self.shared.sleep));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker's panics are caught in `take`; there is nothing to learn from this result.
            let _ = worker.join();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A slice that several pieces of one job write to, each its own part.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    _slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it only hands out `&mut T` parts under `part`'s promise that no two overlap.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), _slice: std::marker::PhantomData }
    }

    /// `len` values from `at`.
    ///
    /// # Safety
    /// No two parts that live at the same time overlap.
    ///
    /// # Panics
    /// When the part leaves the slice.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at <= self.len && len <= self.len - at, "part {at}+{len} of {}", self.len);
        // SAFETY: inside the slice by the check above; unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_runs_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for pieces in [0, 1, 2, 7, 1000] {
                for _ in 0..50 {
                    let hits: Vec<AtomicUsize> = (0..pieces).map(|_| AtomicUsize::new(0)).collect();
                    pool.run(pieces, &|i| {
                        hits[i].fetch_add(1, SeqCst);
                    });
                    pool.run_ranges(pieces, &|range| {
                        assert!(!range.is_empty());
                        for hit in &hits[range] {
                            hit.fetch_add(1, SeqCst);
                        }
                    });
                    assert!(hits.iter().all(|h| h.load(SeqCst) == 2));
                }
            }
        }
    }

    #[test]
    fn a_thread_takes_many_at_first_and_one_at_last() {
        let next = Next(AtomicUsize::new(100));
        let taken: Vec<usize> = std::iter::from_fn(|| next.take(140)).map(|range| range.len()).collect();
        assert_eq!((taken[0], taken.iter().sum::<usize>(), taken.last()), (5, 40, Some(&1)));
        assert!(taken.is_sorted_by(|a, b| a >= b) && next.take(140).is_none());
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3);
        let outcome = catch_unwind(AssertUnwindSafe(|| pool.run(64, &|i| assert!(i != 40, "piece 40"))));
        assert!(outcome.is_err());
        let count = AtomicUsize::new(0);
        pool.run(64, &|_| {
            count.fetch_add(1, SeqCst);
        });
        assert_eq!(count.load(SeqCst), 64);
    }

    #[test]
    fn callers_take_turns() {
        let pool = Pool::new(2);
        let count = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(8, &|_| {
                            count.fetch_add(1, SeqCst);
                        });
                    }
                });
            }
        });
        assert_eq!(count.load(SeqCst), 4 * 200 * 8);
    }
}
