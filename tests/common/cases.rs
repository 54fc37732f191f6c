//! How many cases a property is tried on.

use proptest::test_runner::Config;

/// So many, or more if `PROPTEST_CASES` asks for more, as `cargo baton test --long` does.
pub fn cases(usual: u32) -> Config {
    Config::with_cases(Config::default().cases.max(usual))
}
