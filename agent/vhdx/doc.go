// Package vhdx reads and writes virtual hard disk files: VHDX (fixed, dynamic, differencing) and, for reading only, the older
// VHD. It is pure Go and runs on every system. docs/formats/vhdx.md states the bytes, the order of writes and the limits.
//
// It owns the file formats and nothing else: no network, no hypervisor, no policy. It may import the root package,
// internal/clock and the standard library only.
//
// What it promises when a process dies:
//   - Open never writes. A dirty log is replayed into memory.
//   - A file made by Create is no valid VHDX before Finish has made every byte of it durable.
//   - A file changed through OpenLive, Merge, SetDiskID or SetParent is a valid VHDX after a kill at any instant, and each
//     512-byte sector holds its old or its new bytes. After a power failure that holds for what Flush or Close had covered;
//     use a hypervisor's own writer where unflushed writes must keep their order over a power failure.
//
// Files are foreign input: every length is bounded before memory is taken, and a broken rule is an error of Kind Corrupt.
package vhdx
