//! The rows: what one iteration of each is, as calls of the primary and work of its peers.

use baton_vms::bench::Work;
use baton_vms::call::function;

/// A call of the primary, and the answer that it must have.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub registers: [u64; 4],
    pub answer: u64,
}

/// What happens around an iteration, outside of what is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Around {
    Nothing,
    /// The peer is brought behind its sending: an empty message is sent to it, and its answer is read.
    EchoFirst,
    /// This much is in the primary's send page; the same must be in its receive page afterwards.
    Payload {
        bytes: u64,
    },
    /// The physical timer is armed; its interrupt is taken afterwards.
    Timer,
}

/// A row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub name: &'static str,
    /// Who does what: VM, work, and the VM that it sends to.
    pub peers: &'static [(u64, Work, u64)],
    pub around: Around,
    /// One iteration.
    pub calls: &'static [Call],
    /// The primary executes an FP instruction before each call.
    pub with_fp: bool,
    /// Work that the first peer does instead, the row being the difference.
    pub minus: Option<Work>,
}

impl Row {
    const fn new(name: &'static str, peers: &'static [(u64, Work, u64)], calls: &'static [Call]) -> Self {
        Row { name, peers, around: Around::Nothing, calls, with_fp: false, minus: None }
    }

    /// The primary or a peer executes FP instructions.
    pub fn uses_fp(&self) -> bool {
        self.with_fp || self.peers.iter().any(|(_, work, _)| *work == Work::SendWithFp)
    }

    /// A peer makes a call that is Baton's own.
    pub fn yields(&self) -> bool {
        self.peers.iter().any(|(_, work, _)| *work == Work::Yield)
    }

    const fn with(mut self, around: Around) -> Self {
        self.around = around;
        self
    }
}

/// Secondaries of the RAM disk, all the same; there is one for FP alone, because FP registers are kept lazily.
pub const PEERS: u64 = 4;
const PEER: u64 = 1;
const FORWARDERS: [u64; 2] = [2, 3];
const FP_PEER: u64 = 4;

const YIELD: u64 = 0;
const WAIT_FOR_INTERRUPT: u64 = 1;
const fn message(bytes: u64) -> u64 {
    3 | bytes << 32
}
const fn wake_up(vm: u64) -> u64 {
    2 | vm << 32
}

const fn call(function: u64, a: u64, b: u64, c: u64, answer: u64) -> Call {
    Call { registers: [function, a, b, c], answer }
}
const fn run(vm: u64, answer: u64) -> Call {
    call(function::VCPU_RUN, vm, 0, 0, answer)
}
/// To a peer whose vCPU 0 waits for it.
const fn send(vm: u64, bytes: u64) -> Call {
    call(function::MAILBOX_SEND, vm, bytes, 0, 0)
}
const INJECT: Call = call(function::INJECT_INTERRUPT, PEER, 0, baton_vms::bench::INTERRUPT, 0);
const CLEAR: Call = call(function::MAILBOX_CLEAR, 0, 0, 0, 0);

const ECHO: &[(u64, Work, u64)] = &[(PEER, Work::Echo, 0)];

macro_rules! echo {
    ($name:literal, $bytes:literal) => {
        Row::new($name, ECHO, &[send(PEER, $bytes), run(PEER, message($bytes)), CLEAR, run(PEER, WAIT_FOR_INTERRUPT)])
            .with(Around::Payload { bytes: $bytes })
    };
}

pub static ROWS: &[Row] = &[
    Row::new("null", &[], &[call(function::VM_GET_COUNT, 0, 0, 0, PEERS + 1)]),
    Row::new("vcpu_get_count", &[], &[call(function::VCPU_GET_COUNT, PEER, 0, 0, 1)]),
    Row::new("run_blocked", &[], &[run(PEER, WAIT_FOR_INTERRUPT)]),
    Row::new("run_wfi_blocked", &[(PEER, Work::Sleep, 0)], &[run(PEER, WAIT_FOR_INTERRUPT)]),
    Row::new("run_yield", &[(PEER, Work::Yield, 0)], &[run(PEER, YIELD)]),
    Row::new("run_wfi", &[(PEER, Work::Wait, 0)], &[INJECT, run(PEER, WAIT_FOR_INTERRUPT)]),
    Row::new("run_receive", ECHO, &[run(PEER, WAIT_FOR_INTERRUPT)]).with(Around::EchoFirst),
    Row::new("send_run_receive", &[(PEER, Work::Swallow, 0)], &[send(PEER, 0), run(PEER, WAIT_FOR_INTERRUPT)]),
    Row::new("run_message", &[(PEER, Work::Send, 0)], &[run(PEER, message(0)), CLEAR]),
    echo!("echo_0", 0),
    echo!("echo_32", 32),
    echo!("echo_4096", 4096),
    Row::new(
        "relay",
        &[(FORWARDERS[0], Work::Forward, FORWARDERS[1]), (FORWARDERS[1], Work::Forward, 0)],
        &[
            send(FORWARDERS[0], 32),
            run(FORWARDERS[0], wake_up(FORWARDERS[1])),
            run(FORWARDERS[1], message(32)),
            CLEAR,
            run(FORWARDERS[0], WAIT_FOR_INTERRUPT),
            run(FORWARDERS[1], WAIT_FOR_INTERRUPT),
        ],
    )
    .with(Around::Payload { bytes: 32 }),
    Row::new("inject_blocked", &[(PEER, Work::Fetch, 0)], &[INJECT, run(PEER, WAIT_FOR_INTERRUPT)]),
    Row::new("preempt", &[(PEER, Work::Compute, 0)], &[run(PEER, YIELD)]).with(Around::Timer),
    Row {
        minus: Some(Work::Send),
        ..Row::new("fp_first", &[(FP_PEER, Work::SendWithFp, 0)], &[run(FP_PEER, message(0)), CLEAR])
    },
    Row {
        with_fp: true,
        ..Row::new("fp_switch", &[(FP_PEER, Work::SendWithFp, 0)], &[run(FP_PEER, message(0)), CLEAR])
    },
];
