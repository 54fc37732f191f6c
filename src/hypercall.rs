//! Serving the hypercalls, on the way in: [`arrive`] is called straight from the exception vector, and a call that answers
//! at once goes back to its guest from there, without a register saved that the answer does not need.
//!
//! Each function follows its row of the contract (`src/abi.md`): who may call, what is checked, in which order, and the
//! number that says no. A guest's mistake is an answer, never a fault of ours.

use core::fmt;

use crate::arch;
use crate::call::{Call, FAILED, NO_INTERRUPT, NO_VCPU, Outcome, Style};
use crate::exec::Local;
use crate::exit::Leave;
use crate::ids::CpuId;
use crate::mailbox::{MAX_MESSAGE, Message, NO_MESSAGE};
use crate::owed::{INTERRUPTS, Injected};
use crate::psci;
use crate::run;
use crate::sync::Ordering;
use crate::vcpu::Vcpu;
use crate::vm::Vm;

/// Who calls: a vCPU, and the executor of the pCPU that it runs on.
#[derive(Clone, Copy)]
pub struct Guest<'a> {
    pub local: &'a Local,
    pub vcpu: &'static Vcpu,
}

impl Guest<'_> {
    #[inline]
    pub fn vm(&self) -> &'static Vm {
        self.vcpu.vm()
    }

    #[inline]
    fn is_primary(&self) -> bool {
        self.vcpu.is_primarys()
    }
}

/// What becomes of the caller: its x0, and whether it goes on. One value of two registers, so that whoever passes it on can
/// do so by a jump.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
#[must_use]
pub struct Verdict(u128);

impl Verdict {
    /// A secondary goes on with what it did.
    pub const RESUME: Self = Self::new(0, Leave::RESUME);

    #[inline]
    const fn new(result: u64, leave: Leave) -> Self {
        Self((leave.word() as u128) << 64 | result as u128)
    }

    /// It goes on at once.
    #[inline]
    pub const fn answer(result: u64) -> Self {
        Self::new(result, Leave::NOT)
    }

    /// It waits for its result, or for more than that.
    #[inline]
    pub const fn leave(leave: Leave) -> Self {
        Self::new(0, leave)
    }

    /// It goes on when what there is to report has been reported.
    pub const fn report(result: u64) -> Self {
        Self::new(result, Leave::REPORT)
    }

    /// It goes on when the primary has been told.
    #[inline(always)]
    pub const fn then_tell(result: u64, outcome: Outcome) -> Self {
        Self::new(result, Leave::with(outcome))
    }

    /// Its x0 when it runs next, unless it waits for that.
    #[inline]
    pub const fn result(self) -> u64 {
        self.0 as u64
    }

    /// Why it does not go on at once.
    #[inline]
    pub const fn why(self) -> Leave {
        Leave::from_word((self.0 >> 64) as u64)
    }
}

impl fmt::Debug for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} and {:?}", self.result(), self.why())
    }
}

/// Serves the hypercall that `guest` has just made with these registers x0 to x3.
#[inline]
pub fn arrive(guest: Guest<'_>, [x0, x1, x2, x3]: [u64; 4]) -> Verdict {
    match Call::index(x0) {
        // The one that all the others are there for.
        VCPU_RUN => vcpu_run(guest, x1, x2, Style::Reference),
        index => match SERVICES.get(index as usize) {
            Some(service) => service(x0, x1, x2, x3, guest.vcpu, guest.local),
            None => arrive_otherwise(x0, x1, x2, x3, guest.vcpu, guest.local),
        },
    }
}

const VCPU_RUN: u32 = 0;
const _: () = assert!(matches!(Call::decode([Call::function(VCPU_RUN as u64), 0, 0, 0]), Call::VcpuRun { .. }));

/// As [`arrive`], of what is not in its plain form, not of the reference ABI, or not a function at all.
#[cold]
#[inline(never)]
extern "C" fn arrive_otherwise(x0: u64, x1: u64, x2: u64, x3: u64, vcpu: &'static Vcpu, local: &Local) -> Verdict {
    let plain = Call::plain(x0);
    match SERVICES.get(Call::index(plain) as usize).or_else(|| EXTENSIONS.get(Call::index_of_extension(plain) as usize))
    {
        Some(service) => service(plain, x1, x2, x3, vcpu, local),
        None => unknown(Guest { local, vcpu }, [x0, x1, x2, x3]),
    }
}

/// Serves one function: its arguments are where they came in, and everything that it does not need is compiled out of it.
type Service = extern "C" fn(u64, u64, u64, u64, &'static Vcpu, &Local) -> Verdict;

extern "C" fn service<const FUNCTION: u64>(
    _: u64,
    x1: u64,
    x2: u64,
    x3: u64,
    vcpu: &'static Vcpu,
    local: &Local,
) -> Verdict {
    serve(Guest { local, vcpu }, Call::decode([FUNCTION, x1, x2, x3]))
}

macro_rules! services {
    ($function:path: $($index:literal)*) => {
        [$(service::<{ $function($index) }> as Service),*]
    };
}

static SERVICES: [Service; Call::FUNCTIONS] = services!(Call::function: 0 1 2 3 4 5 6 7 8 9);
static EXTENSIONS: [Service; Call::EXTENSIONS] = services!(Call::extension: 0 1 2);

/// Serves a call that is decoded.
#[inline(always)]
pub fn serve(guest: Guest<'_>, call: Call) -> Verdict {
    match call {
        Call::VcpuRun { vm, vcpu, style } => vcpu_run_ext(guest, vm, vcpu, style),
        Call::VmGetCount => Verdict::answer(guest.local.machine().vms.len() as u64),
        Call::VcpuGetCount { vm } => Verdict::answer(vcpu_get_count(guest, vm)),
        Call::VmConfigure { send, recv } => vm_configure(guest, send, recv),
        Call::MailboxSend { vm, size } => mailbox_send(guest, vm, size),
        Call::MailboxReceive { block } => mailbox_receive(guest, block),
        Call::MailboxClear => mailbox_clear(guest),
        Call::EnableInterrupt { id, enable } => enable_interrupt(guest, id, enable),
        Call::GetAndAcknowledgeInterrupt => get_and_acknowledge_interrupt(guest),
        Call::InjectInterrupt { vm, vcpu, id } => inject_interrupt(guest, vm, vcpu, id),
        Call::CallExists { function } => call_exists(function),
        Call::VcpuCounter { vm, vcpu, counter } => vcpu_counter(guest, vm, vcpu, counter),
        Call::Unknown => Verdict::answer(FAILED),
    }
}

/// The primary's; what it names is looked up here.
#[inline(always)]
fn vcpu_run(guest: Guest<'_>, vm: u64, vcpu: u64, style: Style) -> Verdict {
    if !guest.is_primary() {
        return Verdict::answer(match style {
            Style::Reference => Outcome::Absent.encode(style),
            Style::Extended { .. } => FAILED,
        });
    }
    match guest.local.machine().runnable(vm, vcpu) {
        Some(target) => run::vcpu_run(guest, target, style),
        None => Verdict::answer(Outcome::Absent.encode(style)),
    }
}

#[inline(never)]
fn vcpu_run_ext(guest: Guest<'_>, vm: u64, vcpu: u64, style: Style) -> Verdict {
    vcpu_run(guest, vm, vcpu, style)
}

#[inline]
fn vcpu_get_count(guest: Guest<'_>, vm: u64) -> u64 {
    if !guest.is_primary() {
        return FAILED;
    }
    guest.local.machine().vm(vm).map_or(FAILED, |vm| vm.vcpus.len() as u64)
}

fn vm_configure(guest: Guest<'_>, send: u64, recv: u64) -> Verdict {
    Verdict::answer(guest.vm().configure(send, recv).map_or(FAILED, |()| 0))
}

fn mailbox_send(guest: Guest<'_>, to: u64, size: u64) -> Verdict {
    if size > MAX_MESSAGE || to == guest.vm().id.0.into() {
        return Verdict::answer(FAILED);
    }
    let Some(to) = guest.local.machine().vm(to) else { return Verdict::answer(FAILED) };
    // A stopped VM reads nothing any more.
    if to.is_stopped() {
        return Verdict::answer(FAILED);
    }
    let (Some(send), Some(recv)) = (guest.vm().send_page(), to.recv_page()) else { return Verdict::answer(FAILED) };
    let Ok(filling) = to.mailbox.begin() else { return Verdict::answer(FAILED) };
    if size != 0 {
        arch::copy_message(send, recv, size as usize);
    }
    let message = Message { from: guest.vm().id, size: size as u32 };
    if to.id.is_primary() {
        filling.deliver_read();
        return Verdict::then_tell(0, Outcome::Message { size: message.size });
    }
    let woken = filling.deliver(message);
    if guest.is_primary() {
        Verdict::answer(woken.map_or(NO_VCPU, |vcpu| vcpu.0.into()))
    } else {
        Verdict::then_tell(0, Outcome::WakeUp { vm: to.id, vcpu: woken })
    }
}

fn mailbox_receive(guest: Guest<'_>, block: bool) -> Verdict {
    if guest.is_primary() {
        return Verdict::answer(NO_MESSAGE);
    }
    // Nothing there, and nobody waits: the likely one of those that block.
    if block && !guest.vcpu.interrupts.deliverable() && guest.vm().mailbox.wait_alone(guest.vcpu.id()) {
        return Verdict::leave(Leave::BLOCKED);
    }
    mailbox_receive_or_queue(guest, block)
}

#[inline(never)]
fn mailbox_receive_or_queue(guest: Guest<'_>, block: bool) -> Verdict {
    let mailbox = &guest.vm().mailbox;
    if !block || guest.vcpu.interrupts.deliverable() {
        return Verdict::answer(mailbox.take(guest.vcpu.id()).map_or(NO_MESSAGE, Message::encode));
    }
    match mailbox.take_or_wait(guest.vcpu.id()) {
        Some(message) => Verdict::answer(message.encode()),
        None => Verdict::leave(Leave::BLOCKED),
    }
}

fn mailbox_clear(guest: Guest<'_>) -> Verdict {
    Verdict::answer(if guest.vm().mailbox.clear() { 0 } else { FAILED })
}

fn enable_interrupt(guest: Guest<'_>, id: u64, enable: bool) -> Verdict {
    let Some(id) = checked_id(id) else { return Verdict::answer(FAILED) };
    guest.vcpu.interrupts.enable(id, enable);
    settle_line(guest);
    Verdict::answer(0)
}

fn get_and_acknowledge_interrupt(guest: Guest<'_>) -> Verdict {
    let Some(id) = guest.vcpu.interrupts.fetch() else { return Verdict::answer(NO_INTERRUPT) };
    guest.vcpu.counters.interrupts.fetch_add(1, Ordering::Relaxed);
    settle_line(guest);
    Verdict::answer(id.into())
}

fn inject_interrupt(guest: Guest<'_>, vm: u64, vcpu: u64, id: u64) -> Verdict {
    let (Some(vcpu), Some(id)) = (guest.local.machine().vcpu(vm, vcpu), checked_id(id)) else {
        return Verdict::answer(FAILED);
    };
    let vm = vcpu.vm();
    if !guest.is_primary() && vm.id != guest.vm().id {
        return Verdict::answer(FAILED);
    }
    if vcpu.interrupts.inject(id) == Injected::NothingNew {
        return Verdict::answer(0);
    }
    if core::ptr::eq(vcpu, guest.vcpu) {
        settle_line(guest);
        return Verdict::answer(0);
    }
    if vm.id.is_primary() {
        return Verdict::answer(0); // it has no line: it fetches what is pending when it likes
    }
    if let Some(cpu) = vcpu.loaded_on() {
        // It runs on another pCPU and would see it only at its next exit.
        vcpu.counters.kicks.fetch_add(1, Ordering::Relaxed);
        kick(guest.local, vcpu, cpu);
        return Verdict::answer(0);
    }
    if guest.is_primary() {
        Verdict::answer(0) // the one who schedules knows already
    } else {
        Verdict::then_tell(0, Outcome::WakeUp { vm: vm.id, vcpu: Some(vcpu.id()) })
    }
}

/// Makes `vcpu`, which was seen to run on `cpu`, exit from there.
pub fn kick(local: &Local, vcpu: &Vcpu, cpu: CpuId) {
    arch::kick(&local.pcpus()[cpu.index()], || vcpu.loaded_on() == Some(cpu));
}

/// The caller's own virtual interrupt line, when what is deliverable has changed. The primary has none: its interrupts
/// are physical.
fn settle_line(guest: Guest<'_>) {
    if !guest.is_primary() {
        arch::set_virtual_interrupt(guest.vcpu.interrupts.deliverable());
    }
}

fn vcpu_counter(guest: Guest<'_>, vm: u64, vcpu: u64, counter: u64) -> Verdict {
    if !guest.is_primary() {
        return Verdict::answer(FAILED);
    }
    let Some(vcpu) = guest.local.machine().vcpu(vm, vcpu) else { return Verdict::answer(FAILED) };
    let counters = &vcpu.counters;
    let counter = match counter {
        0 => &counters.waits,
        1 => &counters.migrations,
        2 => &counters.interrupts,
        3 => &counters.kicks,
        4 => &counters.runs,
        _ => return Verdict::answer(FAILED),
    };
    Verdict::answer(counter.load(Ordering::Relaxed).into())
}

fn call_exists(function: u64) -> Verdict {
    Verdict::answer(Call::exists(function).into())
}

/// None of ours; the primary's may be one to the firmware.
fn unknown(guest: Guest<'_>, args: [u64; 4]) -> Verdict {
    if !guest.is_primary() {
        return Verdict::answer(FAILED);
    }
    match psci::serve(guest.local.machine(), args) {
        psci::Answer::Return(result) => Verdict::answer(result),
        psci::Answer::TurnOff => Verdict::leave(Leave::TURN_OFF),
    }
}

fn checked_id(id: u64) -> Option<u32> {
    u32::try_from(id).ok().filter(|&id| id < INTERRUPTS)
}
