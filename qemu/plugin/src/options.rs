//! What the plugin is told on QEMU's command line: `-plugin libbaton_counter.so,log=FILE,el2=START:END,…`.

use std::ops::Range;
use std::path::PathBuf;

/// The options; addresses are hexadecimal, without `0x`.
#[derive(Default, Debug)]
pub struct Options {
    /// `log=FILE`: where the log goes when the machine ends.
    pub log: PathBuf,
    /// `el2=START:END`: the hypervisor's code. Guests cannot have code there.
    pub el2: Range<u64>,
    /// `vectors=ADDRESS`: the vector table of EL2.
    pub vectors: u64,
    /// `secondaries=ADDRESS`: guest code from here on is a secondary's, below it the primary's.
    pub secondaries: u64,
    /// `wait=START:END`, any number of them: the functions in which a pCPU waits for a vCPU.
    pub waits: Vec<Range<u64>>,
    /// `hold=ADDRESS`: a pCPU that comes here stands still until another one has waited for `patience=INSTRUCTIONS`.
    pub hold: Option<u64>,
    pub patience: u64,
    /// `list=on`: the log has the address of every instruction at EL2.
    pub list: bool,
    /// `clock=host`: times are nanoseconds of the host, for a machine whose pCPUs really run at once. Otherwise they
    /// are instructions that the machine executed, on all pCPUs together.
    pub host_clock: bool,
}

impl Options {
    pub fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Result<Options, String> {
        let mut options = Options::default();
        for word in words {
            let (key, value) = word.split_once('=').ok_or_else(|| format!("`{word}` is not a key=value"))?;
            match key {
                "log" => options.log = value.into(),
                "el2" => options.el2 = range(value)?,
                "vectors" => options.vectors = address(value)?,
                "secondaries" => options.secondaries = address(value)?,
                "wait" => options.waits.push(range(value)?),
                "hold" => options.hold = Some(address(value)?),
                "patience" => options.patience = value.parse().map_err(|_| format!("`{value}` is not a number"))?,
                "list" if value == "on" => options.list = true,
                "clock" if value == "host" => options.host_clock = true,
                _ => return Err(format!("there is no option `{word}`")),
            }
        }
        if options.log.as_os_str().is_empty() || options.el2.is_empty() {
            return Err("it needs log=FILE and el2=START:END".to_owned());
        }
        Ok(options)
    }
}

fn address(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16).map_err(|_| format!("`{text}` is not a hexadecimal address"))
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let (start, end) = text.split_once(':').ok_or_else(|| format!("`{text}` is not START:END"))?;
    Ok(address(start)?..address(end)?)
}
