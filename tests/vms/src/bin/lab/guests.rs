//! What goes on around the vCPUs: their births, what they ask for, and devices.

use baton_policy::{Nanos, PcpuId, Policy, State, Stop, VcpuId, Wake};
use baton_vms::lab::{self, Request};
use baton_vms::verdict::Verdict;
use baton_vms::{call, ensure, failed, mailbox};
use baton_workload::{Cursor, Step, Workload};

use crate::arena::Arena;
use crate::board::Due;
use crate::{Lab, MAX_DEVICES, MAX_GUESTS, sure};

/// Messages that can wait with the primary, for each guest.
const MESSAGES: usize = 65_536;

/// A message that waits with the primary.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Message {
    sender: u64,
    sent: Nanos,
}

/// Messages for a guest, in the order in which they were sent.
struct Queue {
    slots: &'static mut [Message],
    first: usize,
    len: usize,
}

impl Queue {
    fn front(&self) -> Option<Message> {
        (self.len > 0).then(|| self.slots[self.first])
    }

    fn clear(&mut self) {
        self.len = 0;
    }

    fn pop(&mut self) {
        (self.first, self.len) = ((self.first + 1) % self.slots.len(), self.len - 1);
    }

    /// Whether there was room.
    fn push(&mut self, message: Message) -> bool {
        let room = self.len < self.slots.len();
        if room {
            self.slots[(self.first + self.len) % self.slots.len()] = message;
            self.len += 1;
        }
        room
    }
}

/// Something that several guests of a VM know by its number.
#[derive(Clone, Debug)]
struct Meeting {
    vm: u32,
    number: u32,
    /// In the order in which they came; of a lock, the first one has it.
    guests: heapless::Vec<Waiter, MAX_GUESTS>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Waiter {
    vcpu: VcpuId,
    spins: bool,
}

type Meetings = heapless::Vec<Meeting, 32>;

pub struct Guests {
    workload: Workload<'static>,
    /// How often the watchdog looks.
    watch: Nanos,
    devices: heapless::Vec<Cursor, MAX_DEVICES>,
    messages: heapless::Vec<Queue, MAX_GUESTS>,
    barriers: Meetings,
    locks: Meetings,
    respawn: [baton_policy::kit::Random; MAX_GUESTS],
}

impl Guests {
    pub fn new(workload: Workload<'static>, watch: Nanos, arena: &mut Arena) -> Verdict<Self> {
        let guests = workload.vcpus.len();
        let cursor = |(index, device): (usize, &baton_workload::Device)| {
            Cursor::new(workload.seed, VcpuId::from(guests + index), 0, device.start)
        };
        let mut messages = heapless::Vec::new();
        for _ in 0..guests {
            let slots = arena.many(MESSAGES, Message::default())?;
            let _ = messages.push(Queue { slots, first: 0, len: 0 }); // there is room for each guest
        }
        Ok(Self {
            workload,
            watch,
            devices: workload.devices.iter().enumerate().map(cursor).collect(),
            messages,
            barriers: Meetings::new(),
            locks: Meetings::new(),
            respawn: core::array::from_fn(|index| baton_policy::kit::Random::new(workload.seed ^ index as u64)),
        })
    }
}

fn meeting(meetings: &mut Meetings, vm: u32, number: u32) -> Verdict<&mut Meeting> {
    let at = match meetings.iter().position(|meeting| (meeting.vm, meeting.number) == (vm, number)) {
        Some(at) => at,
        None => {
            let new = Meeting { vm, number, guests: heapless::Vec::new() };
            meetings.push(new).map_err(|_| failed!("there are more barriers or locks than this primary can hold"))?;
            meetings.len() - 1
        }
    };
    Ok(&mut meetings[at])
}

impl<P: Policy> Lab<P> {
    /// Has all who are there from the start, or later, come, and the devices go on.
    pub fn open(&mut self, now: Nanos) -> Verdict {
        let Workload { vcpus, devices, .. } = self.guests.workload;
        for (index, vcpu) in vcpus.iter().enumerate() {
            self.board.arm(Due::Birth(VcpuId::from(index)), vcpu.start);
        }
        for (index, device) in devices.iter().enumerate() {
            self.board.arm(Due::Device(index), device.start);
        }
        self.board.arm(Due::Watch, now.saturating_add(self.guests.watch));
        self.fire(now)
    }

    /// Does what is due on this CPU.
    pub fn fire(&mut self, now: Nanos) -> Verdict {
        while let Some(due) = self.board.due(now) {
            match due {
                Due::Policy(timer) => sure(self.harness.timer(now, timer, &mut self.board))?,
                Due::Sleeper(vcpu) => self.let_go_on(now, vcpu, Some(Wake::Timer))?,
                Due::Birth(vcpu) => {
                    let params = self.guests.workload.vcpus[vcpu.index()].params;
                    if sure(self.harness.add(now, vcpu, params, &mut self.board))?.is_ok() {
                        self.guests.messages[vcpu.index()].clear();
                        self.wake(now, vcpu, Wake::New)?;
                        self.put(now, vcpu, Message { sender: lab::BORN, sent: now })?;
                    }
                }
                Due::Device(index) => self.go_on_with_device(now, index)?,
                Due::Watch => {
                    sure(self.harness.watch(now, &mut self.board))?;
                    self.board.arm(Due::Watch, now.saturating_add(self.guests.watch).max(now + 1));
                }
            }
        }
        Ok(())
    }

    /// The vCPU came back from this CPU.
    pub fn stop(&mut self, now: Nanos, vcpu: VcpuId, me: PcpuId, ran: Nanos, why: Stop) -> Verdict {
        sure(self.harness.stop(now, vcpu, me, ran, why, &mut self.board))?;
        let respawn = self.guests.workload.vcpus[vcpu.index()].respawn;
        if let (Stop::Exit, Some(after)) = (why, respawn) {
            let after = after.draw(&mut self.guests.respawn[vcpu.index()]);
            self.board.arm(Due::Birth(vcpu), now.saturating_add(after).max(now + 1));
        }
        Ok(())
    }

    /// A message of `from` has woken `vcpu`, as the hypervisor says.
    pub fn wake_by_message(&mut self, now: Nanos, vcpu: VcpuId, from: VcpuId) -> Verdict {
        self.wake(now, vcpu, Wake::Message(from))
    }

    /// Does what a guest asks for, as far as it can be done; whether its run is over with that.
    pub fn serve(&mut self, now: Nanos, vcpu: VcpuId, request: Request) -> Verdict<Option<Stop>> {
        let vm = self.guests.workload.vcpus[vcpu.index()].params.vm.0;
        match request {
            Request::Sleep(until) => self.board.arm(Due::Sleeper(vcpu), until),
            Request::Yield => return Ok(Some(Stop::Yield)),
            Request::YieldTo(other) => {
                let there = other.index() < self.guests.workload.vcpus.len();
                return Ok(Some(if there { Stop::YieldTo(other) } else { Stop::Yield }));
            }
            Request::Barrier { number, parties, spins } => {
                let meeting = meeting(&mut self.guests.barriers, vm, number)?;
                let _ = meeting.guests.push(Waiter { vcpu, spins }); // each guest is in it once
                if meeting.guests.len() >= parties as usize {
                    for waiter in core::mem::take(&mut meeting.guests) {
                        self.let_go_on(now, waiter.vcpu, (!waiter.spins).then_some(Wake::Interrupt))?;
                    }
                }
            }
            Request::Lock(number) => {
                let meeting = meeting(&mut self.guests.locks, vm, number)?;
                let _ = meeting.guests.push(Waiter { vcpu, spins: true });
                if meeting.guests.len() == 1 {
                    self.let_go_on(now, vcpu, None)?;
                }
            }
            Request::Unlock(number) => {
                let meeting = meeting(&mut self.guests.locks, vm, number)?;
                if meeting.guests.first().is_some_and(|holder| holder.vcpu == vcpu) {
                    meeting.guests.remove(0);
                    if let Some(&next) = meeting.guests.first() {
                        self.let_go_on(now, next.vcpu, None)?;
                    }
                }
            }
            Request::Deliver(to, sent) => self.deliver(now, to, Some(vcpu), sent)?,
            Request::Fetch => self.hand_over(now, vcpu)?,
            Request::Exit => return Ok(Some(Stop::Exit)),
        }
        Ok(None)
    }

    /// Ends a guest's wait; if it is blocked, which the one who waits by spinning is not, for this reason.
    fn let_go_on(&mut self, now: Nanos, vcpu: VcpuId, blocked: Option<Wake>) -> Verdict {
        self.interrupt(vcpu, lab::GO_ON)?;
        blocked.map_or(Ok(()), |why| self.wake(now, vcpu, why))
    }

    fn wake(&mut self, now: Nanos, vcpu: VcpuId, why: Wake) -> Verdict {
        if self.harness.state(vcpu) == State::Absent {
            return Ok(());
        }
        sure(self.harness.wake(now, vcpu, why, &mut self.board)).map(drop)
    }

    fn interrupt(&self, vcpu: VcpuId, id: u64) -> Verdict {
        let vm = lab::vm_of(vcpu);
        call::inject_interrupt(vm, 0, id).map_err(|_| failed!("VM {vm} takes no interrupt {id}"))
    }

    /// Does what a device does now.
    fn go_on_with_device(&mut self, now: Nanos, index: usize) -> Verdict {
        let program = self.guests.workload.program(self.guests.workload.devices[index].program);
        loop {
            match self.guests.devices[index].step(program, now) {
                Step::Send(to) => self.deliver(now, to, None, now)?,
                Step::Sleep(at) | Step::Release { at, .. } if at > now => {
                    self.board.arm(Due::Device(index), at);
                    return Ok(());
                }
                Step::Exit => return Ok(()),
                _ => {}
            }
        }
    }

    /// Puts a message into somebody's mailbox, or keeps it until there is room. `None` is a device.
    fn deliver(&mut self, now: Nanos, to: VcpuId, from: Option<VcpuId>, sent: Nanos) -> Verdict {
        if self.harness.state(to) == State::Absent {
            return Ok(());
        }
        self.put(now, to, Message { sender: from.map_or(lab::DEVICE, |vcpu| vcpu.0.into()), sent })
    }

    /// Puts a message behind those that wait for this guest.
    fn put(&mut self, now: Nanos, to: VcpuId, message: Message) -> Verdict {
        let waiting = &mut self.guests.messages[to.index()];
        ensure!(waiting.push(message), "more than {MESSAGES} messages wait for {to}");
        self.hand_over(now, to)
    }

    /// Puts the message that has waited longest into the guest's mailbox, and says so if there are more.
    fn hand_over(&mut self, now: Nanos, to: VcpuId) -> Verdict {
        let waiting = &mut self.guests.messages[to.index()];
        let Some(Message { sender, sent }) = waiting.front() else { return Ok(()) };
        let sent = mailbox::send(lab::vm_of(to), &[sender, sent]);
        if sent.is_ok() {
            waiting.pop();
        }
        let more = waiting.front().is_some();
        match (sent, sender) {
            (Ok(0), lab::DEVICE) => self.wake(now, to, Wake::Interrupt)?,
            (Ok(0), lab::BORN) => {} // it is awake since it is there
            (Ok(0), sender) => self.wake(now, to, Wake::Message(VcpuId(sender as u32)))?,
            _ => {}
        }
        if more { self.interrupt(to, lab::MESSAGES) } else { Ok(()) }
    }
}
