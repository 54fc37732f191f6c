//! What there is to choose from.

use anyhow::Result;
use baton_policy::policies;

pub fn run() -> Result<bool> {
    println!("policies:");
    for entry in policies::ALL {
        println!("  {:<16} {}", entry.name, entry.about);
    }
    Ok(true)
}
