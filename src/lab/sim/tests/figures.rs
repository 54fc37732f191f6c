//! The figures of papers and theory.

use baton_sim::accept::figures;

#[test]
fn all_figures_come_out() {
    let figures = figures();
    assert!(figures.len() >= 30, "some are missing");
    for figure in figures {
        assert!(figure.holds, "{}: {} was expected, and it is {}", figure.name, figure.expected, figure.got);
    }
}
