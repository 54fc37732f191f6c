//! Where the checker draws its lines, as options.

use baton_check::Thresholds;
use baton_policy::Nanos;
use clap::Args;

#[derive(Args, Clone, Copy)]
#[command(next_help_heading = "What the checker puts up with")]
#[group(skip)] // there is another one of this name around it
pub struct Options {
    /// How late a pCPU that was kicked, turned on or left may pick, and how late a timer may expire.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "100ms")]
    latency: Nanos,
    /// How much longer than its slice a vCPU may run.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "1ms")]
    overrun: Nanos,
    /// How long a runnable vCPU may wait.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "1s")]
    starvation: Nanos,
    /// How many turns it may wait, if that is longer: a turn is the longest slice, divided by the vCPU's share.
    #[arg(long, value_name = "NUMBER", default_value_t = 16)]
    turns: u32,
    /// How long a pCPU may idle beside a runnable vCPU that might run there.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "100ms")]
    idle: Nanos,
    /// How often in a row a pCPU may run somebody for no more than a crumb.
    #[arg(long, value_name = "NUMBER", default_value_t = 100_000)]
    futile: u32,
    /// How short a run is that gets nobody anywhere.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "1us")]
    crumb: Nanos,
}

/// A time as a user writes it.
pub fn time(text: &str) -> Result<Nanos, String> {
    baton_sim::duration(text).map_err(|error| error.to_string())
}

impl Options {
    pub fn thresholds(&self) -> Thresholds {
        let Self { latency, overrun, starvation, turns, idle, futile, crumb } = *self;
        Thresholds { latency, overrun, starvation, turns, idle, futile, crumb }
    }

    /// Those that are not as usual, as words of a command.
    pub fn words(&self) -> Vec<String> {
        let (own, usual) = (self.thresholds(), Thresholds::default());
        [
            ("--latency", own.latency, usual.latency, "ns"),
            ("--overrun", own.overrun, usual.overrun, "ns"),
            ("--starvation", own.starvation, usual.starvation, "ns"),
            ("--turns", own.turns.into(), usual.turns.into(), ""),
            ("--idle", own.idle, usual.idle, "ns"),
            ("--futile", own.futile.into(), usual.futile.into(), ""),
            ("--crumb", own.crumb, usual.crumb, "ns"),
        ]
        .into_iter()
        .filter(|(_, own, usual, _)| own != usual)
        .flat_map(|(flag, own, _, unit)| [flag.to_owned(), format!("{own}{unit}")])
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn parsed(words: &[String]) -> Options {
        let name = "check".to_owned();
        Cli::try_parse_from([&name].into_iter().chain(words)).unwrap_or_else(|error| panic!("{error}")).options
    }

    #[test]
    fn what_is_not_said_is_as_usual() {
        let usual = parsed(&[]);
        assert_eq!(usual.thresholds(), Thresholds::default());
        assert!(usual.words().is_empty());
    }

    #[test]
    fn what_is_said_is_said_again() {
        let own = Thresholds { latency: 1, overrun: 2, starvation: 3, turns: 4, idle: 5, futile: 6, crumb: 7 };
        let words = "--latency 1ns --overrun 2ns --starvation 3ns --turns 4 --idle 5ns --futile 6 --crumb 7ns";
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let options = parsed(&words);
        assert_eq!(options.thresholds(), own);
        assert_eq!(options.words(), words);
    }

    #[test]
    fn a_time_has_a_unit() {
        let error = Cli::try_parse_from(["check", "--idle", "5"]).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("there is `5` where a time should be"), "{error}");
    }
}
