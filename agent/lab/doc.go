// Package lab is a hypervisor made of folders: it implements hv.Hypervisor over VHDX files on any system, with real
// checkpoints (differencing disks that are merged), real change tracking and faults on demand. Foreign programs write to a
// live disk through another process that serves it over NBD (OpenDisk is its backend), while the agent's process takes
// checkpoints.
//
// It owns the lab folder: one folder per VM with vm.json, the disks, the change tracking records and lock files
// (docs/formats/lab.md). vm.json is the truth and is replaced atomically; a file it does not name is not part of the VM.
//
// Processes coordinate by locks on files only, which die with their process. Of each VM, the gate lock is held by whoever
// changes vm.json, the use lock is shared by those who have its live disks open and exclusive for those who change a chain.
// A process that serves a disk gives the use lock back as soon as somebody waits at the gate.
//
// What it promises when a process is killed at any instant: a write that was acknowledged is there; it is in the change
// tracking record, for the record is written first; every chain opens; a checkpoint left behind is listed by Leftovers and
// its Discard repairs; a merge that was begun is finished by whoever opens the VM next. It is a lab: after a power failure
// it promises what vhdx does for flushed data, but change tracking may have lost what was not flushed.
//
// It imports the root package, internal/clock, agent/hv and agent/vhdx only.
package lab
