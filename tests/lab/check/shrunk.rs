//! What shows a mistake gets as small as it goes.

use baton_check::shrink;

/// All that are one step smaller: half of it, or one fewer.
fn smaller(list: &[u32]) -> Vec<Vec<u32>> {
    let half = list.len() / 2;
    let halves = [list[..half].to_vec(), list[half..].to_vec()];
    let one_fewer = (0..list.len()).map(|n| [&list[..n], &list[n + 1..]].concat());
    halves.into_iter().filter(|part| part.len() < list.len()).chain(one_fewer).collect()
}

#[test]
fn only_what_matters_is_left() {
    let fails = |list: &Vec<u32>| list.contains(&3) && list.contains(&77);
    assert_eq!(shrink((0..100).collect(), |list| smaller(list), fails), [3, 77]);
    let anything = shrink((0..100).collect::<Vec<u32>>(), |list| smaller(list), |_| true);
    assert!(anything.is_empty());
}

/// What does not get smaller stays as it is, and is not tried itself.
#[test]
fn what_is_minimal_stays() {
    let mut tries = 0;
    let fails = |list: &Vec<u32>| {
        tries += 1;
        list.len() == 3
    };
    assert_eq!(shrink(vec![1, 2, 3], |list| smaller(list), fails), [1, 2, 3]);
    assert_eq!(tries, 5, "two halves, and three with one fewer");
}

/// It is the greatest steps that do most of it.
#[test]
fn half_of_it_goes_at_a_time() {
    let mut tries = 0;
    let fails = |list: &Vec<u32>| {
        tries += 1;
        list.contains(&5000)
    };
    assert_eq!(shrink((0..10_000).collect(), |list| smaller(list), fails), [5000]);
    assert!(tries < 40, "{tries}");
}
