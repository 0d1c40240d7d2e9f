//! Choices of a thread that last as long as a call.

use std::cell::Cell;
use std::thread::LocalKey;

/// Runs `f` while `place` of this thread holds `value`, and puts the former one back, also when `f` unwinds.
pub fn with_value<T: Copy, R>(place: &'static LocalKey<Cell<T>>, value: T, f: impl FnOnce() -> R) -> R {
    struct Restore<T: Copy + 'static>(&'static LocalKey<Cell<T>>, T);
    impl<T: Copy> Drop for Restore<T> {
        fn drop(&mut self) {
            self.0.set(self.1);
        }
    }
    let _restore = Restore(place, place.replace(value));
    f()
}

#[cfg(test)]
mod tests {
    use super::*;

    thread_local! {
        static PLACE: Cell<u32> = const { Cell::new(0) };
    }

    #[test]
    fn a_value_lasts_as_long_as_its_scope() {
        let inside = with_value(&PLACE, 1, || (with_value(&PLACE, 2, || PLACE.get()), PLACE.get()));
        assert_eq!((inside, PLACE.get()), ((2, 1), 0));
        let unwound = std::panic::catch_unwind(|| with_value(&PLACE, 3, || panic!("on purpose")));
        assert!(unwound.is_err());
        assert_eq!(PLACE.get(), 0);
        with_value(&PLACE, 4, || {
            assert_eq!(std::thread::spawn(|| PLACE.get()).join().ok(), Some(0), "of another thread");
        });
    }
}
