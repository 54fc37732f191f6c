//! What each CPU does: ask what to run, run it, and say how that went.

use baton_policy::{Nanos, PcpuId, Policy, Run, Stop};
use baton_vms::call::{self, Exit};
use baton_vms::lab::{self, Clock, Request};
use baton_vms::verdict::{Failed, Verdict, any_failure};
use baton_vms::{exception, failed, mailbox, timer};

use crate::board::{forget_kick, is_kicked, next};
use crate::{Lab, Shared, sure};

/// One CPU of the lab.
struct Pcpu<P: Policy + 'static> {
    lab: &'static Shared<Lab<P>>,
    me: PcpuId,
    clock: Clock,
    end: Nanos,
}

/// Schedules on this CPU until the lab ends.
pub fn work<P: Policy>(lab: &'static Shared<Lab<P>>, me: PcpuId) {
    let (clock, end) = {
        let lab = lab.lock();
        (lab.board.clock, lab.board.end)
    };
    let pcpu = Pcpu { lab, me, clock, end };
    let _: Result<(), Failed> = pcpu.work(); // what failed is written down
    timer::stop();
}

impl<P: Policy> Pcpu<P> {
    fn work(&self) -> Verdict {
        self.with(|lab, now, me| {
            sure(lab.harness.pcpu_on(now, me, &mut lab.board))?;
            if me == PcpuId(0) { lab.open(now) } else { Ok(()) }
        })?;
        while self.clock.now() < self.end && !any_failure() {
            let run = self.with(|lab, now, me| {
                forget_kick(me);
                sure(lab.harness.pick(now, me, &mut lab.board))
            })?;
            match run {
                None => self.idle()?,
                Some(run) => self.run(run)?,
            }
        }
        Ok(())
    }

    /// Does something with all that changes, after what is due.
    fn with<T>(&self, action: impl FnOnce(&mut Lab<P>, Nanos, PcpuId) -> Verdict<T>) -> Verdict<T> {
        let mut lab = self.lab.lock();
        lab.board.set_holder(self.me);
        let now = self.clock.now();
        lab.fire(now)?;
        let result = action(&mut lab, now, self.me);
        let kicked = lab.board.has_kicked();
        drop(lab);
        if kicked {
            self.clock.pass(); // so that whoever was kicked finds out now, and not a turn later
        }
        result
    }

    /// Burns its turns until it is kicked.
    fn idle(&self) -> Verdict {
        while !is_kicked(self.me) && self.clock.now() < self.end && !any_failure() {
            if self.clock.now() >= next(self.me) {
                self.with(|_, _, _| Ok(()))?;
            } else {
                self.clock.burn(lab::TURN);
            }
        }
        exception::take_interrupts();
        Ok(())
    }

    /// Runs a vCPU until its slice is over, or something else ends that.
    fn run(&self, Run { vcpu, slice }: Run) -> Verdict {
        let begin = self.clock.now();
        let over = begin.saturating_add(slice);
        let why = loop {
            timer::arm_at(self.clock.tick(over.min(next(self.me)).min(self.end)));
            let exit = call::vcpu_run_ext(lab::vm_of(vcpu), 0, call::WAIT);
            let stop = match exit {
                Exit::Preempted | Exit::Interrupted | Exit::Yield => None,
                Exit::WaitForInterrupt => Some(Stop::Block),
                Exit::WakeUp { vm, vcpu: woken } => {
                    if woken == 0 {
                        self.with(|lab, now, _| lab.wake_by_message(now, lab::vcpu_of(vm), vcpu))?;
                    }
                    None
                }
                Exit::Message { size } => {
                    let words = mailbox::read(size);
                    let _ = call::mailbox_clear(); // which it is, because there was a message
                    let request = Request::from_words(&words);
                    let request = request.ok_or_else(|| failed!("{vcpu} asked for something that there is not"))?;
                    self.with(|lab, now, _| lab.serve(now, vcpu, request))?
                }
                other => return Err(failed!("the run of {vcpu} ended with {other:?}")),
            };
            exception::take_interrupts();
            if let Some(stop) = stop {
                break stop;
            }
            let now = self.clock.now();
            if now >= next(self.me) {
                self.with(|_, _, _| Ok(()))?;
            }
            match () {
                () if now >= over => break Stop::Slice,
                () if is_kicked(self.me) || now >= self.end || any_failure() => break Stop::Kicked,
                () => {}
            }
        };
        timer::stop();
        let ran = self.clock.now() - begin;
        self.with(|lab, now, me| lab.stop(now, vcpu, me, ran, why))
    }
}
