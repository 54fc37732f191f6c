//! Makes what shows a mistake as small as it goes.

/// The smallest thing that is found from `whole` on, step by step, and still `fails`: of all that are one step `smaller`, the
/// first that fails is the next one. So the result is *minimal*: nothing that is one step smaller fails. As long as both
/// functions give the same for the same, so does this.
///
/// `smaller` has the greatest steps first, so that most of what does not matter is gone after a few runs; and each of its
/// steps makes the thing smaller, or this never ends.
pub fn shrink<T, Steps>(whole: T, mut smaller: impl FnMut(&T) -> Steps, mut fails: impl FnMut(&T) -> bool) -> T
where
    Steps: IntoIterator<Item = T>,
{
    let mut smallest = whole;
    while let Some(next) = smaller(&smallest).into_iter().find(|candidate| fails(candidate)) {
        smallest = next;
    }
    smallest
}
