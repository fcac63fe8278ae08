// Package memory is the deduplicating reference driver: a pool of maps and slices that is meant to be obviously right.
//
// It owns the meaning of the Pool interface as running code: where another driver restores other bytes for the same history,
// this one is asked first. It is also the pool of tests and demonstrations.
//
// A Medium stands for the storage, a Pool for the running code that has it open. Nothing outlives the process. Within
// it a Medium does: a Pool closed or killed (Medium.Kill) can be opened again and finds every committed set and no other.
// One mutex per medium guards everything; it is a leaf and is never held while a caller's code runs.
//
// It must not import other drivers, nor anything above the floor of pools.
package memory
