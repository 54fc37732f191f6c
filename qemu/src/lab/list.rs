//! What there is to choose from.

use anyhow::Result;
use baton_policy::policies;
use baton_sim::KINDS;

use super::workloads;

pub fn run() -> Result<bool> {
    println!("policies:");
    for entry in policies::ALL {
        println!("  {:<16} {}", entry.name, entry.about);
    }
    println!("workloads, in tests/workloads/, with their size:");
    for (name, _) in workloads::all()? {
        let file = workloads::read(&name)?;
        println!("  {name:<16} {}x{}: {}", file.pcpus, file.vcpus(), file.about);
    }
    println!("kinds of groups in a workload:");
    for kind in KINDS {
        let parameters: Vec<&str> = kind.parameters.iter().map(|(name, _)| *name).collect();
        let parameters = if parameters.is_empty() { String::new() } else { format!(" ({})", parameters.join(", ")) };
        println!("  {:<16} {}{parameters}", kind.name, kind.about);
    }
    Ok(true)
}
