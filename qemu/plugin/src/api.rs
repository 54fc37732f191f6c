//! The part of QEMU's plugin interface that is used here, version 1.
//!
//! Source: QEMU 7.2, `include/qemu/qemu-plugin.h`. QEMU looks for `qemu_plugin_version` and `qemu_plugin_install` in a
//! plugin; the functions below are its own, and are bound when it loads the plugin.

use core::ffi::{c_char, c_int, c_uint, c_void};

/// The version of the interface, which QEMU checks.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "QEMU gives the name")]
pub static qemu_plugin_version: c_int = 1;

/// QEMU's name for a plugin that it loaded.
pub type Id = u64;

/// A block of guest code that is being translated.
#[repr(C)]
pub struct Block([u8; 0]);

/// An instruction of such a block.
#[repr(C)]
pub struct Instruction([u8; 0]);

/// What QEMU says about itself; not looked at.
#[repr(C)]
pub struct Info([u8; 0]);

/// The callbacks neither read nor write registers.
pub const NO_REGISTERS: c_int = 0;

pub type Translated = extern "C" fn(id: Id, block: *mut Block);
pub type Executed = extern "C" fn(cpu: c_uint, data: *mut c_void);
pub type AtExit = extern "C" fn(id: Id, data: *mut c_void);

unsafe extern "C" {
    pub fn qemu_plugin_register_vcpu_tb_trans_cb(id: Id, callback: Translated);
    pub fn qemu_plugin_register_vcpu_insn_exec_cb(
        instruction: *mut Instruction,
        callback: Executed,
        flags: c_int,
        data: *mut c_void,
    );
    pub fn qemu_plugin_register_atexit_cb(id: Id, callback: AtExit, data: *mut c_void);
    pub fn qemu_plugin_tb_n_insns(block: *const Block) -> usize;
    pub fn qemu_plugin_tb_get_insn(block: *const Block, index: usize) -> *mut Instruction;
    pub fn qemu_plugin_insn_vaddr(instruction: *const Instruction) -> u64;
    pub fn qemu_plugin_insn_data(instruction: *const Instruction) -> *const c_void;
    pub fn qemu_plugin_insn_size(instruction: *const Instruction) -> usize;
    pub fn qemu_plugin_outs(text: *const c_char);
}
