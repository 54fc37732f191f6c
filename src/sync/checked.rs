//! The types of the model checks: atomics, cells and locks that a checker observes, and threads that it schedules.
//!
//! `loom` tries every interleaving within a bound, and every value that the memory model lets a load see.
//! `shuttle` tries random interleavings of more than loom can exhaust, sequentially consistent.
//!
//! - A checker's types exist only while it runs a model, but Baton's are made in constants. So an [`Atomic`] gets the
//!   checker's atomic at its first use. To the checker the thread of that first use has made it, and no other thread
//!   knows of it yet. [`begin`] therefore makes a stock of zeroes before the model has other threads. An atomic with
//!   another initial value must be used by the model's first thread first; loom reports it otherwise.
//! - A [`ProtocolCell`] reports each use to the checker. Two uses without a happens-before relation fail the model.
//! - A [`Lock`] only provides mutual exclusion: the code that holds locks is checked, the lock itself is not.
//!
//! All threads of a model are coroutines of one host thread, so plain data in this module is not shared between
//! threads.

use core::cell::{Cell, OnceCell, UnsafeCell};
use core::fmt;
use core::ops::{Deref, DerefMut};
use core::panic::Location;
use std::cell::RefCell;
use std::vec::Vec;

pub use core::sync::atomic::Ordering;

#[cfg(all(feature = "loom", feature = "shuttle"))]
compile_error!("a model is driven by one checker: choose the feature `loom` or the feature `shuttle`");

#[cfg(feature = "loom")]
mod checker {
    pub use loom::sync::atomic::{AtomicU64, fence};
    pub use loom::{thread, thread_local};

    use core::sync::atomic::Ordering;

    pub fn order(order: Ordering) -> Ordering {
        order
    }

    /// Tracks the accesses to a cell and their happens-before relation.
    pub struct Watch(loom::cell::UnsafeCell<()>);

    impl Watch {
        pub fn new() -> Self {
            Self(loom::cell::UnsafeCell::new(()))
        }

        /// The cell is used by this thread, and by no other.
        pub fn exclusive(&self) {
            self.0.with_mut(|_| ());
        }
    }
}

#[cfg(not(feature = "loom"))]
mod checker {
    pub use shuttle::sync::atomic::{AtomicU64, fence};
    pub use shuttle::{thread, thread_local};

    use core::sync::atomic::Ordering;

    /// shuttle has only sequential consistency.
    pub fn order(_: Ordering) -> Ordering {
        Ordering::SeqCst
    }

    /// Tracks whether a thread uses a cell.
    pub struct Watch(AtomicU64);

    impl Watch {
        pub fn new() -> Self {
            Self(AtomicU64::new(0))
        }

        /// The cell is used by this thread, and by no other.
        pub fn exclusive(&self) {
            let others = self.0.fetch_add(1, Ordering::SeqCst);
            assert_eq!(others, 0, "two threads are in one cell at once");
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

pub use checker::thread_local;

use checker::thread;
pub use checker::thread::JoinHandle;
pub use checker::thread::yield_now;
/// A spin yields to other threads.
pub use checker::thread::yield_now as spin_loop;

use checker::{AtomicU64 as Word, Watch, order};

/// The most zero-initialized atomics of a model.
const STOCK: usize = 96;

std::thread_local! {
    static ZEROES: RefCell<Vec<Word>> = const { RefCell::new(Vec::new()) };
    static TRACE: RefCell<Vec<Event>> = const { RefCell::new(Vec::new()) };
}

checker::thread_local! {
    static NAME: Cell<&'static str> = Cell::new("main");
}

/// Whether the model has failed: a thread unwinds. The drops on its way must neither wait nor panic, because no
/// invariant holds any more.
pub fn is_failing() -> bool {
    std::thread::panicking()
}

/// Must be the first call of a model.
pub fn begin() {
    TRACE.with_borrow_mut(Vec::clear);
    ZEROES.set((0..STOCK).map(|_| Word::new(0)).collect());
}

/// One step of the interleaving that is being checked.
#[derive(Clone, Copy)]
pub struct Event {
    thread: &'static str,
    at: &'static Location<'static>,
    what: &'static str,
    /// The value read and the value written.
    values: [Option<u64>; 2],
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { thread, at, what, values: [read, written] } = self;
        write!(f, "{thread:<5} {what:<8} {}:{}", at.file(), at.line())?;
        read.map_or(Ok(()), |value| write!(f, "  read {value:#x}"))?;
        written.map_or(Ok(()), |value| write!(f, "  wrote {value:#x}"))
    }
}

#[track_caller]
fn note(what: &'static str, read: Option<u64>, written: Option<u64>) {
    let event = Event { thread: NAME.with(Cell::get), at: Location::caller(), what, values: [read, written] };
    TRACE.with_borrow_mut(|trace| trace.push(event));
}

/// The events since [`begin`], in the order of this interleaving.
pub fn take_trace() -> Vec<Event> {
    TRACE.take()
}

/// Starts a thread of the model, with its name in the trace.
pub fn spawn(name: &'static str, body: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        NAME.with(|own| own.set(name));
        body();
    })
}

/// A type that fits in the checker's word.
pub trait Bits: Copy {
    fn bits(self) -> u64;
    fn from_bits(bits: u64) -> Self;
}

macro_rules! numbers {
    ($($number:ty),*) => {
        $(impl Bits for $number {
            fn bits(self) -> u64 {
                self.into()
            }

            fn from_bits(bits: u64) -> Self {
                bits.try_into().expect("the word holds what was put into it")
            }
        })*
    };
}
numbers!(u8, u16, u32, u64);

impl Bits for bool {
    fn bits(self) -> u64 {
        self.into()
    }

    fn from_bits(bits: u64) -> Self {
        bits != 0
    }
}

impl<T> Bits for *mut T {
    fn bits(self) -> u64 {
        self.expose_provenance() as u64
    }

    fn from_bits(bits: u64) -> Self {
        core::ptr::with_exposed_provenance_mut(bits as usize)
    }
}

/// An atomic of the checker.
pub struct Atomic<T> {
    initial: T,
    word: OnceCell<Word>,
}

// SAFETY: the checker's threads are coroutines of one host thread, and switch only inside the checker's own functions.
unsafe impl<T> Sync for Atomic<T> {}
// SAFETY: as above.
unsafe impl<T> Send for Atomic<T> {}

pub type AtomicBool = Atomic<bool>;
pub type AtomicU8 = Atomic<u8>;
pub type AtomicU16 = Atomic<u16>;
pub type AtomicU32 = Atomic<u32>;
pub type AtomicU64 = Atomic<u64>;
pub type AtomicPtr<T> = Atomic<*mut T>;

impl<T> Atomic<T> {
    pub const fn new(initial: T) -> Self {
        Self { initial, word: OnceCell::new() }
    }
}

impl<T: Default> Default for Atomic<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: Bits> Atomic<T> {
    fn word(&self) -> &Word {
        self.word.get_or_init(|| match self.initial.bits() {
            0 => ZEROES.with_borrow_mut(Vec::pop).expect("the stock of atomics is too small for this model"),
            other => Word::new(other),
        })
    }

    #[track_caller]
    pub fn load(&self, ordering: Ordering) -> T {
        if is_failing() {
            return T::from_bits(0);
        }
        let value = self.word().load(order(ordering));
        note("load", Some(value), None);
        T::from_bits(value)
    }

    #[track_caller]
    pub fn store(&self, value: T, ordering: Ordering) {
        if !is_failing() {
            self.word().store(value.bits(), order(ordering));
            note("store", None, Some(value.bits()));
        }
    }

    #[track_caller]
    pub fn swap(&self, value: T, ordering: Ordering) -> T {
        let to = value.bits();
        self.modify("swap", |_| to, |word| word.swap(to, order(ordering)))
    }

    /// # Errors
    ///
    /// What is there instead of `from`.
    #[track_caller]
    pub fn compare_exchange(&self, from: T, to: T, success: Ordering, failure: Ordering) -> Result<T, T> {
        if is_failing() {
            return Ok(from);
        }
        let (from, to) = (from.bits(), to.bits());
        let result = self.word().compare_exchange(from, to, order(success), order(failure));
        match result {
            Ok(_) => note("cas", Some(from), Some(to)),
            Err(value) => note("cas fails", Some(value), None),
        }
        result.map(T::from_bits).map_err(T::from_bits)
    }

    /// Has no spurious failures here.
    ///
    /// # Errors
    ///
    /// The value, if it is not `from`.
    #[track_caller]
    pub fn compare_exchange_weak(&self, from: T, to: T, success: Ordering, failure: Ordering) -> Result<T, T> {
        self.compare_exchange(from, to, success, failure)
    }

    #[track_caller]
    pub fn fetch_add(&self, value: T, ordering: Ordering) -> T {
        let value = value.bits();
        self.modify("add", |old| old.wrapping_add(value), |word| word.fetch_add(value, order(ordering)))
    }

    #[track_caller]
    pub fn fetch_or(&self, value: T, ordering: Ordering) -> T {
        let value = value.bits();
        self.modify("or", |old| old | value, |word| word.fetch_or(value, order(ordering)))
    }

    #[track_caller]
    pub fn fetch_and(&self, value: T, ordering: Ordering) -> T {
        let value = value.bits();
        self.modify("and", |old| old & value, |word| word.fetch_and(value, order(ordering)))
    }

    /// Runs a read-modify-write of the checker's atomic and returns the old value.
    #[track_caller]
    fn modify(&self, what: &'static str, new: impl Fn(u64) -> u64, operation: impl FnOnce(&Word) -> u64) -> T {
        if is_failing() {
            return T::from_bits(0);
        }
        let old = operation(self.word());
        note(what, Some(old), Some(new(old)));
        T::from_bits(old)
    }
}

#[track_caller]
pub fn fence(ordering: Ordering) {
    if !is_failing() {
        checker::fence(ordering);
        note("fence", None, None);
    }
}

/// A cell whose exclusive use is guaranteed by a protocol that its users name, and that the checker checks.
pub struct ProtocolCell<T> {
    watch: OnceCell<Watch>,
    value: UnsafeCell<T>,
}

// SAFETY: access goes through `get_mut`, whose callers promise exclusivity by their protocol; `watch`: as `Atomic`.
unsafe impl<T: Send> Sync for ProtocolCell<T> {}

impl<T> ProtocolCell<T> {
    pub const fn new(value: T) -> Self {
        Self { watch: OnceCell::new(), value: UnsafeCell::new(value) }
    }

    /// The value.
    ///
    /// # Safety
    ///
    /// By its protocol, the caller is the only user of the value for as long as the reference lives.
    ///
    /// # Panics
    ///
    /// If the protocol lets two threads use the value without a happens-before relation.
    #[allow(clippy::mut_from_ref)] // that is what the promise is about
    #[track_caller]
    pub unsafe fn get_mut(&self) -> &mut T {
        if !is_failing() {
            note("cell", None, None);
            self.watch.get_or_init(Watch::new).exclusive();
        }
        // SAFETY: exclusive, as the caller promises.
        unsafe { &mut *self.value.get() }
    }

    /// The address of the value.
    pub const fn as_ptr(&self) -> *mut T {
        self.value.get()
    }
}

/// A mutual-exclusion lock.
pub struct Lock<T> {
    held: AtomicBool,
    /// The threads that block on it: a spin would have endlessly many interleavings.
    waiters: RefCell<Vec<thread::Thread>>,
    value: UnsafeCell<T>,
}

// SAFETY: there is at most one `Held` at a time.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    pub const fn new(value: T) -> Self {
        Self { held: AtomicBool::new(false), waiters: RefCell::new(Vec::new()), value: UnsafeCell::new(value) }
    }

    #[track_caller]
    pub fn lock(&self) -> Held<'_, T> {
        loop {
            self.waiters.borrow_mut().push(thread::current());
            if let Some(held) = self.try_lock() {
                return held;
            }
            thread::park();
        }
    }

    /// All waiters try again. One that has the lock by now gets a spurious unpark, which every wait here tolerates.
    fn let_go(&self) {
        // Not a store: loom may order a store before the failed swaps of other threads.
        self.held.swap(false, Ordering::Release);
        for waiter in self.waiters.take() {
            waiter.unpark();
        }
    }

    #[track_caller]
    pub fn try_lock(&self) -> Option<Held<'_, T>> {
        (!self.held.swap(true, Ordering::Acquire)).then(|| Held(self))
    }

    /// # Safety
    ///
    /// The holder of the lock never uses its value again.
    pub unsafe fn force_unlock(&self) {
        self.let_go();
    }
}

/// Exclusive access to the value of a lock.
pub struct Held<'l, T>(&'l Lock<T>);

impl<T> Deref for Held<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: there is no other `Held`.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

/// The sleep of one thread, which another one ends.
pub struct Bed(RefCell<Option<thread::Thread>>);

// SAFETY: as `Atomic`.
unsafe impl Sync for Bed {}

impl Bed {
    pub const fn new() -> Self {
        Self(RefCell::new(None))
    }

    /// Blocks this thread until `so` holds, which is checked at first and after each [`Self::rouse`]. If all threads
    /// block, the model fails.
    #[track_caller]
    pub fn sleep_until(&self, so: impl Fn() -> bool) {
        loop {
            self.0.replace(Some(thread::current()));
            if so() || is_failing() {
                self.0.replace(None);
                return;
            }
            note("sleeps", None, None);
            thread::park();
        }
    }

    /// Makes the thread that sleeps here check again. Call it after the change that the thread is to see.
    pub fn rouse(&self) {
        if let Some(sleeper) = self.0.replace(None) {
            sleeper.unpark();
        }
    }
}

impl Default for Bed {
    fn default() -> Self {
        Self::new()
    }
}
