//! The figures that must come out exactly.

use anyhow::Result;
use baton_sim::accept::figures;

/// Computes and shows them; true if all are as they should be.
pub fn run() -> Result<bool> {
    let figures = figures();
    let width = figures.iter().map(|figure| figure.name.chars().count()).max().unwrap_or(0);
    for figure in &figures {
        let (mark, name) = (if figure.holds { "ok  " } else { "FAIL" }, figure.name);
        println!("{mark} {name:<width$}  {}", shortened(&figure.got));
        if !figure.holds {
            println!("     {:<width$}  {} was expected", "", shortened(&figure.expected));
        }
    }
    let held = figures.iter().filter(|figure| figure.holds).count();
    println!("{held} of {} figures are as they should be", figures.len());
    Ok(held == figures.len())
}

/// Long lists by their beginning.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 72;
    if text.chars().count() <= LONGEST {
        text.to_owned()
    } else {
        format!("{}…", text.chars().take(LONGEST).collect::<String>())
    }
}
