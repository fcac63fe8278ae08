// Package agent is the agent's core: it takes tasks from the appliance and backs up and restores the VMs of one host.
//
// It owns the order of things around a checkpoint (backup.go), the decision how a disk is read (plan.go), the pipeline from extents
// to chunks on the wire (engine.go, pipeline.go) and the journal in the agent's data folder (journal.go).
//
// On a crash: a checkpoint is written to the journal before it is made, so that an agent that comes back discards what a killed one
// left, before it takes its first task. The change tracking of a VM moves on only after the appliance has the set safe. A restore
// that did not end is not a VM and its disks are not valid.
//
// It must not import pools, catalog or a hypervisor: which one it serves is handed in as an hv.Hypervisor.
//
// Goroutines of a backup, and what they wait for (nobody waits for a stage before its own):
//
//	reader    a free slab, the disk                     one for each disk
//	cutter    the reader                                one for each disk
//	worker    a slab to hash or a group to encode       GOMAXPROCS for the whole agent
//	asker     its slab's hashes, room on the link       one for each disk
//	gatherer  the answer, a free slot for a full group  one for each disk; frees the slab
//	sender    its group's encoding, room on the link    one for each disk; frees the slot
//	receiver  the link                                  one for each task; never waits for the others
package agent
