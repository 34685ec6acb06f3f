//! What is measured. A new group is a file with one `cases()`; a new case is one line in it.

use crate::case::Case;

pub mod bare;
mod breaker;
mod bulkhead;
mod drain;
mod fallback;
mod floor;
mod hedge;
mod rate_limit;
mod retry;
mod timeout;
#[cfg(feature = "watched")]
mod watched;

/// All cases, in the order in which they are printed.
pub fn all() -> Vec<Case> {
    let ours = [
        bare::cases(),
        timeout::cases(),
        breaker::cases(),
        bulkhead::cases(),
        rate_limit::cases(),
        retry::cases(),
        hedge::cases(),
        floor::cases(),
        fallback::cases(),
        drain::cases(),
    ];
    #[allow(unused_mut, reason = "nothing more without the feature")]
    let mut all = ours.concat();
    #[cfg(feature = "watched")]
    all.extend(watched::cases());
    all
}

/// Those whose `group/name` contains `filter`.
pub fn matching(filter: &str) -> Vec<Case> {
    all().into_iter().filter(|case| case.id.contains(filter)).collect()
}

/// The case that another one names. Panics on a name that nobody has.
pub fn named(id: &str) -> Case {
    all().into_iter().find(|case| case.id == id).unwrap_or_else(|| panic!("there is no case `{id}`"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::case::Judge;

    #[test]
    fn names_are_unique_and_what_they_refer_to_exists() {
        let mut seen = HashSet::new();
        for case in all() {
            assert!(seen.insert(case.id), "`{}` is there twice", case.id);
            assert!(case.id.contains('/'), "`{}` has no group", case.id);
            assert_eq!(named(case.bare).group(), "bare", "under `{}`", case.id);
            if let Judge::AtMostOf { case: other, .. } | Judge::RatioTo(other) = case.judge {
                named(other);
            }
        }
    }

    #[test]
    fn every_call_answers_as_it_should() {
        let runtime = crate::runtime();
        let _entered = runtime.enter();
        for case in all() {
            let mut call = (case.make)()();
            for n in 0..1_000 {
                assert_eq!(call(), case.answers_ok, "call {n} of `{}`", case.id);
            }
        }
    }
}
