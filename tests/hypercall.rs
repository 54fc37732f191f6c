//! The hypercalls that answer at once (`src/hypercall.rs`): each row of the contract, with all that can be wrong about it.

mod common;

use std::mem::ManuallyDrop;

use baton::arch::fake::Step;
use baton::arch::{self, fake};
use baton::call::{Call, FAILED, NO_INTERRUPT, NO_VCPU, Reply, ReplyKind, ResultFormat, RunResult, Stop};
use baton::console;
use baton::exit::Exit;
use baton::handoff::{Life, Patience};
use baton::hypercall::{Caller, dispatch};
use baton::ids::{CpuId, Pa, VcpuId, VmId};
use baton::mailbox::{Message, NO_MESSAGE};
use baton::owed::Completion;
use baton::vcpu::LoadedVcpu;
use baton::vm::{Regions, Vm};
use common::{Bench, On, P0, P1, PAGES_OF_A_VM, args, calls, page, run, said, trace};

/// Two pCPUs; VM 1 with two vCPUs, VM 2 with one. Everybody has a mailbox.
fn bench() -> &'static Bench {
    let m = Bench::turned_off(2, &[2, 1]);
    for vm in 0..3 {
        assert_eq!(call(m, vm, 0, Call::VmConfigure { send: page(vm, 1), recv: page(vm, 2) }), 0);
    }
    m
}

/// The caller waits for its result.
const BLOCKED: Reply = Reply::later(Completion::Receive);

/// Serves a call.
fn serve(caller: Caller, call: Call) -> Reply {
    dispatch(caller, args(call))
}

/// The result of a call that goes on.
fn call(m: &Bench, vm: u16, vcpu: u16, call: Call) -> u64 {
    let reply = serve(m.caller(vm, vcpu), call);
    assert_eq!(reply.kind(), ReplyKind::Now, "{call:?} of VM {vm} is answered with {reply:?}");
    reply.result()
}

/// vCPU 0 of VM 1, which waits for something.
fn wait(m: &'static Bench, on: Completion) {
    let _until_the_end = On::pcpu(P1);
    let mut loaded = load(m, P1);
    loaded.block(on);
    assert!(!loaded.park());
    trace();
}

/// vCPU 0 of VM 1, in the hardware of a pCPU.
fn load(m: &'static Bench, cpu: CpuId) -> LoadedVcpu {
    let _until_the_end = On::pcpu(cpu);
    match m.vcpu(1, 0).acquire(m.local(cpu), Patience::WhileSaving) {
        Ok(regs) => regs.load(),
        Err(_) => panic!("the vCPU is {:?}", m.vcpu(1, 0).state()),
    }
}

#[test]
fn who_may_count() {
    let m = bench();
    for vm in 0..3 {
        assert_eq!(call(m, vm, 0, Call::VmGetCount), 3);
    }
    for (vm, count) in [(0, 2), (1, 2), (2, 1), (3, FAILED), (u32::MAX, FAILED), (1 << 31, FAILED)] {
        assert_eq!(call(m, 0, 0, Call::VcpuGetCount { vm }), count);
        assert_eq!(call(m, 1, 0, Call::VcpuGetCount { vm }), FAILED, "a secondary may not ask");
    }
}

#[test]
fn mailbox_pages() {
    let m = Bench::turned_off(1, &[1, 1]);
    for vm in 0..2 {
        let (good, other) = (page(vm, 1), page(vm, 2));
        let end = page(vm, PAGES_OF_A_VM);
        for bad in [good + 1, good + 8, good + 2048, end, page(vm, 0) - 4096, page(2, 0), u64::MAX, !4095, 0] {
            for (send, recv) in [(good, bad), (bad, good)] {
                assert_eq!(call(m, vm, 0, Call::VmConfigure { send, recv }), FAILED, "{send:#x} and {recv:#x}");
            }
        }
        assert_eq!(call(m, vm, 0, Call::VmConfigure { send: good, recv: good }), FAILED, "one page for both");
        assert_eq!((m.vm(vm).send_page(), m.vm(vm).recv_page()), (None, None));
        // The first and the last page are as good as any.
        assert_eq!(call(m, vm, 0, Call::VmConfigure { send: page(vm, 0), recv: end - 4096 }), 0);
        assert_eq!(call(m, vm, 0, Call::VmConfigure { send: good, recv: other }), FAILED, "once only");
        assert_eq!((m.vm(vm).send_page(), m.vm(vm).recv_page()), (Some(Pa(page(vm, 0))), Some(Pa(end - 4096))));
    }
}

/// The number that says "not configured" is never a page, also where there is RAM.
#[test]
fn page_0_is_no_mailbox() {
    let mut memory = Regions::new();
    memory.push(0..4 * 4096).expect("one region");
    let vm = Vm::new(VmId(1), 1, memory);
    assert!(vm.configure(0, 4096, false).is_err() && vm.configure(4096, 0, false).is_err());
    assert_eq!(vm.configure(4096, 8192, false), Ok(()));
}

#[test]
fn what_cannot_be_sent() {
    let m = bench();
    for (from, to, size) in
        [(0, 1, 4097), (0, 1, u64::MAX), (0, 0, 1), (1, 1, 1), (0, 3, 1), (1, 3, 1), (0, u32::MAX, 1), (1, 1 << 31, 1)]
    {
        assert_eq!(call(m, from, 0, Call::MailboxSend { vm: to, size }), FAILED, "{size} bytes from {from} to {to}");
    }
    // Nothing of this has put anything into a mailbox.
    for vm in 1..3 {
        assert_eq!(call(m, vm, 0, Call::MailboxReceive { block: false }), NO_MESSAGE);
    }
}

/// A VM gets its pages back, and may configure others; not while a message is in them.
#[test]
fn pages_that_are_given_back() {
    let m = bench();
    let unconfigure = |vm| call(m, vm, 0, Call::VmUnconfigure);
    let configure = |vm, send, recv| call(m, vm, 0, Call::VmConfigure { send: page(vm, send), recv: page(vm, recv) });
    for (to, from) in [(1, 0), (0, 1)] {
        let (to, from) = (to as u16, from as u16);
        let sends = Call::MailboxSend { vm: to.into(), size: 3 };
        assert_eq!(unconfigure(to), 0);
        assert_eq!(unconfigure(to), FAILED, "it has none");
        assert_eq!(call(m, from, 0, sends), FAILED, "the receiver has none");
        assert_eq!(serve(m.caller(to, 0), Call::MailboxSend { vm: from.into(), size: 3 }), Reply::now(FAILED));
        assert_eq!(configure(to, 3, 2), 0, "again");
        assert_eq!(configure(to, 1, 2), FAILED, "it has some");
        let _told = serve(m.caller(from, 0), sends);
        assert_eq!(unconfigure(to), FAILED, "a message is in them");
        if to == 1 {
            assert_eq!(call(m, 1, 0, Call::MailboxReceive { block: false }), 3 << 32);
            assert_eq!(unconfigure(to), FAILED, "it is being read");
        }
        assert_eq!(call(m, to, 0, Call::MailboxClear), 0);
        assert_eq!(unconfigure(to), 0);
        assert_eq!(configure(to, 1, 2), 0);
    }
}

/// One that waits goes on waiting, and is woken by what comes to the new pages.
#[test]
fn pages_are_given_back_while_a_vcpu_waits() {
    let m = bench();
    assert_eq!(serve(m.caller(1, 0), Call::MailboxReceive { block: true }), BLOCKED);
    assert_eq!(call(m, 1, 1, Call::VmUnconfigure), 0);
    assert_eq!(call(m, 1, 1, Call::VmConfigure { send: page(1, 1), recv: page(1, 3) }), 0);
    assert_eq!(call(m, 0, 0, Call::MailboxSend { vm: 1, size: 3 }), 0, "vCPU 0");
}

/// Whoever goes around the caches gets what was sent, and what it sends is what it has written.
#[test]
fn messages_of_a_vm_without_caches() {
    let m = Bench::turned_off(1, &[1, 1]);
    let configure = |vm, off| {
        fake::set_caches_off(off);
        assert_eq!(call(m, vm, 0, Call::VmConfigure { send: page(vm, 1), recv: page(vm, 2) }), 0);
        fake::set_caches_off(false);
    };
    configure(0, false);
    configure(1, true);
    configure(2, false);
    trace();
    let cleans = |bytes, page| format!("p0 cleans {bytes} bytes at {page:#x}");
    assert_eq!(call(m, 0, 0, Call::MailboxSend { vm: 2, size: 9 }), NO_VCPU);
    assert_eq!(trace(), [""; 0], "both have caches");
    assert_eq!(call(m, 0, 0, Call::MailboxSend { vm: 1, size: 9 }), NO_VCPU);
    assert_eq!(trace(), [cleans(9, page(0, 1)), cleans(9, page(1, 2))]);
    let _told = serve(m.caller(1, 0), Call::MailboxSend { vm: 0, size: 4096 });
    assert_eq!(trace(), [cleans(4096, page(1, 1)), cleans(4096, page(0, 2))]);
    assert_eq!(call(m, 1, 0, Call::MailboxReceive { block: false }), 9 << 32);
    assert_eq!(call(m, 1, 0, Call::MailboxClear), 0);
    assert_eq!(call(m, 0, 0, Call::MailboxSend { vm: 1, size: 0 }), NO_VCPU);
    assert_eq!(trace(), [""; 0], "there is nothing to clean");
}

/// The same for what it writes to the console. (Its line there is shared by all tests of this program: nobody else writes for
/// VM 2.)
#[test]
fn console_writes_of_a_vm_without_caches() {
    let m = bench();
    trace();
    let write = || call(m, 2, 0, Call::ConsoleWrite { address: page(2, 0), size: 7 });
    assert_eq!(write(), 7);
    assert_eq!(trace(), [""; 0], "it has caches");
    fake::set_caches_off(true);
    assert_eq!(write(), 7);
    fake::set_caches_off(false);
    assert_eq!(trace(), [format!("p0 cleans 7 bytes at {:#x}", page(2, 0))]);
}

#[test]
fn nothing_is_sent_without_mailboxes() {
    let m = Bench::turned_off(1, &[1, 1]);
    assert_eq!(call(m, 0, 0, Call::MailboxSend { vm: 1, size: 1 }), FAILED, "neither has one");
    assert_eq!(call(m, 0, 0, Call::VmConfigure { send: page(0, 1), recv: page(0, 2) }), 0);
    assert_eq!(call(m, 0, 0, Call::MailboxSend { vm: 1, size: 1 }), FAILED, "the receiver has none");
    assert_eq!(call(m, 1, 0, Call::MailboxSend { vm: 0, size: 1 }), FAILED, "the sender has none");
}

#[test]
fn nothing_is_sent_to_a_vm_that_was_stopped() {
    let m = bench();
    assert_eq!(serve(m.caller(1, 0), Call::MailboxReceive { block: true }), BLOCKED);
    m.vm(1).stop(Stop::Abort);
    assert_eq!(call(m, 0, 0, Call::MailboxSend { vm: 1, size: 1 }), FAILED);
    assert_eq!(call(m, 2, 0, Call::MailboxSend { vm: 1, size: 1 }), FAILED);
    // One that is on its way past this check wakes nobody.
    let late = Message { from: VmId(2), size: 1 };
    assert_eq!(m.vm(1).mailbox.begin().map(|filling| filling.deliver(late)), Ok(None));
}

#[test]
fn a_message_from_the_primary() {
    let m = bench();
    fake::write_memory(Pa(page(0, 1)), &[1, 2, 3, 4]);
    fake::write_memory(Pa(page(1, 2)), &[9; 8]);
    assert_eq!(call(m, 0, 0, Call::MailboxSend { vm: 1, size: 3 }), NO_VCPU, "nobody waited");
    assert_eq!(fake::read_memory(Pa(page(1, 2)), 8), [1, 2, 3, 9, 9, 9, 9, 9], "as many bytes as were said");
    assert_eq!(call(m, 0, 0, Call::MailboxSend { vm: 1, size: 3 }), FAILED, "the mailbox is not empty");
    assert_eq!(call(m, 1, 1, Call::MailboxClear), FAILED, "it has not been read");
    assert_eq!(call(m, 1, 1, Call::MailboxReceive { block: true }), 3 << 32);
    assert_eq!(call(m, 1, 0, Call::MailboxReceive { block: false }), NO_MESSAGE, "it has been read");
    assert_eq!(call(m, 0, 0, Call::MailboxSend { vm: 1, size: 3 }), FAILED, "it has not been cleared");
    assert_eq!(call(m, 1, 0, Call::MailboxClear), 0);
    assert_eq!(call(m, 1, 0, Call::MailboxClear), FAILED, "it is empty");
    for size in [0, 4096] {
        assert_eq!(call(m, 0, 0, Call::MailboxSend { vm: 1, size }), NO_VCPU);
        assert_eq!(call(m, 1, 0, Call::MailboxReceive { block: false }), size << 32);
        assert_eq!(call(m, 1, 0, Call::MailboxClear), 0);
    }
}

#[test]
fn a_message_for_one_that_waits() {
    let m = bench();
    assert_eq!(serve(m.caller(1, 1), Call::MailboxReceive { block: true }), BLOCKED);
    assert_eq!(call(m, 0, 0, Call::MailboxSend { vm: 1, size: 3 }), 1, "its index");
    assert_eq!(call(m, 1, 0, Call::MailboxReceive { block: false }), NO_MESSAGE, "it is promised");
    assert_eq!(serve(m.caller(1, 0), Call::MailboxReceive { block: true }), BLOCKED);
}

#[test]
fn a_message_between_secondaries() {
    let m = bench();
    let send = Call::MailboxSend { vm: 1, size: 3 };
    let wake_up = |vcpu| Reply::tell(RunResult::wake_up(VmId(1), vcpu));
    assert_eq!(serve(m.caller(2, 0), send), wake_up(None));
    assert_eq!(call(m, 2, 0, send), FAILED, "and the primary is not entered");
    assert_eq!(call(m, 1, 0, Call::MailboxReceive { block: false }), 2 | 3 << 32);
    assert_eq!(call(m, 1, 0, Call::MailboxClear), 0);
    assert_eq!(serve(m.caller(1, 1), Call::MailboxReceive { block: true }), BLOCKED);
    assert_eq!(serve(m.caller(2, 0), send), wake_up(Some(VcpuId(1))));
}

#[test]
fn a_message_for_the_primary() {
    let m = bench();
    fake::write_memory(Pa(page(1, 1)), b"hello");
    let send = Call::MailboxSend { vm: 0, size: 5 };
    assert_eq!(serve(m.caller(1, 0), send), Reply::tell(RunResult::message(5)));
    assert_eq!(fake::read_memory(Pa(page(0, 2)), 5), b"hello");
    for vm in 1..3 {
        assert_eq!(call(m, vm, 0, send), FAILED, "it has not been cleared");
    }
    for block in [false, true] {
        assert_eq!(call(m, 0, 0, Call::MailboxReceive { block }), NO_MESSAGE, "it was read when it came");
    }
    assert_eq!(call(m, 0, 1, Call::MailboxClear), 0);
    assert_eq!(call(m, 0, 0, Call::MailboxClear), FAILED);
    assert_eq!(serve(m.caller(2, 0), send), Reply::tell(RunResult::message(5)));
}

#[test]
fn receive_blocks_despite_pending_interrupt() {
    let m = bench();
    assert_eq!(call(m, 1, 0, Call::EnableInterrupt { id: 5, enable: true }), 0);
    assert_eq!(call(m, 0, 0, Call::InjectInterrupt { vm: 1, vcpu: 0, id: 5 }), 0);
    assert_eq!(call(m, 1, 0, Call::MailboxReceive { block: true }), NO_MESSAGE);
    assert_eq!(serve(m.caller(1, 1), Call::MailboxReceive { block: true }), BLOCKED, "vCPU 1 has none");
    assert_eq!(call(m, 0, 0, Call::MailboxSend { vm: 1, size: 0 }), 1, "vCPU 0 does not wait");
}

#[test]
fn interrupts() {
    let m = bench();
    for vm in 0..3 {
        assert_eq!(call(m, vm, 0, Call::GetAndAcknowledgeInterrupt), NO_INTERRUPT);
        for id in [64, 65, 1 << 31, u32::MAX] {
            for enable in [false, true] {
                assert_eq!(call(m, vm, 0, Call::EnableInterrupt { id, enable }), FAILED);
            }
            assert_eq!(call(m, vm, 0, Call::InjectInterrupt { vm: vm.into(), vcpu: 0, id }), FAILED);
        }
        for id in [0, 63] {
            assert_eq!(call(m, vm, 0, Call::EnableInterrupt { id, enable: true }), 0);
            assert_eq!(call(m, vm, 0, Call::InjectInterrupt { vm: vm.into(), vcpu: 0, id }), 0, "itself");
        }
        for id in [0, 63, NO_INTERRUPT] {
            assert_eq!(call(m, vm, 0, Call::GetAndAcknowledgeInterrupt), id);
        }
    }
    assert_eq!(call(m, 0, 0, Call::VcpuCounter { vm: 1, vcpu: 0, counter: 2 }), 2, "fetched");
}

#[test]
fn whom_one_may_interrupt() {
    let m = bench();
    for (vm, vcpu) in [(3, 0), (u32::MAX, 0), (1, 2), (1, u32::MAX), (1, 1 << 16)] {
        assert_eq!(call(m, 0, 0, Call::InjectInterrupt { vm, vcpu, id: 1 }), FAILED);
        assert_eq!(call(m, 1, 0, Call::InjectInterrupt { vm, vcpu, id: 1 }), FAILED);
    }
    for vm in [0, 2] {
        assert_eq!(call(m, 1, 0, Call::InjectInterrupt { vm, vcpu: 0, id: 1 }), FAILED, "VM 1 interrupts VM {vm}");
    }
    for (vm, vcpu) in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)] {
        assert_eq!(call(m, 0, 0, Call::InjectInterrupt { vm, vcpu, id: 1 }), 0, "the primary may");
    }
}

#[test]
fn a_secondary_that_wakes_another_of_its_vcpus() {
    let m = bench();
    let inject = Call::InjectInterrupt { vm: 1, vcpu: 1, id: 4 };
    assert_eq!(call(m, 1, 0, inject), 0, "vCPU 1 has not enabled it, so it is not woken");
    assert_eq!(call(m, 1, 1, Call::EnableInterrupt { id: 4, enable: true }), 0);
    assert_eq!(call(m, 1, 1, Call::GetAndAcknowledgeInterrupt), 4);
    let wake_up = Reply::tell(RunResult::wake_up(VmId(1), Some(VcpuId(1))));
    assert_eq!(serve(m.caller(1, 0), inject), wake_up);
    assert_eq!(call(m, 1, 0, inject), 0, "it was woken already");
}

#[test]
fn running_target_not_kicked() {
    let m = bench();
    assert_eq!(call(m, 1, 0, Call::EnableInterrupt { id: 4, enable: true }), 0);
    assert_eq!(call(m, 1, 0, Call::EnableInterrupt { id: 5, enable: true }), 0);
    let loaded = load(m, P1);
    for (id, kicks) in [(4, 1), (4, 1), (6, 1), (5, 2)] {
        assert_eq!(call(m, 0, 0, Call::InjectInterrupt { vm: 1, vcpu: 0, id }), 0);
        assert_eq!(call(m, 0, 0, Call::VcpuCounter { vm: 1, vcpu: 0, counter: 3 }), kicks, "after {id}");
    }
    assert_eq!(call(m, 1, 0, Call::GetAndAcknowledgeInterrupt), 4);
    // A secondary's, too, and then there is nothing to tell the primary.
    assert_eq!(call(m, 1, 1, Call::InjectInterrupt { vm: 1, vcpu: 0, id: 4 }), 0);
    assert_eq!(trace(), ["p1 load v1.0", "p0 kick p1", "p0 kick p1", "p0 kick p1"]);
    fake::run_on(P1);
    drop(loaded);
}

/// What comes out of its guest by itself between the injector's look and its kick looks by itself, too.
#[test]
fn a_target_that_is_gone_is_not_kicked() {
    let m = bench();
    assert_eq!(call(m, 1, 0, Call::EnableInterrupt { id: 4, enable: true }), 0);
    // A hook that is never reached outlives the machine, and must not let go of anything then.
    let loaded = ManuallyDrop::new(load(m, P1));
    fake::before("p0 kick p1", move || {
        let _until_the_end = On::pcpu(P1);
        drop(ManuallyDrop::into_inner(loaded));
    });
    assert_eq!(call(m, 0, 0, Call::InjectInterrupt { vm: 1, vcpu: 0, id: 4 }), 0);
    fake::run_on(P1);
    assert!(!arch::interrupt_pending(), "the kick is left for the primary");
}

/// Its interrupts are physical: neither has it a line, nor is it kicked.
#[test]
fn the_primary_has_no_virtual_interrupts() {
    let m = Bench::new(2, &[1]);
    for (cpu, vcpu) in [(P0, 0), (P1, 1)] {
        assert_eq!(m.call(P1, [0xff07, 4 + vcpu, 1, 0]), 0);
        trace();
        m.guest(cpu, 0, vcpu as u16, calls([0xff09, 0, 1, 4 + vcpu]));
        m.guest(cpu, 0, vcpu as u16, |regs| {
            assert_eq!(regs.x[0], 0);
            assert!(!regs.virtual_interrupt);
            Exit::Interrupt
        });
        m.finish(cpu);
        assert!(trace().iter().all(|event| !event.contains("kick")));
        fake::run_on(P1);
        assert!(!arch::interrupt_pending());
        assert_eq!(m.call(P1, [0xff08, 0, 0, 0]), 4 + vcpu, "it can be fetched all the same");
    }
}

/// The guest that changes what is pending and enabled for itself finds its line to be so at once.
#[test]
fn the_line_follows_the_caller() {
    let m = Bench::new(1, &[1]);
    let step = |args: [u64; 4], high: bool| {
        m.guest(P0, 1, 0, calls(args));
        m.guest(P0, 1, 0, move |regs| {
            assert_eq!(regs.virtual_interrupt, high, "after {args:x?}");
            [regs.x[0], regs.x[1]] = [0xff01, 0]; // goes on
            Step::Hypercall
        });
    };
    step([0xff09, 1, 0, 4], false);
    step([0xff07, 4, 1, 0], true);
    step([0xff07, 4, 0, 0], false);
    step([0xff07, 4, 1, 0], true);
    step([0xff08, 0, 0, 0], false);
    step([0xff09, 1, 0, 4], true);
    m.guest(P0, 1, 0, |_| Exit::Wfe);
    assert_eq!(m.call(P0, run(1, 0)), 0);
}

#[test]
fn counters() {
    let m = bench();
    for (vm, vcpu, counter) in [(1, 0, 5), (1, 0, u64::MAX), (3, 0, 0), (1, 2, 0), (1, 1 << 31, 0)] {
        assert_eq!(call(m, 0, 0, Call::VcpuCounter { vm, vcpu, counter }), FAILED);
    }
    for counter in 0..5 {
        assert_eq!(call(m, 0, 0, Call::VcpuCounter { vm: 1, vcpu: 0, counter }), 0);
        assert_eq!(call(m, 1, 0, Call::VcpuCounter { vm: 1, vcpu: 0, counter }), FAILED, "a secondary may not ask");
    }
}

#[test]
fn which_calls_exist() {
    let m = bench();
    for vm in 0..3 {
        for (function, exists) in [(0xff00, 1), (0xff09, 1), (0xff0a, 0), (0xff85, 1), (0xff86, 0), (0, 0)] {
            assert_eq!(call(m, vm, 0, Call::CallExists { function }), exists);
        }
        assert_eq!(call(m, vm, 0, Call::Unknown), FAILED);
    }
}

#[test]
fn a_secondary_may_not_run_anybody() {
    let m = bench();
    let run = |format, patience| Call::VcpuRun { vm: 2, vcpu: 0, format, patience };
    assert_eq!(call(m, 1, 0, run(ResultFormat::Reference, Patience::WhileSaving)), 1);
    for patience in [Patience::WhileSaving, Patience::WhileLoaded] {
        assert_eq!(call(m, 1, 0, run(ResultFormat::Extended, patience)), FAILED);
    }
    assert_eq!(m.vcpu(2, 0).state().owner, None);
    assert_eq!(trace(), [""; 0], "nothing was loaded");
}

#[test]
fn only_a_secondary_yields() {
    let m = bench();
    assert_eq!(serve(m.caller(1, 0), Call::VcpuYield), Reply::tell(RunResult::YIELD));
    assert_eq!(serve(m.caller(1, 1), Call::VcpuYield), Reply::tell(RunResult::YIELD));
    assert_eq!(call(m, 0, 0, Call::VcpuYield), FAILED, "there is nobody above the primary to yield to");
}

/// The console is the process's, and so are the lines of its VMs: each VM here writes in one test only.
#[test]
fn what_may_be_written_to_the_console() {
    let m = bench();
    let write = |vm, address, size| call(m, vm, 0, Call::ConsoleWrite { address, size });
    let (start, end) = (page(1, 0), page(1, PAGES_OF_A_VM));
    for (address, size) in [
        (start, 65),
        (start, u64::MAX),
        (start - 1, 2),
        (start - 1, 1),
        (end - 1, 2),
        (end, 1),
        (end + 1, 0),
        (0, 0),
        (0, 8),
        (u64::MAX, 1),
        (u64::MAX - 63, 64),
        (page(2, 0), 8),
        (page(0, 0), 8),
        (0x0900_0000, 8),
    ] {
        assert_eq!(write(1, address, size), FAILED, "{size} bytes at {address:#x}");
    }
    assert_eq!(said(), [""; 0], "nothing of that is printed");
    // A range may cross pages.
    fake::write_memory(Pa(page(1, 4)), &[b'-'; 4096]);
    fake::write_memory(Pa(page(1, 5)), b"hello\nthere");
    assert_eq!(write(1, page(1, 5) - 3, 9), 9);
    assert_eq!(said(), ["[VM 1] ---hello"]);
    assert_eq!(write(1, page(1, 5) + 6, 5), 5);
    for (address, size) in [(start, 0), (end, 0), (end - 64, 64)] {
        assert_eq!(write(1, address, size), size);
    }
    console::flush(VmId(1));
    assert_eq!(said(), [format!("[VM 1] there{}", "?".repeat(64))]);
    fake::write_memory(Pa(page(0, 0)), b"one\ntwo\n\n");
    assert_eq!(write(0, page(0, 0), 9), 9, "the primary may write, too");
    assert_eq!(said(), ["[VM 0] one", "[VM 0] two", "[VM 0] "]);
}

/// Whoever sends a message takes the wake edge of the vCPU that it is promised to, if that waits for one.
#[test]
fn a_message_wakes_its_receiver() {
    for from in [0, 2] {
        let m = bench();
        assert_eq!(serve(m.caller(1, 0), Call::MailboxReceive { block: true }), BLOCKED);
        wait(m, Completion::Receive);
        let send = Call::MailboxSend { vm: 1, size: 3 };
        let reply = serve(m.caller(from, 0), send);
        let told = if from == 0 { Reply::now(0) } else { Reply::tell(RunResult::wake_up(VmId(1), Some(VcpuId(0)))) };
        assert_eq!(reply, told);
        assert_eq!(m.vcpu(1, 0).state().life, Life::woken(Completion::Receive));
        assert_eq!(trace(), [""; 0], "it runs nowhere, so nobody is kicked");
    }
}

/// A message is no reason to run a vCPU that does not wait for one.
#[test]
fn a_message_does_not_end_a_wfi() {
    let m = bench();
    wait(m, Completion::Interrupt);
    assert_eq!(call(m, 0, 0, Call::MailboxSend { vm: 1, size: 3 }), NO_VCPU);
    assert_eq!(m.vcpu(1, 0).state().life, Life::blocked(Completion::Interrupt));
}

/// A receiver that is on its way to wait is not kicked: it looks for the message when it gets there.
#[test]
fn a_receiver_that_is_about_to_wait_is_not_kicked() {
    let m = bench();
    let mut loaded = load(m, P1);
    assert_eq!(serve(m.caller(1, 0), Call::MailboxReceive { block: true }), BLOCKED);
    loaded.block(Completion::Receive);
    trace();
    assert_eq!(call(m, 0, 0, Call::MailboxSend { vm: 1, size: 3 }), 0, "its index");
    assert_eq!(trace(), [""; 0]);
    let _until_the_end = On::pcpu(P1);
    assert!(loaded.park(), "nobody says that it has its message");
    assert_eq!(m.vcpu(1, 0).state().life, Life::woken(Completion::Receive));
}

/// Whoever injects an interrupt that is enabled takes the wake edge of its vCPU, whether that is in `wfi` or in a receive.
#[test]
fn an_interrupt_wakes_its_vcpu() {
    let inject = |id| Call::InjectInterrupt { vm: 1, vcpu: 0, id };
    for (on, from) in [Completion::Interrupt, Completion::Receive].into_iter().flat_map(|on| [(on, 0), (on, 1)]) {
        let m = bench();
        assert_eq!(call(m, 1, 0, Call::EnableInterrupt { id: 4, enable: true }), 0);
        wait(m, on);
        let caller = m.caller(from, from); // a sibling, if it is not the primary
        assert_eq!(serve(caller, inject(6)), Reply::now(0), "it has not enabled this one");
        assert_eq!(m.vcpu(1, 0).state().life, Life::blocked(on));
        let told = if from == 0 { Reply::now(0) } else { Reply::tell(RunResult::wake_up(VmId(1), Some(VcpuId(0)))) };
        assert_eq!(serve(caller, inject(4)), told, "{on:?}");
        assert_eq!(m.vcpu(1, 0).state().life, Life::woken(on));
        assert_eq!(serve(caller, inject(4)), Reply::now(0), "it was woken already");
        assert_eq!(trace(), [""; 0], "it runs nowhere, so nobody is kicked");
    }
}

/// A vCPU that is off is turned on by nobody but who may do that.
#[test]
fn an_interrupt_does_not_turn_a_vcpu_on() {
    let m = bench();
    assert_eq!(call(m, 1, 1, Call::EnableInterrupt { id: 4, enable: true }), 0);
    assert_eq!(call(m, 0, 0, Call::InjectInterrupt { vm: 1, vcpu: 1, id: 4 }), 0);
    assert_eq!(m.vcpu(1, 1).state().life, Life::blocked(Completion::PowerOn));
}
